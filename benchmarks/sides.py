"""The servers that are measured beside one another: how each is started, waited for, loaded, and stopped whole."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.load import BODY, wrk
from benchmarks.peers import Unavailable, python_of
from benchmarks.usage import GroupOf, cpu_seconds, family, mosec_group, spent, zmesh_group
from tests.harness import RunningMesh, running

__all__ = ["APPS", "Sample", "Side", "loaded", "middle", "mosec", "prepare", "serving", "skip", "zmesh"]

APPS = Path(__file__).parent / "apps"
START_SECONDS_MAX = 180.0
LEARNING_SECONDS = 1.0  # of load before each measurement: caches fill, and who learns from traffic learns


@dataclass(frozen=True)
class Side:
    """A server with its settings. `command` may say {python} and {bin}: those of the peer's environment."""

    name: str
    settings: str
    command: Sequence[str]
    peer: str = ""  # whose environment; "" is this one
    route: str = "/inference"
    env: Mapping[str, str] = field(default_factory=dict)
    group_of: GroupOf = zmesh_group
    body: str = BODY

    def at(self, route: str) -> Side:
        return replace(self, route=route)


@dataclass
class Sample:
    """One run of wrk on one side. CPU is in microseconds per request, by group of processes."""

    rate: float
    p50: float
    p99: float
    wrong: int
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def cpu_in_all(self) -> float:
        return sum(self.cpu.values())


def zmesh(name: str, settings: str, app: Path, **env: object) -> Side:
    command = ["{python}", "-m", "zmesh", "run", str(app), "--timeout", "30000"]
    return Side(name, settings, command, env={key: str(value) for key, value in env.items()})


def mosec(name: str, settings: str, app: Path, **env: object) -> Side:
    command = ["{python}", str(app), "--timeout", "30000"]
    words = {key: str(value) for key, value in env.items()}
    return Side(name, settings, command, "mosec", env=words, group_of=mosec_group)


def skip(side: Side, why: Unavailable, skipped: dict[str, str]) -> None:
    """Go on without a peer, and say so. Without zmesh there is nothing to measure, so that ends the program."""
    if not side.peer:
        sys.exit(f"zmesh could not be measured: {why}")
    skipped[side.name] = str(why)
    print(f"skipped: {side.name} ({why})", flush=True)


def prepare(sides: Sequence[Side], may_install: bool = True) -> tuple[list[Side], dict[str, str]]:
    """Those that can be measured, and why the others cannot, each said in a line."""
    ready: list[Side] = []
    skipped: dict[str, str] = {}
    for side in sides:
        try:
            if side.peer:
                python_of(side.peer, may_install)
            ready.append(side)
        except Unavailable as why:
            skip(side, why, skipped)
    return ready, skipped


@contextmanager
def serving(side: Side) -> Iterator[RunningMesh]:
    """The server, answering, on a free port; nothing of it is left afterwards. Raises Unavailable."""
    with ExitStack() as held:
        try:
            server = held.enter_context(_serving(side))
        except Unavailable:  # somebody may have taken the port before the server did; another one, then
            server = held.enter_context(_serving(side))
        yield server


@contextmanager
def _serving(side: Side) -> Iterator[RunningMesh]:
    python = python_of(side.peer, may_install=False) if side.peer else Path(sys.executable)
    command = [part.format(python=python, bin=python.parent) for part in side.command]
    everything: list[psutil.Process] = []
    try:
        with running("", command=command, env=side.env, ready=False) as server:
            try:
                _wait_until_it_answers(side, server)
                yield server
            finally:
                everything += family(server.process.pid)
    finally:
        for process in everything:  # a server may leave its children behind; psutil knows a pid that is somebody else
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass


def _wait_until_it_answers(side: Side, server: RunningMesh) -> None:
    end = time.monotonic() + START_SECONDS_MAX
    while not _answers(side, server) or server.process.poll() is not None:  # the answer may be somebody else's
        if server.process.poll() is not None:
            lines = [line for line in server.log().splitlines() if line.strip()]
            raise Unavailable(f"{side.name} ended while it started: {lines[-1] if lines else 'it said nothing'}")
        if time.monotonic() > end:
            raise Unavailable(f"{side.name} did not answer in {START_SECONDS_MAX:.0f} s")
        time.sleep(0.02)


def _answers(side: Side, server: RunningMesh) -> bool:
    """Nobody has to be patient with a server that is up, so 5 s are enough for one answer."""
    try:
        asked = server.post(side.route, side.body.encode(), {"content-type": "application/json"}, timeout=5)
    except OSError:
        return False
    return asked.status == 200


def loaded(
    side: Side,
    server: RunningMesh,
    clients: int,
    seconds: float,
    route: str = "",
    learning: float = LEARNING_SECONDS,
) -> Sample:
    """A closed loop of `clients`, after a second or more of the same that does not count. Raises Unavailable."""
    url = server.url + (route or side.route)
    try:
        wrk(url, clients, learning, side.body)
        before = cpu_seconds(server.process.pid, side.group_of)
        run = wrk(url, clients, seconds, side.body)
    except RuntimeError as error:
        raise Unavailable(f"{side.name}, {clients} clients: {error}") from error
    used = spent(before, cpu_seconds(server.process.pid, side.group_of))
    cpu = {group: seconds / max(1, run.requests) * 1e6 for group, seconds in used.items()}
    return Sample(run.rate, run.p50, run.p99, run.wrong + run.broken, cpu)


def middle(samples: Sequence[Sample]) -> dict[str, Any]:
    """The medians of each figure; of wrong answers the sum."""
    groups = list(dict.fromkeys(group for sample in samples for group in sample.cpu))
    whole = Sample(
        rate=median(sample.rate for sample in samples),
        p50=median(sample.p50 for sample in samples),
        p99=median(sample.p99 for sample in samples),
        wrong=sum(sample.wrong for sample in samples),
        cpu={group: median(sample.cpu.get(group, 0.0) for sample in samples) for group in groups},
    )
    return {**asdict(whole), "cpu_in_all": median(sample.cpu_in_all for sample in samples)}
