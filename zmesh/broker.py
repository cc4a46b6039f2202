"""The broker: moves frames, tells the time, does what the dispatcher asks. It decides nothing.

One front ROUTER for gateways and agents, one ROUTER per stage for its workers, all driven by their descriptors from an
event loop. A *turn* reads what is there within one budget of time, stage sockets first (a result makes room), then the
front, tells the dispatcher everything at once, and performs the effects. Asking sockets is half of what a turn costs,
so they are read only when one of them rang. What a peer cannot take now is parked for it, in order and within bounds,
and given back to the dispatcher as failed if that lasts.

A gateway in the same process is one more peer, at an address of its own: it says and hears the same messages, without
frames.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from random import SystemRandom
from typing import NamedTuple

from zmesh import logs
from zmesh.config import Limits, Plan
from zmesh.core import events
from zmesh.core.dispatcher import Dispatcher
from zmesh.core.effects import DispatcherEffect, Forget, Report, Send
from zmesh.core.events import Address, DispatcherEvent
from zmesh.core.tasks import TaskState
from zmesh.crashing import CRASHING, crash_at
from zmesh.errors import WireError
from zmesh.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Chunk,
    Credit,
    Drain,
    Exited,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    PeerId,
    Results,
    Role,
    SessionId,
    Stats,
    Submit,
    Welcome,
)
from zmesh.transport import Context, Frames, Monitor, Router, Sent, stage_endpoint
from zmesh.wire import decode, encode

__all__ = ["Broker", "LocalPort"]

logger = logging.getLogger("zmesh.broker")

TURN_SECONDS = 0.003  # reading stops after this long, so that the loop's other work is not starved
SAFETY_TICK_SECONDS = 0.5  # a lost edge of a descriptor becomes this much latency, not a hang
STALL_SECONDS = 1.0  # no turn for longer than this: we were stopped, or somebody blocked our loop
RETRY_SECONDS = 0.005  # between tries to send what is parked
PARKED_SECONDS_MAX = 5.0
PARKED_BYTES_MAX = 256 * 1024 * 1024
LAG_WARN_SECONDS = 0.050
LOCAL = -1

HEARD: Mapping[type, Callable[..., DispatcherEvent]] = {
    Submit: events.TasksSubmitted,
    Results: events.BatchFinished,
    Chunk: events.ChunkArrived,
    Credit: events.CreditGranted,
    Cancel: events.TasksCancelled,
    Heartbeat: events.PeerBeat,
    Exited: events.WorkerExited,
    Drain: events.DrainAsked,
    Goodbye: events.PeerLeft,
    Stats: events.StatsAsked,
}


class Parked(NamedTuple):
    """A message that its peer could not take yet."""

    since: float
    size: int
    message: Message
    frames: Frames


class LocalPort:
    """How a gateway in the broker's process speaks with it: the same messages, by function call."""

    def __init__(self, broker: Broker, address: Address) -> None:
        self._broker, self._address = broker, address
        self._hear: Callable[[SessionId, Message], None] = lambda session, message: None

    def open(self, hear: Callable[[SessionId, Message], None], lost: Callable[[], None]) -> None:
        """From now on `hear` is called for every message, from within the event loop. This way is never `lost`."""
        self._hear = hear
        self._broker.connect(self._address, self.hear)

    def send(self, session: SessionId, message: Message) -> None:
        self._broker.take(self._address, session, message)

    def hear(self, session: SessionId, message: Message) -> None:
        self._hear(session, message)

    def breathe(self) -> None:
        self._broker.breathe()

    def close(self) -> None:
        self._broker.disconnect(self._address)


