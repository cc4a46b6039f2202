"""The gateway's half: which requests are its own, which were answered, which to submit again.

A gateway owns a request from accept until its one terminal answer, so it keeps the encoded task and can submit it again
when the broker, or the way to it, is lost. `Link` is that memory and the decisions about it. It is pure:
`handle(*events, now)` takes what happened and says what must be done, `next_wakeup()` says when time alone is an event.
The same Link serves a broker behind a socket and one in the same process.

* One table, task id → `Request`. What leaves the table is answered, once, or abandoned; an answer that comes for it
  later is counted as late.
* `Request.sent_epoch` says which broker holds the request; 0 is none. A new epoch means that the old broker's memory is
  gone: what it held is submitted again, unless the route is once-only (nobody knows whether it ran) or the request saw
  too many brokers die. One request may be what kills them: what saw two die comes to the next one in halves.
* A new session in the same epoch submits everything again as well: what was on its way when the connection broke is
  lost, and SUBMIT is idempotent by task id.
* AGAIN gives a request back: no broker holds it until it is submitted again. One that was tried is given back because
  what a stage had made of it was lost; that is not borne for ever.
* A request of which events were heard is never submitted again: it ends in an error when the session does.
* The broker keeps its answers until it hears the number of the last REPLY that was handled. Whatever is said carries
  it; when many bytes are kept for that alone, it is said at once.
* Deadlines are not in a heap. `_earliest` is a lower bound of all of them; once it is reached, the table is scanned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from heapq import heappop, heappush
from math import inf
from random import Random

from zmesh import messages
from zmesh.config import Limits
from zmesh.core.contact import Contact, ContactState
from zmesh.core.difference import shape_for_hello
from zmesh.core.effects import Answer, LinkEffect, Report, Transmit
from zmesh.core.events import Heard, LinkEvent, LinkLost, RequestsAbandoned, RequestsAccepted, Started
from zmesh.core.parts import lists
from zmesh.core.replies import reply_bytes
from zmesh.core.requests import Request, again_seconds, columns_of
from zmesh.core.sequences import LOST_EVENTS, Sequences
from zmesh.messages import Context, Message, Payload, PeerId, SessionId, State, Status, TaskId

__all__ = ["Link", "Request"]

LOSSES_MAX = 3  # unplanned losses of its broker that a request lives through; the next one ends it
HALVES_FROM = 2  # with so many losses behind it, a request is submitted in one of two halves
HALVES_SECONDS = 0.1  # between the halves
SCAN_SECONDS = 0.05  # the least time between two scans for deadlines, so the most a TIMEOUT is late
REJOIN_SECONDS = 0.1  # the most until a lost connection is made anew; drawn, so that gateways spread
COUNTER_MASK = 0xFFFF_FFFF
LOST_TOO_OFTEN = b"what one stage made for the next was lost too often"
BROKEN_STREAM = b"the broker was lost in the middle of the stream"

AGAIN = int(Status.AGAIN)  # comparing plain numbers is several times faster than comparing members of an enum


class Link:
    """The gateway's side of one broker. `prefix` is the high half of its task ids; `routes` maps paths to how many
    stages they have; `random` spreads reconnects."""

    def __init__(
        self,
        peer: PeerId,
        prefix: int,
        host: str,
        pid: int,
        fingerprint: str,
        limits: Limits,
        random: Random,
        routes: Mapping[str, int],
        *,
        shape: str = "",
    ) -> None:
        assert 0 <= prefix <= COUNTER_MASK, "the prefix is the high 32 bits of a task id"
        versions, role = [messages.PROTOCOL_VERSION], messages.Role.GATEWAY
        self._hello = messages.Hello(versions, role, peer, 0, host, pid, fingerprint, shape=shape_for_hello(shape))
        self._contact = Contact(limits)
        self._random = random
        self._prefix, self._allotted = prefix << 32, 0
        single, first = int(State.INGRESS | State.EGRESS), int(State.INGRESS)
        self._states = {path: single if stages == 1 else first for path, stages in routes.items()}
        self._once: frozenset[str] = frozenset()
        self._handled = 0  # the highest REPLY number of this session
        self._unacknowledged = 0  # bytes of answers that the broker keeps until it hears of `_handled`
        self._returns_max = limits.requeues_max
        self._acknowledge_bytes = limits.answer_bytes_max // 8
        self._planned = False  # the broker said that it will go

        self._table: dict[TaskId, Request] = {}
        self._later: list[tuple[float, TaskId]] = []  # a heap: when to submit what no broker holds
        self._earliest = inf
        self._scan_at = -inf
        self._sequences = Sequences()
        self.late = 0  # answers for what was answered or abandoned before

        # Facts of the turn, handed out at its end.
        self._effects, self._accepted = list[LinkEffect](), list[Request]()
        self._answer = Answer([], [], [])
        self._cancels: dict[str, list[TaskId]] = {}
        self._rejoined = False

    @property
    def pending(self) -> int:
        """How many requests have no answer yet."""
        return len(self._table)

    @property
    def joined(self) -> bool:
        return self._contact.joined

    @property
    def session(self) -> SessionId:
        """What goes into the header of anything the gateway says to the broker by itself; 0 while there is none."""
        return self._contact.session

    def unanswered(self) -> list[Request]:
        """All requests without an answer, oldest first."""
        return list(self._table.values())

    def request(
        self, route: str, payload: Payload, context: Context | None, deadline: float, ticket: object
    ) -> Request:
        """A request with the next task id. The Link minds it from `RequestsAccepted` on."""
        number = self._allotted
        self._allotted = (number + 1) & COUNTER_MASK
        return Request(TaskId(self._prefix | number), route, payload, context, deadline, ticket)

    def next_wakeup(self) -> float | None:
        """When `handle` must be called at the latest, on the clock of `now`; None when only an event can matter."""
        wake = self._contact.wakeup()
        if self._table:
            wake = min(wake, max(self._earliest, self._scan_at))
        if self._later and self._contact.joined:
            wake = min(wake, self._later[0][0])
        return None if wake == inf else wake

    def handle(self, *events: LinkEvent, now: float) -> list[LinkEffect]:
        """Take what happened, in order, and return what must be done, in order. `now` is monotonic, in seconds."""
        self._contact.turn(now)
        for event in events:
            match event:
                case Heard():
                    self._hear(event, now)
                case RequestsAccepted():
                    self._accept(event.requests)
                case RequestsAbandoned():
                    self._abandon(event)
                case Started():
                    self._contact.start(now)
                    self._hello = replace(self._hello, connection=self._contact.connection)
                case LinkLost():
                    self._lose()
                case _:
                    pass  # Tick: only the time
        if self._contact.is_silent(now):
            self._report("warning", f"no word from the broker for {self._contact.dead_seconds:g} s")
            self._lose()
        if now >= self._earliest and now >= self._scan_at:
            self._expire(now)
        return self._hand_out(now)

    def _accept(self, requests: list[Request]) -> None:
        table, earliest = self._table, self._earliest
        for request in requests:
            assert request.id not in table, "a task id was given out twice"
            table[request.id] = request
            if request.deadline < earliest:
                earliest = request.deadline
        self._earliest = earliest
        self._accepted += requests

    def _abandon(self, event: RequestsAbandoned) -> None:
        for id in event.ids:
            if (request := self._table.pop(id, None)) is not None:
                self._sequences.forget(id)
                self._cancel(request, event.reason)

    def _expire(self, now: float) -> None:
        late = [request for request in self._table.values() if request.deadline <= now]
        self._end(late, Status.TIMEOUT, b"no answer before the deadline", "deadline")
        self._earliest = min((request.deadline for request in self._table.values()), default=inf)
        self._scan_at = now + SCAN_SECONDS

    def _cancel(self, request: Request, reason: str) -> None:
        """Tell the broker that holds it, after a reconnect if need be: it may be the same broker."""
        if request.sent_epoch:
            self._cancels.setdefault(reason, []).append(request.id)

    def _settle(self, request: Request, status: Status, text: bytes) -> None:
        """Answer a request from here."""
        del self._table[request.id]
        self._sequences.forget(request.id)
        self._answer.requests.append(request)
        self._answer.statuses.append(int(status))
        self._answer.payloads.append(text)

    def _end(self, requests: list[Request], status: Status, text: bytes, reason: str) -> None:
        """Answer them from here, and let the broker know."""
        for request in requests:
            self._settle(request, status, text)
            self._cancel(request, reason)

    def _hear(self, event: Heard, now: float) -> None:
        self._contact.heard_at = now
        match event.message:
            case messages.Reply() as reply:
                self._take_answers(reply, now)
                if event.session == self._contact.session:  # another session's number would acknowledge the unseen
                    self._handled = max(self._handled, reply.number)
                    self._unacknowledged += reply_bytes(reply.payloads)
            case messages.Chunk() as chunk:
                if event.session == self._contact.session:  # of an earlier one nothing is expected any more
                    broken = self._sequences.hear(chunk, self._table)
                    self._end(broken, Status.INTERNAL, LOST_EVENTS, "its stream is broken")
            case messages.Welcome() as welcome:
                self._join(welcome, now)
            case messages.Refuse() as refuse:
                self._effects += self._contact.refused(refuse, "gateway")
            case messages.Drain() as drain:
                self._planned = True
                self._report("info", f"the broker is about to go: {drain.reason}")
            case _:
                pass  # a sign of life

    def _take_answers(self, reply: messages.Reply, now: float) -> None:
        if self._sequences.begun or reply.chunks is not None:
            reply = self._sequences.checked(reply)
        table, answer = self._table, self._answer
        requests = [request for id in reply.ids if (request := table.get(id)) is not None]
        if len(requests) == len(reply.ids) and AGAIN not in reply.statuses:  # nearly always: whole columns at once
            for id in reply.ids:
                del table[id]
            answer.requests.extend(requests)
            answer.statuses.extend(reply.statuses)
            answer.payloads.extend(reply.payloads)
            return
        for id, status, payload, tries in zip(reply.ids, reply.statuses, reply.payloads, reply.attempts, strict=True):
            request = table.get(id)
            if request is None or (status == AGAIN and not request.sent_epoch):
                self.late += 1
            elif status == AGAIN and request.give_back(tries) > self._returns_max:
                self._settle(request, Status.INTERNAL, LOST_TOO_OFTEN)
            elif status == AGAIN:
                heappush(self._later, (now + again_seconds(payload), id))
            else:
                del table[id]
                answer.requests.append(request)
                answer.statuses.append(status)
                answer.payloads.append(payload)

    def _join(self, welcome: messages.Welcome, now: float) -> None:
        epoch_before = self._contact.epoch
        if not self._contact.join(welcome, now):
            return
        self._end_streams()
        self._handled = self._unacknowledged = 0
        self._once = frozenset(welcome.once_routes)
        self._rejoined = True
        if welcome.epoch != epoch_before:
            self._lose_broker()
        self._planned = False

    def _lose_broker(self) -> None:
        """Another broker, or the same without its memory: nobody holds what was submitted before."""
        self._cancels.clear()
        orphans = [request for request in self._table.values() if request.sent_epoch]
        for request in orphans:
            request.sent_epoch = 0
            request.losses += not self._planned
            if request.route in self._once:
                self._settle(request, Status.INTERNAL, b"outcome unknown")
            elif request.losses > LOSSES_MAX:
                self._settle(request, Status.INTERNAL, b"the broker was lost too often")
        if orphans:
            self._report("warning", f"the broker lost its memory, with {len(orphans)} requests in it")

    def _lose(self) -> None:
        """Soon after a session; after a HELLO without an answer there is nobody to hurry for."""
        self._end_streams()
        longest = REJOIN_SECONDS if self._contact.joined else self._contact.heartbeat_seconds
        self._effects += self._contact.lose(self._random.uniform(longest / 2, longest))

    def _end_streams(self) -> None:
        """With the session, events may be lost."""
        begun = [self._table[id] for id in self._sequences.take_all()]
        self._end(begun, Status.INTERNAL, BROKEN_STREAM, "its stream is broken")

    def _report(self, level: str, text: str) -> None:
        self._effects.append(Report(level, text))

    def _hand_out(self, now: float) -> list[LinkEffect]:
        contact = self._contact
        said: list[Message] = []
        if contact.joined:
            if self._accepted or self._later or self._rejoined:
                said += self._submits(now)
            if self._cancels:
                said += _cancellations(self._cancels, self._handled, contact.rows_max)
                self._cancels = {}
            if not said and (now >= contact.speak_at or self._unacknowledged > self._acknowledge_bytes):
                said.append(messages.Heartbeat(contact.epoch, self._handled, []))
        elif contact.state is ContactState.GREETING and now >= contact.speak_at:
            said.append(self._hello)
        self._accepted.clear()  # what was not submitted now is in the table when WELCOME comes
        effects, self._effects = self._effects, []
        if said:
            contact.spoke(now)
            self._unacknowledged = 0
            effects += [Transmit(contact.session, message) for message in said]
        if self._sequences.due.requests:
            effects.append(self._sequences.take_due())
        if self._answer.requests:
            effects.append(self._answer)
            self._answer = Answer([], [], [])
        return effects

    def _submits(self, now: float) -> list[messages.Submit]:
        rejoined, self._rejoined = self._rejoined, False
        fresh: dict[str, list[Request]] = {}
        again: dict[str, list[Request]] = {}
        for request in self._everything(now) if rejoined else self._accepted + self._due(now):
            if request.id not in self._table:
                continue  # abandoned, or out of time, in the turn that brought it
            if len(request.payload) > self._contact.frame_bytes_max:
                self._settle(request, Status.TOO_LARGE, b"the request is larger than a message may be")
                continue
            groups = again if request.submissions else fresh
            if (group := groups.get(request.route)) is None:
                groups[request.route] = group = []
            group.append(request)
        epoch, handled = self._contact.epoch, self._handled
        said = [
            messages.Submit(route, columns_of(rows[part], self._states[route], epoch, now), is_again, False, handled)
            for groups, is_again in ((again, True), (fresh, False))
            for route, rows in groups.items()
            for part in self._contact.parts([row.payload for row in rows])
        ]
        if rejoined and said and not self._later:
            said[-1] = replace(said[-1], all=True)
        return said

    def _everything(self, now: float) -> list[Request]:
        """What to submit to a broker just joined: all, or but half of what may be what kills brokers."""
        self._later.clear()
        suspects = [r.id for r in self._table.values() if r.losses >= HALVES_FROM and not r.sent_epoch]
        second_half = dict.fromkeys(suspects[(len(suspects) + 1) // 2 :])
        for id in second_half:
            heappush(self._later, (now + HALVES_SECONDS, id))
        return [request for request in self._table.values() if request.id not in second_half]

    def _due(self, now: float) -> list[Request]:
        due = []
        while self._later and self._later[0][0] <= now:
            if (request := self._table.get(heappop(self._later)[1])) is not None:
                due.append(request)
        return due


def _cancellations(cancels: dict[str, list[TaskId]], handled: int, rows_max: int) -> list[messages.Cancel]:
    return [messages.Cancel(part, reason, handled) for reason, ids in cancels.items() for part in lists(ids, rows_max)]
