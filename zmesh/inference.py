"""Inference over HTTP as one raw ASGI callable: body in, task to the link, answer out.

`Inference` stands outermost. A request for the exact path of a route is answered here, without the machinery of a web
framework; everything else goes to the app behind it. Its rules:

* One request gets one answer, or none because its client is gone.
* Nothing is submitted before the whole body is here and within bounds; an upload that is broken off submits nothing.
* Per request there is one `Call` and one Future. Slow ones are looked after by one sweep for all: a body that does not
  come is given up, and a client that leaves while its task waits takes the task with it.
* While draining, new requests are refused and accepted ones finish.
* The broker may live on our loop. When requests alone keep it busy for long, it is let in between them, or workers
  would wait for the broker while clients are being refused.
* What is refused for want of room is refused before its body is read, if possible. What is read or waits here is
  bounded, by count and by bytes: as long as the broker is away nobody else would refuse anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from zmesh.answers import (
    DRAINING,
    SERVER,
    Header,
    Refusal,
    failure,
    http_status_of,
    new_request_id,
    sane_token,
    says_its_kind,
    text_of,
)
from zmesh.asgi import AsgiApp, Receive, Scope, Send, dressed, drop_upload
from zmesh.config import Plan, Settings
from zmesh.door import DENIED_SECONDS, DenyList, Door
from zmesh.messages import Context, Payload, Status, TaskId
from zmesh.telemetry import GatewayCounts

__all__ = ["Inference", "Mesh"]

logger = logging.getLogger("zmesh.gateway")

BODY_SECONDS = 30.0  # for the whole of a request body to arrive
WATCH_SECONDS = 0.1  # a request that waits longer is watched for its client leaving
SWEEP_SECONDS = 0.1
BREATH_SECONDS = 0.005  # of requests without a pause, until the mesh is let in between
DROPPED_BYTES_MAX = 64 * 1024  # an unread body up to this size is read and dropped, and its connection goes on
GONE_HTTP = 499  # what a request counts as whose client left; nobody reads it
FULL = "too many requests: the gateway is full"
RETRY_FAILING_SECONDS = 30  # how often a stage that does not start is tried
RETRY_DRAINING_SECONDS = 1  # another gateway may take it at once

_OK, _POISONED = int(Status.OK), int(Status.POISONED)
_GONE = -1  # not a Status: the client left
_NO_WORK = {_GONE} | {int(s) for s in (Status.SHED, Status.TIMEOUT, Status.UNAVAILABLE, Status.CANCELLED)}


class Mesh(Protocol):
    """What answers requests: see `linkage.BrokerLink`."""

    def submit(
        self,
        route: str,
        payload: Payload,
        context: Context | None,
        deadline: float,
        done: Callable[[int, Payload], None],
    ) -> TaskId: ...

    def abandon(self, id: TaskId) -> None: ...

    def breathe(self) -> None: ...


class Call:
    """One request on its way. It reads its body while `outcome` is None, then it waits for that."""

    __slots__ = ("id", "outcome", "receive", "request_id", "since", "size", "task", "verdict", "watcher")

    def __init__(self, receive: Receive, request_id: bytes, now: float, task: asyncio.Task[Any] | None) -> None:
        self.receive, self.request_id, self.since, self.task = receive, request_id, now, task
        self.id = TaskId(0)
        self.size = 0  # bytes of its body that are here
        self.outcome: asyncio.Future[tuple[int, Payload]] | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.verdict: Refusal | None = None  # why its reading was cut short

    def done(self, status: int, payload: Payload) -> None:
        """The mesh's answer. The first outcome counts."""
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result((status, payload))


