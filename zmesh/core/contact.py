"""A peer's way to its broker, shared by the gateway's, the worker's and the agent's half.

How far it came (the table), in which session of which epoch, for how long the broker has been silent, and what its
WELCOME allows. Pure: what happened, and the time, are given in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from math import inf

from zmesh import messages
from zmesh.config import Limits
from zmesh.core.effects import Leave, Reconnect, Report
from zmesh.core.parts import parts
from zmesh.messages import Payload, RefuseCode, SessionId

__all__ = ["STEPS", "Contact", "ContactState", "Step"]

FINAL = frozenset({RefuseCode.VERSION, RefuseCode.ROLE, RefuseCode.FINGERPRINT, RefuseCode.KEY})
BACK_OFF_FACTOR_MAX = 16


class ContactState(Enum):
    AWAY = "away"  # no socket: Reconnect was asked for, Started not yet heard
    GREETING = "greeting"  # HELLO is said, WELCOME not yet heard
    JOINED = "joined"
    LEFT = "left"


class Step(Enum):
    STARTED = "started"
    WELCOMED = "welcomed"
    LOST = "lost"  # by LinkLost, REFUSE or silence
    LEFT = "left"


_AWAY, _GREETING, _JOINED, _LEFT = ContactState
_TALKING = (_JOINED, _GREETING)
STEPS: Mapping[Step, Mapping[ContactState, ContactState]] = {
    Step.STARTED: {_AWAY: _GREETING, _GREETING: _GREETING, _JOINED: _GREETING},
    Step.WELCOMED: {_AWAY: _AWAY, _GREETING: _JOINED, _JOINED: _JOINED},
    Step.LOST: {_AWAY: _AWAY, _GREETING: _AWAY, _JOINED: _AWAY},
    Step.LEFT: {_AWAY: _LEFT, _GREETING: _LEFT, _JOINED: _LEFT},
}


class Contact:
    """A peer's way to its broker: how far it came, in which session, how long it is silent, what WELCOME allows."""

    def __init__(self, limits: Limits) -> None:
        self.state = ContactState.AWAY
        self.connection = self.epoch = 0
        self.session = SessionId(0)
        self.heartbeat_seconds, self.dead_seconds = limits.heartbeat_seconds, limits.dead_seconds
        self.rows_max, self.inline_bytes_max = limits.message_rows_max, limits.message_inline_bytes_max
        self.frame_bytes_max = limits.frame_bytes_max
        self.was_joined = False  # ever
        self._back_off = 1  # by how much the next wait after a final no is longer
        self.speak_at = inf  # when the next HELLO, or the next sign of life, is due
        self.heard_at = self._turned_at = -inf

    def step(self, step: Step) -> None:
        if self.state is not ContactState.LEFT:  # whatever comes after the end
            self.state = STEPS[step][self.state]

    @property
    def joined(self) -> bool:
        return self.state is _JOINED

    def turn(self, now: float) -> None:
        """A turn begins. If there was none for long we did not run, and silence in that time proves nothing."""
        if now - self._turned_at > 2 * self.heartbeat_seconds:
            self.heard_at = max(self.heard_at, now - self.heartbeat_seconds)
        self._turned_at = now

    def start(self, now: float) -> None:
        self.step(Step.STARTED)
        self.connection += 1
        self.session = SessionId(0)
        self.heard_at = self.speak_at = now

    def join(self, welcome: messages.Welcome, now: float) -> bool:
        """Whether it opens a session: not when the socket was given up before, nor when it repeats the last one."""
        repeated = self.joined and welcome.session == self.session
        self.step(Step.WELCOMED)
        if repeated or not self.joined:
            return False
        self.was_joined, self._back_off = True, 1
        self.epoch, self.session = welcome.epoch, welcome.session
        self.heartbeat_seconds, self.dead_seconds = welcome.heartbeat_ms / 1000, welcome.dead_ms / 1000
        self.rows_max, self.inline_bytes_max = max(1, welcome.message_rows_max), welcome.message_inline_bytes_max
        self.frame_bytes_max = welcome.frame_bytes_max
        self.spoke(now)
        return True

    def lose(self, again_after: float) -> list[Reconnect]:
        """The socket is of no use any more: ask for another one, unless that was done."""
        asked = self.state in (ContactState.AWAY, ContactState.LEFT)
        self.step(Step.LOST)
        self.session = SessionId(0)
        return [] if asked else [Reconnect(again_after)]

    def refused(self, refuse: messages.Refuse, who: str) -> list[Report | Reconnect | Leave]:
        """What a gateway or an agent does about a no.

        A program that no broker ever welcomed ends with a no that will not change: its version, app, key or role is
        wrong, and somebody has to look at it. One that was welcome before tries again, ever more rarely: the broker may
        have been replaced by a wrong one, and is put back.
        """
        if refuse.code is RefuseCode.UNKNOWN_PEER or self.state is ContactState.LEFT:
            return [*self.lose(0.0)]
        wait = refuse.retry_after_ms / 1000 or self.heartbeat_seconds
        if refuse.code in FINAL:
            if not self.was_joined:
                self.step(Step.LEFT)
                return [Leave(refuse.text, 1)]
            wait *= self._back_off
            self._back_off = min(2 * self._back_off, BACK_OFF_FACTOR_MAX)
        return [Report("error", f"the broker refuses this {who}: {refuse.text}"), *self.lose(wait)]

    def spoke(self, now: float) -> None:
        self.speak_at = now + self.heartbeat_seconds

    def is_silent(self, now: float) -> bool:
        return now >= self.heard_at + self.dead_seconds and self.state in _TALKING

    def wakeup(self) -> float:
        return min(self.speak_at, self.heard_at + self.dead_seconds) if self.state in _TALKING else inf

    def parts(self, payloads: Sequence[Payload]) -> list[slice]:
        """Cut rows into messages that the broker takes, in order."""
        return parts(payloads, self.rows_max, self.inline_bytes_max)
