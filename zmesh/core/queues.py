"""One bounded queue per stage, by count and bytes, and beside it the suspects, and those who are held back.

What is further on its way goes first: a task at its second step was paid for at the first. So the queue is a few lanes,
one for each step at which tasks come here, the later steps first; in each it is first come, first served. A step that
is the last of some routes and not of others has two lanes, since only the one may be withheld (see `midway`); of these
two the one with the older task at its head goes first.

A task that is cancelled, expires or is answered by a late result while it waits is not searched for: it is DONE, its
count is taken off at once, and whoever cuts a batch steps over it. When more dead than living lie in the queue it is
rebuilt, so memory follows the living.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from zmesh.core.tasks import HELD, QUEUED, SUSPECT, Task
from zmesh.messages import OWN_FRAME_BYTES

if TYPE_CHECKING:
    from zmesh.core.midway import Midway
    from zmesh.core.peers import Gateway

__all__ = ["StageQueue"]

SWEEP_MIN = 64  # dead entries below this number are not worth a rebuild


class Lane:
    """Tasks at one step of their routes, which is the last of all these routes or of none."""

    __slots__ = ("hop", "is_last", "queue", "waiting")

    def __init__(self, number: int) -> None:
        self.hop, self.is_last = divmod(number, 2)
        self.queue: deque[Task] = deque()
        self.waiting = 0  # living ones


class StageQueue:
    """Later steps first, then first come, first served; what came back goes to the front of its lane."""

    __slots__ = (
        "_held",
        "_index",
        "_lanes",
        "_midway",
        "_order",
        "_suspects",
        "bytes",
        "held",
        "held_bytes",
        "suspects",
        "waiting",
    )

    def __init__(self, index: int, midway: Midway) -> None:
        self._index = index  # of the stage
        self._midway = midway  # of the mesh
        self._lanes: dict[int, Lane] = {}
        self._order: list[Lane] = []  # the same, the later steps first
        self._suspects: deque[Task] = deque()
        self._held: deque[Task] = deque()  # their gateways do not take their answers
        self.waiting = 0  # living tasks in the lanes
        self.suspects = 0  # living suspects
        self.bytes = 0  # of both
        self.held = 0  # living tasks that are held back
        self.held_bytes = 0

    @property
    def available(self) -> int:
        """Living tasks in the lanes that may be leased now."""
        lanes = self._open_lanes()
        return lanes[0].waiting if len(lanes) == 1 else sum([lane.waiting for lane in lanes])

    def push(self, tasks: Sequence[Task]) -> None:
        """To the back of their lanes, in order."""
        for lane, some in self._by_lane(tasks):
            lane.queue.extend(some)
            lane.waiting += len(some)
            self._count(lane.hop, some, 1)
        self.waiting += len(tasks)

    def push_alike(self, tasks: Sequence[Task], size: int) -> None:
        """The same for tasks of one gateway at one step of one route, at least one, of so many bytes together."""
        first = tasks[0]
        lane = self._lane_of(first)
        lane.queue.extend(tasks)
        lane.waiting += len(tasks)
        self.waiting += len(tasks)
        self._add(lane.hop, first.gateway, len(tasks), size)

    def push_front(self, tasks: Sequence[Task]) -> None:
        """To the front of their lanes, keeping their order."""
        for lane, some in self._by_lane(tasks):
            lane.queue.extendleft(reversed(some))
            lane.waiting += len(some)
            self._count(lane.hop, some, 1)
        self.waiting += len(tasks)

    def push_suspect(self, task: Task) -> None:
        self._suspects.append(task)
        self.suspects += 1
        self._count(task.hop, (task,), 1)

    def leave(self, task: Task) -> None:
        """Take a waiting task off the count, just before it takes the step that ends its waiting here."""
        if task.state is HELD:
            self.held -= 1
            self.held_bytes -= task.size
            return
        if task.state is SUSPECT:
            self.suspects -= 1
        else:
            self.waiting -= 1
            self._lane_of(task).waiting -= 1
        self._count(task.hop, (task,), -1)

    def pull(self, gateway: Gateway) -> list[Task]:
        """Take all of a gateway's tasks out of the lanes, in order; what becomes of them is the caller's."""
        pulled: list[Task] = []
        for lane in self._order:
            living = [task for task in lane.queue if self._is_here(task)]
            its = [task for task in living if task.gateway is gateway]
            lane.queue = deque([task for task in living if task.gateway is not gateway])
            lane.waiting -= len(its)
            self._count(lane.hop, its, -1)
            pulled += its
        self.waiting -= len(pulled)
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
        for lane in self._order:
            lane.queue = self._swept(lane.queue, lane.waiting)
        self._suspects = self._swept(self._suspects, self.suspects)
        self._held = self._swept(self._held, self.held)

    def oldest(self) -> float:
        """When the oldest of the tasks at the heads of the lanes arrived here. Only when one is available."""
        lanes = self._open_lanes()
        if len(lanes) == 1:
            return self._head(lanes[0]).arrived
        return min([self._head(lane).arrived for lane in lanes])

    def cut(self, size: int, inline_bytes_max: int) -> list[Task]:
        """Up to `size` available tasks from the front, at least one; their states are the caller's to change.

        The small payloads of a batch travel inside one message, which has a limit: what is over it waits for the next.
        """
        batch: list[Task] = []
        inline = 0
        lanes = self._in_order()
        for lane in lanes:
            queue, start = lane.queue, len(batch)
            if len(queue) == lane.waiting and len(lanes) == 1:  # nobody here is dead: nearly always
                batch += _first(queue, size, inline_bytes_max)
            while len(batch) < size and queue:
                task = queue[0]
                if self._is_here(task):
                    inline += _inline(task)
                    if inline > inline_bytes_max and batch:
                        break  # and nothing from another lane fits either
                    batch.append(task)
                queue.popleft()
            lane.waiting -= len(batch) - start
            self._count(lane.hop, batch[start:], -1)
        self.waiting -= len(batch)
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
            self._count(task.hop, (task,), -1)
        suspects.extendleft(reversed(passed))
        return group

    def suspects_here(self) -> list[Task]:
        """All living suspects, in order."""
        return [task for task in self._suspects if self._is_here(task)]

    def living(self) -> Iterable[Task]:
        """Everything that waits here, for invariants and for a stage that gives up."""
        queues = [*(lane.queue for lane in self._order), self._suspects, self._held]
        return [task for queue in queues for task in queue if self._is_here(task)]

    # ── lanes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _lane(self, number: int) -> Lane:
        lane = self._lanes.get(number)
        if lane is None:
            lane = self._lanes[number] = Lane(number)
            self._order = sorted(self._lanes.values(), key=lambda lane: -lane.hop)
        return lane

    def _lane_of(self, task: Task) -> Lane:
        return self._lane(task.route.lanes[task.hop])

    def _by_lane(self, tasks: Sequence[Task]) -> list[tuple[Lane, Sequence[Task]]]:
        numbers = {task.route.lanes[task.hop] for task in tasks}
        if len(numbers) == 1:  # nearly always
            return [(self._lane(numbers.pop()), tasks)]
        return [
            (self._lane(number), [task for task in tasks if task.route.lanes[task.hop] == number])
            for number in sorted(numbers)
        ]

    def _open_lanes(self) -> list[Lane]:
        """Where somebody waits who may be leased now."""
        order, withholds = self._order, self._midway.withholds
        if len(order) == 1 and order[0].waiting and order[0].is_last:  # nearly always
            return order
        return [lane for lane in order if lane.waiting and (lane.is_last or not withholds(lane.hop))]

    def _in_order(self) -> list[Lane]:
        lanes = self._open_lanes()
        if len(lanes) > 1:
            lanes.sort(key=lambda lane: (-lane.hop, self._head(lane).arrived))
        return lanes

    def _head(self, lane: Lane) -> Task:
        """Only when one waits there."""
        while not self._is_here(lane.queue[0]):
            lane.queue.popleft()
        return lane.queue[0]

    def _swept(self, queue: deque[Task], living: int) -> deque[Task]:
        if len(queue) - living <= max(SWEEP_MIN, living):
            return queue
        return deque([task for task in queue if self._is_here(task)])

    def _is_here(self, task: Task) -> bool:
        state = task.state
        waits = state is QUEUED or state is SUSPECT or state is HELD
        return waits and task.route.stages[task.hop] == self._index

    def _count(self, hop: int, tasks: Sequence[Task], sign: int) -> None:
        """What waits, in lanes or as a suspect, is counted here, for its gateway, and midway: 1 comes, -1 goes."""
        gateways = {task.gateway for task in tasks}
        if len(gateways) == 1:  # nearly always
            self._add(hop, gateways.pop(), sign * len(tasks), sign * sum([task.size for task in tasks]))
        else:
            for task in tasks:
                self._add(hop, task.gateway, sign, sign * task.size)

    def _add(self, hop: int, gateway: Gateway, count: int, size: int) -> None:
        share = gateway.shares[self._index]
        share.tasks += count
        share.bytes += size
        self.bytes += size
        if hop:
            self._midway.add(hop, size)


def _inline(task: Task) -> int:
    """Bytes of its payload that count for a message: a large one has a frame of its own."""
    return task.size if task.size < OWN_FRAME_BYTES else 0


def _first(queue: deque[Task], size: int, inline_bytes_max: int) -> list[Task]:
    """The first `size` of a queue of the living, unless they may be too long for a message: then nobody."""
    some = list(queue) if len(queue) <= size else list(islice(queue, size))
    if sum([task.size for task in some]) > inline_bytes_max:
        return []
    if len(some) == len(queue):
        queue.clear()
    else:
        for _ in some:
            queue.popleft()
    return some
