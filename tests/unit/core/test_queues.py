"""A stage's queue: order, counts, and stepping over those who left while they waited."""

from collections import deque
from collections.abc import Iterable

from tests.unit.core.world import World
from zmesh.core.midway import Midway
from zmesh.core.peers import Gateway, Share
from zmesh.core.queues import SWEEP_MIN, StageQueue
from zmesh.core.tasks import Route, Step, Task, TaskState, move_on
from zmesh.messages import OWN_FRAME_BYTES, TaskId

ROUTE = Route("/go", (0, 1))


def a_gateway() -> Gateway:
    world = World()
    return world.gateway_record(world.gateway())


GATEWAY, OTHER = a_gateway(), a_gateway()


def a_queue(midway_bytes_max: int = 1000) -> StageQueue:
    return StageQueue(0, Midway(midway_bytes_max, 3))


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
    queue = a_queue()
    for suspect in suspects:
        queue.push_suspect(suspect)
    return queue


def the_lane(queue: StageQueue) -> deque[Task]:
    (lane,) = queue._order
    return lane.queue


def cancel(queue: StageQueue, task: Task) -> None:
    queue.leave(task)
    task.take(Step.CANCEL)


def test_who_came_first_leaves_first_and_counts_follow():
    queue = a_queue()
    queue.push(tasks(1, 2))
    queue.push(tasks(3))
    assert (queue.waiting, queue.bytes, queue.oldest()) == (3, 30, 1.0)
    assert ids(queue.cut(2, 1000)) == [1, 2]
    assert (queue.waiting, queue.bytes, queue.oldest()) == (1, 10, 3.0)
    assert ids(queue.cut(2, 1000)) == [3]
    assert (queue.waiting, queue.bytes) == (0, 0)


def test_what_came_back_stands_at_the_front_in_its_old_order():
    queue = a_queue()
    queue.push(tasks(3, 4))
    queue.push_front(tasks(1, 2))
    assert (queue.waiting, queue.bytes) == (4, 40)
    assert ids(queue.cut(9, 1000)) == [1, 2, 3, 4]


def test_suspects_wait_apart():
    queue = a_queue()
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
    queue = a_queue()
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
    queue = a_queue()
    moved, stays = tasks(1, 2)
    queue.push([moved, stays])
    queue.leave(moved)
    move_on([moved], [b"result"], [0], 5.0)
    assert moved.state is TaskState.QUEUED
    assert ids(queue.cut(2, 1000)) == [2]


def test_a_cut_steps_over_the_dead_between_the_living():
    queue = a_queue()
    waiting = tasks(1, 2, 3)
    queue.push(waiting)
    cancel(queue, waiting[1])
    assert ids(queue.cut(2, 1000)) == [1, 3]


def test_a_queue_of_mostly_dead_is_rebuilt_so_that_memory_follows_the_living():
    queue = a_queue()
    waiting = tasks(*range(SWEEP_MIN + 3))
    queue.push(waiting)
    suspects = [a_suspect(1000 + number) for number in range(SWEEP_MIN + 3)]
    for suspect in suspects:
        queue.push_suspect(suspect)
    for task in waiting[2:] + suspects[2:]:
        cancel(queue, task)
    assert len(the_lane(queue)) == len(queue._suspects) == SWEEP_MIN + 3
    queue.sweep()
    assert ids(the_lane(queue)) == [0, 1]
    assert ids(queue._suspects) == [1000, 1001]
    assert (queue.waiting, queue.suspects, queue.bytes) == (2, 2, 40)


def test_a_few_dead_are_not_worth_a_rebuild():
    queue = a_queue()
    waiting = tasks(*range(SWEEP_MIN))
    queue.push(waiting)
    for task in waiting:
        cancel(queue, task)
    queue.sweep()
    assert len(the_lane(queue)) == SWEEP_MIN and queue.waiting == 0


def test_a_cut_stops_where_the_small_payloads_would_not_fit_into_one_message():
    queue = a_queue()
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
    queue = a_queue()
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
    queue = a_queue()
    held = tasks(*range(SWEEP_MIN + 3))
    hold(queue, held)
    for task in held[2:]:
        cancel(queue, task)
    queue.sweep()
    assert ids(queue._held) == [0, 1]


# Steps

OTHER_WAY = Route("/back", (1, 0))
ALONE = Route("/alone", (0,))
THROUGH = Route("/through", (1, 0, 2))


def on(route: Route, *ids: int, hop: int = 0) -> list[Task]:
    """Tasks of this route that wait at the stage; the number of each is when it arrived."""
    found = [Task(TaskId(id), route, GATEWAY, bytes(10), 0, 99.0, float(id), None) for id in ids]
    for task in found:
        task.hop = hop
    return found


