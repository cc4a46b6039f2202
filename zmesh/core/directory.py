"""Who may speak: sessions by number, by address and by process, and the strikes of those who break the rules.

Everything a peer says carries its session. A session nobody knows is answered "unknown peer" (the broker restarted, or
the peer was silent too long) and says HELLO again; one that speaks from another address or outside its role breaks the
protocol. Five breaks within ten seconds and the address is not listened to for as long.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from random import Random
from typing import Protocol, TypeVar

from zmesh.config import Limits, Plan
from zmesh.core.difference import difference
from zmesh.core.effects import DispatcherEffect, Report, Send
from zmesh.core.events import Address, BatchFinished, ChunkArrived, PeerGreeted, PeerUnreachable, SendFailed
from zmesh.core.peers import Gateway, Peer
from zmesh.core.workers import Worker
from zmesh.messages import (
    PROTOCOL_VERSION,
    Hello,
    PeerId,
    Refuse,
    RefuseCode,
    Role,
    SessionId,
    Welcome,
)

__all__ = ["Directory"]

P = TypeVar("P", bound=Peer)
CLOSED_MAX = 1024  # closed sessions of workers whose late results are still taken
GIVEN_UP_MAX = 1024  # processes that went silent and may come back
STRUCK_MAX = 1024  # addresses whose strikes are remembered


class Said(Protocol):
    """Any event of a peer with a session."""

    @property
    def address(self) -> Address: ...
    @property
    def session(self) -> SessionId: ...


class Directory:
    """Shares the dispatcher's list of effects; changed only by it."""

    def __init__(self, plan: Plan, limits: Limits, random: Random, effects: list[DispatcherEffect]) -> None:
        self.broker = PeerId(random.randbytes(16))
        self.epoch = random.getrandbits(62) + 1
        self.sessions: dict[SessionId, Peer] = {}
        self.gateway_count = 0  # of the sessions
        self.malformed = 0
        self.refused = 0
        self._plan, self._limits, self._random, self._effects = plan, limits, random, effects
        self._stages = {stage.name: index for index, stage in enumerate(plan.stages)}
        self._by_address: dict[Address, Peer] = {}
        self._by_peer: dict[PeerId, Peer] = {}
        self._closed: OrderedDict[SessionId, Worker] = OrderedDict()
        self._given_up: OrderedDict[PeerId, None] = OrderedDict()
        self._strikes: OrderedDict[Address, deque[float]] = OrderedDict()
        self._reported: deque[float] = deque(maxlen=limits.strikes_max)  # when strikes were, whoever got them

    def known(self, event: Said, kind: type[P], now: float) -> P | None:
        """The peer that said this, if its session, its address and its role agree; else it is told, or struck."""
        peer = self.sessions.get(event.session)
        if peer is None or peer.address != event.address:
            self._refuse(event.address, RefuseCode.UNKNOWN_PEER, "say HELLO again")
            return None
        if not isinstance(peer, kind):
            self.strike(event.address, f"{peer.role.name} may not say this", now)
            return None
        peer.heard = now
        if peer.lost_at is not None and not isinstance(peer, Worker):  # it reads again, or this is late: HELLO tells
            self._refuse(event.address, RefuseCode.UNKNOWN_PEER, "your connection was lost; say HELLO again")
        return peer

    def author(self, event: BatchFinished | ChunkArrived, now: float) -> Worker | None:
        """The worker who said this of a batch, its session open or closed."""
        closed = self._closed.get(event.session)
        if closed is not None and closed.address == event.address:
            if closed.exit is None:
                self._refuse(event.address, RefuseCode.UNKNOWN_PEER, "say HELLO again")
            return closed
        return self.known(event, Worker, now)

    def at(self, address: Address) -> Peer | None:
        return self._by_address.get(address)

    def gateways(self) -> list[Gateway]:
        return [peer for peer in self.sessions.values() if isinstance(peer, Gateway)]

    def agents(self) -> list[Peer]:
        return [peer for peer in self.sessions.values() if peer.role is Role.AGENT]

    def worker_of(self, peer: PeerId) -> Worker | None:
        """The open session of that process, if it is a worker's."""
        found = self._by_peer.get(peer)
        return found if isinstance(found, Worker) else None

    def greet(self, event: PeerGreeted, now: float) -> tuple[Peer | None, Peer | None]:
        """Welcome or refuse. Returns the new session and the one of the same process that it replaces."""
        hello, address = event.message, event.address
        former = self._by_peer.get(hello.peer)
        if former is not None and (hello.connection < former.connection or former.role is not hello.role):
            return None, None
        if isinstance(former, Worker) and former.exit is not None:
            return None, None  # said before it died, and read after
        if former is not None and hello.connection == former.connection and former.address == address:
            former.heard = now
            self._welcome(former)
            return None, None
        refusal = self._why_not(hello, address)
        if refusal is not None:
            self._refuse(address, *refusal)
            return None, None
        session = SessionId(self._random.getrandbits(63) + 1)
        peer: Peer
        match hello.role:
            case Role.WORKER:
                peer = Worker(session, address, hello, self._stages[hello.stage], now)
            case Role.GATEWAY:
                peer = Gateway(session, address, hello, now)
                self.gateway_count += 1
                peer.was_given_up = hello.peer in self._given_up
                self._given_up.pop(hello.peer, None)
            case _:
                peer = Peer(session, address, hello, now)
        if former is not None:
            self.close(former)
        self.sessions[session] = self._by_address[address] = self._by_peer[hello.peer] = peer
        self._welcome(peer)
        return peer, former

    def close(self, peer: Peer) -> None:
        """This session is over; a worker's late results are still known by it."""
        if self.sessions.pop(peer.session, None) is not None:
            self.gateway_count -= isinstance(peer, Gateway)
        if self._by_address.get(peer.address) is peer:
            del self._by_address[peer.address]
        self._by_peer.pop(peer.peer, None)
        if isinstance(peer, Worker):
            self._closed[peer.session] = peer
            while len(self._closed) > CLOSED_MAX:
                self._closed.popitem(last=False)

    def give_up(self, peer: Peer) -> None:
        """We stop waiting for this process; if it is there all the same, we have forgotten what it had asked for."""
        self._given_up[peer.peer] = None
        while len(self._given_up) > GIVEN_UP_MAX:
            self._given_up.popitem(last=False)

    def strike(self, address: Address, reason: str, now: float) -> None:
        """Something from there broke the protocol."""
        self.malformed += 1
        strikes = self._strikes.setdefault(address, deque(maxlen=self._limits.strikes_max))
        strikes.append(now)
        if not self._is_struck(address, now) and not self._is_full(self._reported, now):
            self._reported.append(now)
            self._effects.append(Report("warning", f"a peer broke the protocol: {reason}"))
        while len(self._strikes) > STRUCK_MAX:
            self._strikes.popitem(last=False)

    def is_ignored(self, event: object, now: float) -> bool:
        """Whether a peer says this whose address used up its strikes within the last `strike_seconds`.

        What the broker itself found about that address is no word of the peer's.
        """
        if not self._strikes or isinstance(event, PeerUnreachable | SendFailed):
            return False
        return self._is_struck(getattr(event, "address", None), now)

    def _is_struck(self, address: Address | None, now: float) -> bool:
        strikes = self._strikes.get(address) if address is not None else None
        return strikes is not None and self._is_full(strikes, now)

    def _is_full(self, times: deque[float], now: float) -> bool:
        limits = self._limits
        return len(times) == limits.strikes_max and now - times[0] < limits.strike_seconds

    def forgive(self, gap_seconds: float) -> None:
        """We did not listen for that long, so nobody was silent."""
        for peer in self.sessions.values():
            peer.heard += gap_seconds
            if peer.lost_at is not None:
                peer.lost_at += gap_seconds

    def _why_not(self, hello: Hello, address: Address) -> tuple[RefuseCode, str] | None:
        if PROTOCOL_VERSION not in hello.versions:
            return RefuseCode.VERSION, f"this broker speaks zmesh/{PROTOCOL_VERSION}, you {hello.versions}"
        is_ours = address[0] < 0  # of this very process; it may always drain us
        if not is_ours and len(self.sessions) >= self._limits.peers_max and hello.peer not in self._by_peer:
            return RefuseCode.ERROR, f"this broker has {self._limits.peers_max} peers already"
        if (hello.role is Role.WORKER) != (address[0] > 0):
            return RefuseCode.ROLE, f"a {hello.role.name.lower()} does not speak on this socket"
        if hello.role is Role.GATEWAY and any(
            peer.peer[:4] == hello.peer[:4] and peer.peer != hello.peer for peer in self.gateways()
        ):
            return RefuseCode.ERROR, "another gateway has the same task ids; draw another peer id"
        if hello.role is not Role.ADMIN and hello.fingerprint != self._plan.fingerprint:
            return RefuseCode.FINGERPRINT, difference(self._plan.shape, hello.shape, hello.role)
        if hello.role is Role.WORKER and self._stages.get(hello.stage) != address[0] - 1:
            return (
                RefuseCode.STAGE,
                f"stage {hello.stage[:60]!r} is not served here; known are {', '.join(self._stages)}",
            )
        return None

    def _welcome(self, peer: Peer) -> None:
        limits = self._limits
        once = [
            route.path
            for route in self._plan.routes
            if any(not self._plan.stage(stage).retry for stage in route.stages)
        ]
        welcome = Welcome(
            PROTOCOL_VERSION,
            self.broker,
            self.epoch,
            peer.session,
            int(limits.heartbeat_seconds * 1000),
            int(limits.dead_seconds * 1000),
            limits.frame_bytes_max,
            limits.message_rows_max,
            limits.message_inline_bytes_max,
            list(self._stages),
            once,
        )
        self._effects.append(Send(peer.address, peer.session, welcome))

    def _refuse(self, address: Address, code: RefuseCode, text: str) -> None:
        self.refused += 1
        self._effects.append(Send(address, SessionId(0), Refuse(code, text)))
