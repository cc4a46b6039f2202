"""The shell around `core.link.Link`: an event loop, a way to the broker, and nothing decided.

What is submitted within one turn of the loop is handed over together at its end. Each request brings a callable that is
called once with its outcome: no Future and no task per request are made here. Who reads a stream brings a `Reader`. A
`Port` carries messages to the broker and back, whether it sits behind a socket or in the same process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from random import SystemRandom
from typing import Any, Protocol

from zmesh import logs
from zmesh.config import Limits, Plan
from zmesh.core.effects import Answer, Deliver, Leave, LinkEffect, Reconnect, Report, Transmit
from zmesh.core.events import Heard, LinkEvent, LinkLost, RequestsAbandoned, RequestsAccepted, Started, Tick
from zmesh.core.link import Link
from zmesh.core.requests import Request
from zmesh.messages import Context, Message, Payload, PeerId, SessionId, Stats, Status, TaskId

__all__ = ["BrokerLink", "BrokerSilent", "Done", "Port", "Reader"]

logger = logging.getLogger("zmesh.gateway")

STATS_SECONDS = 2.0  # a broker that takes longer to say how it is counts as silent

Done = Callable[[int, Payload], None]
"""Takes the status (a `Status` as int) and the payload of one request; called once."""


class Reader(Protocol):
    """A `Done` that is also told each event of its stream, before its outcome."""

    def __call__(self, status: int, payload: Payload) -> None: ...

    def event(self, payload: Payload) -> None: ...


class BrokerSilent(Exception):
    """The broker could not be asked, or did not answer in time."""


class Port(Protocol):
    """How a link reaches its broker: the same messages by socket or by call. `send` neither waits nor fails; what is
    lost shows as silence, or `lost` is called. Both callables are called from within the event loop. After `close` a
    port can be opened again. `breathe` lets a broker that shares our event loop do its work in the middle of ours."""

    def open(self, hear: Callable[[SessionId, Message], None], lost: Callable[[], None]) -> None: ...

    def send(self, session: SessionId, message: Message) -> None: ...

    def breathe(self) -> None: ...

    def close(self) -> None: ...


class BrokerLink:
    """The gateway's way to one broker. Everything happens on the event loop that `start` is called on."""

    def __init__(self, plan: Plan, limits: Limits, port: Port, *, clock: Callable[[], float] = time.monotonic) -> None:
        random, peer = SystemRandom(), os.urandom(16)
        routes = {route.path: len(route.stages) for route in plan.routes}
        self._link = Link(
            peer=PeerId(peer),
            prefix=int.from_bytes(peer[:4], "big"),  # the broker sees by the peer id that it is not taken
            host=socket.gethostname(),
            pid=os.getpid(),
            fingerprint=plan.fingerprint,
            limits=limits,
            random=random,
            routes=routes,
            shape=plan.shape,
        )
        self._port, self._clock = port, clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._accepted: list[Request] = []
        self._abandoned: list[TaskId] = []
        self._events: list[LinkEvent] = []
        self._gathering = self._turning = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._reopening: asyncio.TimerHandle | None = None
        self._asked: asyncio.Future[str] | None = None

    def start(self) -> None:
        """Open the port and greet the broker."""
        self._loop = asyncio.get_running_loop()
        self._reopen()

    def close(self) -> None:
        """Say nothing and hear nothing any more. Requests without an answer stay without one."""
        self._closed = True
        for timer in (self._timer, self._reopening):
            if timer is not None:
                timer.cancel()
        self._port.close()

    @property
    def joined(self) -> bool:
        return self._link.joined

    @property
    def pending(self) -> int:
        """How many requests have no answer yet."""
        return self._link.pending + len(self._accepted)

    def submit(self, route: str, payload: Payload, context: Context | None, deadline: float, done: Done) -> TaskId:
        """Ask for one inference; `done` is called with its outcome. `deadline` is absolute, on the link's clock."""
        request = self._link.request(route, payload, context, deadline, done)
        self._accepted.append(request)
        if not self._gathering:
            self._gather()
        return request.id

    def abandon(self, id: TaskId) -> None:
        """Nobody waits for this request any more: its `done` is not called, unless it was just answered."""
        self._abandoned.append(id)
        if not self._gathering:
            self._gather()

    def breathe(self) -> None:
        """A long turn of the loop is at its middle: what was submitted goes to the broker, and that may work."""
        self._turn()
        self._port.breathe()

    async def stats(self) -> dict[str, Any]:
        """The broker's snapshot. Raises BrokerSilent. Who asks at the same time shares one answer."""
        assert self._loop is not None, "start comes first"
        if not self._link.joined:
            raise BrokerSilent("the broker has not been reached yet")
        asked = self._asked
        if asked is None or asked.done():
            asked = self._asked = self._loop.create_future()
            self._port.send(self._link.session, Stats())
        done, _ = await asyncio.wait([asked], timeout=STATS_SECONDS)
        if asked.cancelled():
            raise BrokerSilent("the broker was lost a moment ago")
        if not done:
            if self._asked is asked:
                self._asked = None
            raise BrokerSilent(f"the broker did not answer within {STATS_SECONDS:g} s")
        snapshot = json.loads(asked.result())
        assert isinstance(snapshot, dict), "a snapshot is a JSON object"
        return snapshot

    # ── turns ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _gather(self) -> None:
        assert self._loop is not None, "start comes first"
        self._gathering = True
        self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._gathering = False
        self._turn()

    def _hear(self, session: SessionId, message: Message) -> None:
        if type(message) is Stats and self._asked is not None and not self._asked.done():
            self._asked.set_result(message.snapshot)
        self._events.append(Heard(session, message))
        self._turn()

    def _lose(self) -> None:
        self._events.append(LinkLost())
        self._turn()

    def _turn(self) -> None:
        """Tell the link everything that happened and do what it asks; what happens meanwhile is told next."""
        if self._turning or self._closed:
            return
        self._turning = True
        try:
            while self._accepted or self._abandoned or self._events:
                for effect in self._link.handle(*self._happened(), now=self._clock()):
                    self._perform(effect)
        finally:
            self._turning = False
        if not self._closed:
            self._arm()

    def _happened(self) -> list[LinkEvent]:
        events: list[LinkEvent] = []
        if self._accepted:
            events.append(RequestsAccepted(self._accepted))
            self._accepted = []
        if self._abandoned:
            events.append(RequestsAbandoned(self._abandoned, "the client is gone"))
            self._abandoned = []
        events += self._events
        self._events.clear()
        return events

    def _perform(self, effect: LinkEffect) -> None:
        match effect:
            case Answer(requests, statuses, payloads):
                for request, status, payload in zip(requests, statuses, payloads, strict=True):
                    done: Any = request.ticket
                    try:
                        done(status, payload)
                    except Exception:  # one who cannot take its answer leaves the others theirs
                        logger.exception("the answer to task %d could not be delivered", request.id)
            case Transmit(session, message):
                try:
                    self._port.send(session, message)
                except Exception:  # ours, but who waits for an answer must still get one
                    logger.exception("the way to the broker broke")
                    self._events.append(LinkLost())
            case Deliver(requests, payloads):
                for request, payload in zip(requests, payloads, strict=True):
                    self._deliver(request, payload)
            case Report(level, text):
                logs.say(logger, level, text)
            case Reconnect(after_seconds):
                self._port.close()
                if self._asked is not None:
                    self._asked.cancel()  # the question went with the connection
                if self._loop is not None and not self._closed:
                    self._reopening = self._loop.call_later(_whole_ms(after_seconds), self._reopen)
            case Leave(reason):
                logger.info("the link ends: %s", reason)

    def _deliver(self, request: Request, payload: Payload) -> None:
        event = getattr(request.ticket, "event", None)
        if event is None:
            return  # a worker that streams, of a newer app than ours perhaps, where nobody reads a stream
        try:
            event(payload)
        except Exception:  # what follows would be a stream with a gap
            logger.exception("an event of task %d could not be delivered", request.id)
            self._abandoned.append(request.id)
            done: Any = request.ticket
            done(int(Status.INTERNAL), b"")

    def _reopen(self) -> None:
        self._reopening = None
        self._port.open(self._hear, self._lose)
        self._events.append(Started())
        self._turn()

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _arm(self) -> None:
        """One timer. It may ring too early, which costs a look; it is moved only when it would ring too late."""
        at = self._link.next_wakeup()
        if at is None or at >= self._timer_at:
            return
        assert self._loop is not None, "start comes first"
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(_whole_ms(at - self._clock()), self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._events.append(Tick())
        self._turn()


def _whole_ms(seconds: float) -> float:
    """Up to the next whole millisecond, at least one: the loop cuts off what is less, and would ring too early."""
    return max(1, math.ceil(seconds * 1000)) / 1000
