"""A stage's queue: order, counts, and stepping over those who left while they waited."""

from collections.abc import Iterable

from tests.unit.core.world import World
from zmesh.core.queues import SWEEP_MIN, StageQueue
from zmesh.core.tasks import Route, Step, Task, TaskState
from zmesh.messages import OWN_FRAME_BYTES, TaskId

ROUTE = Route("/go", (0, 1))
GATEWAY, OTHER = World().gateway(), World().gateway()


def a_task(id: int, size: int = 10, arrived: float = 0.0) -> Task:
    return Task(TaskId(id), ROUTE, GATEWAY, bytes(size), 0, 99.0, arrived, None)


def tasks(*ids: int) -> list[Task]:
    return [a_task(id, arrived=float(id)) for id in ids]


def ids(tasks: Iterable[Task]) -> list[int]:
    return [task.id for task in tasks]


def a_suspect(id: int, group_max: int = 1, size: int = 10) -> Task:
    task = a_task(id, size)
    task.take(Step.LEASE)
    task.take(Step.BLAME)
    task.group_max = group_max
    return task


def of_suspects(*suspects: Task) -> StageQueue:
    queue = StageQueue(0)
    for suspect in suspects:
        queue.push_suspect(suspect)
    return queue


def cancel(queue: StageQueue, task: Task) -> None:
    queue.leave(task)
    task.take(Step.CANCEL)


def test_who_came_first_leaves_first_and_counts_follow():
    queue = StageQueue(0)
    queue.push(tasks(1, 2))
    queue.push(tasks(3))
    assert (queue.waiting, queue.bytes, queue.oldest()) == (3, 30, 1.0)
    assert ids(queue.cut(2, 1000)) == [1, 2]
    assert (queue.waiting, queue.bytes, queue.oldest()) == (1, 10, 3.0)
    assert ids(queue.cut(2, 1000)) == [3]
    assert (queue.waiting, queue.bytes) == (0, 0)


def test_what_came_back_stands_at_the_front_in_its_old_order():
    queue = StageQueue(0)
    queue.push(tasks(3, 4))
    queue.push_front(tasks(1, 2))
    assert (queue.waiting, queue.bytes) == (4, 40)
    assert ids(queue.cut(9, 1000)) == [1, 2, 3, 4]


def test_suspects_wait_apart():
    queue = StageQueue(0)
    queue.push(tasks(1))
    queue.push_suspect(a_suspect(2))
    queue.push_suspect(a_suspect(3))
    assert (queue.waiting, queue.suspects, queue.bytes) == (1, 2, 30)
    assert ids(queue.cut(9, 1000)) == [1]
    assert ids(queue.suspects_here()) == [2, 3]
    assert ids(queue.cut_suspects(1, 1000)) == [2]
    assert (queue.waiting, queue.suspects, queue.bytes) == (0, 1, 10)


def test_a_group_of_suspects_is_as_large_as_its_first_one_may_be_in():
    queue = of_suspects(*[a_suspect(id, group_max=2) for id in (1, 2, 3)])
    assert ids(queue.cut_suspects(4, 1000)) == [1, 2]
    assert ids(queue.cut_suspects(4, 1000)) == [3]
    assert (queue.suspects, queue.bytes) == (0, 0)


def test_who_may_not_be_in_so_large_a_group_keeps_its_place():
    queue = of_suspects(a_suspect(1, 4), a_suspect(2, 1), a_suspect(3, 2), a_suspect(4, 4), a_suspect(5, 8))
    assert ids(queue.cut_suspects(4, 1000)) == [1, 4, 5]
    assert ids(queue.suspects_here()) == [2, 3]
    assert ids(queue.cut_suspects(4, 1000)) == [2]


def test_a_group_of_suspects_fits_into_one_message():
    queue = of_suspects(a_suspect(1, 4, 30), a_suspect(2, 4, 30), a_suspect(3, 4, 5), a_suspect(4, 4, OWN_FRAME_BYTES))
    assert ids(queue.cut_suspects(4, 40)) == [1, 3, 4]
    assert ids(queue.cut_suspects(4, 1)) == [2], "at least one"


