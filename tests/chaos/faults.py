"""What the nemesis of `scripts/chaos` does to a mesh: one small class per kind of fault.

A fault draws its times and its victims from a seeded generator before anything runs, so that a seed gives the same
schedule again; which process has the drawn place at that moment is up to the mesh. `strike` says what it hit, and
returns how to end it if it lasts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple, Protocol

from tests.chaos.layouts import TormentedMesh, is_alive
from tests.harness import wait_until
from tests.hosts import children

RESTART_SECONDS = 60.0


class Stroke(NamedTuple):
    """When, in seconds from the start of the nemesis; a number in [0, 1) that chooses the victim; how long."""

    at: float
    draw: float
    seconds: float


class Hit(NamedTuple):
    """What was hit. `undo` ends it, `seconds` later."""

    pid: int = 0
    target: str = ""
    undo: Callable[[], None] | None = None
    notes: dict[str, Any] = {}


class Field(Protocol):
    """What a fault may touch."""

    mesh: TormentedMesh
    directory: Path

    def command(self, **words: object) -> None: ...


@dataclass(frozen=True)
class Fault:
    """`every` so many seconds, from `first`; it lasts between `least` and `most`. With `is_random` the gaps are
    exponential with that mean. Where `given` is not empty, these are its strokes."""

    every: float = 0.0
    first: float = 0.0
    least: float = 0.0
    most: float = 0.0
    is_random: bool = False
    given: tuple[Stroke, ...] = ()
    layouts = ("run", "isolated", "gateways", "hosts")  # where it makes sense

    def strokes(self, dice: Random, until: float) -> Iterator[Stroke]:
        if self.given:
            yield from (stroke for stroke in self.given if stroke.at < until)
            return
        at = self.first or dice.uniform(0.0, self.every)
        while at < until:
            seconds = min(dice.uniform(self.least, self.most), max(0.0, until - at))
            yield Stroke(at, dice.random(), seconds)
            at += dice.expovariate(1 / self.every) if self.is_random else self.every

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        """None when there was nobody to hit. May raise OSError or AssertionError for the same reason."""
        raise NotImplementedError


def send(pid: int, number: signal.Signals) -> int:
    """A pidfd, for what follows: a number may soon belong to somebody else. Raises ProcessLookupError."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, number)
    except OSError:
        os.close(fd)
        raise
    return fd


def stop(pid: int, target: str) -> Hit:
    fd = send(pid, signal.SIGSTOP)

    def go_on() -> None:
        try:
            signal.pidfd_send_signal(fd, signal.SIGCONT)
        except ProcessLookupError:
            pass  # killed meanwhile
        os.close(fd)

    return Hit(pid, target, go_on)


@dataclass(frozen=True)
class WorkerFault(Fault):
    number = signal.SIGKILL

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        workers = field.mesh.workers()
        if not workers:
            return None
        victim = workers[int(stroke.draw * len(workers))]
        if self.number is signal.SIGSTOP:
            return stop(victim.pid, victim.name)
        os.close(send(victim.pid, self.number))
        return Hit(victim.pid, victim.name)


class KillWorker(WorkerFault):
    number = signal.SIGKILL


class TerminateWorker(WorkerFault):
    """Which a worker does not heed: it leaves when its agent says so."""

    number = signal.SIGTERM


class AbortWorker(WorkerFault):
    """The only signal here that is held against what runs."""

    number = signal.SIGABRT


class StopWorker(WorkerFault):
    number = signal.SIGSTOP


class StopAgent(Fault):
    """Of the workers. Nobody reports exits, starts anything or speaks for a busy worker meanwhile."""

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        return stop(field.mesh.agent("worker"), "agent")


class StopBroker(Fault):
    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        return stop(field.mesh.child("broker"), "broker")


class StopGateway(Fault):
    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        return stop(field.mesh.child("gateway"), "gateway")


class KillBroker(Fault):
    layouts = ("isolated", "gateways", "hosts")

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        pid = field.mesh.child("broker")
        os.close(send(pid, signal.SIGKILL))
        return Hit(pid, "broker")


class RestartBroker(Fault):
    """As planned: it is told to stop, finishes what it holds, and another one is started in its place."""

    layouts = ("hosts",)

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        program = field.mesh.programs["broker"]
        program.process.terminate()

        def start_again() -> None:
            code = program.process.wait(RESTART_SECONDS)
            assert code == 0, f"the broker ended with {code}"
            field.mesh.start("broker")

        return Hit(program.process.pid, "broker", start_again)


class CutLinks(Fault):
    """All connections of the worker host break."""

    layouts = ("hosts",)

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        assert field.mesh.proxy is not None, "only between hosts"
        field.mesh.proxy.cut()
        return Hit(0, "links")


class KillAgent(Fault):
    """Of the worker host: its children end with it, and somebody starts it again."""

    layouts = ("hosts",)

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        program = field.mesh.programs["workers"]
        family = children(program.process.pid)
        began = monotonic()
        program.process.kill()
        program.process.wait()

        def are_gone() -> bool:
            return not any(is_alive(pid) for pid in family)

        wait_until(are_gone, RESTART_SECONDS, "the children of a killed agent to be gone")
        gone_in = monotonic() - began
        return Hit(program.process.pid, "agent", lambda: field.mesh.start("workers"), {"gone_in": gone_in})


class Overload(Fault):
    """Ten times the clients."""

    clients = 576

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        field.command(do="burst", clients=self.clients, seconds=stroke.seconds)
        return Hit(0, "clients", lambda: None)


class Poison(Fault):
    """A request that ends whoever runs it."""

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        field.command(do="poison")
        return Hit(0, "a request")


class SlowFirst(Fault):
    """A worker dies, and the first batch of whoever starts meanwhile takes a second."""

    def strike(self, field: Field, stroke: Stroke) -> Hit | None:
        mark = field.directory / "slow-first"
        mark.touch()
        hit = KillWorker().strike(field, stroke)
        if hit is None:
            mark.unlink()
            return None
        return hit._replace(undo=lambda: mark.unlink(missing_ok=True))
