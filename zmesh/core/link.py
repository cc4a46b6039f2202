"""The gateway's half: which requests are its own, which were answered, which to submit again.

A gateway owns a request from accept until its one terminal answer, so it keeps the encoded task and can submit it again
when the broker, or the way to it, is lost. `Link` is that memory and the decisions around it. It is a pure state machine:
`handle(*events, now)` takes what happened and says what must be done, `next_wakeup()` says when time alone is an event.
The same Link serves a broker behind a socket and one in the same process.

* One table, task id → `Request`. What leaves the table is answered, once; whatever comes for it later is counted as late.
* `Request.sent_epoch` says which broker holds the request, 0 for none. A new epoch means that the old broker's memory is
  gone: what it held is submitted again, unless its route is once-only (nobody knows whether it ran) or it has seen too
  many brokers die. One request may be what kills them, so what has seen two die goes to the third in halves.
* A new session in the same epoch also submits everything again: what was on its way when the connection broke is lost,
  and SUBMIT is idempotent by task id.
* Deadlines are not in a heap. `_earliest` is a lower bound of all of them; when it is reached, the table is scanned once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import assert_never

from zmesh.config import Limits
from zmesh.core.effects import Answer, LinkEffect, Reconnect, Report, Transmit
from zmesh.core.events import Heard, LinkEvent, LinkLost, RequestsAbandoned, RequestsAccepted, Started, Tick
from zmesh.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Columns,
    Context,
    Drain,
    Heartbeat,
    Hello,
    Kind,
    Message,
    Payload,
    PeerId,
    Refuse,
    RefuseCode,
    Reply,
    Role,
    SessionId,
    State,
    Status,
    Submit,
    TaskId,
    Welcome,
)

__all__ = ["OWN_FRAME_BYTES", "STEPS", "Contact", "Link", "Request", "Step", "message_parts"]

OWN_FRAME_BYTES = 64 * 1024
"""A payload of this size or more travels in a frame of its own and does not count as inline."""

LOSSES_MAX = 3  # unplanned losses of a broker that a request lives through; the next one ends it
HALVES_FROM = 2  # from this many losses on a request is submitted in one of two halves
HALVES_SECONDS = 0.1  # between the halves
AGAIN_MS = 100  # before an AGAIN that names no time is submitted again
AGAIN_MS_MAX = 60_000
SCAN_SECONDS = 0.05  # the least time between two scans for deadlines, and so how late a TIMEOUT may be
REJOIN_SECONDS = 0.1  # at most this long until a lost connection is made anew; random, so that gateways spread
COUNTER_MASK = 0xFFFF_FFFF

_AGAIN = int(Status.AGAIN)  # comparing with a plain int is several times faster than with an enum's member
_INLINE = int(Kind.INLINE)


class Contact(Enum):
    """How far a peer has come with its broker."""

    AWAY = "away"  # no socket: Reconnect was asked for, Started not yet heard
    GREETING = "greeting"  # HELLO was said, WELCOME not yet heard
    JOINED = "joined"


class Step(Enum):
    STARTED = "started"
    WELCOMED = "welcomed"
    LOST = "lost"  # by LinkLost, REFUSE or silence


STEPS: Mapping[tuple[Contact, Step], Contact] = {
    (Contact.AWAY, Step.STARTED): Contact.GREETING,
    (Contact.AWAY, Step.WELCOMED): Contact.AWAY,  # to a socket that is closed
    (Contact.AWAY, Step.LOST): Contact.AWAY,
    (Contact.GREETING, Step.STARTED): Contact.GREETING,
    (Contact.GREETING, Step.WELCOMED): Contact.JOINED,
    (Contact.GREETING, Step.LOST): Contact.AWAY,
    (Contact.JOINED, Step.STARTED): Contact.GREETING,
    (Contact.JOINED, Step.WELCOMED): Contact.JOINED,
    (Contact.JOINED, Step.LOST): Contact.AWAY,
}


@dataclass(slots=True, eq=False)
class Request:
    """One HTTP request in the mesh; the only thing a Link allocates per request.

    `deadline` is absolute, in seconds on the clock of `now`. `ticket` belongs to the gateway, which finds by it who waits.
    """

    id: TaskId
    route: str
    payload: Payload
    context: Context | None
    deadline: float
    ticket: object
    submissions: int = 0
    sent_epoch: int = 0  # of the broker that holds it; 0 when none does
    losses: int = 0  # brokers that died holding it


def message_parts(payloads: Sequence[Payload], rows_max: int, inline_bytes_max: int) -> list[slice]:
    """Cut rows into messages of at most `rows_max` rows and `inline_bytes_max` bytes of inline payload, in order.

    A single row above `inline_bytes_max` gets a message to itself. Payloads must be bytes or views of bytes.
    """
    if len(payloads) <= rows_max and sum(map(len, payloads)) <= inline_bytes_max:
        return [slice(0, len(payloads))]
    parts = []
    start = inline = 0
    for row, payload in enumerate(payloads):
        size = len(payload) if len(payload) < OWN_FRAME_BYTES else 0
        if row > start and (row - start >= rows_max or inline + size > inline_bytes_max):
            parts.append(slice(start, row))
            start, inline = row, 0
        inline += size
    parts.append(slice(start, len(payloads)))
    return parts


class Link:
    """The gateway's side of one broker. `prefix` is the high half of this gateway's task ids, `routes` maps each path
    to its number of stages, `random` spreads reconnects."""

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
    ) -> None:
        assert 0 <= prefix <= COUNTER_MASK, "the prefix is the high 32 bits of a task id"
        self._peer, self._host, self._pid, self._fingerprint = peer, host, pid, fingerprint
        self._prefix = prefix << 32
        self._allotted = 0
        self._random = random
        both = int(State.INGRESS | State.EGRESS)
        self._first_state = {path: both if stages == 1 else int(State.INGRESS) for path, stages in routes.items()}

        self._heartbeat, self._dead = limits.heartbeat_seconds, limits.dead_seconds
        self._rows_max, self._inline_bytes_max = limits.message_rows_max, limits.message_inline_bytes_max
        self._frame_bytes_max = limits.frame_bytes_max
        self._once: frozenset[str] = frozenset()

        self._contact = Contact.AWAY
        self._connection = 0
        self._epoch = 0
        self._session = SessionId(0)
        self._handled = 0  # the highest REPLY number of this session
        self._planned = False  # the broker said that it will go
        self._turned_at = self._heard_at = -inf
        self._speak_at = inf  # when the next HELLO or HEARTBEAT is due

        self._table: dict[TaskId, Request] = {}
        self._later: list[tuple[float, TaskId]] = []  # a heap: when to submit what no broker holds
        self._earliest = inf
        self._scan_at = -inf
        self.late = 0  # answers that came for what was already answered or abandoned

        # Facts of the turn, handed out at its end.
        self._reports: list[LinkEffect] = []
        self._accepted: list[Request] = []
        self._answer = Answer([], [], [])
        self._cancels: dict[str, list[TaskId]] = {}
        self._rejoined = False
        self._reconnect: float | None = None

    @property
    def pending(self) -> int:
        """How many requests have no answer yet."""
        return len(self._table)

    @property
    def joined(self) -> bool:
        return self._contact is Contact.JOINED

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def session(self) -> SessionId:
        return self._session

    def unanswered(self) -> list[Request]:
        """All requests without an answer, oldest first."""
        return list(self._table.values())

    def request(
        self, route: str, payload: Payload, context: Context | None, deadline: float, ticket: object
    ) -> Request:
        """A request with the next task id. The Link knows of it only after `RequestsAccepted`."""
        number = self._allotted
        self._allotted = (number + 1) & COUNTER_MASK
        return Request(TaskId(self._prefix | number), route, payload, context, deadline, ticket)

    def next_wakeup(self) -> float | None:
        """When `handle` must be called at the latest, on the clock of `now`; None when only an event can matter."""
        wake = max(self._earliest, self._scan_at) if self._table else inf
        if self._contact is not Contact.AWAY:
            wake = min(wake, self._speak_at, self._heard_at + self._dead)
        if self._contact is Contact.JOINED and self._later:
            wake = min(wake, self._later[0][0])
        return None if wake == inf else wake

    def handle(self, *events: LinkEvent, now: float) -> list[LinkEffect]:
        """Take what happened, in order, and return what must be done, in order. `now` is monotonic, in seconds."""
        if now - self._turned_at > 2 * self._heartbeat:  # we did not run: silence in that time proves nothing
            self._heard_at = max(self._heard_at, now - self._heartbeat)
        self._turned_at = now
        for event in events:
            match event:
                case Heard():
                    self._hear(event, now)
                case RequestsAccepted():
                    self._accept(event.requests)
                case RequestsAbandoned():
                    self._abandon(event)
                case Started():
                    self._start(now)
                case LinkLost():
                    self._lose(self._backoff())
                case Tick():
                    pass
                case _:
                    assert_never(event)
        if self._contact is not Contact.AWAY and now >= self._heard_at + self._dead:
            self._reports.append(Report("warning", f"no word from the broker for {self._dead:g} s"))
            self._lose(self._backoff())
        if now >= self._earliest and now >= self._scan_at:
            self._expire(now)
        return self._hand_out(now)

    # ── facts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, now: float) -> None:
        self._contact = STEPS[self._contact, Step.STARTED]
        self._connection += 1
        self._session = SessionId(0)
        self._heard_at = self._speak_at = now
        self._reconnect = None

    def _lose(self, again_after: float) -> None:
        """The socket is of no use any more. Requests stay: who holds them is known when a broker says its epoch."""
        if self._contact is not Contact.AWAY:
            self._reconnect = again_after
        self._contact = STEPS[self._contact, Step.LOST]
        self._session = SessionId(0)
        self._rejoined = False

    def _backoff(self) -> float:
        longest = REJOIN_SECONDS if self._contact is Contact.JOINED else self._heartbeat
        return self._random.uniform(longest / 2, longest)

    def _accept(self, requests: list[Request]) -> None:
        table, earliest = self._table, self._earliest
        for request in requests:
            assert request.id not in table, "a task id was allotted twice"
            table[request.id] = request
            if request.deadline < earliest:
                earliest = request.deadline
        self._earliest = earliest
        self._accepted += requests

    def _abandon(self, event: RequestsAbandoned) -> None:
        for id in event.ids:
            if (request := self._table.pop(id, None)) is not None:
                self._cancel(request, event.reason)

    def _cancel(self, request: Request, reason: str) -> None:
        """Tell the broker, if it holds this. Kept over a reconnect: it may be the same broker."""
        if request.sent_epoch:
            self._cancels.setdefault(reason, []).append(request.id)

    def _settle(self, request: Request, status: Status, text: bytes) -> None:
        """Answer a request from here."""
        del self._table[request.id]
        self._answer.requests.append(request)
        self._answer.statuses.append(int(status))
        self._answer.payloads.append(text)

    def _expire(self, now: float) -> None:
        for request in [request for request in self._table.values() if request.deadline <= now]:
            self._settle(request, Status.TIMEOUT, b"no answer before the deadline")
            self._cancel(request, "deadline")
        self._earliest = min((request.deadline for request in self._table.values()), default=inf)
        self._scan_at = now + SCAN_SECONDS

    def _hear(self, event: Heard, now: float) -> None:
        self._heard_at = now
        match event.message:
            case Reply() as reply:
                self._take_answers(reply, now)
                # Numbers of another session would acknowledge answers that never came.
                if event.session == self._session:
                    self._handled = max(self._handled, reply.number)
            case Welcome() as welcome:
                self._join(welcome, now)
            case Refuse() as refuse:
                self._take_no(refuse)
            case Drain() as drain:
                self._planned = True
                self._reports.append(Report("info", f"the broker will go: {drain.reason}"))
            case _:
                pass  # a sign of life

    def _take_answers(self, reply: Reply, now: float) -> None:
        table, answer = self._table, self._answer
        requests = [request for id in reply.ids if (request := table.get(id)) is not None]
        if len(requests) == len(reply.ids) and _AGAIN not in reply.statuses:  # nearly always: whole columns at once
            for id in reply.ids:
                del table[id]
            answer.requests.extend(requests)
            answer.statuses.extend(reply.statuses)
            answer.payloads.extend(reply.payloads)
            return
        for id, status, payload in zip(reply.ids, reply.statuses, reply.payloads, strict=True):
            request = table.get(id)
            if request is None or (status == _AGAIN and not request.sent_epoch):
                self.late += 1
            elif status == _AGAIN:
                request.sent_epoch = 0
                heappush(self._later, (now + _again_seconds(payload), id))
            else:
                del table[id]
                answer.requests.append(request)
                answer.statuses.append(status)
                answer.payloads.append(payload)

    def _join(self, welcome: Welcome, now: float) -> None:
        repeated = self._contact is Contact.JOINED and welcome.session == self._session
        self._contact = STEPS[self._contact, Step.WELCOMED]
        if repeated or self._contact is not Contact.JOINED:
            return
        self._session, self._handled = welcome.session, 0
        self._heartbeat, self._dead = welcome.heartbeat_ms / 1000, welcome.dead_ms / 1000
        self._rows_max, self._inline_bytes_max = welcome.message_rows_max, welcome.message_inline_bytes_max
        self._frame_bytes_max = welcome.frame_bytes_max
        self._once = frozenset(welcome.once_routes)
        self._speak_at = now + self._heartbeat
        self._rejoined = True
        if welcome.epoch != self._epoch:
            self._lose_epoch()
            self._epoch = welcome.epoch
        self._planned = False

    def _lose_epoch(self) -> None:
        """Another broker, or the same without its memory: nobody holds what was submitted."""
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
            self._reports.append(Report("warning", f"the broker lost its memory with {len(orphans)} requests in it"))

    def _take_no(self, refuse: Refuse) -> None:
        if refuse.code == RefuseCode.UNKNOWN_PEER:
            self._lose(0.0)
        else:
            self._reports.append(Report("error", f"the broker refuses this gateway: {refuse.text}"))
            self._lose(refuse.retry_after_ms / 1000 or self._heartbeat)

    # ── what follows from them ────────────────────────────────────────────────────────────────────────────────────

    def _hand_out(self, now: float) -> list[LinkEffect]:
        effects, self._reports = self._reports, []
        if self._reconnect is not None:
            effects.append(Reconnect(self._reconnect))
            self._reconnect = None
        messages: list[Message] = []
        if self._contact is Contact.JOINED:
            messages += self._submits(now)
            messages += self._cancellations()
            if not messages and now >= self._speak_at:
                messages.append(Heartbeat(self._epoch, self._handled, []))
        elif self._contact is Contact.GREETING and now >= self._speak_at:
            messages.append(self._hello())
        self._accepted.clear()  # what was not submitted now is in the table when WELCOME comes
        if messages:
            self._speak_at = now + self._heartbeat
            effects += [Transmit(self._session, message) for message in messages]
        if self._answer.requests:
            effects.append(self._answer)
            self._answer = Answer([], [], [])
        return effects

    def _hello(self) -> Hello:
        versions = [PROTOCOL_VERSION]
        return Hello(versions, Role.GATEWAY, self._peer, self._connection, self._host, self._pid, self._fingerprint)

    def _cancellations(self) -> list[Message]:
        cancels, self._cancels = self._cancels, {}
        step = self._rows_max
        return [
            Cancel(ids[start : start + step], reason, self._handled)
            for reason, ids in cancels.items()
            for start in range(0, len(ids), step)
        ]

    def _submits(self, now: float) -> list[Message]:
        rejoined, self._rejoined = self._rejoined, False
        requests = self._everything(now) if rejoined else self._accepted + self._due(now)
        fresh: dict[str, list[Request]] = {}
        again: dict[str, list[Request]] = {}
        for request in requests:
            if request.id not in self._table:
                continue  # abandoned or out of time in the turn that brought it
            if len(request.payload) > self._frame_bytes_max:
                self._settle(request, Status.TOO_LARGE, b"the request is larger than a message may be")
                continue
            groups = again if request.submissions else fresh
            if (group := groups.get(request.route)) is None:
                groups[request.route] = group = []
            group.append(request)
        messages = [
            Submit(route, self._columns(rows[part], now), is_again, False, self._handled)
            for groups, is_again in ((again, True), (fresh, False))
            for route, rows in groups.items()
            for part in message_parts([row.payload for row in rows], self._rows_max, self._inline_bytes_max)
        ]
        if rejoined and messages and not self._later:
            messages[-1] = replace(messages[-1], all=True)
        return list[Message](messages)

    def _everything(self, now: float) -> list[Request]:
        """What to submit to a broker that was just joined: all, but only half of what may be what kills brokers."""
        self._later.clear()
        suspects = [r.id for r in self._table.values() if r.losses >= HALVES_FROM and not r.sent_epoch]
        second_half = dict.fromkeys(suspects[(len(suspects) + 1) // 2 :])
        for id in second_half:
            heappush(self._later, (now + HALVES_SECONDS, id))
        return [request for request in self._table.values() if request.id not in second_half]

    def _due(self, now: float) -> list[Request]:
        due = []
        while self._later and self._later[0][0] <= now:
            _, id = heappop(self._later)
            if (request := self._table.get(id)) is not None:
                due.append(request)
        return due

    def _columns(self, rows: list[Request], now: float) -> Columns:
        """These rows side by side, from now on with this broker."""
        epoch = self._epoch
        for row in rows:
            row.sent_epoch = epoch
            row.submissions += 1
        contexts = [row.context for row in rows]
        return Columns(
            ids=[row.id for row in rows],
            states=[self._first_state[rows[0].route]] * len(rows),
            remaining_ms=[ms if (ms := int((row.deadline - now) * 1000)) > 0 else 1 for row in rows],
            attempts=[0] * len(rows),
            kinds=[_INLINE] * len(rows),
            payloads=[row.payload for row in rows],
            contexts=contexts if any(contexts) else None,
        )


def _again_seconds(payload: Payload) -> float:
    """When to come again, as the broker said it: milliseconds in decimal."""
    text = bytes(payload[:9])
    return min(max(int(text) if text.isdigit() else AGAIN_MS, 1), AGAIN_MS_MAX) / 1000
