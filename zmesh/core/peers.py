"""Who is connected: a session per HELLO, its address, and what a gateway is still owed.

A session is one connected life. Its number, the address it speaks from and its role must agree in every message; what
does not agree is answered "unknown peer", and the peer says HELLO again.
"""

from __future__ import annotations

from zmesh.core.events import Address
from zmesh.core.tasks import Task
from zmesh.messages import Hello, Kind, Payload, PeerId, Reply, Role, SessionId, Status, TaskId

__all__ = ["Gateway", "Peer"]

INLINE = int(Kind.INLINE)


class Peer:
    """One session. `heard` and `told` are when it last said, and was last told, anything."""

    __slots__ = ("address", "connection", "heard", "host", "lost_at", "peer", "pid", "role", "session", "told")

    def __init__(self, session: SessionId, address: Address, hello: Hello, now: float) -> None:
        self.session, self.address = session, address
        self.role: Role = hello.role
        self.peer: PeerId = hello.peer
        self.connection = hello.connection
        self.host, self.pid = hello.host, hello.pid
        self.heard = self.told = now
        self.lost_at: float | None = None  # when its connection was found gone


class Gateway(Peer):
    """A gateway and the outcomes of this turn that it is owed, column by column."""

    __slots__ = ("_attempts", "_compute_us", "_ids", "_kinds", "_payloads", "_queue_us", "_statuses", "number")

    def __init__(self, session: SessionId, address: Address, hello: Hello, now: float) -> None:
        super().__init__(session, address, hello, now)
        self.number = 0  # of its last REPLY
        self._clear()

    def _clear(self) -> None:
        self._ids: list[TaskId] = []
        self._statuses: list[int] = []
        self._kinds: list[int] = []
        self._payloads: list[Payload] = []
        self._attempts: list[int] = []
        self._queue_us: list[int] = []
        self._compute_us: list[int] = []

    def owe(self, task: Task, status: int, payload: Payload, kind: int = INLINE) -> None:
        self._ids.append(task.id)
        self._statuses.append(status)
        self._kinds.append(kind)
        self._payloads.append(payload)
        self._attempts.append(task.attempt)
        self._queue_us.append(task.queue_us)
        self._compute_us.append(task.compute_us)

    def refuse(self, task: TaskId, status: Status, text: str) -> None:
        """An outcome for a task that never came to be."""
        self._ids.append(task)
        self._statuses.append(int(status))
        self._kinds.append(INLINE)
        self._payloads.append(text.encode())
        self._attempts.append(0)
        self._queue_us.append(0)
        self._compute_us.append(0)

    def settle(self) -> Reply | None:
        """Everything owed, as one numbered message; None when nothing is."""
        if not self._ids:
            return None
        self.number += 1
        reply = Reply(
            self.number,
            self._ids,
            self._statuses,
            self._kinds,
            self._payloads,
            self._attempts,
            self._queue_us,
            self._compute_us,
        )
        self._clear()
        return reply
