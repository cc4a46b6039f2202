"""The programs around the pure halves: the broker (zmesh/broker.py) and the gateways (zmesh/linkage.py).

They read, tell the time, perform effects and arm one timer, as the real ones do, and decide nothing. Each turn is shown
to `checks`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING

from tests.simulation.checks import Broken
from tests.simulation.model import Ask
from tests.simulation.network import Cable, Garbage, PeerLine, Router, Sent, describe, ids_in
from tests.simulation.world import REACTION_SECONDS, Process
from zmesh.core import events
from zmesh.core.dispatcher import Dispatcher
from zmesh.core.effects import (
    Answer,
    Deliver,
    DispatcherEffect,
    Forget,
    Leave,
    LinkEffect,
    Reconnect,
    Report,
    Send,
    Transmit,
)
from zmesh.core.events import (
    Address,
    DispatcherEvent,
    Heard,
    LinkEvent,
    LinkLost,
    RequestsAbandoned,
    RequestsAccepted,
    Started,
)
from zmesh.core.link import Link
from zmesh.messages import (
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
    SessionId,
    Stats,
    Submit,
)

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

__all__ = ["Broker", "Gateway"]

LOCAL = -1
BROKER_HOST = "h0"  # the first agent's host
SAFETY_TICK_SECONDS = 0.5  # no turn is later
STALL_SECONDS = 1.0  # a broker that did not run for longer says so
PARKED_SECONDS_MAX = 5.0
RETRY_SECONDS = 0.005
STATS_SECONDS = 7.0  # how often somebody looks at /readyz

HEARD: dict[type, Callable[..., DispatcherEvent]] = {
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


def whole_ms(seconds: float) -> float:
    """As event loops do it: a timer rounded down would ring too early."""
    return ceil(seconds * 1000) / 1000


def event_of(address: Address, session: SessionId, message: Message | Garbage) -> DispatcherEvent:
    if isinstance(message, Garbage):
        return events.MessageBroken(address, message.reason)
    if isinstance(message, Hello):
        return events.PeerGreeted(address, message)
    make = HEARD.get(type(message))
    if make is None:
        return events.MessageBroken(address, f"a broker is not told {type(message).__name__}")
    return make(address, session, message)


class Broker(Process):
    """One broker process: a new one has a new epoch and remembers nothing."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        super().__init__(simulation.world, f"broker{number}")
        self.simulation, self.checks, self.network = simulation, simulation.checks, simulation.network
        plan, limits = simulation.plan, simulation.limits
        dice = self.world.dice(f"broker {number}")
        self.dispatcher = Dispatcher(plan, limits, dice, self.world.now, host=BROKER_HOST)
        self.router = Router(self.network, len(plan.stages) + 1, self.wake, self._saw_end)
        self.is_draining = False
        self.network.router = self.router
        self.locals: dict[Address, Gateway] = {}
        self.parked: dict[Address, deque[tuple[float, Message, SessionId]]] = {}
        self._pending: list[DispatcherEvent] = []
        self._last_turn = self.world.now
        self.wake()

    @property
    def epoch(self) -> int:
        return self.dispatcher.mesh.directory.epoch

    def take(self, address: Address, session: SessionId, message: Message) -> None:
        """What the gateway in this process says."""
        self._pending.append(event_of(address, session, message))
        self.wake()

    def overhear(self, event: DispatcherEvent) -> None:
        """Something arrives that no peer of ours said."""
        self._pending.append(event)
        self.wake()

    def _saw_end(self, socket: int) -> None:
        """The monitor of a socket tells that a connection ended, not whose."""
        if self.is_alive:
            self.overhear(events.ConnectionLost(socket))

    def turn(self) -> None:
        now = self.world.now
        happened, self._pending = self._pending, []
        gap = now - self._last_turn
        if gap > STALL_SECONDS:
            happened.insert(0, events.Stalled(gap))
            happened.append(events.LoopLagged(gap))
        happened += [event_of(*said) for said in self.router.read()]
        if not happened:
            happened.append(events.Tick())
        if self.world.is_told:
            for event in happened:
                self._tell_event(event)
        if not self.is_draining and any(type(event) is events.DrainAsked for event in happened):
            self.is_draining = True
            self.simulation.faults.drains(self)
        self.checks.broker_hears(self, happened)
        effects = self.dispatcher.handle(*happened, now=now)
        self.checks.broker_says(self, effects)
        for effect in effects:
            self._perform(effect)
        if self.parked:
            self._retry()
        self._last_turn = now
        self.checks.broker_turned(self)
        if self._pending:
            self.wake()
        self._arm()

    def _arm(self) -> None:
        now = self.world.now
        at = now + min(SAFETY_TICK_SECONDS, whole_ms(max(0.0, self.dispatcher.next_wakeup() - now)))
        for address, queue in self.parked.items():
            connection = self.router.routes.get(address)
            free = connection.full_until if connection else now
            at = min(at, max(now, min(free, queue[0][0] + PARKED_SECONDS_MAX)) + RETRY_SECONDS)
        self.wake_at(max(at, now + REACTION_SECONDS))

    def _perform(self, effect: DispatcherEffect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case Forget():
                self.parked.pop(effect.address, None)
            case Report(level, text):
                self.world.tell(self.name, f"{level}: {text}")

    def _send(self, effect: Send) -> None:
        address = effect.address
        if address[0] == LOCAL:
            self._tell_send(effect, "")
            if (gateway := self.locals.get(address)) is not None:
                gateway.hear(effect.session, effect.message)
            return
        if address in self.parked:
            self._park(effect)
            return
        match self.router.send(address, effect.session, effect.message):
            case Sent.SENT:
                self._tell_send(effect, "")
            case Sent.FULL:
                self._park(effect)
            case Sent.CROWDED:
                self._tell_send(effect, " (no room)")
                self._pending.append(events.SendFailed(address, effect.message))
            case Sent.GONE:
                self._tell_send(effect, " (nobody is there)")
                self._pending.append(events.SendFailed(address, effect.message))
                self._pending.append(events.PeerUnreachable(address))

    def _park(self, effect: Send) -> None:
        self._tell_send(effect, " (parked)")
        queue = self.parked.setdefault(effect.address, deque())
        queue.append((self.world.now, effect.message, effect.session))

    def _retry(self) -> None:
        for address, queue in list(self.parked.items()):
            sent = Sent.SENT
            while queue and sent is Sent.SENT:
                _, message, session = queue[0]
                sent = self.router.send(address, session, message)
                if sent is Sent.SENT:
                    queue.popleft()
            if queue and (sent is Sent.GONE or self.world.now - queue[0][0] > PARKED_SECONDS_MAX):
                self._pending += [events.SendFailed(address, message) for _, message, _ in queue]
                self._pending.append(events.PeerUnreachable(address))
                del self.parked[address]
            elif not queue:
                del self.parked[address]

    def _tell_send(self, effect: Send, how: str) -> None:
        if self.world.is_told:
            who = self.checks.name_at(self, effect.address)
            self.world.tell(self.name, f"→ {who}: {describe(effect.message)}{how}", ids_in(effect.message))

    def _tell_event(self, event: DispatcherEvent) -> None:
        message = getattr(event, "message", None)
        address = getattr(event, "address", None)
        who = self.checks.name_at(self, address) if address else ""
        text = describe(message) if message is not None else str(event)
        if not isinstance(event, events.Tick):
            self.world.tell(self.name, f"hears {type(event).__name__} {who}: {text}", ids_in(message))

    def freeze(self, seconds: float, *, with_threads: bool) -> None:
        """Its loop stands still; `with_threads` even the I/O thread, so that nobody can connect."""
        self.stop(seconds)
        for gateway in self.locals.values():
            gateway.stop(seconds)
        if with_threads:
            self.router.frozen_until = self.stopped_until

    def die(self) -> None:
        self.is_alive = False
        self.router.close()
        if self.network.router is self.router:
            self.network.router = None


class Gateway(Process):
    """A gateway with a socket of its own or, with `is_local`, in the process of the broker."""

    def __init__(self, simulation: Simulation, number: int, *, is_local: bool) -> None:
        super().__init__(simulation.world, f"g{number}")
        self.simulation, self.checks = simulation, simulation.checks
        dice = self.world.dice(f"gateway {number}")
        peer = dice.randbytes(16)
        self.link = Link(
            peer=PeerId(peer),
            prefix=int.from_bytes(peer[:4], "big"),
            host="host",
            pid=100 + number,
            fingerprint=simulation.plan.fingerprint,
            limits=simulation.limits,
            random=dice,
            routes={route.path: len(route.stages) for route in simulation.plan.routes},
        )
        self.peer = PeerId(peer)
        self.cable = Cable(self.name, simulation.scenario.wire_seconds)
        self.line = None if is_local else PeerLine(simulation.network, 0, self.cable, self)
        self.address: Address = (LOCAL, number.to_bytes(4, "big"))
        self.asks: dict[int, Ask] = {}  # without an outcome, by task id
        self._arriving: list[list[Ask]] = []
        self._accepted: list[Ask] = []
        self._abandoned: list[Ask] = []
        self._heard: deque[LinkEvent] = deque()  # from a broker in this process
        self._is_turning = self._is_lost = False
        self._reopen_at: float | None = self.world.now
        self._stats_at = self.world.now + STATS_SECONDS * dice.random()
        self.wake()

    # What clients do.

    def arrive(self, asks: list[Ask], seconds: list[float]) -> None:
        """Requests come in, each with so many seconds to live; a stopped process accepts them when it goes on."""
        if self.is_stopped:
            self.world.at(self.stopped_until, self.arrive, asks, seconds)
            return
        for ask, left in zip(asks, seconds, strict=True):
            ask.accepted, ask.deadline = self.world.now, self.world.now + left
        self._accepted += asks
        self.wake()

    def abandon(self, asks: list[Ask]) -> None:
        if not self.is_stopped:
            for ask in asks:
                ask.is_abandoned = True
            self._abandoned += asks
            self.wake()

    def lost_connection(self) -> None:
        """The monitor of its socket tells at once; a program without an event loop is left to find out."""
        self._is_lost = True
        self.wake()

    # Turns.

    def turn(self) -> None:
        happened: list[LinkEvent] = []
        if self._accepted:
            happened.append(RequestsAccepted([self._request(ask) for ask in self._accepted]))
            self._accepted = []
        if self._abandoned:
            happened.append(RequestsAbandoned([ask.id for ask in self._abandoned], "the client is gone"))
            for ask in self._abandoned:
                self.asks.pop(ask.id, None)
            self._abandoned = []
        if self._reopen_at is not None and self.world.now >= self._reopen_at:
            self._open()
            happened.append(Started())
        if happened:
            self.handle(*happened)
        if self.line is not None:
            self.line.flush()
            while (one := self.line.receive_one()) is not None:
                self.handle(one)
            if self._is_lost:  # what arrived before still counted
                self.handle(LinkLost())
            self._is_lost = False
        self.handle(events.Tick())
        if self.link.joined and self.world.now >= self._stats_at:
            self._stats_at = self.world.now + STATS_SECONDS
            self._say(self.link.session, Stats())
        self._arm()

    def _request(self, ask: Ask) -> object:
        request = self.link.request(ask.route, ask.payload, None, ask.deadline, ask)
        ask.id = request.id
        self.asks[ask.id] = self.checks.by_id[ask.id] = ask
        if self.world.is_told:
            self.world.tell(self.name, f"accepts {ask.nonce} for {ask.route}, {ask.flaw.value} {ask.flaw_at}", [ask.id])
        return request

    def hear(self, session: SessionId, message: Message) -> None:
        """From the broker in this process, within its turn; what it says meanwhile is heard next."""
        self._heard.append(Heard(session, message))
        if self._is_turning:
            return
        self._is_turning = True
        while self._heard:
            self.handle(self._heard.popleft())
        self._is_turning = False
        self._arm()

    def handle(self, *happened: LinkEvent) -> None:
        self.checks.link_hears(happened)
        effects = self.link.handle(*happened, now=self.world.now)
        self.checks.link_says(effects)
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: LinkEffect) -> None:
        match effect:
            case Deliver(requests, payloads):
                for request, payload in zip(requests, payloads, strict=True):
                    self.checks.heard(self, request.ticket, payload)  # type: ignore[arg-type]
            case Answer(requests, statuses, payloads):
                for request, status, payload in zip(requests, statuses, payloads, strict=True):
                    self.asks.pop(request.id, None)
                    self.checks.answered(self, request.ticket, status, payload)  # type: ignore[arg-type]
            case Transmit(session, message):
                self._say(session, message)
            case Report(level, text):
                self.world.tell(self.name, f"{level}: {text}")
            case Reconnect(after_seconds):
                self.world.tell(self.name, f"connects anew in {after_seconds:.3f} s")
                self.hurt()
                self._close()
                self._reopen_at = self.world.now + max(0.001, whole_ms(after_seconds))
            case Leave(reason):
                raise Broken(f"{self.name}, who is welcome, leaves: {reason}")

    def _say(self, session: SessionId, message: Message) -> None:
        if self.line is not None:
            self.line.send(session, message)
        elif (broker := self.simulation.broker) is not None:
            if self.world.is_told:
                self.world.tell(self.name, f"→ {describe(message)}", ids_in(message))
            broker.take(self.address, session, message)

    def _open(self) -> None:
        self._reopen_at = None
        if self.line is not None:
            self.line.connect()
        elif (broker := self.simulation.broker) is not None:
            broker.locals[self.address] = self

    def _close(self) -> None:
        if self.line is not None:
            self.line.disconnect()
        elif (broker := self.simulation.broker) is not None:
            broker.locals.pop(self.address, None)

    def remake_socket(self) -> None:
        """The program makes a fresh socket without being asked to."""
        self.hurt()
        self._close()
        self._open()
        self.handle(Started())
        self._arm()

    def _arm(self) -> None:
        now = self.world.now
        at = self.link.next_wakeup()
        if at is not None:
            self.wake_at(now + max(0.001, whole_ms(at - now)))
        if self._reopen_at is not None:
            self.wake_at(max(now, self._reopen_at))
        if self.line is not None and self.line.is_parking and self.line.connection is not None:
            self.wake_at(now + RETRY_SECONDS)
