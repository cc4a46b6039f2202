"""`--compression`: bodies of requests in gzip or zstd, and answers to who accepts them so.

A body is unpacked as it comes, in pieces, and refused as soon as it is too much. A small piece is unpacked where it
stands; what more there is, and large answers, in threads, `THREADS` of them at a time, so that the event loop has its
hands free and no more bombs than that are in memory. Nothing of this is there without the setting: see `inference_of`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from zmesh.answers import Header, Refusal
from zmesh.asgi import AsgiApp, Receive, Scope, Send
from zmesh.calls import Calls
from zmesh.codings import PACKED_BYTES_MIN, Coding, Unpacking, Wanted, coding_of, known, may_pack, wanted
from zmesh.inference import Inference, Upload
from zmesh.streaming import Outcome

__all__ = ["CompressedInference", "inference_of"]

THREADS = 2
AT_ONCE_BYTES = 64 * 1024  # unpacked without a thread
PACKED_AT_ONCE_BYTES = 16 * 1024  # packed without a thread
PIECE_BYTES = 1024 * 1024  # unpacked in a thread before somebody looks whether that is too much
AS_IT_IS = {b"content-encoding", b"content-range", b"etag"}  # an answer that says so is not packed

Message = MutableMapping[str, Any]


def inference_of(calls: Calls, app: AsgiApp, *, is_guarded: bool) -> Inference:
    kind = CompressedInference if calls.is_compressing else Inference
    return kind(calls, app, is_guarded=is_guarded)


class CompressedInference(Inference):
    """It packs whole answers, those of the app behind it too, and unpacks bodies of requests for inference."""

    def __init__(self, calls: Calls, app: AsgiApp, *, is_guarded: bool = False) -> None:
        super().__init__(calls, app, is_guarded=is_guarded)
        self._codings = known()
        self._threads = asyncio.Semaphore(THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, self._packed(scope, send) if scope["type"] == "http" else send)

    async def _outcome(self, call: Upload, scope: Scope, headers: Mapping[bytes, bytes], send: Send) -> Outcome | None:
        if scope["method"] == "POST" and not self._calls.is_draining:
            wanted(_said(scope, b"accept-encoding"), self._codings)  # before anything is done for it
            if coding := coding_of(_said(scope, b"content-encoding"), self._codings):
                call.receive = _Unpacked(self._calls, call.receive, Unpacking(coding), self._threads)
        return await super()._outcome(call, scope, headers, send)

    async def _pack_apart(self, coding: Coding, body: bytes) -> bytes:
        async with self._threads:
            return await asyncio.to_thread(coding.pack, body)

    def _packed(self, scope: Scope, send: Send) -> Send:
        """`send`, which packs an answer that is whole."""
        held: Message | None = None  # the start of an answer, until there is something of its body

        async def packed(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and _may_pack(message):
                held = message
                return
            if held is not None:
                start, held = held, None
                if not message.get("more_body", False) or _is_all(start, message):
                    start, message = await self._pack(scope, start, message)
                await send(start)
            await send(message)

        return packed

    async def _pack(self, scope: Scope, start: Message, message: Message) -> tuple[Message, Message]:
        body: bytes = message.get("body", b"")
        try:
            coding, is_must = wanted(_said(scope, b"accept-encoding"), self._codings)
        except Refusal:  # not by inference, which has looked: it gets the page all the same
            coding, is_must = Wanted()
        headers: list[Header] = list(start["headers"])
        if not any(name.lower() == b"vary" and b"accept-encoding" in value.lower() for name, value in headers):
            headers.append((b"vary", b"accept-encoding"))
        if coding is not None and body and (is_must or len(body) >= PACKED_BYTES_MIN):
            at_once = len(body) <= PACKED_AT_ONCE_BYTES
            body = coding.pack(body) if at_once else await self._pack_apart(coding, body)
            headers = [one for one in headers if one[0].lower() != b"content-length"]
            headers += [(b"content-encoding", coding.name.encode()), (b"content-length", b"%d" % len(body))]
        return {**start, "headers": headers}, {**message, "body": body}


class _Unpacked:
    """What `receive` gives, unpacked."""

    def __init__(self, calls: Calls, receive: Receive, unpacking: Unpacking, threads: asyncio.Semaphore) -> None:
        self._calls, self._receive, self._unpacking, self._threads = calls, receive, unpacking, threads
        self._packed_bytes = self._bytes = 0
        self._is_whole = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        self._is_whole = not message.get("more_body", False)
        try:
            body = await self._unpacked(message.get("body", b""))
            if self._is_whole:
                self._unpacking.end()
        except Refusal as refusal:
            refusal.close = refusal.linger = not self._is_whole
            raise
        return {**message, "body": body}

    async def _unpacked(self, data: bytes) -> bytes:
        """In turns: who is not done keeps its thread, or many bombs would be in memory, each of them nearly done."""
        unpacking = self._unpacking
        self._packed_bytes += len(data)
        pieces = [unpacking.some(data, AT_ONCE_BYTES)]
        self._count(pieces[0])
        if unpacking.has_more:
            async with self._threads:
                while unpacking.has_more:
                    pieces.append(await asyncio.to_thread(unpacking.more, PIECE_BYTES))
                    self._count(pieces[-1])
        return b"".join(pieces)

    def _count(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if max(self._packed_bytes, self._bytes) > self._calls.body_bytes_max:
            raise self._calls.too_large(", packed or unpacked")


def _said(scope: Scope, name: bytes) -> str:
    """All values of a header."""
    return ",".join(value.decode("latin-1") for one, value in scope["headers"] if one == name)


def _is_all(start: Message, message: Message) -> bool:
    """Whether this is the whole body although its end is not said: middleware says it by itself."""
    lengths = [value for name, value in start["headers"] if name.lower() == b"content-length"]
    return lengths == [b"%d" % len(message.get("body", b""))]


def _may_pack(start: Message) -> bool:
    headers: Iterable[Header] = start.get("headers", ())
    said = {name.lower(): value for name, value in headers}
    return (
        start["status"] == 200
        and b"content-length" in said  # or it is a stream, whose start is not held back
        and AS_IT_IS.isdisjoint(said)
        and may_pack(said.get(b"content-type", b"").decode("latin-1"))
    )
