"""Requests for inference, whatever way they come: what is let in, what is asked of the mesh, what is answered.

`Calls` holds every request that is being read or waits for its outcome, and the rules they are under:

* Nothing is submitted that the mesh could only refuse: a body that killed its workers a moment ago, a route whose queue
  was full a moment ago.
* What is read or waits here is bounded, by count and by bytes: as long as the broker is away nobody else would refuse
  anything.
* Slow ones are looked after by one sweep for all.
* The broker may live on our loop. When requests alone keep it busy for long, it is let in between them, or workers
  would wait for the broker while clients are being refused.

No bytes of HTTP are read or written here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from zmesh.answers import (
    DRAINING,
    SERVER,
    Answer,
    Header,
    Refusal,
    failure,
    http_status_of,
    new_request_id,
    sane_token,
    says_its_kind,
    text_of,
)
from zmesh.codings import may_pack
from zmesh.config import Plan, RoutePlan, Settings
from zmesh.door import DENIED_SECONDS, DenyList, Door
from zmesh.messages import Context, Payload, Status, TaskId
from zmesh.telemetry import GatewayCounts

__all__ = ["GONE", "OK", "Call", "Calls", "Mesh"]

logger = logging.getLogger("zmesh.gateway")

SWEEP_SECONDS = 0.1
BREATH_SECONDS = 0.005  # of requests without a pause, until the mesh is let in between
GONE_HTTP = 499  # what a request counts as whose client left; nobody reads it
FULL = "too many requests: the gateway is full"
RETRY_FAILING_SECONDS = 30  # how often a stage that does not start is tried
RETRY_DRAINING_SECONDS = 1  # another gateway may take it at once

NO_TASK = TaskId(0)
OK, _POISONED = int(Status.OK), int(Status.POISONED)
GONE = -1  # not a Status: the client left
_NO_WORK = {GONE} | {int(s) for s in (Status.SHED, Status.TIMEOUT, Status.UNAVAILABLE, Status.CANCELLED)}


Done = Callable[[int, Payload], None]


class Mesh(Protocol):
    """What answers requests: see `linkage.BrokerLink`."""

    def submit(
        self,
        route: str,
        payload: Payload,
        context: Context | None,
        deadline: float,
        done: Done,
    ) -> TaskId: ...

    def abandon(self, id: TaskId) -> None: ...

    def breathe(self) -> None: ...


class Call:
    """One request. `started` and `since` are on the clock of `Calls`: when it came, and when it began to wait."""

    __slots__ = ("accept", "body", "door", "id", "path", "request_id", "since", "size", "started")

    has_task = False  # of the event loop, by which the server counts it too

    def __init__(self, path: str, door: Door, headers: Mapping[bytes, bytes], now: float) -> None:
        given = headers.get(b"x-request-id")
        self.request_id = given if given is not None and sane_token(given) else new_request_id()
        self.accept = headers.get(b"accept")
        self.path, self.door = path, door
        self.started = self.since = now
        self.body = b""
        self.size = 0  # bytes of its body that are here
        self.id = NO_TASK

    def done(self, status: int, payload: Payload) -> None:
        """The mesh's outcome. The first one counts."""
        raise NotImplementedError

    def look(self, now: float) -> None:
        """Look after it, every `SWEEP_SECONDS`."""

    def give_up(self, calls: Calls) -> None:
        """Its time is over: it gets 503."""
        calls.abandon(self)
        self.done(int(Status.UNAVAILABLE), DRAINING.encode())


