"""`zmesh bench`: what was typed, checked; one run, or a sweep of them; text, JSON and an exit code."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from zmesh.answers import VERSION
from zmesh.bench.figures import Figures
from zmesh.bench.knee import ALONE_FACTOR, Knee, judged
from zmesh.bench.load import CONNECTIONS, Load
from zmesh.bench.loops import generate
from zmesh.bench.report import (
    document,
    progress_line,
    result_document,
    result_text,
    sweep_document,
    sweep_text,
)
from zmesh.bench.target import Target, reach, target
from zmesh.bench.verdict import faults
from zmesh.errors import UsageError
from zmesh.transport import raise_file_limit

__all__ = ["INVALID", "Outcome", "bench"]

INVALID = 5  # exit code
FILES_SPARE = 64  # open files beside the connections
SETTLE_TRIES = 40  # runs of SETTLE_SECONDS with one client, until a server that was overloaded is quiet again
SETTLE_SECONDS = 0.25

Say = Callable[[str], None]  # shows a line in place of the one before


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to show: `text` for a person, `document` for a program."""

    text: str
    document: str
    is_valid: bool

    @property
    def exit_code(self) -> int:
        return 0 if self.is_valid else INVALID


def bench(
    url: str,
    *,
    rate: float | None = None,
    arrivals: str | None = None,
    clients: int | None = None,
    sweep: bool = False,
    slo_ms: float | None = None,
    connections: int | None = None,
    timeout: int,
    seconds: float,
    warmup: float,
    seed: int,
    method: str = "",
    header: Sequence[str] = (),
    data: Sequence[str] = (),
    json_path: str = "",
    say: Say | None = None,
) -> Outcome:
    """Do what was typed. Raises UsageError for what cannot be, StartError when nobody listens at `url`."""
    typed = {"rate": rate, "slo-ms": slo_ms, "seconds": seconds, "warmup": warmup}
    _check(typed, arrivals=arrivals, clients=clients, sweep=sweep, connections=connections)
    load = Load(
        seconds=seconds,
        warmup=warmup,
        rate=rate or 0.0,
        arrivals=arrivals or "poisson",
        seed=seed,
        clients=clients or 0,
        connections=connections or CONNECTIONS,
        timeout_seconds=timeout / 1000,
    )
    aim = target(url, method, header, data)
    _allow_files(load)
    if json_path not in ("", "-"):
        _try_to_write(json_path)
    run = _Runs(aim, reach(aim), say)
    outcome = _sweep(run, load, slo_ms) if sweep else _one(run, load)
    if json_path not in ("", "-"):
        _write(json_path, outcome.document)
    return outcome


def _check(
    typed: Mapping[str, float | None],
    *,
    arrivals: str | None,
    clients: int | None,
    sweep: bool,
    connections: int | None,
) -> None:
    for name, value in typed.items():
        if value is not None and not isfinite(value):
            raise UsageError(f"--{name} must be a number, not {value}; see zmesh bench --help")
    has_rate = typed["rate"] is not None
    if clients is not None and (has_rate or sweep):
        other = "--sweep" if sweep else "--rate"
        raise UsageError(f"{other} and --clients contradict each other; leave one of them out")
    if clients is None and not has_rate and not sweep:
        raise UsageError(
            "how much load? say --rate 100 (by the clock), --clients 8 (each waits for its answer) or --sweep"
        )
    if clients is not None and arrivals is not None:
        raise UsageError("--arrivals belongs to --rate; with --clients the answers say when the next request leaves")
    if clients is not None and connections is not None:
        raise UsageError("--connections belongs to --rate; with --clients each client has one")
    if typed["slo-ms"] is not None and not sweep:
        raise UsageError("--slo-ms belongs to --sweep; leave it out, or add --sweep")


def _allow_files(load: Load) -> None:
    raise_file_limit()
    allowed, wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[0], load.clients or load.connections
    if wanted + FILES_SPARE > allowed:
        option = "--clients" if load.clients else "--connections"
        raise UsageError(f"{option} {wanted} needs more open files than the {allowed} allowed here; see ulimit -n")


def _try_to_write(path: str) -> None:
    """Before a run that would be for nothing. What stands there stays until there is something better."""
    try:
        open(path, "a").close()
    except OSError as error:
        raise UsageError(f"--json {path}: {error.strerror}; name a file that can be written") from error


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text + "\n")


class _Runs:
    """Runs of one target, with a line of progress."""

    def __init__(self, target: Target, address: tuple[str, int], say: Say | None) -> None:
        self.target, self._address, self._say = target, address, say

    def __call__(self, load: Load, before: str = "") -> Figures:
        say = self._say
        if say is None:
            return generate(self.target, self._address, load)
        try:
            return generate(
                self.target,
                self._address,
                load,
                lambda elapsed, so_far: say(before + progress_line(load, elapsed, so_far)),
            )
        finally:
            say("")


def _one(run: _Runs, load: Load) -> Outcome:
    figures = run(load)
    said = {**document(VERSION, run.target, load), "result": result_document(figures)}
    return Outcome(result_text(run.target, load, figures), _dumped(said), not list(faults(figures)))


def _sweep(run: _Runs, load: Load, slo_ms: float | None) -> Outcome:
    """One client alone first: it says what is fast here, and how much a server does that has no rush."""
    single = replace(load, clients=1, rate=0.0)
    alone = run(single, "one client alone: ")
    if not alone.good:
        said = {**document(VERSION, run.target, single), "result": result_document(alone)}
        return Outcome(result_text(run.target, single, alone), _dumped(said), False)
    limit = slo_ms / 1e3 if slo_ms is not None else ALONE_FACTOR * alone.latency.percentile(99)
    knee = Knee(load.rate or alone.goodput)
    for rate in knee.rates():
        figures = run(replace(load, rate=rate), f"step {len(knee.steps) + 1}, {rate:g} req/s: ")
        knee.steps.append(judged(rate, figures, limit))
        if knee.steps[-1].limit:
            _settle(run, single, limit)
    said = {**document(VERSION, run.target, load), "sweep": sweep_document(alone, limit, knee)}
    return Outcome(sweep_text(run.target, load, alone, limit, knee), _dumped(said), knee.is_of_server)


def _settle(run: _Runs, single: Load, limit: float) -> None:
    """What a server still does for requests that nobody waits for any more is not part of the next step."""
    for _ in range(SETTLE_TRIES):
        figures = run(replace(single, seconds=SETTLE_SECONDS, warmup=0.0), "waiting until the server is quiet: ")
        if figures.good and figures.latency.percentile(50) <= limit:
            return


def _dumped(said: dict[str, Any]) -> str:
    return json.dumps(said, indent=2)