def test_later_steps_go_first_and_a_batch_takes_from_both():
    queue = a_queue()
    queue.push([*tasks(1, 2), *on(OTHER_WAY, 3, 4, hop=1)])
    queue.push(on(OTHER_WAY, 5, hop=1))
    assert (queue.waiting, queue.available, queue.bytes, queue.oldest()) == (5, 5, 50, 1.0)
    assert ids(queue.cut(2, 1000)) == [3, 4]
    assert ids(queue.cut(2, 1000)) == [5, 1]
    assert (queue.waiting, queue.available, queue.bytes, queue.oldest()) == (1, 1, 10, 2.0)


def test_what_came_back_stands_at_the_front_of_its_own_kind():
    queue = a_queue()
    queue.push([*tasks(5, 6), *on(OTHER_WAY, 7, 8, hop=1)])
    queue.push_front([*tasks(1, 2), *on(OTHER_WAY, 3, 4, hop=1)])
    assert ids(queue.cut(9, 1000)) == [3, 4, 7, 8, 1, 2, 5, 6]
    assert (queue.waiting, queue.bytes) == (0, 0)


def test_of_first_steps_the_route_with_the_older_task_goes_first_whether_it_goes_on_or_not():
    queue = a_queue()
    queue.push([*tasks(1, 4), *on(ALONE, 2, 3)])
    assert ids(queue.cut(1, 1000)) == [1]
    assert ids(queue.cut(3, 1000)) == [2, 3, 4]


def test_a_full_message_ends_a_batch_whatever_other_lanes_have():
    queue = a_queue()
    queue.push([*tasks(1), *on(OTHER_WAY, 3, 4, hop=1)])
    assert ids(queue.cut(9, 15)) == [3]
    assert ids(queue.cut(9, 15)) == [4]
    assert ids(queue.cut(9, 15)) == [1]


def test_a_step_is_withheld_while_too_much_waits_beyond_it_and_a_last_step_never():
    midway = Midway(25, 3)
    first, second = StageQueue(0, midway), StageQueue(1, midway)
    first.push([*tasks(1), *on(ALONE, 2), *on(OTHER_WAY, 3, hop=1)])
    beyond = on(ROUTE, 11, 12, hop=1)
    second.push([*beyond, *on(OTHER_WAY, 13)])
    assert midway.beyond == [30, 0, 0]
    assert (first.waiting, first.available, second.available) == (3, 2, 2)
    assert first.oldest() == 2.0 and ids(first.cut(9, 1000)) == [3, 2]
    assert midway.fell and midway.beyond == [20, 0, 0], "3 does not wait any more, so 1 may go"
    assert first.available == 1 and second.available == 3


def test_a_step_in_the_middle_is_withheld_by_what_waits_beyond_it_alone():
    midway = Midway(25, 3)
    middle, last = StageQueue(0, midway), StageQueue(2, midway)
    middle.push(on(THROUGH, 1, 2, 3, hop=1))
    assert midway.beyond == [30, 0, 0] and middle.available == 3, "its own bytes do not hold it up"
    beyond = on(THROUGH, 4, 5, 6, hop=2)
    last.push(beyond)
    assert midway.beyond == [60, 30, 0] and middle.available == 0 and last.available == 3
    cancel(last, beyond[0])
    assert midway.fell and middle.available == 3


def test_midway_says_once_that_it_fell_and_not_while_it_is_far_above_or_below():
    midway = Midway(25, 2)
    midway.add(1, 50)
    midway.add(1, -10)
    assert not midway.fell and midway.withholds(0)
    midway.add(1, -15)
    assert midway.fell and not midway.withholds(0), "the bound itself is allowed"
    midway.fell = False
    midway.add(1, -25)
    assert not midway.fell


def test_suspects_count_midway_and_what_is_held_back_does_not():
    midway = Midway(25, 2)
    queue = StageQueue(0, midway)
    suspect = a_suspect(1)
    suspect.route, suspect.hop = OTHER_WAY, 1
    queue.push_suspect(suspect)
    queue.push(on(OTHER_WAY, 2, 3, hop=1))
    assert midway.beyond == [30, 0]
    hold(queue, queue.pull(GATEWAY))
    assert midway.beyond == [10, 0] and midway.fell
    queue.cut_suspects(1, 1000)
    assert midway.beyond == [0, 0]


def test_what_waits_is_counted_for_its_gateway():
    queue, gateway = a_queue(), a_gateway()
    waiting = tasks(1, 2, 3, 4)
    for task in waiting:
        task.gateway = gateway
    queue.push(waiting[:2])
    queue.push_front(waiting[2:])
    suspect = a_suspect(5)
    suspect.gateway = gateway
    queue.push_suspect(suspect)
    assert gateway.shares[0] == Share(5, 50)
    queue.cut(1, 1000)
    cancel(queue, waiting[0])
    queue.cut_suspects(1, 1000)
    assert gateway.shares[0] == Share(2, 20)
    queue.pull(gateway)
    assert gateway.shares[0] == Share(0, 0)
