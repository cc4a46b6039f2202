"""Requests that know their right answer, and a fake model that computes it.

A request carries a nonce. Each stage appends its name to what it is given, so that the answer shows whose it is and
which stages it went through, in which order. A few requests have a *flaw* at one of their stages:

* BAD: the row has an error of its own, and nobody else has;
* RAISE: `forward` raises for any batch it is in, so that the batch is bisected;
* POISON: the process ends when it gets there, in decode, forward or encode;
* ENDLESS: `forward` takes far longer than anybody waits for any batch it is in; half of the time in native code, where
  no signal is heard;
* HUGE: it is larger than a message may be.

What a stage hands on is a reference wherever it may be: the same bytes, of another kind. A few of them are lost, once.

A *sick* worker answers each row with an error that bears its name and the lease, so that it shows whose word counted.

`Batch` does with a lease what zmesh/runner.py does, in virtual time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from tests.simulation.world import Process
from zmesh.core.effects import Run
from zmesh.core.events import RowsFinished, RowsStreamed
from zmesh.messages import Kind, Payload, Phase, State, Status, TaskId

__all__ = ["ENDLESS_SECONDS", "SICK", "Ask", "Batch", "Flaw", "Part", "Slate"]

ERRORS = (Status.BAD_REQUEST, Status.VALIDATION, Status.INTERNAL)
SICK = b"sick: "
POISONOUS = (Phase.DECODE, Phase.FORWARD, Phase.FORWARD, Phase.FORWARD, Phase.ENCODE)
ENDLESS_SECONDS = 25.0


class Flaw(Enum):
    NONE = "none"
    BAD = "bad"
    RAISE = "raise"
    POISON = "poison"
    ENDLESS = "endless"
    HUGE = "huge"  # larger than a message may be


@dataclass(eq=False, slots=True)
class Ask:
    """One request as the world sees it: what it deserves, and what became of it."""

    nonce: int
    gateway: str
    route: str
    stages: tuple[str, ...]
    payload: bytes
    accepted: float
    deadline: float
    flaw: Flaw = Flaw.NONE
    flaw_at: str = ""  # the stage
    id: TaskId = TaskId(0)  # noqa: RUF009
    is_abandoned: bool = False
    is_shed: bool = False  # a broker said so
    status: int | None = None
    answered: float = 0.0
    starts: list[str] = field(default_factory=list)  # stages at which it began to run, in order
    charged: Counter[str] = field(default_factory=Counter)  # deaths it may have been charged with, by stage
    kills: int = 0  # processes that it ended
    given: int = 0  # leases that it was in
    holders: list[Process] = field(default_factory=list)  # the processes that were given it
    bystander: bool = False  # it was in a batch of a once-only stage that raised
    lost: list[str] = field(default_factory=list)  # stages at which what the one before had left was gone
    overran: bool = False  # it took longer than its stage allows, alone, at a once-only stage or having spoken
    heard: list[bytes] = field(default_factory=list)  # events, as its gateway delivered them

    @property
    def expected(self) -> bytes:
        return self.payload + "".join(f">{stage}" for stage in self.stages).encode()

    def input_at(self, stage: str) -> bytes:
        """What that stage must be given."""
        done = self.stages[: self.stages.index(stage)]
        return self.payload + "".join(f">{name}" for name in done).encode()

    def has(self, flaw: Flaw, stage: str) -> bool:
        return self.flaw is flaw and self.flaw_at == stage

    def loses_payload(self, stage: str) -> bool:
        """Whether what the stage before has left for that one is gone: of a few, and once."""
        if self.nonce % 41 or stage in self.lost:
            return False
        self.lost.append(stage)
        return True

    @property
    def error(self) -> tuple[int, bytes]:
        """The error that a bad row gets."""
        return int(ERRORS[self.nonce % len(ERRORS)]), b"bad row %d" % self.nonce

    @property
    def deadly_phase(self) -> Phase:
        return POISONOUS[self.nonce % len(POISONOUS)]


def nonce_of(payload: Payload) -> int:
    return int(bytes(payload[: payload.index(b":")]) if type(payload) is bytes else bytes(payload).split(b":")[0])


@dataclass(slots=True)
class Slate:
    """What a worker was doing; its agent reads it after its end."""

    lease: int = 0
    phase: Phase = Phase.STARTING
    row: int = 0
    finished: int = 0

    def write(self, lease: int, phase: Phase, row: int = 0) -> None:
        self.lease, self.phase, self.row = lease, phase, row

    def finish(self) -> None:
        self.finished += 1
        self.write(0, Phase.IDLE)


@dataclass(slots=True)
class Part:
    """Rows that are run together: how long that takes, and how it ends."""

    event: RowsFinished | None
    seconds: float
    rows: list[int]  # that reach `forward`
    halves: list[list[int]] = field(default_factory=list)
    killer: tuple[Ask, Phase, int] | None = None  # who ends the process, in which phase and row
    is_native: bool = False  # no signal is heard while it runs

    @property
    def hears_signals(self) -> bool:
        return bool(self.rows) and not self.is_native and self.killer is None


class Batch:
    """A lease as it runs, part by part."""

    def __init__(self, lease: Run, asks: list[Ask], stage: str, *, retry: bool, now: float) -> None:
        self.lease, self.asks, self.stage, self.retry = lease, asks, stage, retry
        self.todo = [list(range(len(asks)))]
        self.part: Part | None = None
        self.clock = now  # when it began, or said something last
        self.succeeded = self.is_broken_off = False
        self.said: Counter[int] = Counter()  # events, by row

    def speak(self, cancelled: Collection[int]) -> RowsStreamed | None:
        """An event for each row of the part that ends its route here. A part that raises has nothing to say: what has
        spoken would not be run again."""
        part, states = self.part, self.lease.columns.states
        if part is None or part.halves:
            return None
        rows = [row for row in part.rows if states[row] & State.EGRESS and row not in cancelled]
        payloads: list[Payload] = [
            b"%d/%d/%d" % (self.asks[row].nonce, self.lease.lease, self.said[row]) for row in rows
        ]
        self.said.update(rows)
        return RowsStreamed(rows, payloads) if rows else None

    def begin(
        self, now: float, cancelled: Collection[int], dice: Random, cost: tuple[float, float], sick: bytes = b""
    ) -> Part:
        """The next part; `cost` is seconds for a batch and for each of its rows. A `sick` worker fails every row."""
        done: list[tuple[int, int, bytes]] = []
        rows: list[int] = []
        for row in self.todo.pop():
            if self.lease.deadlines[row] <= now:
                done.append((row, int(Status.TIMEOUT), b"request timeout: its time was over before it could run"))
            elif row in cancelled or row in self.lease.skipped:
                done.append((row, int(Status.CANCELLED), b"cancelled"))
            elif self.lease.columns.kinds[row] and self.asks[row].loses_payload(self.stage):
                done.append((row, int(Status.AGAIN), b"what it stands for is gone"))
            else:
                rows.append(row)
        seconds = (cost[0] + cost[1] * len(rows)) * (0.7 + 0.6 * dice.random()) if rows else 0.0
        self.part = part = Part(None, seconds, rows)
        endless = [self.asks[row] for row in rows if self.asks[row].has(Flaw.ENDLESS, self.stage)]
        if endless:
            part.seconds, part.is_native = ENDLESS_SECONDS, any(ask.nonce % 2 for ask in endless)
        killer = next((row for row in rows if self.asks[row].has(Flaw.POISON, self.stage)), None)
        if killer is not None:
            ask = self.asks[killer]
            part.killer = ask, ask.deadly_phase, killer
            part.seconds = {Phase.DECODE: 0.0, Phase.FORWARD: seconds * dice.random(), Phase.ENCODE: seconds}[
                ask.deadly_phase
            ]
            return part
        if any(self.asks[row].has(Flaw.RAISE, self.stage) for row in rows):
            part.seconds = seconds * dice.random()
            if len(rows) > 1 and self.retry:
                middle = (len(rows) + 1) // 2
                part.halves = [rows[middle:], rows[:middle]]
            else:
                for row in rows:
                    self.asks[row].bystander = True
                done += [(row, int(Status.INTERNAL), b"forward raised") for row in rows]
        elif sick:
            done += [
                (row, int(Status.INTERNAL), b"%s%s lease %d row %d" % (SICK, sick, self.lease.lease, row))
                for row in rows
            ]
        else:
            done += [(row, *self._result(row)) for row in rows]
        if done:
            part.event = self._event(done, seconds)
            self.succeeded = self.succeeded or int(Status.OK) in part.event.statuses
        self.todo += part.halves
        return part

    def break_off(self, status: Status, text: bytes) -> None:
        """What runs and what was still to do ends with this; what had ended before `forward` stays as it was."""
        part = self.part
        assert part is not None
        rows = sorted({*part.rows, *(row for half in self.todo for row in half)})
        done = {row: (int(status), text) for row in rows}
        if part.event is not None:
            before = zip(part.event.rows, part.event.statuses, part.event.payloads, strict=True)
            done |= {row: (said, bytes(payload)) for row, said, payload in before if row not in done}
        self.todo, self.is_broken_off = [], True
        part.event = self._event([(row, *said) for row, said in done.items()], part.seconds)

    def _event(self, done: list[tuple[int, int, bytes]], seconds: float) -> RowsFinished:
        """Results for a next stage go by reference where everybody is near."""
        rows, statuses, payloads = (list(column) for column in zip(*done, strict=True))
        states = self.lease.columns.states
        goes = [
            self.lease.is_near and status == Status.OK and not states[row] & State.EGRESS for row, status, _ in done
        ]
        kinds = [int(Kind.HOST_BOUND if by_reference else Kind.INLINE) for by_reference in goes]
        sizes = [
            len(payload) * (10 if by_reference else 1) for (*_, payload), by_reference in zip(done, goes, strict=True)
        ]
        return RowsFinished(rows, statuses, kinds, payloads, int(seconds * 1e6), sizes if any(kinds) else None)

    def _result(self, row: int) -> tuple[int, bytes]:
        ask = self.asks[row]
        if ask.has(Flaw.BAD, self.stage):
            return ask.error
        return int(Status.OK), bytes(self.lease.columns.payloads[row]) + b">" + self.stage.encode()
