"""Inference over HTTP as one raw ASGI callable: body in, task to the mesh, answer out.

`Inference` stands outermost. A request for the exact path of a route is answered here, without the machinery of a web
framework; everything else goes to the app behind it. Its rules, beside those of `calls.py`:

* One request gets one answer, or none because its client is gone.
* Nothing is submitted before the whole body is here and within bounds; an upload that is broken off submits nothing.
* A body that does not come is given up, and a client that leaves while its task waits takes the task with it.
* While draining, new requests are refused and accepted ones finish.
* A route that streams is answered by a `Stream`, once its request is handed over.
* What is refused for want of room is refused before its body is read, if possible.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from zmesh.answers import DRAINING, Refusal
from zmesh.asgi import AsgiApp, Receive, Scope, Send, dressed, drop_upload
from zmesh.calls import GONE, RETRY_DRAINING_SECONDS, Call, Calls
from zmesh.messages import Payload
from zmesh.streaming import Outcome, Stream

__all__ = ["Inference", "Upload"]

BODY_SECONDS = 30.0  # for the whole of a request body to arrive
WATCH_SECONDS = 0.1  # a request that waits longer is watched for its client leaving
DROPPED_BYTES_MAX = 64 * 1024  # an unread body up to this size is read and dropped, and its connection goes on


class Upload(Call):
    """It reads its body while `outcome` is None, then it waits for that."""

    __slots__ = ("calls", "outcome", "receive", "stream", "task", "verdict", "watcher")

    has_task = True

    def __init__(self, calls: Calls, path: str, headers: Mapping[bytes, bytes], now: float, receive: Receive) -> None:
        super().__init__(path, calls.doors[path], headers, now)
        self.calls, self.receive, self.task = calls, receive, asyncio.current_task()
        self.outcome: asyncio.Future[Outcome] | None = None
        self.stream: Stream | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.verdict: Refusal | None = None  # why its reading was cut short

    def done(self, status: int, payload: Payload) -> None:
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result((status, payload))

    def look(self, now: float) -> None:
        """Give up a body that does not come, watch for a client that leaves."""
        waited = now - self.since
        if self.outcome is None:
            if waited > BODY_SECONDS:
                text = f"request timeout: the body did not arrive within {BODY_SECONDS:g} s"
                self._cut_short(Refusal(408, text, close=True))
            return
        if self.watcher is None and waited > WATCH_SECONDS:
            self.watch()
        if self.stream is not None:
            self.stream.look(now)

    def watch(self) -> None:
        """From now on for the end of its connection."""
        self.watcher = asyncio.get_running_loop().create_task(self._watch())

    def give_up(self, calls: Calls) -> None:
        if self.outcome is None:
            self._cut_short(Refusal(503, DRAINING, retry_after=RETRY_DRAINING_SECONDS, close=True))
        else:
            super().give_up(calls)

    def _cut_short(self, verdict: Refusal) -> None:
        if self.verdict is None and self.task is not None:
            self.verdict = verdict
            self.task.cancel()

    async def _watch(self) -> None:
        """Nothing but the end of the connection can still come."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.outcome is not None and not self.outcome.done():
            self.calls.abandon(self)
            self.done(GONE, b"")