def test_who_left_is_off_the_count_at_once_and_stepped_over_later():
    queue = StageQueue(0)
    waiting = tasks(1, 2, 3)
    queue.push(waiting)
    suspects = [a_suspect(4), a_suspect(5)]
    for suspect in suspects:
        queue.push_suspect(suspect)
    cancel(queue, waiting[0])
    cancel(queue, waiting[1])
    cancel(queue, suspects[0])
    assert (queue.waiting, queue.suspects, queue.bytes) == (1, 1, 20)
    assert ids(queue.living()) == [3, 5]
    assert queue.oldest() == 3.0
    assert ids(queue.cut(3, 1000)) == [3]
    assert ids(queue.cut_suspects(2, 1000)) == [5]
    assert (queue.waiting, queue.suspects, queue.bytes) == (0, 0, 0)


def test_who_moved_on_to_another_stage_does_not_wait_here_any_more():
    queue = StageQueue(0)
    moved, stays = tasks(1, 2)
    queue.push([moved, stays])
    queue.leave(moved)
    moved.move_on(b"result", 0, 5.0)
    assert moved.state is TaskState.QUEUED
    assert ids(queue.cut(2, 1000)) == [2]


def test_a_cut_steps_over_the_dead_between_the_living():
    queue = StageQueue(0)
    waiting = tasks(1, 2, 3)
    queue.push(waiting)
    cancel(queue, waiting[1])
    assert ids(queue.cut(2, 1000)) == [1, 3]


def test_a_queue_of_mostly_dead_is_rebuilt_so_that_memory_follows_the_living():
    queue = StageQueue(0)
    waiting = tasks(*range(SWEEP_MIN + 3))
    queue.push(waiting)
    suspects = [a_suspect(1000 + number) for number in range(SWEEP_MIN + 3)]
    for suspect in suspects:
        queue.push_suspect(suspect)
    for task in waiting[2:] + suspects[2:]:
        cancel(queue, task)
    assert len(queue._queue) == len(queue._suspects) == SWEEP_MIN + 3
    queue.sweep()
    assert ids(queue._queue) == [0, 1]
    assert ids(queue._suspects) == [1000, 1001]
    assert (queue.waiting, queue.suspects, queue.bytes) == (2, 2, 40)


def test_a_few_dead_are_not_worth_a_rebuild():
    queue = StageQueue(0)
    waiting = tasks(*range(SWEEP_MIN))
    queue.push(waiting)
    for task in waiting:
        cancel(queue, task)
    queue.sweep()
    assert len(queue._queue) == SWEEP_MIN and queue.waiting == 0


def test_a_cut_stops_where_the_small_payloads_would_not_fit_into_one_message():
    queue = StageQueue(0)
    queue.push([a_task(1, 40), a_task(2, 70_000), a_task(3, 50), a_task(4, 20), a_task(5, 300), a_task(6)])
    assert ids(queue.cut(9, 100)) == [1, 2, 3], "a large payload has a frame of its own and does not count"
    assert ids(queue.cut(9, 100)) == [4]
    assert ids(queue.cut(9, 100)) == [5], "one that is over the limit by itself goes alone"
    assert ids(queue.cut(9, 100)) == [6]
    assert (queue.waiting, queue.bytes) == (0, 0)


def hold(queue: StageQueue, tasks: list[Task]) -> None:
    for task in tasks:
        task.take(Step.HOLD)
    queue.hold(tasks)


def test_one_gateways_tasks_are_held_back_and_freed_in_order():
    queue = StageQueue(0)
    waiting = tasks(1, 2, 3, 4)
    waiting[1].gateway = OTHER
    queue.push(waiting)
    cancel(queue, waiting[2])
    hold(queue, queue.pull(GATEWAY))
    assert (queue.waiting, queue.bytes, queue.held, queue.held_bytes) == (1, 10, 2, 20)
    assert ids(queue.living()) == [2, 1, 4] and ids(queue.cut(9, 1000)) == [2]
    assert queue.free(OTHER) == []
    cancel(queue, waiting[3])
    assert (queue.held, queue.held_bytes) == (1, 10)
    assert ids(queue.free(GATEWAY)) == [1]
    assert (queue.held, queue.held_bytes) == (0, 0) and not list(queue.living())


def test_dead_who_were_held_back_are_swept_as_well():
    queue = StageQueue(0)
    held = tasks(*range(SWEEP_MIN + 3))
    hold(queue, held)
    for task in held[2:]:
        cancel(queue, task)
    queue.sweep()
    assert ids(queue._held) == [0, 1]
