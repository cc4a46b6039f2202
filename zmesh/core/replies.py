"""What a gateway is owed in this turn, and what it was told and has not acknowledged.

An answer may be lost on its way: ZeroMQ reconnects without telling anybody. So a REPLY is kept until the gateway says
that it has dealt with it, or nobody can want it any more, and is said again in the next session of the same process.
The account is kept per REPLY, not per task. AGAIN is no answer: a gateway in a new session submits again by itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from zmesh.config import Limits
from zmesh.core.parts import parts
from zmesh.core.tasks import Task
from zmesh.messages import Kind, LeaseId, Payload, Reply, Status, TaskId

__all__ = ["ROW_BYTES", "Kept", "KeptReplies", "Outcomes", "reply_bytes"]

ROW_BYTES = 128  # what a row costs beside its payload, so that empty answers are bounded as well
OK, AGAIN, INLINE = int(Status.OK), int(Status.AGAIN), int(Kind.INLINE)


def reply_bytes(payloads: list[Payload]) -> int:
    """What these answers cost whoever keeps them."""
    return sum(map(len, payloads)) + ROW_BYTES * len(payloads)


class Outcomes:
    """Outcomes of one turn, column by column; `deadline` is the latest of their tasks'."""

    __slots__ = ("attempts", "compute_us", "deadline", "ids", "kinds", "payloads", "queue_us", "statuses", "streams")

    def __init__(self) -> None:
        self.ids: list[TaskId] = []
        self.statuses: list[int] = []
        self.kinds: list[int] = []
        self.payloads: list[Payload] = []
        self.attempts: list[int] = []
        self.queue_us: list[int] = []
        self.compute_us: list[int] = []
        self.deadline = 0.0
        self.streams: dict[TaskId, tuple[LeaseId, int]] | None = None

    def note_stream(self, task: TaskId, lease: LeaseId, count: int) -> None:
        """Beside its outcome, so many events came from this lease."""
        if self.streams is None:
            self.streams = {}
        self.streams[task] = lease, count

    def add(self, task: Task, status: int, payload: Payload, kind: int) -> None:
        self.ids.append(task.id)
        self.statuses.append(status)
        self.kinds.append(kind)
        self.payloads.append(payload)
        self.attempts.append(task.attempt)
        self.queue_us.append(task.queue_us)
        self.compute_us.append(task.compute_us)
        if task.deadline > self.deadline:
            self.deadline = task.deadline

    def add_good(self, tasks: list[Task], payloads: list[Payload], kinds: list[int]) -> None:
        """Tasks that all succeeded, and their results."""
        self.ids += [task.id for task in tasks]
        self.statuses += [OK] * len(tasks)
        self.kinds += kinds
        self.payloads += payloads
        self.attempts += [task.attempt for task in tasks]
        self.queue_us += [task.queue_us for task in tasks]
        self.compute_us += [task.compute_us for task in tasks]
        self.deadline = max([self.deadline, *[task.deadline for task in tasks]])

    def refuse(self, task: TaskId, status: int, text: str, deadline: float) -> None:
        """An outcome for a task that never came to be."""
        self.ids.append(task)
        self.statuses.append(status)
        self.kinds.append(INLINE)
        self.payloads.append(text.encode())
        self.attempts.append(0)
        self.queue_us.append(0)
        self.compute_us.append(0)
        self.deadline = max(self.deadline, deadline)

    def replies(self, number: int, limits: Limits) -> list[Reply]:
        """As messages, of which the first has the number after `number`. Add nothing afterwards."""
        columns: tuple[list[Any], ...] = (
            self.ids,
            self.statuses,
            self.kinds,
            self.payloads,
            self.attempts,
            self.queue_us,
            self.compute_us,
        )
        if self.streams is not None:
            streams = [self.streams.get(id, (0, 0)) for id in self.ids]
            columns += ([lease for lease, _ in streams], [count for _, count in streams])
        cuts = parts(self.payloads, limits.message_rows_max, limits.message_inline_bytes_max)
        if len(cuts) == 1:  # nearly always
            return [Reply(number + 1, *columns)]
        return [Reply(number + count, *[column[part] for column in columns]) for count, part in enumerate(cuts, 1)]


@dataclass(slots=True, eq=False)
class Kept:
    """A REPLY that is not acknowledged, the latest deadline of its tasks, and its cost."""

    reply: Reply
    deadline: float
    bytes: int

    @property
    def is_again(self) -> bool:
        return self.reply.statuses[0] == AGAIN


class KeptReplies:
    """Of one gateway process; it outlives the session."""

    __slots__ = ("bytes", "said", "unsaid")

    def __init__(self) -> None:
        self.said: deque[Kept] = deque()  # in this session, in the order of their numbers
        self.unsaid: list[Kept] = []  # lost, or of an earlier session: to be said again
        self.bytes = 0  # of both

    def __len__(self) -> int:
        return len(self.said) + len(self.unsaid)

    def keep(self, reply: Reply, deadline: float) -> None:
        size = reply_bytes(reply.payloads)
        self.said.append(Kept(reply, deadline, size))
        self.bytes += size

    def acknowledge(self, handled: int) -> None:
        """The gateway has dealt with all up to this number."""
        said = self.said
        while said and said[0].reply.number <= handled:
            self.bytes -= said.popleft().bytes

    def expire(self, now: float) -> None:
        """Let go of what nobody waits for any more."""
        if any(kept.deadline <= now for kept in (*self.said, *self.unsaid)):
            self.said = deque([kept for kept in self.said if kept.deadline > now])
            self.unsaid = [kept for kept in self.unsaid if kept.deadline > now]
            self._count()

    def lose(self, reply: Reply) -> None:
        """This very message was not sent."""
        for kept in self.said:
            if kept.reply is reply:
                self.said.remove(kept)
                self.unsaid.append(kept)
                return

    def lose_session(self) -> None:
        """Whatever was said may not have arrived. What was told AGAIN is submitted again in any case."""
        self.unsaid = [kept for kept in (*self.unsaid, *self.said) if not kept.is_again]
        self.said.clear()
        self._count()

    def take_unsaid(self) -> list[Kept]:
        unsaid, self.unsaid = self.unsaid, []
        self.bytes -= sum(kept.bytes for kept in unsaid)
        return unsaid

    def answered(self) -> set[TaskId]:
        """The tasks whose answers are kept; for looking them up."""
        return {id for kept in (*self.said, *self.unsaid) if not kept.is_again for id in kept.reply.ids}

    def _count(self) -> None:
        self.bytes = sum(kept.bytes for kept in (*self.said, *self.unsaid))
