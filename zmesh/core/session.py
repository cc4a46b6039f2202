"""The worker's half: leases held, results unacknowledged.

A worker owns nothing. It runs one lease at a time, holds the next ones, and keeps every RESULTS until the broker says
that it has all rows of the lease. Pure: what happened, and the time, are given in.

Credit. `total` in CREDIT is absolute since the HELLO of the session, so that repeating it changes nothing:

    total = used + room
    used  = leases which that HELLO listed as running or waiting, if its epoch is the broker's, else 0,
            + leases given in this session
    room  = prefetch - leases held now (running and waiting, of any epoch); 0 while draining

The broker counts `used` in the same way, whether it still knows a listed lease or not, and gives while total > used.
It adds 1 to the total by itself when RESULTS complete a lease that it counted: room grows here at the same moment. For
a lease of an earlier session, which it may not have counted, CREDIT follows the RESULTS at once. So never more than
`prefetch` leases are held, and a wrong count heals with the next CREDIT: every heartbeat, between two leases or while
there is none, which is also the sign of life. HELLO is repeated word for word: it does not matter which one was heard.

A worker does not listen while it runs `forward`. The broker's silence counts only from the end of a lease, and a lease
starts only while there is a session, so that no HELLO waits behind a long batch.

A new epoch means that the broker's memory is gone and that the gateways submit their tasks again. Waiting leases are
then dropped. What runs goes on, since it is paid for; its RESULTS, and those kept, go to the new broker with their
task ids, by which it can match them. They go once and are not kept: refused or lost, they cost time but no task.

Events of a stream go out at once or are lost; each row's are numbered, and its RESULTS say how many there were.

References. What a row's payload stands for outlives the reading of it, because another worker may be given the row.
Once the broker has acknowledged the lease nobody will be, unless the row ended TIMEOUT or AGAIN: `Settled` names these.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TypeAlias

from zmesh import messages
from zmesh.config import Limits
from zmesh.core.contact import Contact, ContactState, Step
from zmesh.core.difference import shape_for_hello
from zmesh.core.effects import Leave, Report, Run, SessionEffect, Settled, Transmit
from zmesh.core.events import DrainAsked, Heard, LinkLost, RowsFinished, RowsStreamed, SessionEvent, Started
from zmesh.messages import Columns, Hello, LeaseId, Message, Payload, PeerId, RefuseCode, Results, SessionId, TaskId

__all__ = ["Session"]

KEPT_LEASES_MAX = 64  # leases whose results are kept; with a broker that acknowledges it is a handful
NOT_SETTLED = frozenset({int(messages.Status.TIMEOUT), int(messages.Status.AGAIN)})  # the row may be run again
FATAL = frozenset({RefuseCode.VERSION, RefuseCode.STAGE, RefuseCode.FINGERPRINT, RefuseCode.KEY})


@dataclass(slots=True, eq=False)
class _Lease:
    """A batch in this worker's hands, given in `session` of `epoch`; rows without a status, and rows nobody wants."""

    id: LeaseId
    epoch: int
    session: SessionId
    columns: Columns
    deadlines: list[float]
    unfinished: set[int]
    cancelled: set[int]
    near: bool = False
    has_references: bool = False
    said: dict[int, int] = field(default_factory=dict)  # how many events, by row


_Kept: TypeAlias = tuple[Results, list[TaskId]]  # RESULTS to say again, and the task ids of all rows of its lease