class Inference:
    """See the module. `app` gets what is not inference; with `is_guarded` it gets that too, and calls `answer`."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        mesh: Mesh,
        counts: GatewayCounts,
        app: AsgiApp,
        *,
        is_guarded: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.paths: dict[str, Header] = {
            route.path: (b"content-type", route.mime_type.encode("latin-1")) for route in plan.routes
        }
        self._doors = {route.path: Door(clock()) for route in plan.routes}
        self._denied = DenyList()
        self._mesh, self._counts, self._app, self._is_guarded, self._clock = mesh, counts, app, is_guarded, clock
        self._timeout = settings.timeout / 1000
        self._body_bytes_max = settings.max_request_size
        limits = settings.limits()
        self._calls_max, self._bytes_max = limits.mesh_tasks_max, limits.mesh_bytes_max
        self._calls: set[Call] = set()
        self._bytes = 0  # of their bodies
        self._turn_began: float | None = None  # of the loop, if it has brought a request
        self._sweeping: asyncio.TimerHandle | None = None
        self.is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not self._is_guarded and self.is_route(scope):
            await self.answer(scope, receive, send)
        else:
            await self._app(scope, receive, dressed(scope, send))

    def is_route(self, scope: Scope) -> bool:
        """By the bytes the client typed: an escape would be a second spelling, and no route needs one."""
        return scope["path"] in self.paths and b"%" not in scope.get("raw_path", b"")

    @property
    def calls(self) -> int:
        """How many requests are being read or wait for their answer."""
        return len(self._calls)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for a route's path."""
        started = self._clock()
        self._breathe(started)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        request_id = given if given is not None and sane_token(given) else new_request_id()
        call = Call(receive, request_id, started, asyncio.current_task())
        self._calls.add(call)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._swept)
        path = scope["path"]
        status: int = _GONE
        payload: Payload = b""
        refusal: Refusal | None = None
        try:
            status, payload = await self._infer(call, scope, headers)
        except Refusal as refused:
            refusal = refused.with_traceback(None)  # or the frame and it would keep each other alive
        except Exception:  # ours; whoever asked must still get an answer
            logger.exception("request %s failed in the gateway", request_id.decode("ascii"))
            refusal = Refusal(500, "inference internal error")
        finally:
            self._calls.discard(call)
            self._bytes -= call.size
            if call.watcher is not None:
                call.watcher.cancel()
        if status == _OK:
            self._counts.add(200, path, self._clock() - started)
            await self._give(call, send, self.paths[path], payload)
        elif refusal is not None or status != _GONE:
            refusal = refusal or self._refusal_of(status, payload, self._doors[path])
            self._counts.add(refusal.http, path, 0.0)
            await self._refuse(call, send, refusal, headers)
        else:
            self._counts.add(GONE_HTTP, path, 0.0)

    def _breathe(self, now: float) -> None:
        if self._turn_began is None:
            self._turn_began = now
            asyncio.get_running_loop().call_soon(self._turn_ended)
        elif now - self._turn_began > BREATH_SECONDS:
            self._turn_began = now
            self._mesh.breathe()

    def _turn_ended(self) -> None:
        self._turn_began = None

    async def _give(self, call: Call, send: Send, content_type: Header, payload: Payload) -> None:
        length = (b"content-length", b"%d" % len(payload))
        headers = [content_type, SERVER, (b"x-request-id", call.request_id), length]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": payload if type(payload) is bytes else bytes(payload)})

    async def _infer(self, call: Call, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, Payload]:
        """The outcome of a request. Raises Refusal for one that never becomes a task."""
        if scope["method"] != "POST":
            raise Refusal(405, "method not allowed: use POST", allow=b"POST")
        if self.is_draining:
            raise Refusal(503, DRAINING, retry_after=RETRY_DRAINING_SECONDS, close=True, linger=True)
        timeout = self._timeout
        if (wanted := headers.get(b"x-request-timeout")) is not None:
            timeout = min(timeout, _seconds(wanted))
        path = scope["path"]
        try:
            body = await self._body(call, self._doors[path], headers)
        except asyncio.CancelledError:
            if call.verdict is None:
                raise
            if call.task is not None:
                call.task.uncancel()
            raise call.verdict from None
        if body is None:
            return _GONE, b""
        if not body:
            raise Refusal(400, "no data provided")
        context = {"request_id": call.request_id.decode("ascii")}
        if (parent := headers.get(b"traceparent")) is not None and sane_token(parent):
            context["traceparent"] = parent.decode("ascii")
        now = call.since = self._clock()
        if self._denied and (answer := self._denied.answer(path, body, now)) is not None:
            return _POISONED, answer
        status, payload = await self._submit(call, path, body, context, now + timeout)
        is_users = status == Status.SHED and says_its_kind(payload)  # a worker's own 429, about this request alone
        self._doors[path].answered += is_users or status not in _NO_WORK
        if status != _OK and not is_users:
            self._learn(call, path, body, status, payload)
        return status, payload

    async def _submit(
        self, call: Call, path: str, body: bytes, context: Context, deadline: float
    ) -> tuple[int, Payload]:
        """The mesh's answer."""
        door = self._doors[path]
        outcome: asyncio.Future[tuple[int, Payload]] = asyncio.get_running_loop().create_future()
        call.outcome = outcome
        call.id = self._mesh.submit(path, body, context, deadline, call.done)
        self._counts.in_flight += 1
        door.pending += 1
        try:
            return await outcome
        except asyncio.CancelledError:  # the server gives up on this request
            self._mesh.abandon(call.id)
            raise
        finally:
            self._counts.in_flight -= 1
            door.leave()

    def _learn(self, call: Call, path: str, body: bytes, status: int, payload: Payload) -> None:
        """What this outcome says about the next requests."""
        if status == Status.SHED:
            self._doors[path].close(text_of(status, payload), self._clock())
        elif status == Status.UNAVAILABLE:
            self._denied.forget(path)  # a stage that does not even start may end whatever comes: nobody is to blame
        elif status == Status.POISONED:
            self._denied.add(path, body, payload, self._clock())
            text = "request %s: workers die of its body (%d bytes, sha256 %s); on %s it is refused for %g s"
            digest, request_id = hashlib.sha256(body).hexdigest(), call.request_id.decode("ascii")
            logger.error(text, request_id, len(body), digest, path, DENIED_SECONDS)

    async def _body(self, call: Call, door: Door, headers: dict[bytes, bytes]) -> bytes | None:
        """The whole body; None when the client broke off. Raises Refusal for one that is too much."""
        text = headers.get(b"content-length", b"")
        length = int(text) if text.isdigit() else None
        self._check_early(call, door, length, is_asking=b"expect" in headers)
        chunks: list[bytes] = []
        while True:
            message = await call.receive()
            if message["type"] != "http.request":
                return None
            body: bytes = message.get("body", b"")
            call.size += len(body)
            self._bytes += len(body)
            if call.size > self._body_bytes_max:
                raise self._too_large()
            if self._bytes > self._bytes_max and self._bytes > call.size:
                raise self._shed(door, f"{FULL} ({self._bytes_max} bytes)", is_last=True)
            if not message.get("more_body", False):
                break
            chunks.append(body)
        if length is None and self._clock() < door.closed_until:
            raise self._shed(door, door.text, is_last=False)
        return b"".join([*chunks, body]) if chunks else body

    # ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_early(self, call: Call, door: Door, length: int | None, *, is_asking: bool) -> None:
        """Refuse what need not even be read. A small body may come all the same, and be dropped by the parser; after a
        larger one, or when the client asked whether to send it, the connection is no good any more."""
        if length is not None and length > self._body_bytes_max:
            raise self._too_large()
        is_last = is_asking or length is None or length > DROPPED_BYTES_MAX
        if len(self._calls) > self._calls_max:
            raise self._shed(door, f"{FULL} ({self._calls_max} requests)", is_last=is_last)
        if self._bytes and self._bytes + (length or 0) > self._bytes_max:
            raise self._shed(door, f"{FULL} ({self._bytes_max} bytes)", is_last=is_last)
        if length is not None and call.since < door.closed_until:
            raise self._shed(door, door.text, is_last=is_last)

    def _shed(self, door: Door, text: str, *, is_last: bool) -> Refusal:
        return Refusal(429, text, retry_after=door.retry_after(), close=is_last, linger=is_last)

    def _too_large(self) -> Refusal:
        text = f"request body is too large: at most {self._body_bytes_max} bytes"
        return Refusal(413, text, close=True, linger=True)

    def _refusal_of(self, status: int, payload: Payload, door: Door) -> Refusal:
        retry_after = 0
        if status == Status.SHED:
            retry_after = door.retry_after()
        elif status == Status.UNAVAILABLE:
            retry_after = RETRY_DRAINING_SECONDS if self.is_draining else RETRY_FAILING_SECONDS
        text = text_of(status, payload)
        return Refusal(http_status_of(status), text, retry_after=retry_after, close=self.is_draining)

    async def _refuse(self, call: Call, send: Send, refusal: Refusal, headers: dict[bytes, bytes]) -> None:
        status, sent, body = failure(refusal, call.request_id, headers.get(b"accept"))
        await send({"type": "http.response.start", "status": status, "headers": sent})
        if refusal.linger:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await drop_upload(call.receive)
            body = b""
        await send({"type": "http.response.body", "body": body})

    # ── looking after slow ones ───────────────────────────────────────────────────────────────────────────────────

    def sweep(self) -> None:
        """Look once at every request: give up bodies that do not come, watch clients that wait long."""
        now = self._clock()
        for call in list(self._calls):
            waited = now - call.since
            if call.outcome is None:
                if waited > BODY_SECONDS:
                    text = f"request timeout: the body did not arrive within {BODY_SECONDS:g} s"
                    self._cut_short(call, Refusal(408, text, close=True))
            elif call.watcher is None and waited > WATCH_SECONDS:
                call.watcher = asyncio.get_running_loop().create_task(self._watch(call))
        for door in self._doors.values():
            door.measure(now)

    def expire(self) -> int:
        """Answer 503 to every request that is still here, and forget its task; how many there were."""
        left = list(self._calls)
        for call in left:
            if call.outcome is None:
                self._cut_short(call, Refusal(503, DRAINING, retry_after=RETRY_DRAINING_SECONDS, close=True))
            else:
                self._mesh.abandon(call.id)
                call.done(int(Status.UNAVAILABLE), DRAINING.encode())
        return len(left)

    def _swept(self) -> None:
        self._sweeping = None
        if self._calls:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._swept)
            self.sweep()

    def _cut_short(self, call: Call, verdict: Refusal) -> None:
        if call.verdict is None and call.task is not None:
            call.verdict = verdict
            call.task.cancel()

    async def _watch(self, call: Call) -> None:
        """Nothing but the end of the connection can still come."""
        while (await call.receive())["type"] != "http.disconnect":
            pass
        if call.outcome is not None and not call.outcome.done():
            self._mesh.abandon(call.id)
            call.done(_GONE, b"")


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
