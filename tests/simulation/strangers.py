"""Those who come uninvited, or for a moment: another app's worker, a broken peer, an operator with a question.

None of them may change anything for the others, except an operator who says DRAIN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tests.simulation.host import Worker
from tests.simulation.network import Cable, PeerLine
from tests.simulation.world import Process
from zmesh.core.agency import AgentEffect, AgentEvent, AgentLink
from zmesh.core.effects import Leave, LinkEffect, Reconnect, Report, Transmit
from zmesh.core.events import Heard, Started
from zmesh.core.link import Link
from zmesh.messages import (
    PROTOCOL_VERSION,
    Credit,
    Drain,
    Exited,
    Goodbye,
    Hello,
    LeaseId,
    Message,
    PeerId,
    Phase,
    Results,
    Role,
    SessionId,
    Stats,
    Welcome,
    WorkerState,
)

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

__all__ = ["PATIENCE_SECONDS", "Administrator", "strangers"]

PATIENCE_SECONDS = 2.0


class Stranger(Process):
    """Says HELLO once and, if it is welcome, a few words more; then it is gone."""

    def __init__(self, simulation: Simulation, number: int, index: int, hello: Hello | None, words: list[Message]):
        super().__init__(simulation.world, f"stranger{number}")
        self._hello, self._words, self._session = hello, words, SessionId(0)
        self.line = PeerLine(simulation.network, index, Cable(self.name, simulation.scenario.wire_seconds), self)
        self.line.connect()
        self.world.after(PATIENCE_SECONDS, self._leave)
        self.wake()

    def turn(self) -> None:
        if self._hello is not None:
            hello, self._hello = self._hello, None
            self.line.send(SessionId(0), hello)
        elif self._words and self._session:
            self._speak()
        self.line.flush()
        for heard in self.line.receive():
            if isinstance(heard, Heard) and isinstance(heard.message, Welcome):
                self._session = heard.session
                self._speak()

    def _speak(self) -> None:
        for word in self._words:
            self.line.send(self._session, word)
        self._words = []

    def _leave(self) -> None:
        self.is_alive = False
        self.line.disconnect()


class Administrator(Stranger):
    """An operator, who asks how things are and may say DRAIN: to the broker, or to the agents of a host."""

    def __init__(self, simulation: Simulation, number: int, *, drain: bool = False, host: str = "") -> None:
        hello = greeting(simulation, number, Role.ADMIN)
        words: list[Message] = [Stats(), *([Drain(0, "a new version", host)] if drain else [])]
        super().__init__(simulation, number, 0, hello, [*words, Goodbye([])])


class Misled(Process):
    """A real agent or gateway with the wrong address or the wrong app: it is refused, and tries again or ends."""

    def __init__(self, simulation: Simulation, number: int, link: AgentLink | Link, index: int) -> None:
        super().__init__(simulation.world, f"stranger{number}")
        self.link, self.checks = link, simulation.checks
        self.line = PeerLine(simulation.network, index, Cable(self.name, simulation.scenario.wire_seconds), self)
        self._connect_at: float | None = self.world.now
        self.world.after(PATIENCE_SECONDS, self._leave)
        self.wake()

    def turn(self) -> None:
        heard: list[AgentEvent] = []
        if self._connect_at is not None and self.world.now >= self._connect_at:
            self._connect_at = None
            self.line.connect()
            heard.append(Started())
        self.line.flush()
        heard += self.line.receive()
        effects: Sequence[AgentEffect | LinkEffect]
        if isinstance(self.link, Link):
            effects = self.link.handle(*heard, now=self.world.now)  # type: ignore[arg-type]
            self.checks.link_says(effects)
        else:
            effects = self.link.handle(*heard, now=self.world.now)
            self.checks.agent_says(effects)
        for effect in effects:
            match effect:
                case Transmit(session, message):
                    self.line.send(session, message)
                case Reconnect(after_seconds):
                    self.line.disconnect()
                    self._connect_at = self.world.now + after_seconds
                    self.wake_at(self._connect_at)
                case Leave(reason):
                    self.world.tell(self.name, f"leaves: {reason}")
                    self._leave()
                case Report(level, text):
                    self.world.tell(self.name, f"{level}: {text}")

    def _leave(self) -> None:
        self.is_alive = False
        self.line.disconnect()


def lost_agent(simulation: Simulation, number: int) -> Process:
    """It was given the address of a stage."""
    peer = PeerId(simulation.world.dice(f"stranger {number}").randbytes(16))
    return Misled(simulation, number, AgentLink(peer, "elsewhere", 1, "other", simulation.limits), 1)


def lost_gateway(simulation: Simulation, number: int) -> Process:
    """It serves another app."""
    dice = simulation.world.dice(f"stranger {number}")
    peer = PeerId(dice.randbytes(16))
    prefix = int.from_bytes(peer[:4], "big")
    link = Link(peer, prefix, "elsewhere", 1, "other", simulation.limits, dice, {"/other": 1})
    return Misled(simulation, number, link, 0)


def greeting(simulation: Simulation, number: int, role: Role, **other: object) -> Hello:
    peer = PeerId(simulation.world.dice(f"stranger {number}").randbytes(16))
    given = {"versions": [PROTOCOL_VERSION], "peer": peer, "fingerprint": simulation.plan.fingerprint, **other}
    return Hello(role=role, connection=1, host="elsewhere", pid=1, **given)  # type: ignore[arg-type]


def other_app(simulation: Simulation, number: int) -> Process:
    """A real worker of another app."""
    stage = simulation.plan.stages[number % len(simulation.plan.stages)]
    cable = Cable(f"stranger{number}", simulation.scenario.wire_seconds)
    worker = Worker(simulation, f"stranger{number}", stage, 9, cable, lambda worker, code: None, fingerprint="other")
    simulation.checks.worker_started(worker)
    return worker


def other_version(simulation: Simulation, number: int) -> Process:
    return Stranger(simulation, number, 0, greeting(simulation, number, Role.AGENT, versions=[9]), [])


def other_socket(simulation: Simulation, number: int) -> Process:
    """An agent where workers speak."""
    return Stranger(simulation, number, 1, greeting(simulation, number, Role.AGENT), [])


def other_stage(simulation: Simulation, number: int) -> Process:
    return Stranger(simulation, number, 1, greeting(simulation, number, Role.WORKER, stage="unheard of"), [])


def other_fingerprint(simulation: Simulation, number: int) -> Process:
    """An agent of another app is heard, since it only reports exits; a gateway of another app is not."""
    role = (Role.AGENT, Role.GATEWAY)[number % 2]
    return Stranger(simulation, number, 0, greeting(simulation, number, role, fingerprint="other"), [])


def same_ids(simulation: Simulation, number: int) -> Process:
    """A gateway whose task ids would be those of another one."""
    peer = PeerId(simulation.gateways[0].peer[:4] + b"another gate")
    return Stranger(simulation, number, 0, greeting(simulation, number, Role.GATEWAY, peer=peer), [])


def out_of_role(simulation: Simulation, number: int) -> Process:
    """An operator who speaks as an agent and as a worker."""
    worker = simulation.dice_for_strangers.choice(simulation.workers() or [None])
    peer = worker.peer if worker else PeerId(bytes(16))
    exited = Exited(peer, "a", 1, -11, LeaseId(1), Phase.FORWARD, 0, False, "not true")
    results = Results(1, LeaseId(1), [0], [0], [0], [b"not true"])
    words: list[Message] = [exited, results, Credit(100, WorkerState.READY)]
    return Stranger(simulation, number, 0, greeting(simulation, number, Role.ADMIN), words)


def thief(simulation: Simulation, number: int) -> Process:
    """Somebody who knows the session of a worker and speaks from elsewhere."""
    stranger = Stranger(simulation, number, 1, None, [Credit(100, WorkerState.READY), Goodbye([])])
    broker = simulation.broker
    sessions = list(broker.dispatcher.mesh.directory.sessions) if broker else []
    stranger._session = sessions[number % len(sessions)] if sessions else SessionId(7)
    return stranger


def strangers(simulation: Simulation) -> list[Callable[[Simulation, int], Process]]:
    return [
        other_app,
        other_version,
        other_socket,
        other_stage,
        other_fingerprint,
        same_ids,
        out_of_role,
        thief,
        Administrator,
        lost_agent,
        lost_gateway,
    ]