class Session:
    """One worker's side of its broker. `prefetch` is how many leases it wants to hold, the running one included."""

    def __init__(
        self,
        peer: PeerId,
        stage: str,
        worker_id: int,
        host: str,
        pid: int,
        fingerprint: str,
        max_batch_size: int,
        prefetch: int,
        limits: Limits,
        *,
        shape: str = "",
        memory: str = "",
    ) -> None:
        assert prefetch >= 1, "a worker that asks for nothing gets nothing"
        versions, role = [messages.PROTOCOL_VERSION], messages.Role.WORKER
        hello = Hello(versions, role, peer, 0, host, pid, fingerprint, stage, worker_id, max_batch_size)
        self._hello = replace(hello, shape=shape_for_hello(shape), memory=memory)
        self._prefetch = prefetch
        self._contact = Contact(limits)
        self._running: _Lease | None = None
        self._waiting: dict[LeaseId, _Lease] = {}  # all of the contact's epoch, in the order they came
        self._kept: dict[tuple[int, LeaseId], list[_Kept]] = {}  # by epoch and lease
        self._spent: dict[tuple[int, LeaseId], Settled] = {}  # references of leases whose results are kept
        self._used = 0  # see the module
        self._draining, self._leave_at = False, inf
        # Facts of the turn, handed out at its end.
        self._effects: list[SessionEffect] = []
        self._unsent: list[_Kept] = []
        self._owes_credit = False
        self._leave: Leave | None = None

    @property
    def epoch(self) -> int:
        """Of the broker that last welcomed it; 0 before."""
        return self._contact.epoch

    @property
    def joined(self) -> bool:
        return self._contact.joined

    @property
    def held(self) -> int:
        """How many leases are in hand, running and waiting."""
        return len(self._waiting) + (self._running is not None)

    @property
    def cancelled_running(self) -> set[int]:
        """Rows of the running lease that nobody wants any more; grows while it runs. For reading."""
        return set() if self._running is None else self._running.cancelled

    def next_wakeup(self) -> float | None:
        """When `handle` must be called at the latest, on the clock of `now`; None when only an event can matter."""
        if self._contact.state is ContactState.LEFT:
            return None
        wake = self._leave_at if self._running is not None else min(self._leave_at, self._contact.wakeup())
        return None if wake == inf else wake

    def handle(self, *events: SessionEvent, now: float) -> list[SessionEffect]:
        """Take what happened, in order, and return what must be done, in order. `now` is monotonic, in seconds."""
        if self._contact.state is ContactState.LEFT:
            return []
        self._contact.turn(now)
        for event in events:
            match event:
                case Heard():
                    self._hear(event, now)
                case RowsFinished():
                    self._finish(event, now)
                case RowsStreamed():
                    self._stream(event)
                case DrainAsked():
                    self._drain(event.message, now)
                case Started():
                    self._greet(now)
                case LinkLost():
                    self._lose()
                case _:
                    pass  # Tick: only the time
        if self._running is None and self._contact.is_silent(now):
            self._report("warning", f"no word from the broker for {self._contact.dead_seconds:g} s")
            self._lose()
        return self._hand_out(now)

    def _greet(self, now: float) -> None:
        self._contact.start(now)
        connection, epoch = self._contact.connection, self._contact.epoch
        running, waiting = self._running_here(), list(self._waiting)
        answered = [key[1] for key in self._kept if key[0] == epoch and key[1] not in running]
        self._hello = replace(
            self._hello, connection=connection, running=running, waiting=waiting, answered=answered, epoch=epoch
        )

    def _running_here(self) -> list[LeaseId]:
        """The running lease, if the present epoch gave it."""
        running = self._running
        return [running.id] if running is not None and running.epoch == self._contact.epoch else []

    def _hear(self, event: Heard, now: float) -> None:
        self._contact.heard_at = now
        ours = self._contact.joined and event.session == self._contact.session
        match event.message:
            case messages.Tasks() as tasks if ours:
                self._forget(tasks.acks)
                self._take(tasks, now)
            case messages.Ack() as ack if ours:
                self._forget(ack.leases)
            case messages.Cancel() as cancel:
                self._cancel(frozenset(cancel.ids))
            case messages.Welcome() as welcome:
                self._join(welcome, now)
            case messages.Refuse() as refuse:
                self._take_no(refuse)
            case messages.Drain() as drain:
                self._drain(drain, now)
            case _:
                pass  # a sign of life

    def _take(self, tasks: messages.Tasks, now: float) -> None:
        epoch, id, columns = self._contact.epoch, tasks.lease, tasks.columns
        if id in self._waiting or id in self._running_here() or (epoch, id) in self._kept:
            return
        self._used += 1
        if not columns.ids or len(self._waiting) >= 2 * self._prefetch:
            self._report("error", f"lease {id} is not taken: it is empty, or far beyond the credit given")
            return
        deadlines = [now + ms / 1000 for ms in columns.remaining_ms]
        rows, has_references = set(range(len(columns.ids))), any(columns.kinds)
        self._waiting[id] = _Lease(
            id, epoch, self._contact.session, columns, deadlines, rows, set(), tasks.near, has_references
        )

    def _forget(self, acks: list[LeaseId]) -> None:
        for lease in acks:
            self._kept.pop((self._contact.epoch, lease), None)
            if self._spent and (spent := self._spent.pop((self._contact.epoch, lease), None)) is not None:
                self._effects.append(spent)

    def _cancel(self, ids: frozenset[TaskId]) -> None:
        for lease in [*self._waiting.values(), *([self._running] if self._running else [])]:
            lease.cancelled.update(row for row, id in enumerate(lease.columns.ids) if id in ids)

    def _finish(self, event: RowsFinished, now: float) -> None:
        lease = self._running
        assert lease is not None, "rows finished while no lease runs"
        assert event.rows and lease.unfinished.issuperset(event.rows), "rows that are not there, or finished before"
        lease.unfinished.difference_update(event.rows)
        if lease.has_references:
            self._spend(lease, event)
        statuses, kinds, payloads = self._fitting(event)
        chunks = [lease.said.get(row, 0) for row in event.rows] if lease.said else None
        for part in self._contact.parts(payloads):
            rows = event.rows[part], statuses[part], kinds[part], payloads[part]
            compute_us, counts = 0 if part.start else event.compute_us, chunks and chunks[part]
            sizes = event.sizes and event.sizes[part]
            results = Results(lease.epoch, lease.id, *rows, compute_us, None, counts, None, sizes)
            self._keep(results, lease.columns.ids)
        if not lease.unfinished:
            self._running = None
            self._contact.heard_at = now  # nobody listened until now
            self._owes_credit |= lease.session != self._contact.session

    def _spend(self, lease: _Lease, event: RowsFinished) -> None:
        """Note the references of these rows, for the moment in which the broker knows what became of them."""
        spent, columns = self._spent.setdefault((lease.epoch, lease.id), Settled([], [])), lease.columns
        for row, status in zip(event.rows, event.statuses, strict=True):
            if columns.kinds[row] and status not in NOT_SETTLED:
                spent.kinds.append(columns.kinds[row])
                spent.references.append(bytes(columns.payloads[row]))

    def _stream(self, event: RowsStreamed) -> None:
        """Whoever is not joined, or was by another broker, has nobody to say it to: then the count alone goes on."""
        lease = self._running
        assert lease is not None and lease.unfinished.issuperset(event.rows), "events of rows that do not run"
        assert len(set(event.rows)) == len(event.rows), "one event of a row at a time"
        numbers = [lease.said.get(row, 0) for row in event.rows]
        lease.said.update(zip(event.rows, [number + 1 for number in numbers], strict=True))
        if not self._contact.joined or lease.epoch != self._contact.epoch:
            return
        ids = [lease.columns.ids[row] for row in event.rows]
        for part in self._contact.parts(event.payloads):
            chunk = messages.Chunk(lease.epoch, lease.id, ids[part], numbers[part], event.payloads[part])
            self._effects.append(Transmit(self._contact.session, chunk))

    def _fitting(self, event: RowsFinished) -> tuple[list[int], list[int], list[Payload]]:
        """A frame above the limit would cut the link, again and again; such a row is an error instead."""
        if max(map(len, event.payloads)) <= self._contact.frame_bytes_max:
            return event.statuses, event.kinds, event.payloads
        statuses, kinds, payloads = list(event.statuses), list(event.kinds), list(event.payloads)
        for row, payload in enumerate(payloads):
            if len(payload) > self._contact.frame_bytes_max:
                statuses[row], kinds[row] = int(messages.Status.TOO_LARGE), int(messages.Kind.INLINE)
                payloads[row] = b"the result is larger than a message may be"
        return statuses, kinds, payloads

    def _keep(self, message: Results, ids: list[TaskId]) -> None:
        key = message.epoch, message.lease
        if key not in self._kept and len(self._kept) >= KEPT_LEASES_MAX:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self._spent.pop(oldest, None)
            self._report("error", f"results of lease {oldest[1]} were never acknowledged and are not kept any longer")
        self._kept.setdefault(key, []).append((message, ids))
        self._unsent.append((message, ids))

    def _join(self, welcome: messages.Welcome, now: float) -> None:
        if not self._contact.join(welcome, now):
            return
        hello = self._hello
        self._used = len(hello.running) + len(hello.waiting) if hello.epoch == welcome.epoch else 0
        for lease in [lease for lease in self._waiting.values() if lease.epoch != welcome.epoch]:
            del self._waiting[lease.id]
            self._report("warning", f"the broker lost its memory; waiting lease {lease.id} is dropped")
        self._unsent = [kept for of_lease in self._kept.values() for kept in of_lease]
        self._owes_credit = True

    def _take_no(self, refuse: messages.Refuse) -> None:
        if refuse.code == RefuseCode.UNKNOWN_PEER:
            self._effects += self._contact.lose(0.0)
        elif refuse.code in FATAL:
            self._leave = Leave(refuse.text, 1)
        else:
            self._report("error", f"the broker refuses this worker: {refuse.text}")
            self._effects += self._contact.lose(refuse.retry_after_ms / 1000 or self._contact.heartbeat_seconds)

    def _lose(self) -> None:
        """At once after a session; after a HELLO without an answer there is nobody to hurry for."""
        self._effects += self._contact.lose(0.0 if self._contact.joined else self._contact.heartbeat_seconds)

    def _drain(self, drain: messages.Drain, now: float) -> None:
        """Finish what is held, then leave: within `deadline_ms`, however long it takes if that is 0."""
        self._draining = self._owes_credit = True
        if drain.deadline_ms:
            self._leave_at = min(self._leave_at, now + drain.deadline_ms / 1000)

    def _report(self, level: str, text: str) -> None:
        self._effects.append(Report(level, text))

    def _hand_out(self, now: float) -> list[SessionEffect]:
        contact, said = self._contact, list[Message]()
        if contact.state is ContactState.GREETING and now >= contact.speak_at:
            said.append(self._hello)
            contact.spoke(now)
        if contact.joined:
            if self._unsent:
                said += self._results()
            if self._owes_credit or (self._running is None and now >= contact.speak_at):
                said.append(self._credit())
                contact.spoke(now)
        leave = self._leave or (self._drained(now) if self._draining else None)
        if leave is not None and contact.joined:
            said.append(messages.Goodbye([*self._running_here(), *self._waiting]))
        effects, self._effects = self._effects, []
        effects += [Transmit(contact.session, message) for message in said]
        if leave is not None:
            contact.step(Step.LEFT)
            effects.append(leave)
        elif contact.joined and self._running is None and self._waiting:
            lease = self._running = self._waiting.pop(next(iter(self._waiting)))
            effects.append(Run(lease.id, lease.columns, lease.deadlines, frozenset(lease.cancelled), lease.near))
        return effects

    def _results(self) -> list[Message]:
        """Those not yet said in this session; to a broker of another epoch with task ids, and only once."""
        said: list[Message] = []
        for message, ids in self._unsent:
            if message.epoch != self._contact.epoch:
                self._kept.pop((message.epoch, message.lease), None)
                self._spent.pop((message.epoch, message.lease), None)  # what they stand for ends in its own time
                message = replace(message, ids=[ids[row] for row in message.rows])
            said.append(message)
        self._unsent.clear()
        return said

    def _credit(self) -> Message:
        self._owes_credit = False
        if self._draining:
            return messages.Credit(self._used, messages.WorkerState.DRAINING)
        return messages.Credit(self._used + max(0, self._prefetch - self.held), messages.WorkerState.READY)

    def _drained(self, now: float) -> Leave | None:
        if self._draining and not self.held and not self._kept:
            return Leave("drained")
        if now >= self._leave_at:
            return Leave(f"drain expired: {self.held} leases unfinished, {len(self._kept)} not acknowledged")
        return None
