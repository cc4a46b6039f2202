"""Who is connected: a session per HELLO, its address, and what a gateway is still owed.

A session is one connected life. Its number, the address it speaks from and its role must agree in every message; what
does not agree is answered "unknown peer", and the peer says HELLO again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zmesh.config import Limits
from zmesh.core.events import Address
from zmesh.core.replies import KeptReplies, Outcomes
from zmesh.messages import Hello, Kind, PeerId, Reply, Role, SessionId, Status, TaskId

if TYPE_CHECKING:
    from zmesh.core.tasks import Task

__all__ = ["Gateway", "Peer", "Share"]


class Peer:
    """One session. `heard` and `told` are when it last said, and was last told, anything."""

    __slots__ = (
        "address",
        "connection",
        "heard",
        "host",
        "is_retiring",
        "lost_at",
        "peer",
        "pid",
        "role",
        "session",
        "told",
    )

    def __init__(self, session: SessionId, address: Address, hello: Hello, now: float) -> None:
        self.session, self.address = session, address
        self.role: Role = hello.role
        self.peer: PeerId = hello.peer
        self.connection = hello.connection
        self.host, self.pid = hello.host, hello.pid
        self.heard = self.told = now
        self.lost_at: float | None = None  # when its connection was found gone
        self.is_retiring = False  # an agent that was told to drain its host


@dataclass(slots=True)
class Share:
    """What of a gateway's waits at one stage; what is held back for it is not counted."""

    tasks: int = 0
    bytes: int = 0


class Gateway(Peer):
    """A gateway, what of its own waits at each stage, the outcomes of this turn that it is owed, and its answers that
    it has not acknowledged."""

    __slots__ = ("_again", "kept", "number", "owed", "shares", "was_given_up")

    def __init__(self, session: SessionId, address: Address, hello: Hello, now: float) -> None:
        super().__init__(session, address, hello, now)
        self.number = 0  # of its last REPLY
        self.was_given_up = False  # and its tasks cancelled, and it has not yet said all that it wants again
        self.kept = KeptReplies()
        self.shares: defaultdict[int, Share] = defaultdict(Share)  # by the index of the stage
        self.owed = Outcomes()
        self._again = Outcomes()  # apart, since they are no answers

    def refuse(self, task: TaskId, status: Status, text: str, deadline: float) -> None:
        """An outcome for a task that never came to be."""
        outcomes = self._again if status is Status.AGAIN else self.owed
        outcomes.refuse(task, int(status), text, deadline)

    def give_back(self, task: Task, ms: int) -> None:
        """It is to be submitted again, after so long."""
        self._again.add(task, int(Status.AGAIN), b"%d" % ms, int(Kind.INLINE))

    def answered(self) -> set[TaskId]:
        """The tasks whose answers are decided in this turn, or kept."""
        return self.kept.answered().union(self.owed.ids)

    def settle(self, limits: Limits) -> list[Reply]:
        """Everything owed, as numbered messages, which are kept."""
        replies: list[Reply] = []
        if self.owed.ids:
            outcomes, self.owed = self.owed, Outcomes()
            replies = self._number(outcomes, limits)
        if self._again.ids:
            outcomes, self._again = self._again, Outcomes()
            replies += self._number(outcomes, limits)
        return replies

    def _number(self, outcomes: Outcomes, limits: Limits) -> list[Reply]:
        replies = outcomes.replies(self.number, limits)
        self.number += len(replies)
        for reply in replies:
            self.kept.keep(reply, outcomes.deadline)
        return replies

    def succeed(self, former: Gateway, limits: Limits) -> None:
        """The same process in a new session: what it has not acknowledged in the former one is to be said again."""
        former.settle(limits)
        self.was_given_up = former.was_given_up
        self.kept = former.kept
        self.shares = former.shares
        self.kept.lose_session()

    def say_again(self) -> list[Reply]:
        """What was lost, under new numbers."""
        replies = []
        for kept in self.kept.take_unsaid():
            self.number += 1
            reply = replace(kept.reply, number=self.number)
            self.kept.keep(reply, kept.deadline)
            replies.append(reply)
        return replies
