"""What gateways say: tasks are admitted, shed or refused; SUBMIT is idempotent; cancelled tasks leave."""

import pytest

from tests.unit.core.world import ABORTED, World, stage
from zmesh.messages import Tasks

# SUBMIT


def test_columns_of_a_batch_are_those_of_its_tasks():
    world = World(stage("embed"), stage("rank"))
    gateway = world.gateway()
    world.worker(credit=1)
    world.turn(gateway.submits(1, 2, ms=1500, payload=b"body", contexts=[{"request_id": "r"}, None]))
    (tasks,) = world.messages(Tasks)
    assert isinstance(tasks, Tasks)
    columns = tasks.columns
    assert (columns.ids, columns.states, columns.attempts) == ([1, 2], [1, 1], [1, 1])
    assert (columns.kinds, columns.payloads) == ([0, 0], [b"body", b"body"])
    assert columns.remaining_ms == [1500, 1500]
    assert columns.contexts == [{"request_id": "r"}, None]


def test_columns_without_any_context_have_none_at_all():
    world = World()
    world.worker(credit=1)
    world.turn(world.gateway().submits(1, 2, contexts=[None, None]))
    (tasks,) = world.messages(Tasks)
    assert isinstance(tasks, Tasks) and tasks.columns.contexts is None


def test_a_stranger_submits_nothing():
    world = World()
    stranger = world.stranger()
    assert world.turn(stranger.submits(1)) == ["stranger ← REFUSE UNKNOWN_PEER: say HELLO again"]
    assert not world.mesh.tasks


def test_a_route_the_broker_does_not_know_is_an_error_of_ours():
    world = World()
    gateway = world.gateway()
    assert world.turn(gateway.submits(1, 2, route="/gone")) == [
        "g ← REPLY 1 INTERNAL 'the broker knows no route /gone', 2 INTERNAL 'the broker knows no route /gone'"
    ]


def test_submitting_again_what_waits_or_runs_changes_nothing():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    assert world.turn(gateway.submits(1)) == ["w1 ← TASKS 1: 1"]
    assert world.turn(gateway.submits(2)) == []
    assert world.turn(gateway.submits(1, 2, again=True)) == []
    assert world.turn(gateway.submits(1, 2, route="/gone")) == []
    assert (len(world.mesh.tasks), world.mesh.task_bytes, world.stage().queue.waiting) == (2, 2, 1)
    assert world.turn(worker.finishes(1)) == ["w1 ← TASKS 2: 2, ACK 1", "g ← REPLY 1 ok"]


@pytest.mark.parametrize("retry", [True, False])
def test_what_is_answered_in_the_turn_in_which_it_is_submitted_again_is_not_run_again(retry: bool):
    """A gateway and its worker come back at the same time, and the worker's results are read first."""
    world = World(stage(retry=retry))
    gateway, worker = world.gateway(), world.worker(credit=2)
    assert world.turn(gateway.submits(1)) == ["w1 ← TASKS 1: 1"]
    assert world.turn(worker.finishes(1, payload=b"42"), gateway.submits(1, again=True)) == ["g ← REPLY 1 ok '42'"]
    assert not world.mesh.tasks


# Shedding


def test_tasks_above_the_length_of_the_queue_are_shed_and_the_others_admitted():
    world = World(queue_tasks_max=2)
    gateway = world.gateway()
    assert world.turn(gateway.submits(1, 2, 3)) == ["g ← REPLY 3 SHED 'the queue of embed is full (2 tasks)'"]
    assert world.turn(gateway.submits(4)) == ["g ← REPLY 4 SHED 'the queue of embed is full (2 tasks)'"]
    assert world.stage().counts.shed == 2 and len(world.mesh.tasks) == 2


def test_tasks_above_the_bytes_of_the_queue_are_shed():
    world = World(queue_bytes_max=10)
    gateway = world.gateway()
    shed = "SHED 'the queue of embed is full (10 bytes)'"
    assert world.turn(gateway.submits(1, 2, 3, payload=b"12345")) == [f"g ← REPLY 3 {shed}"]
    assert world.mesh.task_bytes == 10
    world.turn(gateway.cancels(1))
    assert world.turn(gateway.submits(4, payload=b"123456")) == [f"g ← REPLY 4 {shed}"]
    assert world.turn(gateway.submits(5, payload=b"12345")) == []


def test_tasks_above_what_the_mesh_may_hold_are_shed_though_their_queue_is_short():
    world = World(mesh_tasks_max=2)
    gateway = world.gateway()
    world.worker(credit=1)
    world.turn(gateway.submits(1, 2))
    assert world.turn(gateway.submits(3)) == ["g ← REPLY 3 SHED 'the mesh is full (2 tasks)'"]
    world = World(mesh_bytes_max=10)
    gateway = world.gateway()
    world.worker(credit=1)
    world.turn(gateway.submits(1, payload=b"1234567"))
    shed = "g ← REPLY 2 SHED 'the mesh is full (10 bytes)'"
    assert world.turn(gateway.submits(2, payload=b"1234")) == [shed]


