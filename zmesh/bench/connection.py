"""One connection to the server that is measured: at most one request at a time, nothing kept of an answer.

The parser is httptools'. Nothing here waits and nothing makes a Future: an answer is a call of its owner.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

__all__ = ["Connection", "Owner"]

FINAL_STATUS_MIN = 200  # 1xx: the answer is still to come


class Owner(Protocol):
    """Who is told what becomes of a connection and of what was sent on it."""

    def answered(self, connection: Connection, status: int, keeps_alive: bool) -> None:
        """The answer is there in whole. The connection can take another request if `keeps_alive`."""

    def lost(self, connection: Connection) -> None:
        """It ended; not said after `close`. A request that was on it has no answer."""


class Connection(asyncio.Protocol):
    """Sends ready bytes. `due` is for its owner: the moment from which the present request counts."""

    __slots__ = ("_first", "_is_busy", "_owner", "_parser", "_transport", "bytes_received", "due")

    def __init__(self, owner: Owner) -> None:
        self._owner: Owner | None = owner
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._first = b""  # the first part of the answer
        self._is_busy = False
        self.due, self.bytes_received = 0.0, 0

    def send(self, request: bytes, due: float) -> None:
        assert self._transport is not None and not self._is_busy, "one at a time, once it is connected"
        self.due, self._is_busy, self._first = due, True, b""
        self._transport.write(request)

    def close(self) -> None:
        """At once, and without a word to its owner."""
        self._owner = None
        if self._transport is not None:
            self._transport.abort()

    # ── what the loop calls ───────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._owner is None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        if not self._first:
            self._first = data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # a mistake of ours, not of the server
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and self._is_busy and self._ends_with_connection():
            self._is_busy = False
            if self._owner is not None:
                self._owner.answered(self, self._parser.get_status_code(), False)
        else:
            self._end()

    def _ends_with_connection(self) -> bool:
        """Whether the answer says nothing of its length, so that it is whole when the connection ends."""
        head, end, _ = self._first.lower().partition(b"\r\n\r\n")
        return bool(end) and b"\r\ncontent-length:" not in head and b"\r\ntransfer-encoding:" not in head

    def _end(self) -> None:
        owner = self._owner
        self.close()
        if owner is not None:
            owner.lost(self)

    # ── what the parser calls ─────────────────────────────────────────────────────────────────────────────────────

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < FINAL_STATUS_MIN:
            return
        if not self._is_busy:  # it answers what nobody asked
            self._end()
        elif self._owner is not None:
            self._is_busy = False
            self._owner.answered(self, status, self._parser.should_keep_alive())