class Calls:
    """See the module."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        mesh: Mesh,
        counts: GatewayCounts,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.doors = {route.path: Door(clock()) for route in plan.routes}
        self.clock = clock
        self.body_bytes_max = settings.max_request_size
        self.streams = frozenset(route.path for route in plan.routes if route.sse)
        self.is_compressing = settings.compression
        self._first_headers = {route.path: self._headers_of(route) for route in plan.routes}
        self._mesh, self._counts, self._denied = mesh, counts, DenyList()
        self._timeout = settings.timeout / 1000
        limits = settings.limits()
        self._calls_max, self._bytes_max = limits.mesh_tasks_max, limits.mesh_bytes_max
        self._held: set[Call] = set()
        self._bytes = 0  # of their bodies
        self._turn_began: float | None = None  # of the loop, if it has brought a request
        self._sweeping: asyncio.TimerHandle | None = None
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._held)

    def without_task(self) -> int:
        return sum(not call.has_task for call in self._held)

    # ── holding ───────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, call: Call) -> None:
        """A request came."""
        self._breathe(call.started)
        self._held.add(call)
        self._bytes += call.size
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._swept)

    def grow(self, call: Call, size: int) -> None:
        """So many bytes more of its body. Raises Refusal when that is too much."""
        call.size += size
        self._bytes += size
        if call.size > self.body_bytes_max:
            raise self.too_large()
        if self._bytes > self._bytes_max and self._bytes > call.size:
            raise self.shed(call.door, f"{FULL} ({self._bytes_max} bytes)", is_last=True)

    def buffer(self, call: Call, size: int) -> bool:
        """So many bytes more, or less, of its answer wait for its client; whether there is room for them."""
        call.size += size
        self._bytes += size
        return self._bytes <= self._bytes_max

    def drop(self, call: Call) -> None:
        """It has its answer, or wants none any more."""
        self._held.discard(call)
        self._bytes -= call.size

    def expire(self) -> int:
        """Answer 503 to every request that is still here, and forget its task; how many there were."""
        left = list(self._held)
        for call in left:
            call.give_up(self)
        return len(left)

    def sweep(self) -> None:
        """Look once at every request and at the speed of every route."""
        now = self.clock()
        for call in list(self._held):
            call.look(now)
        for door in self.doors.values():
            door.measure(now)

    def _swept(self) -> None:
        assert self._sweeping is not None, "it has just rung"
        self._counts.lagged(asyncio.get_running_loop().time() - self._sweeping.when())
        self._sweeping = None
        if self._held:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._swept)
            self.sweep()

    def _breathe(self, now: float) -> None:
        if self._turn_began is None:
            self._turn_began = now
            asyncio.get_running_loop().call_soon(self._turn_ended)
        elif now - self._turn_began > BREATH_SECONDS:
            self._turn_began = now
            self._mesh.breathe()

    def _turn_ended(self) -> None:
        self._turn_began = None

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────

    def timeout_of(self, headers: Mapping[bytes, bytes]) -> float:
        """Seconds that a request may take. Raises Refusal when it says nonsense."""
        wanted = headers.get(b"x-request-timeout")
        return self._timeout if wanted is None else min(self._timeout, _seconds(wanted))

    def parent_of(self, headers: Mapping[bytes, bytes]) -> str:
        """The `traceparent` that travels with a request; empty if there is none."""
        parent = headers.get(b"traceparent")
        return parent.decode() if parent is not None and sane_token(parent) else ""

    def why_not(self, door: Door, size: int | None, since: float, others: int) -> str:
        """Why a request with so many bytes of body must not come now, beside so many others; empty when it may."""
        if others >= self._calls_max:
            return f"{FULL} ({self._calls_max} requests)"
        if self._bytes and self._bytes + (size or 0) > self._bytes_max:
            return f"{FULL} ({self._bytes_max} bytes)"
        return door.text if size is not None and since < door.closed_until else ""

    def takes(self, path: str, door: Door, body: bytes, now: float) -> bool:
        """Whether nothing is to be refused about a request that is all here."""
        size = len(body)
        return (
            0 < size <= self.body_bytes_max
            and not self.is_draining
            and not self.why_not(door, size, now, len(self._held))
            and not (self._denied.bodies and self.denied(path, body) is not None)
        )

    def denied(self, path: str, body: bytes) -> Payload | None:
        """What was answered to the same body a moment ago, when it killed its workers."""
        return self._denied.answer(path, body, self.clock()) if self._denied.bodies else None

    def submit(
        self, call: Call, headers: Mapping[bytes, bytes], timeout: float, now: float, reader: Done | None = None
    ) -> None:
        """Hand over a request whose body is here: later its `done`, or its `reader`, gets the outcome, and `settle`
        follows.

        Raises Refusal for a body that must not be tried.
        """
        if not call.body:
            raise Refusal(400, "no data provided")
        if (answer := self.denied(call.path, call.body)) is not None:
            raise self._refusal_of(_POISONED, answer, call.door)
        call.since = now
        self.hand_over(call, self.parent_of(headers), now + timeout, reader or call.done)

    def hand_over(self, call: Call, parent: str, deadline: float, done: Done) -> None:
        """The same for one that may be tried, as the caller knows."""
        context = {"request_id": call.request_id.decode()}
        if parent:
            context["traceparent"] = parent
        call.id = self._mesh.submit(call.path, call.body, context, deadline, done)
        self._counts.in_flight += 1
        call.door.pending += 1

    def settle(self, call: Call) -> None:
        """What was submitted has its outcome, or wants none any more."""
        self._counts.in_flight -= 1
        call.door.leave()

    def abandon(self, call: Call) -> None:
        """Nobody waits for this outcome any more."""
        self._mesh.abandon(call.id)

    # ── answering ─────────────────────────────────────────────────────────────────────────────────────────────────

    def answer(self, call: Call, status: int, payload: Payload) -> Answer:
        """What its client reads; what there is to learn in the outcome is learnt, and counted."""
        if status == OK:
            self.succeed(call)
            body = payload if type(payload) is bytes else bytes(payload)
            length = (b"content-length", b"%d" % len(body))
            return Answer(200, [*self.first_headers(call.path), (b"x-request-id", call.request_id), length], body)
        return self.refuse(call, self.judged(call, status, payload))

    def judged(self, call: Call, status: int, payload: Payload) -> Refusal:
        """An outcome that is not OK in words for its client; what there is to learn in it is learnt."""
        is_users = status == Status.SHED and says_its_kind(payload)  # a worker's own 429, about this request alone
        call.door.answered += is_users or status not in _NO_WORK
        if not is_users:
            self._learn(call, status, payload)
        return self._refusal_of(status, payload, call.door)

    def succeed(self, call: Call) -> None:
        """It has its result."""
        call.door.answered += 1
        self._counts.add(200, call.path, self.clock() - call.started)
        call.body = b""

    def first_headers(self, path: str) -> Sequence[Header]:
        """With which every 200 of this path begins."""
        return self._first_headers[path]

    def _headers_of(self, route: RoutePlan) -> Sequence[Header]:
        content_type: Header = (b"content-type", route.mime_type.encode("latin-1"))
        if self.is_compressing and not route.sse and may_pack(route.mime_type):
            return content_type, SERVER, (b"vary", b"accept-encoding")
        return content_type, SERVER

    def fail(self, call: Call, refusal: Refusal) -> None:
        """Its client is told this."""
        self._counts.add(refusal.http, call.path, 0.0)
        call.body = b""

    def refuse(self, call: Call, refusal: Refusal) -> Answer:
        self.fail(call, refusal)
        return failure(refusal, call.request_id, call.accept)

    def leave(self, call: Call) -> None:
        """Its client is gone, and reads nothing."""
        self._counts.add(GONE_HTTP, call.path, 0.0)
        call.body = b""

    def fault(self, call: Call, error: Exception) -> Refusal:
        """For an exception of ours, which is logged: whoever asked must still get an answer."""
        request_id = call.request_id.decode("ascii")
        about = {"request_id": request_id}
        logger.error("request %s failed in the gateway", request_id, exc_info=error, extra=about)
        return Refusal(500, "inference internal error")

    def shed(self, door: Door, text: str, *, is_last: bool) -> Refusal:
        return Refusal(429, text, retry_after=door.retry_after(), close=is_last, linger=is_last)

    def too_large(self, how: str = "") -> Refusal:
        text = f"request body is too large: at most {self.body_bytes_max} bytes{how}"
        return Refusal(413, text, close=True, linger=True)

    def _refusal_of(self, status: int, payload: Payload, door: Door) -> Refusal:
        retry_after = 0
        if status == Status.SHED:
            retry_after = door.retry_after()
        elif status == Status.UNAVAILABLE:
            retry_after = RETRY_DRAINING_SECONDS if self.is_draining else RETRY_FAILING_SECONDS
        text = text_of(status, payload)
        return Refusal(http_status_of(status), text, retry_after=retry_after, close=self.is_draining)

    def _learn(self, call: Call, status: int, payload: Payload) -> None:
        """What this outcome says about the next requests."""
        if status == Status.SHED:
            call.door.close(text_of(status, payload), self.clock())
        elif status == Status.UNAVAILABLE:
            self._denied.forget(call.path)  # a stage that does not even start ends whatever comes
        elif status == Status.POISONED:
            self._denied.add(call.path, call.body, payload, self.clock())
            text = "request %s: workers die of its body (%d bytes, sha256 %s); on %s it is refused for %g s"
            digest, request_id = hashlib.sha256(call.body).hexdigest(), call.request_id.decode("ascii")
            about = {"request_id": request_id}
            logger.error(text, request_id, len(call.body), digest, call.path, DENIED_SECONDS, extra=about)


def _seconds(text: bytes) -> float:
    """Raises Refusal for what is not a time to wait."""
    try:
        seconds = math.nan if b"_" in text else float(text)  # to Python, 1_0 is a number
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        shown = text[:40].decode("ascii", "replace")
        raise Refusal(400, f"bad request: x-request-timeout must be a number of seconds above 0, not {shown!r}")
    return seconds