class Inference:
    """See the module. `app` gets what is not inference; with `is_guarded` it gets that too, and calls `answer`."""

    def __init__(self, calls: Calls, app: AsgiApp, *, is_guarded: bool = False) -> None:
        self._calls, self._app, self._is_guarded = calls, app, is_guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not self._is_guarded and self.is_route(scope):
            await self.answer(scope, receive, send)
        else:
            await self._app(scope, receive, dressed(scope, send))

    def is_route(self, scope: Scope) -> bool:
        """By the bytes the client typed: an escape would be a second spelling, and no route needs one."""
        return scope["path"] in self._calls.doors and b"%" not in scope.get("raw_path", b"")

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for a route's path."""
        calls = self._calls
        headers: dict[bytes, bytes] = dict(scope["headers"])
        call = Upload(calls, scope["path"], headers, calls.clock(), receive)
        calls.hold(call)
        refusal: Refusal | None = None
        outcome: Outcome | None = None
        try:
            outcome = await self._outcome(call, scope, headers, send)
        except Refusal as refused:
            refusal = refused.with_traceback(None)  # or the frame and it would keep each other alive
        except Exception as error:
            refusal = calls.fault(call, error)
        finally:
            calls.drop(call)
            if call.watcher is not None:
                call.watcher.cancel()
        if refusal is None:
            if outcome is None:
                return  # a stream, and all of it is said
            status, payload = outcome
            if status == GONE:
                calls.leave(call)
                return
        answer = calls.answer(call, status, payload) if refusal is None else calls.refuse(call, refusal)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        body = answer.body
        if refusal is not None and refusal.linger:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await drop_upload(receive)
            body = b""
        await send({"type": "http.response.body", "body": body})

    async def _outcome(self, call: Upload, scope: Scope, headers: Mapping[bytes, bytes], send: Send) -> Outcome | None:
        """What becomes of a request; None when it is answered already. Raises Refusal for one that never becomes a
        task."""
        if scope["method"] != "POST":
            raise Refusal(405, "method not allowed: use POST", allow=b"POST")
        if self._calls.is_draining:
            raise Refusal(503, DRAINING, retry_after=RETRY_DRAINING_SECONDS, close=True, linger=True)
        timeout = self._calls.timeout_of(headers)
        try:
            body = await self._body(call, headers)
        except asyncio.CancelledError:
            if call.verdict is None:
                raise
            if call.task is not None:
                call.task.uncancel()
            raise call.verdict from None
        if body is None:
            return GONE, b""
        call.body = body
        return await self._ask(call, headers, timeout, send, scope.get("zmesh.abort", _nothing))

    async def _ask(
        self, call: Upload, headers: Mapping[bytes, bytes], timeout: float, send: Send, abort: Callable[[], None]
    ) -> Outcome | None:
        """What the mesh makes of it; None when a stream has said it all."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        call.outcome = outcome
        stream = None
        if call.path in self._calls.streams:
            stream = call.stream = Stream(self._calls, call, outcome, send, abort)
        self._calls.submit(call, headers, timeout, self._calls.clock(), stream)
        try:
            if stream is None:
                return await outcome
            call.watch()
            return await stream.run()
        except asyncio.CancelledError:  # the server gives up on this request
            self._calls.abandon(call)
            raise
        finally:
            self._calls.settle(call)

    async def _body(self, call: Upload, headers: Mapping[bytes, bytes]) -> bytes | None:
        """The whole body; None when the client broke off. Raises Refusal for one that is too much."""
        text = headers.get(b"content-length", b"")
        length = int(text) if text.isdigit() else None
        self._check_early(call, length, is_asking=b"expect" in headers)
        chunks: list[bytes] = []
        while True:
            message = await call.receive()
            if message["type"] != "http.request":
                return None
            body: bytes = message.get("body", b"")
            self._calls.grow(call, len(body))
            if not message.get("more_body", False):
                break
            chunks.append(body)
        if length is None and self._calls.clock() < call.door.closed_until:
            raise self._calls.shed(call.door, call.door.text, is_last=False)
        return b"".join([*chunks, body]) if chunks else body

    def _check_early(self, call: Call, length: int | None, *, is_asking: bool) -> None:
        """Refuse what need not even be read. A small body may come all the same, and be dropped by the parser; after a
        larger one, or when the client asked whether to send it, the connection is no good any more."""
        calls = self._calls
        if length is not None and length > calls.body_bytes_max:
            raise calls.too_large()
        if why := calls.why_not(call.door, length, call.since, len(calls) - 1):
            is_last = is_asking or length is None or length > DROPPED_BYTES_MAX
            raise calls.shed(call.door, why, is_last=is_last)


def _nothing() -> None:
    pass
