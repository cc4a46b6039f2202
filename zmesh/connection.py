"""One HTTP connection: uvicorn's, with bounds on the headers of a request in time and size, and our words in refusals.

uvicorn bounds neither, so a client that never ends its headers would be waited for, and remembered, for ever. Headers
nearly always come in one piece; nothing is timed before a piece is found not to end them. What cannot be a request is
answered like every other mistake. A refused client may go on sending for a moment, which is read and dropped: closed
at once, the connection would be reset and the answer lost.

Nor does uvicorn wait with an end for what follows an answer: the rest of a body that nobody reads any more, and the
reading of the answer by its client. The first has the time of an idle connection, from one piece to the next. A client
that takes nothing of its answer for `READER_SECONDS` is cut off, or its answer would be kept for ever.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from zmesh.answers import Refusal, failure, new_request_id

__all__ = ["HEADER_BYTES_MAX", "HEADER_SECONDS", "Connection"]

HEADER_BYTES_MAX = 64 * 1024
HEADER_SECONDS = 10.0  # for the headers of a request to arrive, from their first byte
LINGER_SECONDS = 2.0
LAST_REQUEST_SECONDS = 0.5  # for a request that is on its way when we stop, on a connection that was idle
READER_SECONDS = 30.0


class _Refused(Exception):
    """Ends the parser's work on this connection."""


class Connection(HttpToolsProtocol):
    """A refusal is the last answer on its connection."""

    _in_headers = False
    _size = 0  # bytes that came while headers were incomplete
    _patience: asyncio.TimerHandle | None = None
    _why_not: Refusal | None = None  # said of headers that the parser itself would take
    _is_refused = False
    _reader: asyncio.TimerHandle | None = None  # looks whether an answer is read
    _ahead: Any = None  # the request whose turn it is while others wait behind it: uvicorn looks at the last alone

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._keep_alive()  # like one between two requests; uvicorn would wait for the first for ever

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._stop_waiting()
        if self._reader is not None:
            self._reader.cancel()
        super().connection_lost(exc)
        if (ahead := self._ahead) is not None and not ahead.response_complete:
            ahead.disconnected = True
            ahead.message_event.set()

    def shutdown(self) -> None:
        """A request may be on its way on a connection that is idle: it is answered, with 503, before the end."""
        cycle = getattr(self, "cycle", None)  # typed as if there were always one
        if cycle is None or cycle.response_complete:
            self.loop.call_later(LAST_REQUEST_SECONDS, self._end_if_idle)
        else:
            cycle.keep_alive = False

    def _end_if_idle(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._size += len(data)
        super().data_received(data)
        if not self._in_headers:
            self._size = 0
            if self._patience is not None:
                self._stop_waiting()
            if self.timeout_keep_alive_task is None and self.is_answered():
                self._keep_alive()
        elif not self._is_refused:
            if self._size > HEADER_BYTES_MAX:
                self._refuse(_too_large())
            elif self._patience is None:
                self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def on_message_begin(self) -> None:
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self._size > HEADER_BYTES_MAX:  # some of it may be body
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > HEADER_BYTES_MAX:
                self._why_not = _too_large()
                raise _Refused
        if [name for name, _ in self.headers].count(b"host") > 1:  # RFC 9112, section 3.2; the parser sees to lengths
            self._why_not = Refusal(400, "bad request: more than one host header", close=True)
            raise _Refused
        self.start_request()

    def start_request(self) -> None:
        """The headers are here, and no larger than they may be."""
        before = self.cycle
        super().on_headers_complete()
        self.scope["zmesh.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]  # see `streaming`
        if self.pipeline and self._ahead is None:
            self._ahead = before

    def on_response_complete(self) -> None:
        self._ahead = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._watch_reader()

    def _watch_reader(self) -> None:
        """From now on, if anything of an answer is left to read."""
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        if unread := self.transport.get_write_buffer_size():
            self._reader = self.loop.call_later(READER_SECONDS, self._look_at_reader, unread)

    def _look_at_reader(self, before: int) -> None:
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up, also when it was us who stopped it."""
        self._refuse(self._why_not or Refusal(400, msg, close=True))

    def _give_up(self) -> None:
        self._refuse(
            Refusal(408, f"request timeout: the headers did not arrive within {HEADER_SECONDS:g} s", close=True)
        )

    def _refuse(self, refusal: Refusal) -> None:
        self._is_refused = True
        self._stop_waiting()
        if self.transport.is_closing() or not self._is_their_turn():
            return
        status, headers, body = failure(refusal, new_request_id(), None)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()]
        lines += [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([*lines, b"\r\n", body]))
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _is_their_turn(self) -> bool:
        """Whether the next answer is that to the broken request. If not, the connection ends without this one."""
        cycle = getattr(self, "cycle", None)  # typed as if there were always one
        if cycle is None or cycle.response_complete:
            return True
        if self.pipeline or cycle.response_started:
            self.transport.close()
            return False
        if not cycle.more_body:  # a request before it waits for its answer
            cycle.keep_alive = False
            return False
        cycle.disconnected = True  # its body is what is broken
        cycle.message_event.set()
        return True

    def is_answered(self) -> bool:
        """Whether nothing is to be said: what comes now is the rest of a body that was answered already."""
        cycle = getattr(self, "cycle", None)
        return cycle is not None and cycle.response_complete and not self.transport.is_closing()

    def _keep_alive(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _too_large() -> Refusal:
    return Refusal(431, f"headers are too large: at most {HEADER_BYTES_MAX} bytes", close=True)
