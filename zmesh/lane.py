"""The fast lane: a small request for inference answered by the connection itself, without ASGI.

An ASGI request costs a scope, a task, an event and two writes; here it costs a call and one write. The lane takes a
request only when nothing about it is unusual: `POST` to the exact path of a route, HTTP/1.1, a `content-length` of at
most `LANE_BODY_BYTES_MAX`, all of it here in one piece, nothing to refuse, nobody before it on its connection. Anything
else goes through ASGI, where every rule is; so that this is a shorter way to the same answers, byte for byte.

What is uvicorn's stays uvicorn's: parsing, keep-alive, pipelining, shutdown. What is the same in one request after
another is not done again: see `heads` and `resting`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from zmesh.answers import Answer, Refusal, new_request_id, sane_token
from zmesh.calls import OK, Call
from zmesh.connection import Connection
from zmesh.heads import AnswerHeads, Repeated
from zmesh.resting import Rest, Resting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvicorn.server import ServerState

    from zmesh.calls import Calls
    from zmesh.messages import Payload

__all__ = ["LANE_BODY_BYTES_MAX", "Lane", "is_known"]

LANE_BODY_BYTES_MAX = 64 * 1024
COPIED_BYTES_MAX = 64 * 1024  # of an answer, to write it together with its headers
UVICORN_FROM, UVICORN_TO = (0, 53), (0, 54)  # before, ASGI says otherwise when a connection will be closed

_OK_LINES = b"%s%s\r\ncontent-length: %d\r\n\r\n%s"
_LAST_LINES = b"%s%s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"

logger = logging.getLogger("zmesh.gateway")


def is_known() -> bool:
    """Whether this is a uvicorn that the lane was tested with; if not, says so in the log."""
    found = re.match(r"(\d+)\.(\d+)", uvicorn.__version__)
    if found and UVICORN_FROM <= (int(found[1]), int(found[2])) <= UVICORN_TO:
        return True
    text = "uvicorn %s is not one that the fast lane was tested with (%d.%d to %d.%d): requests go through ASGI"
    logger.warning(text, uvicorn.__version__, *UVICORN_FROM, *UVICORN_TO)
    return False


class _Head:
    """What the head of a request says, gone through once for all that repeat it."""

    __slots__ = ("accept", "door", "keep_alive", "parent", "path", "request_id", "timeout")

    def __init__(self, calls: Calls, path: str, headers: Mapping[bytes, bytes], *, keep_alive: bool) -> None:
        """Raises Refusal when it says nonsense."""
        given = headers.get(b"x-request-id")
        self.path, self.door, self.keep_alive = path, calls.doors[path], keep_alive
        self.timeout, self.parent = calls.timeout_of(headers), calls.parent_of(headers)
        self.accept = headers.get(b"accept")
        self.request_id = given if given is not None and sane_token(given) else b""


class _Reply(Call):
    """A request of the lane, until its answer is written. It stands where uvicorn keeps the cycle of a request."""

    __slots__ = ("connection", "disconnected", "keep_alive", "response_complete")

    more_body = False
    response_started = False
    message_event = asyncio.Event()  # for uvicorn to set; nobody waits for it

    def __init__(self, connection: LaneConnection, head: _Head, body: bytes, now: float) -> None:
        """Everything at once, without the other's: this is made for every request. `id` comes with `hand_over`."""
        self.connection, self.body, self.size = connection, body, len(body)
        self.path, self.door, self.accept, self.keep_alive = head.path, head.door, head.accept, head.keep_alive
        self.request_id = head.request_id or new_request_id()
        self.started = self.since = now
        self.response_complete = self.disconnected = False

    def done(self, status: int, payload: Payload) -> None:
        if self.response_complete:
            return
        connection = self.connection
        calls = connection.calls
        self.response_complete = True
        calls.settle(self)
        calls.drop(self)
        if connection.transport.is_closing():
            calls.leave(self)
        elif status == OK:
            calls.succeed(self)
            connection.say_ok(self, payload)
        else:
            self.write(calls.answer(self, status, payload))

    def left(self) -> None:
        """The connection is gone."""
        if not self.response_complete:
            calls = self.connection.calls
            self.response_complete = True
            calls.settle(self)
            calls.drop(self)
            calls.abandon(self)
            calls.leave(self)

    def write(self, answer: Answer) -> None:
        connection, is_said = self.connection, False
        parts = [STATUS_LINE[answer.status]]
        for name, value in (*connection.server_state.default_headers, *answer.headers):
            parts += (name, b": ", value, b"\r\n")
            is_said = is_said or name == b"connection"  # which only says `close`
        self.keep_alive = self.keep_alive and not is_said
        parts.append(b"\r\n" if self.keep_alive or is_said else b"connection: close\r\n\r\n")
        connection.transport.write(b"".join([*parts, answer.body]))
        connection.answered(self)


class Lane:
    """What the connections of a gateway share. `paths` are those of its routes, none if nothing takes the lane."""

    def __init__(self, calls: Calls, paths: Mapping[bytes, str], rest_seconds: float) -> None:
        self.calls, self.paths = calls, paths
        self.resting = Resting(rest_seconds)
        self.heads = AnswerHeads(STATUS_LINE[200], calls.first_headers)
        self._kind = ChoosyConnection if calls.is_compressing else LaneConnection

    def connection(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]) -> Connection:
        return self._kind(self, config, server_state, app_state)


