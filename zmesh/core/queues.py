"""One bounded queue per stage, by count and bytes, and beside it the suspects, and those who are held back.

A task that is cancelled, expires or is answered by a late result while it waits is not searched for: it is DONE, its
count is taken off at once, and whoever cuts a batch steps over it. When more dead than living lie in the queue it is
rebuilt, so memory follows the living.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from zmesh.core.tasks import Task, TaskState
from zmesh.messages import OWN_FRAME_BYTES

if TYPE_CHECKING:
    from zmesh.core.peers import Gateway

__all__ = ["StageQueue"]

SWEEP_MIN = 64  # dead entries below this number are not worth a rebuild


class StageQueue:
    """First come, first served; what came back goes to the front."""

    __slots__ = ("_held", "_index", "_queue", "_suspects", "bytes", "held", "held_bytes", "suspects", "waiting")

    def __init__(self, index: int) -> None:
        self._index = index  # of the stage
        self._queue: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._held: deque[Task] = deque()  # their gateways do not take their answers
        self.waiting = 0  # living tasks in the ordinary queue
        self.suspects = 0  # living suspects
        self.bytes = 0  # of both
        self.held = 0  # living tasks that are held back
        self.held_bytes = 0

    def push(self, tasks: Sequence[Task]) -> None:
        """To the back, in order."""
        self._queue.extend(tasks)
        self.waiting += len(tasks)
        self.bytes += sum([task.size for task in tasks])

    def push_front(self, tasks: Sequence[Task]) -> None:
        """To the front, keeping their order."""
        self._queue.extendleft(reversed(tasks))
        self.waiting += len(tasks)
        self.bytes += sum([task.size for task in tasks])

    def push_suspect(self, task: Task) -> None:
        self._suspects.append(task)
        self.suspects += 1
        self.bytes += task.size

    def leave(self, task: Task) -> None:
        """Take a waiting task off the count, just before it takes the step that ends its waiting here."""
        if task.state is TaskState.HELD:
            self.held -= 1
            self.held_bytes -= task.size
            return
        if task.state is TaskState.SUSPECT:
            self.suspects -= 1
        else:
            self.waiting -= 1
        self.bytes -= task.size

    def pull(self, gateway: Gateway) -> list[Task]:
        """Take all of a gateway's tasks out of the ordinary queue, in order; what becomes of them is the caller's."""
        living = [task for task in self._queue if self._is_here(task)]
        pulled = [task for task in living if task.gateway is gateway]
        self._queue = deque([task for task in living if task.gateway is not gateway])
        self.waiting -= len(pulled)
        self.bytes -= sum(task.size for task in pulled)
        return pulled

    def hold(self, tasks: Sequence[Task]) -> None:
        """Keep these apart, until `free`."""
        self._held.extend(tasks)
        self.held += len(tasks)
        self.held_bytes += sum(task.size for task in tasks)

    def free(self, gateway: Gateway) -> list[Task]:
        """All of a gateway's tasks that were held back, in order."""
        living = [task for task in self._held if self._is_here(task)]
        freed = [task for task in living if task.gateway is gateway]
        self._held = deque([task for task in living if task.gateway is not gateway])
        self.held -= len(freed)
        self.held_bytes -= sum(task.size for task in freed)
        return freed

    def sweep(self) -> None:
        """Rebuild a queue of which most entries are dead."""
        for name, living in (("_queue", self.waiting), ("_suspects", self.suspects), ("_held", self.held)):
            queue: deque[Task] = getattr(self, name)
            if len(queue) - living > max(SWEEP_MIN, living):
                setattr(self, name, deque([task for task in queue if self._is_here(task)]))

    def oldest(self) -> float:
        """When the task at the head arrived here. Only when one waits."""
        queue = self._queue
        while not self._is_here(queue[0]):
            queue.popleft()
        return queue[0].arrived

    def cut(self, size: int, inline_bytes_max: int) -> list[Task]:
        """Up to `size` living tasks from the front, at least one; their states are the caller's to change.

        The small payloads of a batch travel inside one message, which has a limit: what is over it waits for the next.
        """
        queue = self._queue
        batch: list[Task] = []
        bytes_cut = inline = 0
        while len(batch) < size and queue:
            task = queue[0]
            if self._is_here(task):
                inline += task.size if task.size < OWN_FRAME_BYTES else 0
                if inline > inline_bytes_max and batch:
                    break
                batch.append(task)
                bytes_cut += task.size
            queue.popleft()
        self.waiting -= len(batch)
        self.bytes -= bytes_cut
        return batch

    def cut_suspects(self, size: int, inline_bytes_max: int) -> list[Task]:
        """The first living suspect, and up to `size` with it of those that may be in such a batch; at least one.

        Who may not, or would make the message too long, keeps its place.
        """
        group: list[Task] = []
        passed: list[Task] = []
        suspects = self._suspects
        inline = 0
        while suspects and len(group) < size:
            task = suspects.popleft()
            if not self._is_here(task):
                continue
            if not group:
                size = min(size, task.group_max)
            elif task.group_max < size or inline + _inline(task) > inline_bytes_max:
                passed.append(task)
                continue
            inline += _inline(task)
            group.append(task)
            self.suspects -= 1
            self.bytes -= task.size
        suspects.extendleft(reversed(passed))
        return group

    def suspects_here(self) -> list[Task]:
        """All living suspects, in order."""
        return [task for task in self._suspects if self._is_here(task)]

    def living(self) -> Iterable[Task]:
        """Everything that waits here, for invariants and for a stage that gives up."""
        return [task for queue in (self._queue, self._suspects, self._held) for task in queue if self._is_here(task)]

    def _is_here(self, task: Task) -> bool:
        state = task.state
        waits = state is TaskState.QUEUED or state is TaskState.SUSPECT or state is TaskState.HELD
        return waits and task.route.stages[task.hop] == self._index


def _inline(task: Task) -> int:
    """Bytes of its payload that count for a message: a large one has a frame of its own."""
    return task.size if task.size < OWN_FRAME_BYTES else 0
