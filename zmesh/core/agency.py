"""The agent's half: it speaks for the processes of its host, and hears whom it should end.

An agent says HELLO until it is welcome, then how its workers are, every heartbeat. That a worker exited is said at
once, and again with every heartbeat and to every new broker until an ACK names it: for the broker it is the one proof
of a death. An agent that no broker ever welcomed ends when it is refused for good; one that was welcome before says why
it is refused and tries again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TypeAlias

from zmesh.config import Limits
from zmesh.core.contact import Contact, ContactState
from zmesh.core.difference import shape_for_hello
from zmesh.core.effects import Leave, Reconnect, Report, Transmit
from zmesh.core.events import Heard, LinkLost, Started, Tick
from zmesh.core.parts import tail
from zmesh.messages import (
    LONG_TEXT_BYTES_MAX,
    PROTOCOL_VERSION,
    Ack,
    Drain,
    Exited,
    Heartbeat,
    Hello,
    Kill,
    PeerId,
    Refuse,
    Role,
    SessionId,
    Welcome,
    WorkerBeat,
)

__all__ = ["AgentEffect", "AgentEvent", "AgentLink", "Beat", "End", "Retire", "WorkerGone"]

EXITS_MAX = 1024  # exits not yet acknowledged; the oldest is forgotten, its worker is silent in any case


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A process ended."""

    message: Exited


@dataclass(frozen=True, slots=True)
class Beat:
    """Send a HEARTBEAT with what is known of the workers; see `AgentLink.heartbeat`."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class End:
    """End this process, if `lease` is still what it runs."""

    message: Kill


@dataclass(frozen=True, slots=True)
class Retire:
    """Finish what was accepted and go, as at a SIGTERM. Asked for again it changes nothing."""

    message: Drain


AgentEvent: TypeAlias = Started | Heard | LinkLost | Tick | WorkerGone
AgentEffect: TypeAlias = Transmit | Reconnect | Leave | Report | Beat | End | Retire


class AgentLink:
    """A pure state machine like `Link` and `Session`; `handle` is its one door."""

    def __init__(self, peer: PeerId, host: str, pid: int, fingerprint: str, limits: Limits, *, shape: str = "") -> None:
        self._hello = Hello(
            [PROTOCOL_VERSION], Role.AGENT, peer, 0, host, pid, fingerprint, shape=shape_for_hello(shape)
        )
        self._contact = Contact(limits)
        self._exits: dict[PeerId, Exited] = {}  # not yet acknowledged, in the order they happened
        self._effects: list[AgentEffect] = []
        self._unsaid: dict[PeerId, Exited] = {}  # of these, the ones to say in this turn

    def next_wakeup(self) -> float | None:
        """When `handle` must be called at the latest; None when only an event can matter."""
        wake = self._contact.wakeup()
        return None if wake == inf else wake

    @property
    def joined(self) -> bool:
        return self._contact.joined

    @property
    def session(self) -> SessionId:
        return self._contact.session

    @property
    def epoch(self) -> int:
        """Of the broker that last welcomed it; 0 before."""
        return self._contact.epoch

    def heartbeat(self, workers: list[WorkerBeat]) -> Heartbeat:
        return Heartbeat(self._contact.epoch, 0, workers)

    def handle(self, *events: AgentEvent, now: float) -> list[AgentEffect]:
        """Take what happened, in order, and return what must be done, in order."""
        contact = self._contact
        contact.turn(now)
        for event in events:
            match event:
                case Started():
                    contact.start(now)
                case Heard(session, message):
                    self._hear(session, message, now)
                case WorkerGone(exited):
                    self._note(exited)
                case LinkLost():
                    self._effects += contact.lose(0.0)
                case _:
                    pass  # a Tick
        if contact.is_silent(now):
            self._effects += contact.lose(0.0)
        return self._hand_out(now)

    def _hear(self, session: SessionId, message: object, now: float) -> None:
        contact = self._contact
        contact.heard_at = now
        ours = contact.joined and session == contact.session
        match message:
            case Welcome() if contact.join(message, now):
                self._unsaid = dict(self._exits)
            case Ack(peers=peers) if ours:
                for peer in peers:
                    self._exits.pop(peer, None)
            case Kill() if ours:
                self._effects.append(End(message))
            case Drain() if ours:
                self._effects.append(Retire(message))
            case Refuse() as refuse:
                self._effects += contact.refused(refuse, "agent")
            case _:
                pass  # a sign of life

    def _note(self, exited: Exited) -> None:
        exited = replace(exited, reason=tail(exited.reason, LONG_TEXT_BYTES_MAX))
        if len(self._exits) >= EXITS_MAX:
            oldest = next(iter(self._exits))
            del self._exits[oldest]
            self._unsaid.pop(oldest, None)
        self._exits[exited.peer] = self._unsaid[exited.peer] = exited

    def _hand_out(self, now: float) -> list[AgentEffect]:
        contact = self._contact
        effects, self._effects = self._effects, []
        if contact.state is ContactState.GREETING and now >= contact.speak_at:
            effects.append(Transmit(contact.session, replace(self._hello, connection=contact.connection)))
            contact.spoke(now)
        if contact.joined:
            if now >= contact.speak_at:
                effects.append(Beat(contact.session))
                self._unsaid = dict(self._exits)
                contact.spoke(now)
            effects += [Transmit(contact.session, exited) for exited in self._unsaid.values()]
            self._unsaid = {}
        return effects