class LaneConnection(Connection):
    """A connection that takes the lane when it can."""

    def __init__(
        self, lane: Lane, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.calls = lane.calls
        self._paths, self._heads, self._rest = lane.paths, lane.heads, Rest(lane.resting, self)
        self._arriving: list[bytes] | None = None  # the body of a request that may take the lane
        self._is_between = True  # nothing of a request has been read that is not whole
        self._piece = b""  # what is being read, if a request begins with it
        self._repeated: Repeated[_Head] | None = None  # the head of the request that was the last piece, and all of it

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rest.forget()
        for cycle in (self._ahead, self.cycle):
            if type(cycle) is _Reply:
                cycle.left()

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if (repeated := self._repeated) is not None:
            is_free = self.cycle.response_complete and not self.flow.write_paused  # as `_is_free` says
            if is_free and (body := repeated.body_of(data)) and self._take(repeated.head, body):
                return
            self._repeated = None
        self._piece = data if self._is_between else b""
        super().data_received(data)
        self._piece = b""
        if self._arriving is not None:
            self._step_aside()  # the rest of the body is yet to come

    def send_400_response(self, msg: str) -> None:
        if self._arriving is not None:
            self._step_aside()
        super().send_400_response(msg)

    def is_answered(self) -> bool:
        return self._arriving is None and super().is_answered()

    def on_message_begin(self) -> None:
        """Like uvicorn's, but for the scope, which only ASGI needs."""
        self._in_headers, self._is_between = True, False
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def start_request(self) -> None:
        if self._may_take():
            self._arriving = []
        else:
            self._start_asgi()

    def _start_asgi(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self._in_headers = False
        self.url, self.expect_100_continue = url, expect
        self.headers += headers  # which is the list of the new scope
        super().start_request()

    def _is_free(self) -> bool:
        cycle: Any = self.cycle  # typed as if there were always one
        return (cycle is None or cycle.response_complete) and not self.flow.write_paused

    def _may_take(self) -> bool:
        parser = self.parser
        return (
            self._is_free()
            and self.url in self._paths
            and parser.get_method() == b"POST"
            and not self.pipeline
            and not self.expect_100_continue
            and not parser.should_upgrade()
            and parser.get_http_version() == "1.1"
        )

    def on_body(self, body: bytes) -> None:
        if self._arriving is None:
            super().on_body(body)
        else:
            self._arriving.append(body)

    def on_message_complete(self) -> None:
        self._is_between = True
        arriving = self._arriving
        if arriving is None:
            super().on_message_complete()
            return
        body = arriving[0] if len(arriving) == 1 else b"".join(arriving)
        head = self._head_of(self._paths[self.url], dict(self.headers))
        if head is not None and self._take(head, body):
            self._arriving = None
            if self._piece:
                self._repeated = Repeated.of(self._piece, len(body), head)
        else:
            self._step_aside()
            super().on_message_complete()

    def _head_of(self, path: str, headers: Mapping[bytes, bytes]) -> _Head | None:
        """None for what is not for the lane."""
        if b"content-length" not in headers or b"expect" in headers:
            return None
        try:
            return _Head(self.calls, path, headers, keep_alive=self.parser.should_keep_alive())
        except Refusal:
            return None

    def _take(self, head: _Head, body: bytes) -> bool:
        """Hand the request over; False when it is not for the lane."""
        calls = self.calls
        now = calls.clock()
        if len(body) > LANE_BODY_BYTES_MAX or not calls.takes(head.path, head.door, body, now):
            return False
        self._unset_keepalive_if_required()
        reply = _Reply(self, head, body, now)
        self.cycle = reply  # type: ignore[assignment]  # it stands in for one
        calls.hold(reply)
        try:
            calls.hand_over(reply, head.parent, now + head.timeout, reply.done)
        except Exception as error:
            reply.response_complete = True
            calls.drop(reply)
            reply.write(calls.refuse(reply, calls.fault(reply, error)))
        return True

    def _step_aside(self) -> None:
        """Let ASGI have what has come so far."""
        arriving, self._arriving = self._arriving or [], None
        self._start_asgi()
        for body in arriving:
            super().on_body(body)

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def say_ok(self, reply: _Reply, payload: Payload) -> None:
        """The same bytes as `_Reply.write` would make of it, for the answer that nearly all get."""
        head = self._heads.of(reply.path, self.server_state.default_headers)
        size = len(payload)
        lines = _OK_LINES if reply.keep_alive else _LAST_LINES
        if size <= COPIED_BYTES_MAX:
            self.transport.write(lines % (head, reply.request_id, size, payload))
        else:
            self.transport.write(lines % (head, reply.request_id, size, b""))
            self.transport.write(payload)
        self.answered(reply)

    def answered(self, reply: _Reply) -> None:
        """What uvicorn does then, but for the timers of every connection that nothing is wrong with."""
        if not reply.keep_alive:
            self.transport.close()
        if not reply.keep_alive or self.pipeline or self.flow.read_paused or self.flow.write_paused:
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self._keep_alive()

    def _keep_alive(self) -> None:
        self._rest.begin()
        self.timeout_keep_alive_task = self._rest  # type: ignore[assignment]  # of which uvicorn wants `cancel` alone

    def timeout_keep_alive_handler(self) -> None:
        self._watch_reader()  # an answer may be left that nobody reads
        super().timeout_keep_alive_handler()


class ChoosyConnection(LaneConnection):
    """With `--compression`: what speaks of encodings goes through ASGI, where bodies are packed and unpacked."""

    def _head_of(self, path: str, headers: Mapping[bytes, bytes]) -> _Head | None:
        if b"accept-encoding" in headers or b"content-encoding" in headers:
            return None
        return super()._head_of(path, headers)
