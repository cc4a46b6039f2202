"""Payloads that stages hand on by reference: whom they may be given to, what they weigh, and what if they are lost."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.core.world import SEGFAULT, Gateway, WorkerPeer, World, stage
from zmesh.core.events import BatchFinished
from zmesh.messages import Kind, Reply, SessionId, Status, Tasks

HERE, THERE = "memory of h1", "memory of h2"
INLINE, REFERENCE, BOUND = int(Kind.INLINE), int(Kind.REFERENCE), int(Kind.HOST_BOUND)


def worker(world: World, name: str, of: str, memory: str, credit: int = 0) -> WorkerPeer:
    """A worker that says in its HELLO which memory it can open."""
    index = [one.name for one in world.plan.stages].index(of)
    peer = WorkerPeer(world, name, world.stranger().role.WORKER, index + 1)
    world.names[peer.address] = name
    world.turn(peer.greets(memory=memory))
    world.peers.append(peer)
    if credit:
        world.turn(peer.credits(credit))
    return peer


def hands_on(
    by: WorkerPeer, lease: int, *rows: int, kind: int = BOUND, size: int = 1000, at: Sequence[int] = ()
) -> BatchFinished:
    """RESULTS in which the rows (`at`, or all) are references to so many bytes."""
    event = by.finishes(lease, *rows, payload=b"ref")
    said = event.message
    kinds = [kind if not at or row in at else INLINE for row in said.rows]
    sizes = [size if of_row else 3 for of_row in kinds]
    return replace(event, message=replace(said, kinds=kinds, sizes=sizes))


def two_stages(
    *, once: str = "", of_second: Sequence[str] = (HERE,), **limits: object
) -> tuple[World, Gateway, WorkerPeer, list[WorkerPeer]]:
    """A worker of the stage a here, and idle workers of the stage b with these memories."""
    world = World(stage("a", retry=once != "a"), stage("b", retry=once != "b"), **limits)
    gateway, first = world.gateway(), worker(world, "a1", "a", HERE, credit=2)
    return world, gateway, first, [worker(world, f"b{n}", "b", memory) for n, memory in enumerate(of_second, 1)]


def nears(world: World) -> list[bool]:
    return [message.near for message in world.messages(Tasks) if isinstance(message, Tasks)]


# ── who is near ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("of_second", "near"),
    [((HERE, HERE), True), ((HERE, THERE), False), ((THERE,), False), (("",), False), ((), False)],
)
def test_a_worker_is_told_whether_all_of_the_next_stage_share_its_memory(of_second, near):
    world, gateway, _, _ = two_stages(of_second=of_second)
    world.turn(gateway.submits(1))
    assert nears(world) == [near]


def test_who_has_no_memory_to_share_is_near_nobody():
    world = World(stage("a"), stage("b"))
    gateway = world.gateway()
    worker(world, "a1", "a", "", credit=1)
    worker(world, "b1", "b", "")
    world.turn(gateway.submits(1))
    assert nears(world) == [False]


def test_who_answers_a_gateway_hands_nothing_on():
    world = World(stage("a"))
    gateway = world.gateway()
    worker(world, "a1", "a", HERE, credit=1)
    world.turn(gateway.submits(1))
    assert nears(world) == [False]


def test_while_the_next_stage_has_nobody_it_is_where_its_last_worker_was():
    world, gateway, _, (second,) = two_stages()
    world.turn(second.leaves())
    world.turn(gateway.submits(1))
    assert nears(world) == [True]


def test_when_the_one_who_was_elsewhere_has_left_the_others_are_near():
    world, gateway, _, (_, far) = two_stages(of_second=(HERE, THERE))
    world.turn(far.leaves())
    world.turn(gateway.submits(1))
    assert nears(world) == [True]


def test_of_a_stage_with_two_ways_on_both_have_to_be_near():
    world = World(stage("a"), stage("b"), stage("c"), routes={"/ab": ["a", "b"], "/ac": ["a", "c"]})
    gateway = world.gateway()
    worker(world, "a1", "a", HERE, credit=2)
    worker(world, "b1", "b", HERE)
    worker(world, "c1", "c", THERE)
    world.turn(gateway.submits(1, route="/ab"))
    assert nears(world) == [False]


# ── what they weigh ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reference_weighs_what_it_stands_for():
    world, gateway, first, _ = two_stages()
    world.turn(gateway.submits(1, 2))
    world.turn(hands_on(first, 1, at=[1], size=5000))
    queue = world.stage("b").queue
    assert (world.mesh.task_bytes, queue.bytes, world.mesh.midway.beyond[0]) == (5003, 5003, 5003)
    assert world.stage("a").counts.bytes_out == 5003


def test_what_waits_in_memory_holds_up_who_would_make_more():
    world, gateway, first, _ = two_stages(midway_bytes_max=4000)
    world.turn(gateway.submits(1))
    world.turn(hands_on(first, 1, size=5000))
    assert world.turn(gateway.submits(2)) == [], "too much waits beyond its step"


def test_the_next_stage_is_told_of_which_kind_each_payload_is():
    world, gateway, first, (second,) = two_stages()
    world.turn(gateway.submits(1, 2))
    world.turn(hands_on(first, 1, at=[0]))
    world.turn(second.credits(1))
    (tasks,) = world.messages(Tasks)
    assert isinstance(tasks, Tasks) and tasks.columns.kinds == [BOUND, INLINE]


def test_references_row_by_row_weigh_the_same():
    world, gateway, first, _ = two_stages()
    world.turn(gateway.submits(1, 2))
    world.turn(hands_on(first, 1, 0, size=70))
    world.turn(hands_on(first, 1, 1, kind=INLINE))
    assert world.mesh.task_bytes == 73


# ── where they may go ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_bound_to_a_host_is_given_to_nobody_elsewhere_and_begins_anew():
    world, gateway, first, _ = two_stages()
    world.turn(gateway.submits(1, 2))
    world.turn(hands_on(first, 1, at=[0]))
    far = worker(world, "b9", "b", THERE)
    told = world.turn(far.credits(1))
    assert told == ["b9 ← TASKS 2: 2", "g ← REPLY 1 AGAIN '10'"]
    assert world.stage("b").counts.bytes_in == 3 and world.mesh.task_bytes == 3
    assert world.turn(gateway.submits(1, again=True)) == ["a1 ← TASKS 3: 1, ACK 1"]


def test_what_any_host_can_open_goes_anywhere():
    world, gateway, first, _ = two_stages(of_second=(THERE,))
    world.turn(gateway.submits(1))
    assert world.turn(hands_on(first, 1, kind=REFERENCE)) == []
    far = world.peers[-1]
    assert isinstance(far, WorkerPeer) and world.turn(far.credits(1)) == ["b1 ← TASKS 2: 1"]


def test_a_suspect_that_nobody_there_can_open_begins_anew():
    world, gateway, first, (second,) = two_stages()
    agent = world.agent()
    world.turn(gateway.submits(1), second.credits(1))
    world.turn(hands_on(first, 1))
    world.turn(agent.reports(second, SEGFAULT, lease=2))
    world.turn(after=0.02)
    far = worker(world, "b9", "b", THERE)
    assert world.turn(far.credits(1)) == ["g ← REPLY 1 AGAIN '10'"]


def test_a_stage_that_must_not_run_twice_lies_behind_it():
    world, gateway, first, _ = two_stages(once="a", of_second=(THERE,))
    world.turn(gateway.submits(1))
    world.turn(hands_on(first, 1))
    far = world.peers[-1]
    assert isinstance(far, WorkerPeer)
    text = "the result of stage a is lost, and stage a must not run again"
    assert world.turn(far.credits(1)) == [f"g ← REPLY 1 INTERNAL {text!r}"]


# ── lost ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def given(**how: object) -> tuple[World, Gateway, WorkerPeer, WorkerPeer]:
    """Task 1 is with the worker b1 in lease 2, by reference."""
    world, gateway, first, (second,) = two_stages(**how)  # type: ignore[arg-type]
    world.turn(gateway.submits(1), second.credits(1))
    assert world.turn(hands_on(first, 1)) == ["b1 ← TASKS 2: 1"]
    return world, gateway, first, second


def test_a_task_whose_payload_is_lost_is_given_back_to_its_gateway():
    world, _, _, second = given()
    assert world.turn(second.finishes(2, statuses={0: Status.AGAIN})) == ["g ← REPLY 1 AGAIN '10'"]
    (reply,) = world.messages(Reply)
    assert isinstance(reply, Reply) and reply.attempts == [1], "it was tried, unlike one that never came in"
    assert world.stage("b").leased == 0 and not world.mesh.tasks and world.mesh.task_bytes == 0


def test_a_stage_that_must_not_run_twice_may_be_the_one_that_lost_it():
    world, _, _, second = given(once="b")
    assert world.turn(second.finishes(2, statuses={0: Status.AGAIN})) == ["g ← REPLY 1 AGAIN '10'"]


def test_a_lost_payload_behind_a_stage_that_must_not_run_twice_is_an_error():
    world, _, _, second = given(once="a")
    (told,) = world.turn(second.finishes(2, statuses={0: Status.AGAIN}))
    assert told.startswith("g ← REPLY 1 INTERNAL 'the result of stage a is lost")


def test_nobody_is_told_if_the_gateway_is_gone():
    world, gateway, _, second = given()
    world.turn(gateway.leaves())
    assert world.turn(second.finishes(2, statuses={0: Status.AGAIN})) == []


def test_of_a_payload_that_came_along_nothing_can_be_lost():
    world = World()
    gateway, one = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    assert world.turn(one.finishes(1, statuses={0: Status.AGAIN})) == ["g ← REPLY 1 INTERNAL"]


def test_results_of_another_epoch_may_be_references():
    world, gateway, first, _ = two_stages()
    world.turn(gateway.submits(1))
    event = first.finishes_of_old(1, payload=b"ref")
    said = replace(event.message, kinds=[BOUND], sizes=[700])
    world.turn(replace(event, message=said))
    assert world.task(1).memory == HERE and world.mesh.task_bytes == 700
    assert world.task(1).gateway.session != SessionId(0)