def test_suspects_count_against_the_queue():
    world = World(queue_tasks_max=1)
    gateway, agent, worker = world.gateway(), world.agent(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.turn(agent.reports(worker, ABORTED, lease=1))
    world.turn(after=0.02)
    assert world.turn(gateway.submits(2)) == ["g ← REPLY 2 SHED 'the queue of embed is full (1 tasks)'"]


def test_a_gateway_that_floods_leaves_the_other_its_share():
    world = World(queue_tasks_max=4)
    flood, calm = world.gateway("flood"), world.gateway("calm")
    full = "SHED 'the queue of embed is full (4 tasks)'"
    assert world.turn(flood.submits(1, 2, 3, 4, 5)) == [f"flood ← REPLY 5 {full}"]
    assert world.turn(calm.submits(11, 12, 13)) == [f"calm ← REPLY 13 {full}"]
    assert world.turn(flood.submits(6)) == [f"flood ← REPLY 6 {full}"]
    worker = world.worker("w1")
    assert world.turn(worker.credits(1)) == ["w1 ← TASKS 1: 1 2 3 4"]
    assert world.turn(flood.submits(7, 8, 9)) == [f"flood ← REPLY 9 {full}"], "2 of its own and 2 of the other's wait"
    world.turn(calm.leaves())
    assert world.turn(flood.submits(10)) == [], "who is gone leaves its room"


def test_a_share_goes_on_with_its_gateway_in_a_new_session():
    world = World(queue_tasks_max=4)
    flood, calm = world.gateway("flood"), world.gateway("calm")
    world.turn(flood.submits(1, 2, 3, 4), calm.submits(11, 12))
    calm.reconnects()
    world.turn(calm.greets())
    assert world.turn(calm.submits(13)) == ["calm ← REPLY 13 SHED 'the queue of embed is full (4 tasks)'"]
    world.turn(calm.cancels(11))
    assert world.turn(calm.submits(14)) == []


def test_a_gateway_that_does_not_take_its_answers_has_no_share_above_the_bound():
    world = World(queue_tasks_max=4, answer_bytes_max=100)
    deaf, flood, worker = world.gateway("deaf"), world.gateway("flood"), world.worker(credit=1)
    world.turn(deaf.submits(1))
    world.turn(flood.submits(11, 12, 13, 14))
    world.turn(worker.finishes(1))
    assert list(world.mesh.held) == [deaf.session]
    world.turn(flood.submits(15, 16, 17, 18))
    assert world.turn(deaf.submits(2)) == ["deaf ← REPLY 2 SHED 'the queue of embed is full (4 tasks)'"]


def test_what_was_accepted_before_is_never_shed():
    world = World(queue_tasks_max=1, mesh_tasks_max=1)
    gateway = world.gateway()
    assert world.turn(gateway.submits(1, 2, 3, again=True)) == []
    assert len(world.mesh.tasks) == 3


def test_moving_on_to_a_full_stage_is_never_refused():
    world = World(stage("embed"), stage("rank"), queue_tasks_max=1, routes={"/er": ["embed", "rank"], "/r": ["rank"]})
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1, route="/r"))
    world.turn(gateway.submits(2, route="/er"))
    assert world.turn(worker.finishes(1)) == []
    assert world.stage("rank").queue.waiting == 2


# Failing and draining


def failing(world: World) -> None:
    agent, worker = world.agent(), world.worker("lame", "rank")
    told = world.turn(agent.reports(worker, 1, reason="Traceback\n  ...\nKeyError: weights", failing=True))
    assert told == ["agent ← ACK the end of lame", "error: stage rank does not start: KeyError: weights"]


def test_a_route_through_a_failing_stage_is_unavailable_at_once_and_others_are_not():
    world = World(stage("embed"), stage("rank"), routes={"/er": ["embed", "rank"], "/e": ["embed"]})
    gateway = world.gateway()
    failing(world)
    assert world.turn(gateway.submits(1, route="/er")) == [
        "g ← REPLY 1 UNAVAILABLE 'stage rank does not start: KeyError: weights'"
    ]
    assert world.turn(gateway.submits(2, route="/e")) == []


def test_a_draining_broker_finishes_what_it_has_and_says_again_to_all_else():
    world = World()
    gateway, agent, worker = world.gateway(), world.agent(), world.worker(credit=2)
    world.turn(gateway.submits(1))
    assert world.turn(agent.asks_to_drain()) == ["g ← DRAIN"]
    assert world.turn(gateway.submits(1, 2)) == ["g ← REPLY 2 AGAIN '100'"]
    assert world.turn(gateway.submits(1, 3, again=True)) == ["g ← REPLY 3 AGAIN '100'"]
    assert world.turn(worker.finishes(1)) == ["g ← REPLY 1 ok"]
    assert world.turn(gateway.submits(1, again=True)) == [], "its answer is on its way"


