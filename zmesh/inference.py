"""Inference over HTTP as one raw ASGI callable: body in, task to the link, answer out.

`Inference` stands outermost. A request for the exact path of a route is answered here, without the machinery of a web
framework; everything else goes to the app behind it. Its rules:

* One request gets one answer, or none because its client is gone.
* Nothing is submitted before the whole body is here and within bounds; an upload that is broken off submits nothing.
* Per request there is one `Call` and one Future. Slow ones are looked after by one sweep for all: a body that does not
  come is given up, and a client that leaves while its task waits takes the task with it.
* While draining, new requests are refused and accepted ones finish.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeAlias

from zmesh.answers import (
    DRAINING,
    SERVER,
    Header,
    Refusal,
    failure,
    http_status_of,
    new_request_id,
    sane_token,
    text_of,
)
from zmesh.config import Plan, Settings
from zmesh.messages import Context, Payload, Status, TaskId
from zmesh.telemetry import GatewayCounts

__all__ = ["AsgiApp", "Inference", "Mesh", "Receive", "Scope", "Send"]

logger = logging.getLogger("zmesh.gateway")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_SECONDS = 30.0  # for the whole of a request body to arrive
WATCH_SECONDS = 0.1  # a request that waits longer is watched for its client leaving
SWEEP_SECONDS = 0.1
LINGER_SECONDS = 2.0  # a refused upload is read and dropped for so long, or a reset would outrun the answer
GONE_HTTP = 499  # what a request counts as whose client left; nobody reads it
RATE_SECONDS = 1.0  # the drain rate is measured over at least this long,
STUCK_SECONDS = 10.0  # and this long, if nothing is answered
RETRY_SECONDS_MAX = 60
RETRY_FAILING_SECONDS = 30  # how often a stage that does not start is tried
RETRY_DRAINING_SECONDS = 1  # another gateway may take it at once

_OK = int(Status.OK)
_GONE = -1  # not a Status: the client left


class Mesh(Protocol):
    """What answers requests: see `linkage.BrokerLink`."""

    @property
    def pending(self) -> int: ...

    def submit(
        self,
        route: str,
        payload: Payload,
        context: Context | None,
        deadline: float,
        done: Callable[[int, Payload], None],
    ) -> TaskId: ...

    def abandon(self, id: TaskId) -> None: ...


class Call:
    """One request on its way. It reads its body while `outcome` is None, then it waits for that."""

    __slots__ = ("id", "outcome", "receive", "request_id", "since", "task", "verdict", "watcher")

    def __init__(self, receive: Receive, request_id: bytes, now: float, task: asyncio.Task[Any] | None) -> None:
        self.receive, self.request_id, self.since, self.task = receive, request_id, now, task
        self.id = TaskId(0)
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
        self._mesh, self._counts, self._app, self._is_guarded, self._clock = mesh, counts, app, is_guarded, clock
        self._timeout = settings.timeout / 1000
        self._body_bytes_max = settings.max_request_size
        self._calls: set[Call] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._rate: float | None = None  # answers 200 per second, lately
        self._rate_at, self._rate_ok = clock(), 0
        self.is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not self._is_guarded and self.is_route(scope):
            await self.answer(scope, receive, send)
        else:
            await self._app(scope, receive, _dressed(scope, send))

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
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        request_id = given if given is not None and sane_token(given) else new_request_id()
        call = Call(receive, request_id, started, asyncio.current_task())
        self._calls.add(call)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._swept)
            self._rate_at, self._rate_ok = started, self._counts.ok  # idle time says nothing about the rate
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
            if call.watcher is not None:
                call.watcher.cancel()
        if status == _OK:
            self._counts.add(200, path, self._clock() - started)
            await self._give(call, send, self.paths[path], payload)
        elif refusal is not None or status != _GONE:
            refusal = refusal or self._refusal_of(status, payload)
            self._counts.add(refusal.http, path, 0.0)
            await self._refuse(call, send, refusal, headers)
        else:
            self._counts.add(GONE_HTTP, path, 0.0)

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
        try:
            body = await self._body(call, headers.get(b"content-length"))
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
        outcome: asyncio.Future[tuple[int, Payload]] = asyncio.get_running_loop().create_future()
        call.outcome = outcome
        call.id = self._mesh.submit(scope["path"], body, context, now + timeout, call.done)
        self._counts.in_flight += 1
        try:
            return await outcome
        except asyncio.CancelledError:  # the server gives up on this request
            self._mesh.abandon(call.id)
            raise
        finally:
            self._counts.in_flight -= 1

    async def _body(self, call: Call, length: bytes | None) -> bytes | None:
        """The whole body; None when the client broke off."""
        if length is not None and length.isdigit() and int(length) > self._body_bytes_max:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await call.receive()
            if message["type"] != "http.request":
                return None
            body: bytes = message.get("body", b"")
            size += len(body)
            if size > self._body_bytes_max:
                raise self._too_large()
            if not message.get("more_body", False):
                if not chunks:
                    return body
                chunks.append(body)
                return b"".join(chunks)
            chunks.append(body)

    # ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _too_large(self) -> Refusal:
        text = f"request body is too large: at most {self._body_bytes_max} bytes"
        return Refusal(413, text, close=True, linger=True)

    def _refusal_of(self, status: int, payload: Payload) -> Refusal:
        retry_after = 0
        if status == Status.SHED:
            retry_after = self._seconds_to_drain()
        elif status == Status.UNAVAILABLE:
            retry_after = RETRY_FAILING_SECONDS
        return Refusal(http_status_of(status), text_of(status, payload), retry_after=retry_after)

    def _seconds_to_drain(self) -> int:
        """How long what waits now takes at the rate of the last seconds."""
        if self._rate is None:
            return 1
        if not self._rate:
            return RETRY_SECONDS_MAX
        return min(RETRY_SECONDS_MAX, max(1, math.ceil(self._mesh.pending / self._rate)))

    async def _refuse(self, call: Call, send: Send, refusal: Refusal, headers: dict[bytes, bytes]) -> None:
        status, sent, body = failure(refusal, call.request_id, headers.get(b"accept"))
        await send({"type": "http.response.start", "status": status, "headers": sent})
        if refusal.linger:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await _drop_upload(call.receive)
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
        age, ok = now - self._rate_at, self._counts.ok - self._rate_ok
        if age >= (RATE_SECONDS if ok else STUCK_SECONDS):
            self._rate = ok / age
            self._rate_at, self._rate_ok = now, self._counts.ok

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


async def _drop_upload(receive: Receive) -> None:
    """Read what the client still sends, so that it gets to read its answer."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass


def _dressed(scope: Scope, send: Send) -> Send:
    """`send` with the headers that every answer has, unless they are there."""

    async def dressed(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            if b"server" not in names:
                headers.append(SERVER)
            if b"x-request-id" not in names:
                given = dict(scope["headers"]).get(b"x-request-id")
                headers.append(
                    (b"x-request-id", given if given is not None and sane_token(given) else new_request_id())
                )
            message = {**message, "headers": headers}
        await send(message)

    return dressed
