"""Sockets as libzmq makes them, in virtual time: what the pure halves believe of the network, and what it does.

A *connection* is FIFO in both directions and loses nothing while it lives. When it breaks, what was on its way is lost
from some message on, and each end learns of it when it learns of it, perhaps never by itself. A DEALER then connects
again by itself and is known to the ROUTER under a new routing id; whatever it says comes from a stranger.
A ROUTER finds nobody at an address that it knows to be gone (EHOSTUNREACH) and delivers what it had read before.
Nothing is ever duplicated.

A `Cable` is the way between one process and the broker. Faults act on cables and on connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf

from tests.simulation.world import Process, World
from zmesh.config import Limits
from zmesh.core.events import Address, Heard, LinkLost
from zmesh.errors import WireError
from zmesh.messages import Hello, Message, SessionId, Tasks
from zmesh.wire import decode, encode

__all__ = ["Cable", "Connection", "Dealer", "Garbage", "Network", "PeerLine", "Router", "Sent", "Trigger"]

RECONNECT_SECONDS = (0.020, 0.060)  # the first time; drawn for each socket
RECONNECT_SECONDS_MAX = (1.0, 2.0)
HANDSHAKE_SECONDS = 0.0005
FIRST_LOST = 0.05  # of all connections lose the first message that is said on them
PARKED_MAX = 4096


class Sent(Enum):
    SENT = "sent"
    FULL = "full"
    CROWDED = "crowded"  # full, and the broker has no room to keep it
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Garbage:
    """Bytes that cannot be read as a message."""

    reason: str


@dataclass(eq=False)
class Cable:
    """How messages travel between one process and the broker, and what is wrong with that."""

    name: str
    seconds: float  # a usual delay
    slow_until: float = 0.0
    slow_seconds: float = 0.0
    down_until: float = 0.0


@dataclass(eq=False, slots=True)
class Connection:
    """Messages are numbered in each direction; those after `up_until` or `down_until` never arrive."""

    address: Address
    dealer: Dealer
    router: Router
    sent_up: int = 0
    sent_down: int = 0
    arrived_up: int = 0
    arrived_down: int = 0
    last_up: float = 0.0
    last_down: float = 0.0
    up_until: float = inf
    down_until: float = inf
    full_until: float = 0.0
    crowded_until: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.up_until == inf and self.down_until == inf


@dataclass(eq=False)
class Trigger:
    """Something that shall happen just after the next message of a type is sent."""

    kind: type
    act: Callable[[Process | None], object]
    delays: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True, slots=True)
class Greeting:
    """A HELLO that was said; `number` counts those connections of its process."""

    owner: Process
    router: Router
    address: Address
    message: Hello
    number: int


class Network:
    """All connections of the mesh. `router` is that of the broker that lives, if one does."""

    def __init__(self, world: World, limits: Limits) -> None:
        self.world, self.limits = world, limits
        self.dice = world.dice("network")
        self.router: Router | None = None
        self.triggers: list[Trigger] = []
        self.hellos: deque[Greeting] = deque(maxlen=64)  # the latest
        self.messages = 0
        self._addresses = 0

    # What travels.

    def delay(self, cable: Cable) -> float:
        seconds = cable.seconds * (0.5 + self.dice.random())
        if cable.slow_until > self.world.now:
            seconds += cable.slow_seconds * self.dice.random()
        return seconds

    def carry_up(self, connection: Connection, session: SessionId, message: Message) -> None:
        connection.sent_up = number = connection.sent_up + 1
        self.messages += 1
        owner = connection.dealer.owner
        if self.triggers:
            self._pull(message, owner)
        if self.world.is_told:
            self.world.tell(owner.name, f"→ {describe(message)}", ids_in(message))
        if type(message) is Hello:
            owner.connections = message.connection
            said_at = connection.router, connection.address
            self.hellos.append(Greeting(owner, *said_at, message, message.connection))
        if number == 1 and self.dice.random() < FIRST_LOST:
            return
        arrival = max(connection.last_up, self.world.now + self.delay(connection.dealer.cable))
        connection.last_up = arrival
        said = self._through_the_wire(session, message)
        self.world.at(arrival, self._arrive_up, connection, number, *said)

    def carry_down(self, connection: Connection, session: SessionId, message: Message | Garbage) -> None:
        connection.sent_down = number = connection.sent_down + 1
        self.messages += 1
        if self.triggers and not isinstance(message, Garbage):
            self._pull(message, connection.dealer.owner)
        arrival = max(connection.last_down, self.world.now + self.delay(connection.dealer.cable))
        connection.last_down = arrival
        said = (session, message) if isinstance(message, Garbage) else self._through_the_wire(session, message)
        self.world.at(arrival, self._arrive_down, connection, number, *said)

    def _through_the_wire(self, session: SessionId, message: Message) -> tuple[SessionId, Message | Garbage]:
        try:
            return decode(encode(message, session), self.limits)  # type: ignore[arg-type]
        except WireError as error:
            return session, Garbage(f"{type(message).__name__}: {error}")

    def _pull(self, message: Message, owner: Process) -> None:
        for trigger in list(self.triggers):
            if trigger.kind is type(message):
                self.triggers.remove(trigger)
                self.world.after(self.dice.choice(trigger.delays), trigger.act, owner)

    def _arrive_up(self, connection: Connection, number: int, session: SessionId, message: Message | Garbage) -> None:
        if number <= connection.up_until:
            connection.arrived_up = number
            connection.router.hear(connection.address, session, message)

    def _arrive_down(self, connection: Connection, number: int, session: SessionId, message: Message | Garbage) -> None:
        if number <= connection.down_until and not connection.dealer.is_closed:
            connection.arrived_down = number
            connection.dealer.hear(session, message)

    # Connections come and go.

    def connect(self, dealer: Dealer) -> None:
        self.world.after(HANDSHAKE_SECONDS + 2 * self.delay(dealer.cable), self._connected, dealer)

    def _connected(self, dealer: Dealer) -> None:
        if dealer.is_closed or dealer.connection is not None:
            return
        router, now = self.router, self.world.now
        if router is None or router.frozen_until > now or dealer.cable.down_until > now:
            retry = dealer.retry_seconds
            dealer.retry_seconds = min(2 * retry, dealer.retry_seconds_max)
            self.world.after(retry, self._connected, dealer)
            return
        self._addresses += 1
        address = (dealer.index, b"\0" + self._addresses.to_bytes(4, "big"))
        dealer.connection = router.routes[address] = Connection(address, dealer, router)
        self.world.tell(dealer.owner.name, f"is connected as {name_of(address)}")
        dealer.owner.wake_at(now + self.dice.random() * 0.005)  # parked messages are tried again every 5 ms

    def lose(self, connection: Connection, up: bool = True, down: bool = True) -> None:
        """From some message on the way on, nothing arrives any more. Nobody knows it yet."""
        if up and connection.up_until == inf:
            connection.up_until = self.dice.randint(connection.arrived_up, connection.sent_up)
        if down and connection.down_until == inf:
            connection.down_until = self.dice.randint(connection.arrived_down, connection.sent_down)
        if connection.dealer.owner.is_alive:
            connection.dealer.owner.hurt()

    def break_off(self, connection: Connection, peer_after: float, broker_after: float) -> None:
        """The connection is over; the ends learn of it after so many seconds."""
        self.lose(connection)
        self.world.after(peer_after, self._dealer_learns, connection)
        self.world.after(broker_after, self._router_learns, connection)

    def _dealer_learns(self, connection: Connection) -> None:
        dealer = connection.dealer
        connection.down_until = min(connection.down_until, connection.arrived_down)
        if dealer.connection is connection:
            dealer.connection = None
            if not dealer.is_closed:
                self.world.tell(dealer.owner.name, f"lost its connection {name_of(connection.address)}")
                dealer.owner.lost_connection()
                dealer.retry_seconds = self.dice.uniform(*RECONNECT_SECONDS)
                self.world.after(dealer.retry_seconds, self._connected, dealer)

    def _router_learns(self, connection: Connection) -> None:
        connection.up_until = min(connection.up_until, connection.arrived_up)
        if connection.router.routes.pop(connection.address, None) is not None:
            connection.router.saw_end(connection.address[0])


class Router:
    """All ROUTER sockets of one broker process: the front is 0, stage `i` is `i + 1`."""

    def __init__(
        self, network: Network, sockets: int, wake: Callable[[], None], saw_end: Callable[[int], None]
    ) -> None:
        self.network, self._wake, self.saw_end = network, wake, saw_end
        self.routes: dict[Address, Connection] = {}
        self.frozen_until = 0.0  # its process is stopped, I/O thread and all: nobody can connect
        self.is_closed = False
        self._inboxes: list[deque[tuple[Address, SessionId, Message | Garbage]]] = [deque() for _ in range(sockets)]

    def hear(self, address: Address, session: SessionId, message: Message | Garbage) -> None:
        if not self.is_closed:
            self._inboxes[address[0]].append((address, session, message))
            self._wake()

    def read(self) -> list[tuple[Address, SessionId, Message | Garbage]]:
        """Everything that is there: stages first, since a result makes room, then the front."""
        found: list[tuple[Address, SessionId, Message | Garbage]] = []
        for inbox in (*self._inboxes[1:], self._inboxes[0]):
            found += inbox
            inbox.clear()
        return found

    def send(self, address: Address, session: SessionId, message: Message) -> Sent:
        connection = self.routes.get(address)
        if connection is None:
            return Sent.GONE
        if connection.crowded_until > self.network.world.now:
            return Sent.CROWDED
        if connection.full_until > self.network.world.now:
            return Sent.FULL
        self.network.carry_down(connection, session, message)
        return Sent.SENT

    def close(self) -> None:
        """The process is gone, and with it what it had not read."""
        self.is_closed = True
        for connection in list(self.routes.values()):
            connection.up_until = min(connection.up_until, connection.arrived_up)
            self.network.break_off(connection, self.network.dice.uniform(0.0002, 0.005), 0.0)
        self.routes.clear()


class Dealer:
    """One DEALER of one process, connected by libzmq again and again until it is closed."""

    def __init__(self, network: Network, index: int, cable: Cable, owner: Process) -> None:
        self.network, self.index, self.cable, self.owner = network, index, cable, owner
        self.inbox: deque[tuple[SessionId, Message | Garbage]] = deque()
        self.connection: Connection | None = None
        self.is_closed = False
        self.retry_seconds = network.dice.uniform(*RECONNECT_SECONDS)
        self.retry_seconds_max = network.dice.uniform(*RECONNECT_SECONDS_MAX)
        network.connect(self)

    def hear(self, session: SessionId, message: Message | Garbage) -> None:
        self.inbox.append((session, message))
        self.owner.wake()

    def send(self, session: SessionId, message: Message) -> bool:
        """False when nobody is connected at this moment (IMMEDIATE=1)."""
        if self.connection is None:
            return False
        self.network.carry_up(self.connection, session, message)
        return True

    def close(self, *, linger: bool = False) -> None:
        """What was handed over may still arrive; all of it with `linger`. What was not read is gone."""
        self.is_closed = True
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if linger:
            connection.up_until = min(connection.up_until, connection.sent_up)
        self.network.lose(connection)
        is_cut_off = self.cable.down_until > self.network.world.now
        notice = self.network.dice.uniform(1.0, 15.0) if is_cut_off else self.network.dice.uniform(0.0005, 0.005)
        until = max(0.0, connection.last_up - self.network.world.now)  # the end comes after the last bytes
        self.network.world.after(until + notice, self.network._router_learns, connection)


class PeerLine:
    """What zmesh/line.py is to an agent and a worker: one DEALER, made anew on demand, and what waits for it."""

    def __init__(self, network: Network, index: int, cable: Cable, owner: Process) -> None:
        self.network, self.index, self.cable, self.owner = network, index, cable, owner
        self.dealer: Dealer | None = None
        self._parked: deque[tuple[SessionId, Message]] = deque()

    @property
    def connection(self) -> Connection | None:
        return self.dealer.connection if self.dealer else None

    @property
    def is_parking(self) -> bool:
        return bool(self._parked)

    @property
    def is_overfull(self) -> bool:
        return len(self._parked) >= PARKED_MAX

    def connect(self) -> None:
        self.disconnect()
        self.dealer = Dealer(self.network, self.index, self.cable, self.owner)

    def disconnect(self, *, linger: bool = False) -> None:
        self._parked.clear()
        if self.dealer is not None:
            self.dealer.close(linger=linger)
            self.dealer = None

    def send(self, session: SessionId, message: Message) -> None:
        if self.dealer is None:
            return
        if type(message) is Hello:
            self._parked.clear()
        if self._parked or not self.dealer.send(session, message):
            self._parked.append((session, message))

    def flush(self) -> None:
        while self._parked and self.dealer is not None and self.dealer.send(*self._parked[0]):
            self._parked.popleft()

    def receive_one(self) -> Heard | LinkLost | None:
        if self.dealer is None or not self.dealer.inbox:
            return None
        session, message = self.dealer.inbox.popleft()
        return LinkLost() if isinstance(message, Garbage) else Heard(session, message)

    def receive(self) -> list[Heard | LinkLost]:
        heard: list[Heard | LinkLost] = []
        while (one := self.receive_one()) is not None:
            heard.append(one)
        return heard


# ── for the transcript ────────────────────────────────────────────────────────────────────────────────────────────


def name_of(address: Address) -> str:
    return f"{address[0]}:{int.from_bytes(address[1], 'big')}"


def ids_in(message: object) -> tuple[int, ...]:
    """The tasks that a message names. RESULTS name rows of a lease; whoever sends them knows the tasks."""
    columns = getattr(message, "columns", None)
    return tuple(columns.ids if columns is not None else getattr(message, "ids", None) or ())


def describe(message: object) -> str:
    """A message in a few words."""
    name = type(message).__name__.upper()
    words: list[str] = []
    for key in ("route", "lease", "number", "epoch", "connection", "session", "total", "code", "all", "again"):
        value = getattr(message, key, None)
        if value is not None and value is not False:
            words.append(f"{key}={getattr(value, 'name', value)}")
    if isinstance(message, Hello):
        words.append(f"{message.role.name} running={message.running} waiting={message.waiting}")
        words.append(f"answered={message.answered}")
    if isinstance(message, Tasks):
        words.append(f"acks={message.acks}")
    for key in ("rows", "statuses", "leases", "reason", "text", "state"):
        value = getattr(message, key, None)
        if value is not None and value != "":
            words.append(f"{key}={getattr(value, 'name', value)}")
    ids = ids_in(message)
    if ids:
        words.append("tasks " + " ".join(f"{id & 0xFFFFFFFF:x}@{id >> 32:x}" for id in ids))
    return " ".join([name, *words])
