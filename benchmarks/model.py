"""How much of a model's time is used: sleeping models of 2, 10 and 50 ms per batch of 32, beside mosec and the ideal.

    ./scripts/bench model [--seconds 3] [--rounds 3] [--ms 2,10,50] [--clients 8,32,128,256] [--write]

The ideal is min(clients, batch) / (mean forward time + unloaded round trip of a batch of that size); both are measured
in the same run, on the same server.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.load import burst_round_trip, need_wrk, one_client
from benchmarks.peers import Unavailable, installed_version
from benchmarks.plot import Bar, bars
from benchmarks.report import Data, Verdict, add_options, at_least, finish, none_wrong, table
from benchmarks.sides import APPS, Sample, Side, loaded, middle, mosec, prepare, serving, skip, zmesh
from tests.harness import RunningMesh

BATCH = 32
WAIT_MS = 5
BARS = {8: 0.90, 32: 0.90, 128: 0.97, 256: 0.97}
ROUTE = "/model"
LEARNING_SECONDS = 2.0  # forty batches of 50 ms


@dataclass
class Ideal:
    """Of one run: what one forward took on average, and what a batch took there and back, in seconds."""

    forward: float
    round_trip: float

    def rate(self, clients: int) -> float:
        return min(clients, BATCH) / (self.forward + self.round_trip)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="bench model", description=(__doc__ or "").splitlines()[0])
    add_options(parser, seconds=3.0, rounds=3)
    parser.add_argument("--ms", default="2,10,50", help="per batch; default 2,10,50")
    parser.add_argument("--clients", default="8,32,128,256")
    parser.add_argument("--mosec-json", choices=["own", "orjson"], default="own", help="of mosec's worker; default own")
    parser.add_argument("--alone", action="store_true", help="zmesh only")
    options = parser.parse_args(given)
    need_wrk()
    times, crowds = ([int(text) for text in words.split(",")] for words in (options.ms, options.clients))
    _, skipped = prepare([] if options.alone else [_mosec(0, options.mosec_json)], not options.installed_only)
    with_mosec = not options.alone and not skipped
    data: Data = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "mosec_json": options.mosec_json,
        "versions": {"mosec": installed_version("mosec")} if with_mosec else {},
        "cells": {str(ms): _measure(ms, crowds, options, with_mosec, skipped) for ms in times},
        "skipped": skipped,
    }
    return finish("model", given, data, options)


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _zmesh(ms: int, stats: str) -> Side:
    app = APPS / "model.py"
    env = {"MODEL_MS": ms, "MODEL_BATCH": BATCH, "MODEL_WAIT": WAIT_MS, "MODEL_STATS": stats}
    return zmesh("zmesh", "", app, **env).at(ROUTE)


def _mosec(ms: int, json_of: str) -> Side:
    env = {"MODEL_MS": ms, "MODEL_BATCH": BATCH, "MODEL_WAIT": WAIT_MS, "ECHO_JSON": json_of}
    return mosec("mosec", "", APPS / "model_mosec.py", **env).at(ROUTE)


def _measure(
    ms: int, crowds: Sequence[int], options: argparse.Namespace, with_mosec: bool, skipped: dict[str, str]
) -> Data:
    """All crowds of one model: clients → the medians of both sides and of the share of the ideal."""
    ours: dict[int, list[Sample]] = {clients: [] for clients in crowds}
    theirs: dict[int, list[Sample]] = {clients: [] for clients in crowds}
    ideals: dict[int, list[Ideal]] = {clients: [] for clients in crowds}
    for number in range(options.rounds):
        try:
            _measure_ours(number, ms, options.seconds, ours, ideals)
        except Unavailable as why:
            skip(_zmesh(ms, ""), why, skipped)
        side = _mosec(ms, options.mosec_json)
        if with_mosec and side.name not in skipped:
            try:
                _measure_theirs(number, ms, side, options.seconds, theirs)
            except Unavailable as why:
                skip(side, why, skipped)
    return {str(clients): _cell(clients, ours[clients], ideals[clients], theirs[clients]) for clients in crowds}


def _measure_ours(
    number: int, ms: int, seconds: float, ours: dict[int, list[Sample]], ideals: dict[int, list[Ideal]]
) -> None:
    with tempfile.NamedTemporaryFile() as stats:
        stats.write(bytes(16))
        stats.flush()
        side = _zmesh(ms, stats.name)
        with serving(side) as server:
            trips = _round_trips(server)
            for clients in ours:
                sample, ideal = _with_ideal(side, server, clients, seconds, stats.name, trips)
                ours[clients].append(sample)
                ideals[clients].append(ideal)
                _say(number, ms, clients, "zmesh", sample, f" of an ideal {ideal.rate(clients):.0f}")


def _measure_theirs(number: int, ms: int, side: Side, seconds: float, theirs: dict[int, list[Sample]]) -> None:
    with serving(side) as server:
        for clients in theirs:
            sample = loaded(side, server, clients, seconds, learning=LEARNING_SECONDS)
            theirs[clients].append(sample)
            _say(number, ms, clients, "mosec", sample)


def _say(number: int, ms: int, clients: int, name: str, sample: Sample, more: str = "") -> None:
    print(f"round {number + 1}: {ms} ms, {clients} clients, {name}: {sample.rate:.0f}/s{more}", flush=True)


def _round_trips(server: RunningMesh) -> dict[int, float]:
    one_client(server.port, ROUTE, 20)
    return {size: burst_round_trip(server.port, f"/nothing{size}", size) for size in (8, 32)}


def _with_ideal(
    side: Side, server: RunningMesh, clients: int, seconds: float, stats: str, trips: dict[int, float]
) -> tuple[Sample, Ideal]:
    """The forward time is that of all batches, those of the learning too: the model sleeps the same."""
    before = _stats(stats)
    sample = loaded(side, server, clients, seconds, learning=LEARNING_SECONDS)
    after = _stats(stats)
    forward = (after[1] - before[1]) / (after[0] - before[0])
    return sample, Ideal(forward, trips[8 if clients <= 8 else 32])


def _stats(path: str) -> tuple[int, float]:
    batches, seconds = struct.unpack("<Qd", Path(path).read_bytes()[:16])
    return batches, seconds


def _cell(clients: int, ours: Sequence[Sample], ideals: Sequence[Ideal], theirs: Sequence[Sample]) -> Data:
    def of_ideals(value: Callable[[Ideal], float]) -> float:
        return median(map(value, ideals))

    shares = [sample.rate / ideal.rate(clients) for sample, ideal in zip(ours, ideals, strict=True)]
    return {
        "zmesh": middle(ours),
        "mosec": middle(theirs) if theirs else None,
        "ideal": of_ideals(lambda ideal: ideal.rate(clients)),
        "forward": of_ideals(lambda ideal: ideal.forward),
        "round_trip": of_ideals(lambda ideal: ideal.round_trip),
        "share": median(shares),
        "shares": shares,
    }


# ── what it means ─────────────────────────────────────────────────────────────────────────────────────────────────


def verdicts(data: Data) -> list[Verdict]:
    found = []
    for ms, crowds in data["cells"].items():
        for clients, cell in crowds.items():
            if int(clients) in BARS:
                bar = BARS[int(clients)]
                found.append(at_least(f"share of the ideal, {ms} ms, {clients} clients", cell["share"], bar))
            if cell["mosec"]:
                ratio = cell["zmesh"]["rate"] / cell["mosec"]["rate"]
                found.append(at_least(f"beside mosec, {ms} ms, {clients} clients", ratio, 1.0, " x"))
    ours = [cell["zmesh"] for crowds in data["cells"].values() for cell in crowds.values()]
    return [*found, none_wrong(ours)]


def section(data: Data) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items()) or "no peer"
    json_of = " with orjson" if data["mosec_json"] == "orjson" else " with its own JSON" if data["versions"] else ""
    head = (
        f"A model that sleeps, max batch {BATCH}, max wait {WAIT_MS} ms, one worker; beside {versions}{json_of}. The"
        " ideal is `min(clients, 32) / (mean forward time + unloaded round trip of a batch of that size)`, measured"
        " in the same run; a share above 1 is possible, because a full batch is sent one ahead. wrk with one"
        f" thread, rounds in turn: {data['rounds']} of {data['seconds']:g} s, medians."
    )
    columns = ("ms", "clients", "zmesh req/s", "ideal", "share", "mosec req/s", "beside", "p50 ms", "mosec p50",
               "p99 ms", "mosec p99", "wrong")  # fmt: skip
    rows = [_row(ms, clients, cell) for ms, crowds in data["cells"].items() for clients, cell in crowds.items()]
    return "\n\n".join([head, table(columns, rows)])


def _row(ms: str, clients: str, cell: Data) -> tuple[object, ...]:
    ours, theirs = cell["zmesh"], cell["mosec"]
    wrong = ours["wrong"] + (theirs["wrong"] if theirs else 0)
    rate, ratio = (f"{theirs['rate']:.0f}", f"{ours['rate'] / theirs['rate']:.2f} x") if theirs else ("", "")
    p50, p99 = (f"{theirs['p50'] * 1e3:.1f}", f"{theirs['p99'] * 1e3:.1f}") if theirs else ("", "")
    return (
        ms, clients, f"{ours['rate']:.0f}", f"{cell['ideal']:.0f}", f"{cell['share']:.3f}", rate, ratio,
        f"{ours['p50'] * 1e3:.1f}", p50, f"{ours['p99'] * 1e3:.1f}", p99, wrong,
    )  # fmt: skip


def plot(data: Data) -> str:
    panels = {
        f"requests a second, {ms} ms per batch of {BATCH}, {clients} clients": [
            Bar("zmesh", cell["zmesh"]["rate"], f"{cell['zmesh']['rate']:.0f}", is_ours=True),
            *([Bar("mosec", cell["mosec"]["rate"], f"{cell['mosec']['rate']:.0f}")] if cell["mosec"] else []),
            Bar("ideal", cell["ideal"], f"{cell['ideal']:.0f}"),
        ]
        for ms, crowds in data["cells"].items()
        for clients, cell in crowds.items()
    }
    return bars("A sleeping model", panels)


if __name__ == "__main__":
    sys.exit(main())
