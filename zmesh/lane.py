"""The fast lane: a small request for inference answered by the connection itself, without ASGI.

An ASGI request costs a scope, a task, an event and two writes; here it costs a call and one write. The lane takes a
request only when nothing about it is unusual: `POST` to the exact path of a route, HTTP/1.1, a `content-length` of at
most `LANE_BODY_BYTES_MAX`, all of it here in one piece, nothing to refuse, nobody before it on its connection. Anything
else goes through ASGI, where every rule is; so that this is a shorter way to the same answers, byte for byte.

What is uvicorn's stays uvicorn's: parsing, keep-alive, pipelining, shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from zmesh.answers import Answer, Refusal
from zmesh.calls import Call
from zmesh.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvicorn.server import ServerState

    from zmesh.calls import Calls
    from zmesh.messages import Payload

__all__ = ["LANE_BODY_BYTES_MAX", "LaneConnection", "is_known"]

LANE_BODY_BYTES_MAX = 64 * 1024
COPIED_BYTES_MAX = 64 * 1024  # of an answer, to write it together with its headers
UVICORN_FROM, UVICORN_TO = (0, 53), (0, 54)  # before, ASGI says otherwise when a connection will be closed

logger = logging.getLogger("zmesh.gateway")


def is_known() -> bool:
    """Whether this is a uvicorn that the lane was tested with; if not, says so in the log."""
    found = re.match(r"(\d+)\.(\d+)", uvicorn.__version__)
    if found and UVICORN_FROM <= (int(found[1]), int(found[2])) <= UVICORN_TO:
        return True
    text = "uvicorn %s is not one that the fast lane was tested with (%d.%d to %d.%d): requests go through ASGI"
    logger.warning(text, uvicorn.__version__, *UVICORN_FROM, *UVICORN_TO)
    return False


class _Reply(Call):
    """A request of the lane, until its answer is written. It stands where uvicorn keeps the cycle of a request."""

    __slots__ = ("connection", "disconnected", "keep_alive", "response_complete")

    more_body = False
    response_started = False
    message_event = asyncio.Event()  # for uvicorn to set; nobody waits for it

    def __init__(self, connection: LaneConnection, path: str, headers: Mapping[bytes, bytes], now: float) -> None:
        super().__init__(path, connection.calls.doors[path], headers, now)
        self.connection = connection
        self.keep_alive: bool = connection.parser.should_keep_alive()
        self.response_complete = self.disconnected = False

    def done(self, status: int, payload: Payload) -> None:
        if self.response_complete:
            return
        calls = self.connection.calls
        calls.settle(self)
        if self.connection.transport.is_closing():
            self._end()
            calls.leave(self)
        else:
            self.write(calls.answer(self, status, payload))

    def left(self) -> None:
        """The connection is gone."""
        if not self.response_complete:
            calls = self.connection.calls
            self._end()
            calls.settle(self)
            calls.abandon(self)
            calls.leave(self)

    def write(self, answer: Answer) -> None:
        self._end()
        connection, is_said = self.connection, False
        parts = [STATUS_LINE[answer.status]]
        for name, value in (*connection.server_state.default_headers, *answer.headers):
            parts += (name, b": ", value, b"\r\n")
            is_said = is_said or name == b"connection"  # which only says `close`
        self.keep_alive = self.keep_alive and not is_said
        parts.append(b"\r\n" if self.keep_alive or is_said else b"connection: close\r\n\r\n")
        if len(answer.body) <= COPIED_BYTES_MAX:
            parts.append(answer.body)
            connection.transport.write(b"".join(parts))
        else:
            connection.transport.write(b"".join(parts))
            connection.transport.write(answer.body)
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()

    def _end(self) -> None:
        self.response_complete = True
        self.connection.reply = None
        self.connection.calls.drop(self)


class LaneConnection(Connection):
    """A connection that takes the lane when it can."""

    def __init__(
        self,
        calls: Calls,
        paths: Mapping[bytes, str],
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.calls, self._paths = calls, paths
        self.reply: _Reply | None = None  # that waits for its outcome
        self._arriving: list[bytes] | None = None  # the body of a request that may take the lane

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.reply is not None:
            self.reply.left()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._arriving is not None:
            self._step_aside()  # the rest of the body is yet to come

    def send_400_response(self, msg: str) -> None:
        if self._arriving is not None:
            self._step_aside()
        super().send_400_response(msg)

    def is_answered(self) -> bool:
        return self._arriving is None and super().is_answered()

    def start_request(self) -> None:
        if self._may_take():
            self._arriving = []
        else:
            super().start_request()

    def _may_take(self) -> bool:
        parser = self.parser
        cycle: Any = self.cycle  # typed as if there were always one
        return (
            (cycle is None or cycle.response_complete)
            and self.url in self._paths
            and parser.get_method() == b"POST"
            and not self.pipeline
            and not self.expect_100_continue
            and not self.flow.write_paused
            and not parser.should_upgrade()
            and parser.get_http_version() == "1.1"
        )

    def on_body(self, body: bytes) -> None:
        if self._arriving is None:
            super().on_body(body)
        else:
            self._arriving.append(body)

    def on_message_complete(self) -> None:
        if self._arriving is None:
            super().on_message_complete()
        elif not self._take():
            self._step_aside()
            super().on_message_complete()

    def _take(self) -> bool:
        """Hand the request over; False when it is not for the lane."""
        calls, arriving = self.calls, self._arriving
        assert arriving is not None, "it was begun"
        headers: dict[bytes, bytes] = dict(self.headers)
        body = arriving[0] if len(arriving) == 1 else b"".join(arriving)
        if not 0 < len(body) <= min(LANE_BODY_BYTES_MAX, calls.body_bytes_max):
            return False
        if b"content-length" not in headers or b"expect" in headers or calls.is_draining:
            return False
        now, path = calls.clock(), self._paths[self.url]
        if calls.why_not(calls.doors[path], len(body), now, len(calls)) or calls.denied(path, body) is not None:
            return False
        try:
            timeout = calls.timeout_of(headers)
        except Refusal:
            return False
        self._arriving = None
        self.reply = reply = _Reply(self, path, headers, now)
        self.cycle = reply  # type: ignore[assignment]  # it stands in for one
        reply.body, reply.size = body, len(body)
        calls.hold(reply)
        try:
            calls.submit(reply, headers, timeout)
        except Exception as error:
            reply.write(calls.refuse(reply, calls.fault(reply, error)))
        return True

    def _step_aside(self) -> None:
        """Let ASGI have what has come so far."""
        arriving, self._arriving = self._arriving or [], None
        super().start_request()
        for body in arriving:
            super().on_body(body)
