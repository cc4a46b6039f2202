"""The broker's and the gateway's side of a conversation that somebody reads: `--log-level debug`.

What is said there is in `conversation`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from zmesh.broker import Broker
from zmesh.conversation import Conversation, called, greeter
from zmesh.core.effects import Send
from zmesh.core.events import Address, DispatcherEvent, MessageBroken
from zmesh.core.peers import Peer
from zmesh.core.workers import Worker
from zmesh.linkage import Port
from zmesh.messages import Hello, Message, SessionId, Welcome
from zmesh.transport import Frames

__all__ = ["TalkingBroker", "TalkingPort", "broker_class", "overheard"]


def broker_class(log_level: str) -> type[Broker]:
    return TalkingBroker if log_level == "debug" else Broker


def overheard(port: Port, log_level: str) -> Port:
    """A gateway's way to its broker, told in the log if somebody debugs."""
    return TalkingPort(port) if log_level == "debug" else port


class TalkingPort:
    """A port that says what passes through it."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._talk = Conversation(logging.getLogger("zmesh.gateway"))

    def open(self, hear: Callable[[SessionId, Message], None], lost: Callable[[], None]) -> None:
        def hear_and_tell(session: SessionId, message: Message) -> None:
            self._talk.heard("broker", message)
            if type(message) is Welcome:
                self._talk.became("joined the broker")
            hear(session, message)

        def lose_and_tell() -> None:
            self._talk.became("lost the broker")
            lost()

        self._talk.became("looking for the broker")
        self._port.open(hear_and_tell, lose_and_tell)

    def send(self, session: SessionId, message: Message) -> None:
        self._talk.said("broker", message)
        self._port.send(session, message)

    def breathe(self) -> None:
        self._port.breathe()

    def close(self) -> None:
        self._port.close()


class TalkingBroker(Broker):
    """A broker that says what it hears and says, and after every turn what has become of its peers and stages."""

    _talk = Conversation(logging.getLogger("zmesh.broker"))  # one to a process

    def start(self) -> None:
        self._before: dict[object, tuple[str, str]] = {}  # of each session and each stage: its name, and how it was
        super().start()

    def take(self, address: Address, session: SessionId, message: Message) -> None:
        self._talk.heard(self._called(address, message), message)
        super().take(address, session, message)

    def _hear(self, index: int, frames: Frames) -> DispatcherEvent:
        event = super()._hear(index, frames)
        if isinstance(event, MessageBroken):
            self._talk.became(f"{self._called(event.address)} broke the protocol: {event.reason}")
        elif (message := getattr(event, "message", None)) is not None:
            self._talk.heard(self._called((index, bytes(frames[0])), message), message)
        return event

    def _send(self, effect: Send) -> None:
        self._talk.said(self._called(effect.address), effect.message)
        super()._send(effect)

    def _turn(self) -> None:
        super()._turn()
        now = self._states()
        for key, (name, state) in now.items():
            if self._before.get(key, ("", ""))[1] != state:
                self._talk.became(f"{name} {state or 'works again'}")
        for key, (name, _) in self._before.items():
            if key not in now:
                self._talk.became(f"{name} gone")
        self._before = now

    def _states(self) -> dict[object, tuple[str, str]]:
        mesh = self.dispatcher.mesh
        states: dict[object, tuple[str, str]] = {
            session: (f"{self._name(peer)} (pid {peer.pid})", _state(peer))
            for session, peer in mesh.directory.sessions.items()
        }
        for stage in mesh.stages:
            states[stage.index] = (f"stage {stage.plan.name}", "fails to start" if stage.failing else "")
        if mesh.drain is not None:
            states["broker"] = ("broker", "draining")
        return states

    def _called(self, address: Address, message: Message | None = None) -> str:
        if isinstance(message, Hello):
            return greeter(message)
        peer = self.dispatcher.mesh.directory.at(address)
        return self._name(peer) if peer is not None else "a stranger"

    def _name(self, peer: Peer) -> str:
        stages = self.dispatcher.mesh.stages
        worker = f"{stages[peer.stage].plan.name}/{peer.worker_id}" if isinstance(peer, Worker) else ""
        return called(peer.role, peer.peer, peer.host, worker)


def _state(peer: Peer) -> str:
    if isinstance(peer, Worker):
        return peer.presence.name.lower()
    return "joined" if peer.lost_at is None else "lost"
