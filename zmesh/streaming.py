"""The answer of a route that streams: events as they come, and at the end nothing, or the reason why it ended.

The mesh tells a `Stream` its events and its outcome, and never waits for it. What its client has not read waits here,
at most `BUFFER_BYTES_MAX` and for `READER_SECONDS`. A client that is slower than that has its stream ended, and costs
nobody else anything. The rules:

* 200 goes out with the first event, or after `ADMISSION_SECONDS`. Until then a refusal by the mesh is an answer with a
  status of its own, as it would be without a stream; after that everything that goes wrong is an `error` event.
* A stream never ends silently, unless it ended well.
* While nothing is said, a comment every `KEEP_ALIVE_SECONDS` keeps the connection open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from zmesh.answers import says_its_kind
from zmesh.asgi import Send
from zmesh.calls import GONE, OK, Call, Calls
from zmesh.messages import Payload, Status
from zmesh.sse import KEEP_ALIVE, STREAM_HEADERS, error_event, event

__all__ = ["Outcome", "Stream"]

ADMISSION_SECONDS = 0.05
KEEP_ALIVE_SECONDS = 3.0
BUFFER_BYTES_MAX = 1024 * 1024
READER_SECONDS = 30.0  # for what is written to be taken; and again, before the connection is cut
WRITE_BYTES = 64 * 1024  # so much, and one event, is handed to the connection at a time

Outcome = tuple[int, Payload]
SHED, UNAVAILABLE, TIMEOUT = int(Status.SHED), int(Status.UNAVAILABLE), int(Status.TIMEOUT)


class Stream:
    """Of one request. It is what the mesh calls with events and with the outcome."""

    def __init__(
        self, calls: Calls, call: Call, outcome: asyncio.Future[Outcome], send: Send, abort: Callable[[], None]
    ) -> None:
        self._calls, self._call, self._outcome, self._send, self._abort = calls, call, outcome, send, abort
        self._unsent: deque[bytes] = deque()
        self._bytes = 0  # of these
        self._rang = asyncio.Event()
        self._writing_since: float | None = None
        self._gave_up_at: float | None = None  # its reader is too slow
        outcome.add_done_callback(lambda _: self._rang.set())

    # ── what the mesh says ────────────────────────────────────────────────────────────────────────────────────────

    def __call__(self, status: int, payload: Payload) -> None:
        self._call.done(status, payload)

    def event(self, payload: Payload) -> None:
        if self._outcome.done():
            return
        piece = event(payload)
        if self._bytes and self._bytes + len(piece) > BUFFER_BYTES_MAX:
            self._give_up(f"its reader is too slow: more than {BUFFER_BYTES_MAX} bytes wait for it")
        elif not self._calls.buffer(self._call, len(piece)) and self._bytes:  # who keeps up is not to blame
            self._give_up("its reader is too slow, and the gateway is full")
        else:
            self._unsent.append(piece)
            self._bytes += len(piece)
            self._rang.set()

    def look(self, now: float) -> None:
        """Look after its reader."""
        if self._writing_since is None:
            return
        if self._gave_up_at is not None:
            if now - self._gave_up_at > READER_SECONDS:
                self._abort()
        elif now - self._writing_since > READER_SECONDS and not self._outcome.done():
            self._give_up(f"its reader is too slow: it took nothing for {READER_SECONDS:g} s")
        elif now - self._writing_since > 2 * READER_SECONDS:
            self._abort()  # it has ended, and its end is not read

    def _give_up(self, why: str) -> None:
        self._gave_up_at = self._calls.clock()
        self._calls.abandon(self._call)
        self._call.done(TIMEOUT, f"request timeout: {why}".encode())
        self._calls.buffer(self._call, -self._bytes)
        self._unsent.clear()
        self._bytes = 0

    # ── what its client reads ─────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> Outcome | None:
        """The whole of the answer; or the outcome of a request that is to be answered in the ordinary way."""
        await self._wait(ADMISSION_SECONDS)
        if self._outcome.done() and not self._unsent and self._is_refusal(*self._outcome.result()):
            return self._outcome.result()
        calls, call = self._calls, self._call
        content_type, server = calls.first_headers(call.path)
        headers = [content_type, *STREAM_HEADERS, server, (b"x-request-id", call.request_id)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        while not self._outcome.done() or self._unsent:
            if self._unsent:
                await self._write(self._some())
            elif not await self._wait(KEEP_ALIVE_SECONDS):
                await self._write(KEEP_ALIVE)
        status, payload = self._outcome.result()
        if status == GONE:
            calls.leave(call)
        elif status == OK:
            calls.succeed(call)
            await self._write(b"", is_last=True)
        else:
            refusal = calls.judged(call, status, payload)
            calls.fail(call, refusal)
            await self._write(error_event(refusal.http, refusal.text), is_last=True)
        return None

    @staticmethod
    def _is_refusal(status: int, payload: Payload) -> bool:
        """Whether the mesh let it in at all; a 429 of a worker's own is about what it has read."""
        return status in (GONE, UNAVAILABLE) or (status == SHED and not says_its_kind(payload))

    async def _wait(self, seconds: float) -> bool:
        """For something to write, or the outcome; False when neither came."""
        self._rang.clear()
        if self._unsent or self._outcome.done():
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._rang.wait()
        except TimeoutError:
            return False
        return True

    def _some(self) -> bytes:
        taken: list[bytes] = []
        size = 0
        while self._unsent and size < WRITE_BYTES:
            taken.append(self._unsent.popleft())
            size += len(taken[-1])
        self._bytes -= size
        self._calls.buffer(self._call, -size)
        return b"".join(taken)

    async def _write(self, body: bytes, *, is_last: bool = False) -> None:
        """May take as long as its client does."""
        self._writing_since = self._calls.clock()
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})
        self._writing_since = None
