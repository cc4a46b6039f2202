"""The door: one turn takes all its events, hands out once, replies once; and one timer."""

import pytest

from tests.unit.core.world import SEGFAULT, World, stage
from zmesh.core import events, presence
from zmesh.core.dispatcher import HANDLERS
from zmesh.core.effects import Report, Send
from zmesh.messages import Reply, Tasks


def test_every_event_but_the_passing_of_time_has_a_handler():
    assert set(HANDLERS) | {events.Tick} == set(events.DispatcherEvent.__args__)


def test_what_arrives_in_one_turn_is_decided_together():
    world = World()
    gateway, worker = world.gateway(), world.worker()
    told = world.turn(gateway.submits(1), gateway.submits(2), worker.credits(1), gateway.submits(3))
    assert told == ["w1 ← TASKS 1: 1 2 3"]


def test_effects_come_in_the_order_of_their_causes_with_work_before_replies():
    world = World(stage("embed"), stage("rank"))
    gateway, embed = world.gateway(), world.worker("e", credit=1)
    world.worker("r", "rank", credit=1)
    world.turn(gateway.submits(1, 2))
    world.turn(gateway.submits(3))
    told = world.turn(gateway.asks_for_stats(), embed.finishes(1, statuses={0: 4}))
    assert told == ["g ← STATS", "r ← TASKS 2: 2", "e ← TASKS 3: 3, ACK 1", "g ← REPLY 1 VALIDATION"]


def test_outcomes_of_one_turn_are_one_reply_to_each_gateway():
    world = World(stage(max_batch_size=1))
    one, two = world.gateway("one"), world.gateway("two")
    w1, w2, w3 = (world.worker(name, credit=1) for name in ("w1", "w2", "w3"))
    world.turn(one.submits(1), two.submits(2), one.submits(3))
    told = world.turn(w1.finishes(1), w2.finishes(2), w3.finishes(3))
    assert told == ["one ← REPLY 1 ok, 3 ok", "two ← REPLY 2 ok"]
    assert [message.number for message in world.messages(Reply)] == [1, 1]


def test_time_passes_without_consequence():
    world = World()
    assert world.turn(events.Tick(), after=0.1) == [] and world.effects == []


def test_time_never_runs_backwards():
    world = World()
    with pytest.raises(AssertionError, match="time never runs backwards"):
        world.dispatcher.handle(now=world.now - 0.001)


def test_effects_are_the_callers_and_given_once():
    world = World()
    gateway = world.gateway()
    first = world.dispatcher.handle(gateway.sends_rubbish(), now=world.now)
    assert first == [Report("warning", "a peer broke the protocol: not a message")]
    assert world.dispatcher.handle(now=world.now) == [] and len(first) == 1


def test_the_timer_is_the_first_of_heartbeat_window_and_grace():
    world = World(stage(batching="fixed", max_wait_ms=100.0), exit_grace_seconds=0.02)
    gateway, agent, worker = world.gateway(), world.agent(), world.worker("idle", credit=1)
    dying = world.worker("dying", credit=0)
    assert world.dispatcher.next_wakeup() == 101.0  # the heartbeat
    world.turn(gateway.submits(1))
    assert world.dispatcher.next_wakeup() == 100.1  # the window of the partial batch
    world.turn(agent.reports(dying, SEGFAULT), after=0.01)
    assert world.dispatcher.next_wakeup() == pytest.approx(100.03)  # the last results of the dying one
    world.turn(after=0.02)
    assert world.dispatcher.next_wakeup() == 100.1
    assert world.turn(after=0.08) == ["idle ← TASKS 1: 1"]
    assert world.dispatcher.next_wakeup() == 101.0
    world.turn(worker.beats(), after=1.0)
    assert world.dispatcher.next_wakeup() == world.now + 1.0


def test_a_task_whose_time_is_over_never_reaches_a_worker():
    world = World()
    gateway, worker = world.gateway(), world.worker()
    world.turn(gateway.submits(1, ms=50), gateway.submits(2, ms=5000))
    told = world.turn(worker.credits(1), after=0.05)
    assert told == ["w1 ← TASKS 1: 2", "g ← REPLY 1 TIMEOUT 'no answer before the deadline'"]
    assert world.stage().counts.expired == 1


def test_a_batch_of_which_everybody_is_late_is_no_batch():
    world = World()
    gateway, worker = world.gateway(), world.worker()
    world.turn(gateway.submits(1, 2, 3, 4, ms=50))
    late = ", ".join(f"{id} TIMEOUT 'no answer before the deadline'" for id in (1, 2, 3, 4))
    assert world.turn(worker.credits(1), after=0.05) == [f"g ← REPLY {late}"]
    assert world.record(worker).credit == 1


def test_a_suspect_whose_time_is_over_is_not_run():
    world = World()
    gateway, agent, worker = world.gateway(), world.agent(), world.worker(credit=1)
    world.turn(gateway.submits(1, ms=50))
    world.turn(agent.reports(worker, SEGFAULT, lease=1))
    world.turn(after=0.02)
    assert world.turn(world.worker("w2").credits(1), after=0.04) == [
        "g ← REPLY 1 TIMEOUT 'no answer before the deadline'"
    ]


def test_a_worker_is_told_how_much_time_is_left_and_never_less_than_a_millisecond():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker()
    world.turn(gateway.submits(1, ms=2), gateway.submits(2, ms=1000))
    world.turn(worker.credits(2), after=0.0015)
    remaining = [message.columns.remaining_ms for message in world.messages(Tasks)]
    assert remaining == [[1], [998]]


def test_a_lease_is_recorded_before_it_leaves():
    world = World()
    gateway = world.gateway()
    worker = world.worker(credit=1)
    world.turn(gateway.submits(1))
    assert world.effects == [effect for effect in world.effects if isinstance(effect, Send)]
    assert world.record(worker).leases.keys() == world.mesh.leases.keys() == {1}


def test_the_same_events_give_the_same_effects():
    def life() -> list[object]:
        world = World(stage("a"), stage("b"))
        gateway, worker = world.gateway(), world.worker(credit=2)
        world.worker("b1", "b", credit=1)
        seen = []
        for happened in (gateway.submits(*range(9)), worker.finishes(1), worker.finishes(2)):
            world.turn(happened, after=0.01)
            seen += world.effects
        return seen

    assert life() == life()


def test_a_failing_stage_leaves_nothing_to_wake_up_for():
    """A partial batch waits for its crowd when the stage gives up: there is nobody to ask about again."""
    world = World(stage(max_batch_size=8, max_wait_ms=1000.0, batching="fixed"))
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    assert world.stage().wake is not None
    presence.give_up(world.mesh, world.stage(), "it does not start")
    assert world.stage().wake is None and world.stage().queue.waiting == 0
    assert world.record(worker).leases == {}