# CANCEL


def test_a_queued_task_that_is_cancelled_never_reaches_a_worker():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(1, 2))
    assert world.turn(gateway.cancels(1)) == []
    worker = world.worker("w1")
    assert world.turn(worker.credits(1)) == ["w1 ← TASKS 1: 2"]
    assert world.stage().counts.cancelled == 1


def test_of_leased_tasks_that_are_cancelled_their_workers_are_told_and_results_come_too_late():
    world = World(stage(max_batch_size=2))
    gateway, w1, w2 = world.gateway(), world.worker("w1", credit=1), world.worker("w2", credit=1)
    world.turn(gateway.submits(1, 2, 3, 4))
    assert world.turn(gateway.cancels(1, 3, 4)) == ["w1 ← CANCEL 1: client gone", "w2 ← CANCEL 3 4: client gone"]
    assert world.turn(w1.finishes(1)) == ["g ← REPLY 2 ok"]
    assert world.turn(w2.finishes(2)) == []
    assert world.mesh.late == 3 and not world.mesh.tasks


def test_cancelling_what_is_not_there_or_is_another_gateways_changes_nothing():
    world = World()
    one, two = world.gateway("one"), world.gateway("two")
    world.turn(one.submits(1))
    assert world.turn(two.cancels(1, 99)) == []
    assert world.turn(world.stranger().cancels(1)) == ["stranger ← REFUSE UNKNOWN_PEER: say HELLO again"]
    assert list(world.mesh.tasks) == [1]


def test_a_queue_whose_tasks_were_cancelled_does_not_keep_them():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(*range(200)))
    world.turn(gateway.cancels(*range(199)))
    assert sum(len(lane.queue) for lane in world.stage().queue._order) < 70


def test_many_cancelled_at_one_worker_are_split_like_any_message():
    world = World(stage(max_batch_size=2), message_rows_max=3)
    gateway = world.gateway()
    world.worker(credit=2)
    world.turn(gateway.submits(1, 2, 3, 4))
    assert world.turn(gateway.cancels(1, 2, 3, 4)) == ["w1 ← CANCEL 1 2 3: client gone", "w1 ← CANCEL 4: client gone"]


# Once only


@pytest.mark.parametrize("stays_away", [4.0, 6.0])
def test_what_may_run_once_is_not_run_again_for_a_gateway_that_was_given_up_meanwhile(stays_away: float):
    world = World(stage("pay", retry=False), stage("embed"), routes={"/pay": ["embed", "pay"], "/e": ["embed"]})
    gateway = world.gateway()
    world.turn(gateway.submits(1, route="/pay"), gateway.submits(2, route="/e"))
    world.turn(gateway.is_unreachable())
    world.wait(stays_away, silent=[gateway])
    gateway.reconnects()
    world.turn(gateway.greets())
    told = world.turn(
        gateway.submits(1, route="/pay", again=True), gateway.submits(2, route="/e", again=True, all=True)
    )
    assert told == (["g ← REPLY 1 INTERNAL 'outcome unknown'"] if stays_away > 5 else [])
    assert 2 in world.mesh.tasks
    assert world.turn(gateway.submits(3, route="/pay")) == [], "what is new is not in doubt"
    gateway.reconnects()
    world.turn(gateway.greets())
    world.turn(gateway.submits(4, route="/pay", again=True))
    assert 4 in world.mesh.tasks, "it was lost on the way to a broker that remembers everything"


def test_what_is_in_doubt_stays_so_until_its_gateway_has_said_all_that_it_wants():
    world = World(stage("pay", retry=False))
    gateway, agent = world.gateway(), world.agent()
    world.turn(gateway.submits(1, 2, 3))
    world.turn(gateway.is_unreachable())
    world.wait(6.0, silent=[gateway])
    for id in (1, 2, 3):  # each time the connection breaks before the rest is said
        gateway.reconnects()
        world.turn(gateway.greets())
        if id == 3:
            world.turn(agent.asks_to_drain())
        told = world.turn(gateway.submits(id, again=True, all=id == 3))
        assert told == [f"g ← REPLY {id} INTERNAL 'outcome unknown'"]
    assert world.turn(gateway.submits(4, again=True)) == ["g ← REPLY 4 AGAIN '100'"]


def test_a_gateway_of_ours_that_names_a_task_twice_is_found_out():
    world = World()
    with pytest.raises(AssertionError, match="a message names each of its tasks once"):
        world.turn(world.gateway().submits(1, 1))