class Broker:
    """Runs on the event loop that it is given; `start` binds, `close` ends everything.

    `fronts` are the endpoints of its front socket, one within this host and perhaps one for others; those of the stages
    follow from them. `agent` is who started this process, and is told when an admin wants it to drain.
    """

    def __init__(
        self,
        plan: Plan,
        limits: Limits,
        context: Context,
        fronts: Sequence[str],
        loop: asyncio.AbstractEventLoop,
        agent: PeerId | None = None,
    ) -> None:
        self._limits, self._loop = limits, loop
        self._clock = time.monotonic
        host = socket.gethostname()
        self.dispatcher = Dispatcher(plan, limits, SystemRandom(), self._clock(), host=host, agent=agent)
        front = context.router(limits.frame_bytes_max, *fronts)
        of_stages = [[stage_endpoint(front, index) for front in fronts] for index in range(len(plan.stages))]
        self._routers = [front, *(context.router(limits.frame_bytes_max, *endpoints) for endpoints in of_stages)]
        self._reading_order = [*range(1, len(self._routers)), 0]
        self._unread = True  # something may lie in a socket, and no descriptor will tell
        self._sent_on: set[Router] = set()  # in this turn, which used up what their descriptors had to tell
        self._locals: dict[Address, Callable[[SessionId, Message], None]] = {}
        self._local_count = count()
        self._parked: dict[Address, deque[Parked]] = {}
        self._parked_bytes = 0
        self._pending: list[DispatcherEvent] = []
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._last_turn = self._clock()
        self._closed = False
        self.drained = asyncio.Event()  # set when we drain and nothing is left to do or to say
        self.missed_edges = 0  # times the safety tick found something to read; 0 is right

    def start(self) -> None:
        """Bind every socket and listen. Raises StartError when an endpoint is taken."""
        for router in self._routers:
            router.bind()
        for index, router in enumerate(self._routers):
            self._loop.add_reader(router.fd, self._ring)
            monitor = router.monitor()
            self._loop.add_reader(monitor.fd, self._notice, index, monitor)
            self._notice(index, monitor)  # who has never looked is not told of the first event, nor of any after it
        self._tick = self._loop.call_later(SAFETY_TICK_SECONDS, self._safety_tick)
        self._schedule()

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for router in self._routers:
            self._loop.remove_reader(router.fd)
            self._loop.remove_reader(router.monitor().fd)
            router.close(linger_ms=100)

    # A gateway in the same process.

    def local_port(self) -> LocalPort:
        return LocalPort(self, (LOCAL, next(self._local_count).to_bytes(4, "big")))

    def connect(self, address: Address, hear: Callable[[SessionId, Message], None]) -> None:
        self._locals[address] = hear

    def disconnect(self, address: Address) -> None:
        self._locals.pop(address, None)

    def take(self, address: Address, session: SessionId, message: Message) -> None:
        """What a gateway in this process says; decided at the end of this turn of the loop."""
        self._pending.append(_event(address, session, message))
        self._schedule()

    def breathe(self) -> None:
        """Take a turn now: the loop that we share with a gateway has been busy with requests for a while."""
        self._ring()

    def drain(self, seconds: float, reason: str) -> None:
        """Take nothing new. Gateways are told, and keep what they have for our successor. See `drained`."""
        admin = self.local_port()
        hello = Hello([PROTOCOL_VERSION], Role.ADMIN, PeerId(os.urandom(16)), 1, socket.gethostname(), os.getpid())
        drain = Drain(int(seconds * 1000), reason)
        admin.open(lambda session, message: admin.send(session, drain) if type(message) is Welcome else None, _never)
        admin.send(SessionId(0), hello)

    # A turn.

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._come_round)

    def _come_round(self) -> None:
        """The turn that was scheduled, unless another one (a descriptor rang, a gateway breathed) has done its work."""
        self._scheduled = False
        if self._pending or self._unread:
            self._turn()

    def _ring(self) -> None:
        self._unread = True
        self._turn()

    def _turn(self) -> None:
        """Without a sign that something lies in a socket only what a gateway of this process said is decided."""
        if self._closed:
            return
        started = self._clock()
        happened, self._pending = self._pending, []
        gap = started - self._last_turn
        if gap > STALL_SECONDS:
            happened.insert(0, events.Stalled(gap))
            logger.warning("the broker did not run for %.1f s; its process was stopped or its loop blocked", gap)
        if self._unread or gap > STALL_SECONDS:
            self._unread = self._read(happened, math.inf if gap > STALL_SECONDS else started + TURN_SECONDS)
        now = self._clock()
        for effect in self.dispatcher.handle(*happened, now=now):
            try:
                self._perform(effect)
            except Exception:  # a bug of ours, which must not cost the other peers of this turn their messages
                logger.exception("%r could not be performed", type(effect).__name__)
                if isinstance(effect, Send):
                    self._pending.append(events.SendFailed(effect.address, effect.message))
        if CRASHING and any(
            task.hop and task.state is TaskState.QUEUED for task in self.dispatcher.mesh.tasks.values()
        ):
            crash_at("broker.next_step")
        if self._parked:
            self._retry(now)
        if self.dispatcher.mesh.drain is not None and self.dispatcher.mesh.is_finished:
            self.drained.set()
        self._last_turn = self._clock()
        while self._sent_on:
            self._unread = self._sent_on.pop().pending() or self._unread
        if self._unread or self._pending:
            self._schedule()
        self._arm()

    def _notice(self, index: int, monitor: Monitor) -> None:
        if not self._closed and monitor.take():
            self._pending.append(events.ConnectionLost(index))
            self._unread = True  # last words, perhaps
            self._schedule()

    def _perform(self, effect: DispatcherEffect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case Forget():
                self._forget(effect.address)
            case Report():
                logs.say(logger, effect.level, effect.text)

    def _read(self, happened: list[DispatcherEvent], until: float) -> bool:
        """Take messages from all sockets until they are empty or time is up; whether some may be left."""
        for index in self._reading_order:
            router = self._routers[index]
            while router.pending() and (frames := router.receive()) is not None:
                happened.append(self._hear(index, frames))
                if self._clock() > until:
                    return True
        return False

    def _hear(self, index: int, frames: Frames) -> DispatcherEvent:
        address = (index, bytes(frames[0]))
        try:
            session, message = decode(frames[1:], self._limits)
        except WireError as error:
            return events.MessageBroken(address, str(error))
        if CRASHING:
            crash_at("broker.heard", message)
        return _event(address, session, message)

    def _arm(self) -> None:
        """One timer, at the dispatcher's next wakeup, rounded up to a whole millisecond: rounded down it would spin."""
        at = self.dispatcher.next_wakeup()
        if self._parked:
            at = min(at, self._clock() + RETRY_SECONDS)
        if at == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        wait = max(0.0, at - self._clock())
        self._timer = self._loop.call_later(math.ceil(wait * 1000) / 1000, self._timed)

    def _timed(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._ring()

    def _safety_tick(self) -> None:
        if self._closed:
            return
        lag = self._loop.time() - self._tick.when()
        self._pending.append(events.LoopLagged(lag))
        if lag > LAG_WARN_SECONDS:
            logger.debug("the event loop was %.0f ms late", lag * 1000)
        if not self._scheduled and any(router.pending() for router in self._routers):
            self.missed_edges += 1
        for index, router in enumerate(self._routers):
            self._notice(index, router.monitor())  # libzmq stands still for ever when nobody takes its 2000th word
        self._unread = True
        self._schedule()
        self._tick = self._loop.call_later(SAFETY_TICK_SECONDS, self._safety_tick)

    # Sending.

    def _send(self, effect: Send) -> None:
        address = effect.address
        if address[0] == LOCAL:
            hear = self._locals.get(address)
            if hear is not None:
                hear(effect.session, effect.message)
            return
        if CRASHING:
            crash_at("broker.sending", effect.message)
        frames = encode(effect.message, effect.session)
        if address in self._parked:
            self._park(address, effect.message, frames)
            return
        match self._deliver(address, frames):
            case Sent.SENT:
                if CRASHING:
                    crash_at("broker.sent", effect.message)
            case Sent.FULL:
                self._park(address, effect.message, frames)
            case Sent.GONE:
                self._undeliverable(address, effect.message)

    def _deliver(self, address: Address, frames: Frames) -> Sent:
        router = self._routers[address[0]]
        self._sent_on.add(router)
        return router.send(address[1], frames)

    def _undeliverable(self, address: Address, message: Message) -> None:
        """Nobody is at that address: the message is given back, and the dispatcher told why."""
        self._pending += [events.SendFailed(address, message), events.PeerUnreachable(address)]
        self._schedule()

    def _park(self, address: Address, message: Message, frames: Frames) -> None:
        size = sum([len(frame) for frame in frames])
        if self._parked_bytes + size > PARKED_BYTES_MAX:
            self._pending.append(events.SendFailed(address, message))  # others filled the space: this peer may be well
            self._schedule()
            return
        self._parked_bytes += size
        self._parked.setdefault(address, deque()).append(Parked(self._clock(), size, message, frames))

    def _retry(self, now: float) -> None:
        for address, queue in list(self._parked.items()):
            sent = Sent.SENT
            while queue and sent is Sent.SENT:
                sent = self._deliver(address, queue[0].frames)
                if sent is Sent.SENT:
                    self._parked_bytes -= queue.popleft().size
            if queue and (sent is Sent.GONE or now - queue[0].since > PARKED_SECONDS_MAX):
                for parked in reversed(queue):  # each goes to the front of its queue: the first of them last
                    self._pending.append(events.SendFailed(address, parked.message))
                self._pending.append(events.PeerUnreachable(address))
                self._forget(address)
                self._schedule()
            elif not queue:
                del self._parked[address]

    def _forget(self, address: Address) -> None:
        for parked in self._parked.pop(address, ()):
            self._parked_bytes -= parked.size


def _never() -> None:
    pass


def _event(address: Address, session: SessionId, message: Message) -> DispatcherEvent:
    if isinstance(message, Hello):
        return events.PeerGreeted(address, message)
    make = HEARD.get(type(message))
    if make is None:
        return events.MessageBroken(address, f"a broker is not told {type(message).__name__}")
    return make(address, session, message)
