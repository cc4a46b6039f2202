"""What peers say of themselves, and what their silence says."""

import json

import pytest

from tests.unit.core.world import KILLED, SEGFAULT, World, stage
from zmesh.core import events
from zmesh.core.effects import Send
from zmesh.core.tasks import TaskState
from zmesh.core.workers import Presence
from zmesh.messages import Ack, Drain, Heartbeat, Role, Stats, Tasks, WorkerState

GRACE = 0.02


# Credit


def test_a_worker_is_given_nothing_before_it_is_ready():
    world = World()
    gateway, worker = world.gateway(), world.worker()
    world.turn(gateway.submits(1))
    assert world.turn(worker.credits(1, WorkerState.STARTING)) == []
    assert not world.stage().was_ready
    assert world.turn(worker.credits(1)) == ["w1 ← TASKS 1: 1"]
    assert world.stage().was_ready


def test_credit_said_again_changes_nothing():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker(credit=1)
    assert world.turn(gateway.submits(1, 2)) == ["w1 ← TASKS 1: 1"]
    assert world.turn(worker.credits(1), worker.credits(1)) == []
    assert world.turn(worker.credits(2)) == ["w1 ← TASKS 2: 2"]


def test_credit_never_shrinks():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker(credit=2)
    world.turn(worker.credits(1))
    assert world.turn(gateway.submits(1, 2)) == ["w1 ← TASKS 1: 1", "w1 ← TASKS 2: 2"]


def test_a_draining_worker_finishes_and_is_given_nothing_more():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.turn(gateway.submits(2))
    world.turn(worker.credits(5, WorkerState.DRAINING))
    assert world.turn(worker.finishes(1)) == ["w1 ← ACK 1", "g ← REPLY 1 ok"]
    assert world.turn(worker.credits(6)) == []  # it cannot become ready again
    assert world.record(worker).presence is Presence.DRAINING
    world.turn(worker.is_unreachable())
    assert world.turn(worker.credits(7, WorkerState.DRAINING)) == []
    assert world.record(worker).presence is Presence.LOST


def test_a_stranger_has_no_credit():
    world = World()
    stranger = world.stranger("w9", Role.WORKER, 1)
    assert world.turn(stranger.credits(1)) == ["w9 ← REFUSE UNKNOWN_PEER: say HELLO again"]


# HELLO with leases


def carried(**settings: object) -> World:
    """w1 holds the leases 1, 2 and 3 of a task each, given at 100.0, and has a new connection at 100.02."""
    world = World(stage(max_batch_size=1, **settings))
    gateway, worker = world.gateway(), world.worker(credit=3)
    assert len(world.turn(gateway.submits(1, 2, 3, 4))) == 3
    worker.reconnects()
    world.now += 0.02
    return world


def epoch(world: World) -> int:
    return world.mesh.directory.epoch


def test_leases_that_a_worker_still_holds_live_on_in_its_new_session_as_used_credit():
    world = carried()
    worker = world.peers[1]
    told = world.turn(worker.greets(running=[1], waiting=[2, 3], epoch=epoch(world)))
    assert told == ["w1 ← WELCOME"]
    assert list(world.record(worker).leases) == [1, 2, 3]
    assert world.turn(worker.credits(3)) == []
    assert world.turn(worker.finishes(1)) == ["w1 ← TASKS 4: 4, ACK 1", "g ← REPLY 1 ok"]


def test_leases_that_were_lost_on_the_way_return_uncharged_to_the_front_in_order():
    world = carried()
    worker = world.peers[1]
    world.turn(worker.greets(running=[1], epoch=epoch(world)))
    assert {task.id: task.state for task in world.mesh.tasks.values()} == {
        1: TaskState.LEASED,
        2: TaskState.QUEUED,
        3: TaskState.QUEUED,
        4: TaskState.QUEUED,
    }
    assert world.turn(worker.credits(3)) == ["w1 ← TASKS 4: 2", "w1 ← TASKS 5: 3"]
    assert world.stage().counts.deaths == 0


def test_leases_that_the_broker_does_not_know_count_as_used_all_the_same():
    world = carried()
    worker = world.peers[1]
    world.turn(worker.greets(running=[1], waiting=[77], epoch=epoch(world)))
    assert list(world.record(worker).leases) == [1] and world.record(worker).used == 2


def test_leases_that_were_answered_already_use_and_grant_no_credit():
    world = carried()
    worker = world.peers[1]
    world.turn(worker.greets(running=[2], waiting=[3], answered=[1], epoch=epoch(world)))
    assert world.record(worker).credit == 0
    assert world.turn(worker.finishes(1)) == ["g ← REPLY 1 ok"]
    assert world.record(worker).credit == 0
    assert world.turn(worker.credits(3)) == ["w1 ← TASKS 4: 4, ACK 1"]


def test_the_clock_of_a_lease_that_became_the_oldest_by_the_hello_starts_then():
    world = carried()
    worker = world.peers[1]
    world.turn(worker.greets(running=[2], waiting=[3], answered=[1], epoch=epoch(world)))
    assert [lease.started for lease in world.record(worker).leases.values()] == [100.02, 100.0, 100.0]
    world.turn(worker.finishes(2), after=0.25)
    assert world.stage().batcher.service == pytest.approx(0.25)


def test_the_clock_of_the_running_lease_goes_on_over_a_new_connection():
    world = carried()
    worker = world.peers[1]
    world.turn(worker.greets(running=[1], epoch=epoch(world)))
    assert world.record(worker).leases[1].started == 100.0


def test_leases_of_another_epoch_mean_nothing_and_use_no_credit():
    world = carried()
    worker = world.peers[1]
    world.turn(worker.greets(running=[1], waiting=[2], epoch=4711))
    assert not world.record(worker).leases and world.record(worker).used == 0
    assert world.turn(worker.credits(1)) == ["w1 ← TASKS 4: 1"]


def test_a_worker_that_comes_to_a_new_broker_with_work_in_hand_is_given_work():
    world = World()
    gateway = world.gateway()
    worker = world.stranger("w1", Role.WORKER, 1)
    world.turn(worker.greets(running=[7], waiting=[8], epoch=4711))
    assert world.turn(worker.credits(1)) == []
    assert world.turn(gateway.submits(1)) == ["w1 ← TASKS 1: 1"]


def test_leases_that_the_broker_ended_meanwhile_still_count_as_used():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.turn(worker.is_unreachable())
    world.wait(1.0, silent=[worker])
    worker.reconnects()
    world.turn(worker.greets(running=[1], epoch=epoch(world)))
    assert (world.record(worker).used, world.record(worker).total) == (1, 1)
    assert world.turn(worker.credits(1)) == []
    assert world.turn(worker.finishes(1)) == ["g ← REPLY 1 ok"]
    assert world.record(worker).credit == 0  # the worker says itself that it has room again


def test_a_worker_that_says_hello_at_another_stage_brings_no_leases_there():
    world = World(stage("embed"), stage("rank"))
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    worker.reconnects()
    worker.socket = 2
    worker.address = (2, b"w1/2")
    world.names[worker.address] = "w1"
    world.turn(worker.greets(running=[1], epoch=epoch(world)))
    assert world.stage("embed").queue.waiting == 1 and not world.record(worker).leases


def test_a_worker_that_reconnects_with_nothing_to_carry_starts_anew():
    world = World()
    worker = world.worker(credit=1)
    worker.reconnects()
    assert world.turn(worker.greets()) == ["w1 ← WELCOME"]
    assert world.record(worker).presence is Presence.STARTING and world.stage().crew.ready() == 0


def test_tasks_follow_their_gateway_into_its_new_session():
    world = World()
    gateway, other, worker = world.gateway("g"), world.gateway("other"), world.worker(credit=2)
    world.turn(gateway.submits(1))
    world.turn(other.submits(2))
    gateway.reconnects()
    world.turn(gateway.greets())
    assert world.turn(worker.finishes(1)) == ["w1 ← TASKS 2: 2, ACK 1", "g ← REPLY 1 ok"]
    assert world.turn(worker.finishes(2)) == ["other ← REPLY 2 ok"]


# EXITED


def test_an_exit_is_acknowledged_however_often_it_is_said_and_counted_once():
    world = World()
    agent, worker = world.agent(), world.worker(credit=1)
    for _ in range(2):
        assert world.turn(agent.reports(worker, KILLED)) == ["agent ← ACK the end of w1"]
    assert world.turn(after=GRACE) == ["forget w1"]
    assert world.turn(agent.reports(worker, KILLED)) == ["agent ← ACK the end of w1"]
    assert world.stage().counts.exits == 1


def test_only_an_agent_is_believed_that_a_process_ended():
    world = World()
    worker, gateway = world.worker(credit=1), world.gateway()
    liar = world.stranger("liar", Role.AGENT)
    assert world.turn(liar.reports(worker, KILLED)) == ["liar ← REFUSE UNKNOWN_PEER: say HELLO again"]
    liar.address, liar.session = gateway.address, gateway.session
    warning = "warning: a peer broke the protocol: GATEWAY may not say this"
    assert world.turn(liar.reports(worker, KILLED)) == [warning]
    assert world.record(worker).exit is None


def test_a_worker_that_exits_before_it_held_anything_is_simply_gone():
    world = World()
    agent, worker = world.agent(), world.worker()
    world.turn(agent.reports(worker, 1))
    assert world.turn(after=GRACE) == ["forget w1"]
    assert not world.stage().crew.workers and worker.session not in world.mesh.directory.sessions


def test_a_worker_that_said_goodbye_within_the_grace_is_ended_once():
    world = World()
    agent, worker = world.agent(), world.worker(credit=1)
    world.turn(agent.reports(worker, 0))
    assert world.turn(worker.leaves()) == ["forget w1"]
    assert world.turn(after=GRACE) == []


def test_a_failing_stage_answers_those_who_wait_at_once_and_those_who_come():
    world = World()
    gateway, agent, worker = world.gateway(), world.agent(), world.worker()
    world.turn(gateway.submits(1, 2))
    assert world.turn(agent.reports(worker, 1, reason="Traceback:\nValueError: no such file\n", failing=True)) == [
        "agent ← ACK the end of w1",
        "error: stage embed does not start: ValueError: no such file",
        "g ← REPLY 1 UNAVAILABLE 'stage embed does not start: ValueError: no such file', "
        "2 UNAVAILABLE 'stage embed does not start: ValueError: no such file'",
    ]


def test_a_stage_that_fails_without_a_word_says_so():
    world = World()
    agent, worker = world.agent(), world.worker()
    told = world.turn(agent.reports(worker, 1, reason=" \n", failing=True))
    assert told[-1] == "error: stage embed does not start: for an unknown reason"


MANY_LINES = """Traceback (most recent call last):
  File "app.py", line 3, in __init__
    load("x")
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "app.py", line 9, in __init__
    load("x")
    ^^^^^^^^^
OSError: there is no model x.
If this is a private one, log in.
a note of the library
"""


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (MANY_LINES, "OSError: there is no model x."),
        ("out of memory\nended by SIGKILL", "ended by SIGKILL"),
        ('  File "app.py", line 3\n    load(', "    load("),
    ],
)
def test_what_a_failing_stage_says_is_the_line_of_its_exception(reason: str, said: str):
    world = World()
    agent, worker = world.agent(), world.worker()
    world.turn(agent.reports(worker, 1, reason=reason, failing=True))
    assert world.stage().failing == f"stage embed does not start: {said}"


def test_tasks_that_reach_a_failing_stage_from_the_stage_before_are_answered_at_once():
    world = World(stage("embed"), stage("rank"))
    gateway, agent = world.gateway(), world.agent()
    embed, rank = world.worker("e", credit=1), world.worker("r", "rank")
    world.turn(gateway.submits(1))
    world.turn(agent.reports(rank, 1, reason="ValueError", failing=True))
    assert world.turn(embed.finishes(1)) == ["g ← REPLY 1 UNAVAILABLE 'stage rank does not start: ValueError'"]


def test_the_last_ready_worker_may_take_its_stage_down_and_its_tasks_are_answered():
    world = World()
    gateway, agent, worker = world.gateway(), world.agent(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    told = world.turn(agent.reports(worker, SEGFAULT, lease=1, reason="SIGSEGV", failing=True))
    assert told == ["agent ← ACK the end of w1", "error: stage embed does not start: SIGSEGV"]
    assert world.turn(after=GRACE) == ["forget w1", "g ← REPLY 1 UNAVAILABLE 'stage embed does not start: SIGSEGV'"]


def test_a_stage_with_a_worker_that_is_ready_is_not_failing():
    world = World()
    agent, lame = world.agent(), world.worker("lame")
    world.worker("well", credit=1)
    assert world.turn(agent.reports(lame, 1, reason="ValueError", failing=True)) == ["agent ← ACK the end of lame"]
    assert world.stage().failing is None


def test_a_failing_stage_is_well_again_with_its_first_worker_that_is_ready():
    world = World()
    gateway, agent, lame = world.gateway(), world.agent(), world.worker("lame")
    world.turn(agent.reports(lame, 1, reason="ValueError", failing=True))
    world.worker("well", credit=1)
    assert world.stage().failing is None
    assert world.turn(gateway.submits(1)) == ["well ← TASKS 1: 1"]


def test_a_reason_without_an_end_is_cut_before_it_goes_to_every_client():
    world = World()
    agent, worker = world.agent(), world.worker()
    world.turn(agent.reports(worker, 1, reason="x" * 5000, failing=True))
    assert world.stage().failing == f"stage embed does not start: {'x' * 1000}"


# Lost and leaving


def test_a_worker_whose_connection_is_lost_is_given_nothing_and_may_come_back():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker(credit=2)
    world.turn(gateway.submits(1))
    world.turn(worker.is_unreachable())
    assert world.turn(worker.is_unreachable(), gateway.submits(2)) == []
    worker.reconnects()
    world.turn(worker.greets(running=[1], epoch=epoch(world)), after=0.9)
    assert world.turn(worker.credits(2)) == ["w1 ← TASKS 2: 2"]
    assert world.wait(2.0) == []


def test_a_worker_that_does_not_come_back_within_the_grace_loses_its_leases():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.worker("w2", credit=1)
    world.turn(worker.is_unreachable())
    assert world.turn(after=0.9) == []
    assert world.wait(1.0, silent=[worker]) == ["forget w1", "w2 ← TASKS 2: 1"]


def test_nobody_at_an_address_can_be_unreachable_without_consequence():
    world = World()
    assert world.turn(world.stranger().is_unreachable()) == []


def test_the_leases_of_a_lost_worker_end_at_its_grace_and_not_with_a_sweep():
    world = World(hello_grace_seconds=0.3)
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.worker("w2", credit=1)
    world.turn(worker.is_unreachable(), after=0.1)
    assert world.dispatcher.next_wakeup() == world.now + 0.3
    assert world.turn(worker.is_unreachable(), after=0.2) == [], "what is known does not put its end off"
    assert world.turn(after=0.1) == ["forget w1", "w2 ← TASKS 2: 1"]


def test_a_lost_worker_that_is_back_is_not_ended_by_its_former_grace():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.turn(worker.is_unreachable())
    worker.reconnects()
    world.turn(worker.greets(running=[1], epoch=epoch(world)), after=0.5)
    assert world.turn(after=0.5) == []
    assert world.turn(worker.finishes(1)) == ["g ← REPLY 1 ok"]


def test_a_worker_that_says_goodbye_is_gone_at_once_and_what_it_held_is_leased_again():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.worker("w2", credit=1)
    assert world.turn(worker.leaves(1)) == ["forget w1", "w2 ← TASKS 2: 1"]


def test_a_gateway_that_says_goodbye_takes_its_tasks_with_it():
    world = World()
    gateway, other = world.gateway("g"), world.gateway("other")
    world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.turn(gateway.submits(2), other.submits(3))
    assert world.turn(gateway.leaves()) == ["forget g", "w1 ← CANCEL 1: its gateway is gone"]
    assert list(world.mesh.tasks) == [3]


def test_a_stranger_may_not_say_goodbye_drain_or_ask():
    world = World()
    stranger = world.stranger()
    refused = ["stranger ← REFUSE UNKNOWN_PEER: say HELLO again"]
    assert world.turn(stranger.leaves()) == refused
    assert world.turn(stranger.asks_to_drain()) == refused and world.mesh.drain is None
    assert world.turn(stranger.asks_for_stats()) == refused


def test_a_broker_that_drains_tells_every_gateway_and_no_worker():
    world = World()
    world.gateway("one")
    agent = world.agent()
    world.worker(credit=1)
    two = world.gateway("two")
    assert world.turn(agent.asks_to_drain()) == ["one ← DRAIN", "two ← DRAIN"]
    assert world.messages(Drain) == [Drain(0, "enough")] * 2
    two.reconnects()
    assert world.turn(two.greets()) == ["two ← WELCOME", "two ← DRAIN"]
    world.worker("w2")


def test_what_an_admin_asks_of_a_broker_with_an_agent_is_passed_on_and_work_goes_on():
    world = World(parent="ours")
    gateway, ours, other = world.gateway(), world.agent("ours"), world.agent("other")
    admin = world.agent("admin", Role.ADMIN)
    assert world.turn(admin.asks_to_drain()) == ["ours ← DRAIN"]
    assert world.mesh.drain is None and world.turn(gateway.submits(1)) == []
    shown = json.loads(world.dispatcher.snapshot())
    assert shown["draining"]
    assert [agent["draining"] for agent in shown["agents"]] == [True, False]
    other.reconnects()
    assert world.turn(other.greets()) == ["other ← WELCOME"]
    ours.reconnects()
    assert world.turn(ours.greets()) == ["ours ← WELCOME", "ours ← DRAIN"]


def test_an_agent_that_comes_later_hears_what_was_asked_of_it():
    world = World(parent="ours")
    admin = world.agent("admin", Role.ADMIN)
    assert world.turn(admin.asks_to_drain()) == []
    ours = world.stranger("ours", Role.AGENT)
    assert world.turn(ours.greets()) == ["ours ← WELCOME", "ours ← DRAIN"]


def test_an_admin_of_the_broker_s_own_process_drains_the_broker():
    """Its agent has told it to."""
    world = World(parent="ours")
    world.gateway()
    world.agent("ours")
    admin = world.stranger("admin", Role.ADMIN, socket=-1)
    world.turn(admin.greets())
    assert world.turn(admin.asks_to_drain()) == ["g ← DRAIN"]
    assert world.mesh.drain is not None


def test_a_drain_of_a_host_is_for_its_agents_alone_and_said_once():
    world = World(parent="ours")
    world.gateway()
    world.agent("ours")
    there = [world.stranger(name, Role.AGENT) for name in ("one", "two")]
    for agent in there:
        world.turn(agent.greets(host="there"))
    admin = world.agent("admin", Role.ADMIN)
    assert world.turn(admin.asks_to_drain("nowhere")) == []
    assert world.turn(admin.asks_to_drain("there")) == ["one ← DRAIN", "two ← DRAIN"]
    assert world.messages(Drain) == [Drain(0, "enough", "there")] * 2
    assert world.mesh.drain is None
    shown = json.loads(world.dispatcher.snapshot())
    assert not shown["draining"]
    assert [(agent["host"], agent["draining"]) for agent in shown["agents"]] == [
        ("here", False),
        ("there", True),
        ("there", True),
    ]
    there[0].reconnects()
    assert world.turn(there[0].greets(host="there")) == ["one ← WELCOME"]
    assert json.loads(world.dispatcher.snapshot())["agents"][-1]["draining"], "it is the same process"
    world.turn(there[1].leaves())
    assert len(json.loads(world.dispatcher.snapshot())["agents"]) == 2


# Sends that failed


def test_an_acknowledgement_that_could_not_be_sent_is_said_again():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1, 2))
    assert world.turn(worker.finishes(1))[0] == "w1 ← TASKS 2: 2, ACK 1"
    (tasks,) = world.messages(Tasks)
    assert world.turn(events.SendFailed(worker.address, tasks)) == ["w1 ← TASKS 3: 2, ACK 1"]
    world.turn(worker.finishes(3))
    assert world.turn(after=1.0) == ["w1 ← ACK 3"]
    (ack,) = world.messages(Ack)
    assert world.turn(events.SendFailed(worker.address, ack)) == []
    assert world.turn(after=1.0) == ["w1 ← ACK 3"]


def test_what_else_could_not_be_sent_is_said_again_by_its_own_timer():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    unsent = [
        events.SendFailed(worker.address, Heartbeat(1, 0, [])),
        events.SendFailed(gateway.address, Stats()),
        events.SendFailed(world.stranger().address, Stats()),
        worker.cannot_be_sent(99),
    ]
    assert world.turn(*unsent) == []
    assert world.stage().leased == 1


# Silence


def test_an_idle_worker_that_is_silent_too_long_is_gone():
    world = World()
    worker = world.worker(credit=1)
    assert world.wait(4.0, silent=[worker]) == []
    assert world.wait(1.0, silent=[worker]) == ["forget w1"]


def test_a_busy_worker_may_be_silent_as_long_as_its_model_takes():
    world = World(stage(retry=False))
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1, ms=600_000))
    assert world.wait(60.0, silent=[worker]) == []
    assert world.turn(worker.finishes(1)) == ["g ← REPLY 1 ok"]


def test_a_gateway_that_is_silent_too_long_is_gone_and_nobody_waits_for_its_tasks():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(1))
    assert world.wait(5.0, silent=[gateway]) == ["forget g"]
    assert not world.mesh.tasks


def test_a_gateway_whose_connection_was_lost_has_as_long_to_come_back():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(1))
    assert world.wait(4.0, silent=[gateway]) == []
    world.turn(gateway.is_unreachable())
    assert world.wait(4.0, silent=[gateway]) == [], "its silence before does not count"
    assert world.wait(1.0, silent=[gateway]) == ["forget g"]


def test_a_gateway_that_was_thought_lost_and_speaks_again_is_asked_to_greet_anew():
    """It did not read for a while, and what it was sent was given up; its connection was there all the time."""
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.turn(gateway.is_unreachable())
    said = world.turn(gateway.beats())
    assert said == ["g ← REFUSE UNKNOWN_PEER: your connection was lost; say HELLO again"]
    gateway.reconnects()
    assert world.turn(gateway.greets()) == ["g ← WELCOME"]
    assert world.wait(6.0) == [], "it is not given up"
    assert world.turn(worker.finishes(1)) == ["g ← REPLY 1 ok"]


def test_an_agent_that_is_silent_takes_nobody_with_it():
    world = World()
    agent, worker = world.agent(), world.worker(credit=1)
    assert world.wait(5.0, silent=[agent]) == ["forget agent"]
    assert world.record(worker).presence is Presence.READY


def test_whoever_was_told_nothing_for_a_heartbeat_hears_one():
    world = World()
    gateway, worker = world.gateway(), world.worker()
    world.turn(gateway.beats(), worker.beats(), gateway.asks_for_stats(), after=0.5)
    world.turn(after=0.5)
    assert world.effects == [Send(worker.address, worker.session, Heartbeat(epoch(world), 0, []))]


def test_a_worker_whose_process_ended_is_not_swept_but_ended_after_its_grace():
    world = World(exit_grace_seconds=2.0)
    agent, worker = world.agent(), world.worker(credit=1)
    world.turn(worker.is_unreachable())
    world.turn(agent.reports(worker, KILLED))
    assert world.wait(1.5) == []
    assert world.wait(0.5) == ["forget w1"]


def test_a_lost_worker_whose_exit_is_reported_just_before_its_grace_ends_has_its_last_words():
    world = World(exit_grace_seconds=0.1)
    gateway, agent, worker = world.gateway(), world.agent(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.turn(worker.is_unreachable())
    world.turn(agent.reports(worker, KILLED, lease=1), after=0.95)
    assert world.turn(after=0.06) == [], "its former grace is over"
    assert world.turn(worker.finishes(1)) == ["g ← REPLY 1 ok"]
    assert world.turn(after=0.05) == ["forget w1"]


@pytest.mark.parametrize(
    ("broker", "worker", "grace"), [("", "far", 0.02), ("here", "here", 0.02), ("here", "far", 0.2)]
)
def test_last_words_from_another_host_have_more_time(broker: str, worker: str, grace: float):
    world = World(host=broker)
    agent = world.agent()
    stranger = world.stranger("w1", Role.WORKER, 1)
    world.turn(stranger.greets(host=worker))
    world.turn(agent.reports(stranger, KILLED))
    assert world.dispatcher.next_wakeup() == world.now + grace
    assert world.turn(after=grace - 0.001) == []
    assert world.turn(after=0.001) == ["forget w1"]


def test_a_process_that_ended_and_then_cannot_be_reached_keeps_its_grace():
    world = World()
    agent, worker = world.agent(), world.worker()
    world.turn(agent.reports(worker, KILLED))
    world.turn(worker.is_unreachable(), after=0.01)
    assert world.turn(after=0.01) == ["forget w1"]


def test_near_and_far_exits_end_in_the_order_of_their_graces():
    world = World(host="here")
    agent, near = world.agent(), world.worker("near")
    far = world.stranger("far", Role.WORKER, 1)
    world.turn(far.greets(host="there"))
    world.turn(agent.reports(far, KILLED), agent.reports(near, KILLED))
    assert world.turn(after=0.02) == ["forget near"]
    assert world.turn(after=0.18) == ["forget far"]


# A stall of the broker


def test_a_stalled_broker_counts_nobodys_silence_and_no_leases_age():
    world = World()
    gateway, worker, other = world.gateway(), world.worker(credit=1), world.worker("w2", credit=1)
    world.turn(gateway.submits(1))
    world.turn(other.is_unreachable())
    lease = world.record(worker).leases[1]
    assert world.turn(events.Stalled(60.0), after=60.0) == []
    assert lease.started == world.now and not world.task(1).hedged
    assert world.record(worker).heard == world.now
    assert world.mesh.directory.at(other.address).lost_at == world.now


def test_a_stalled_broker_does_not_move_the_deadlines_of_requests():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(1, ms=10_000))
    world.turn(events.Stalled(60.0), after=60.0)
    worker = world.worker()
    assert world.turn(worker.credits(1)) == ["g ← REPLY 1 TIMEOUT 'no answer before the deadline'"]


def test_last_words_have_their_time_after_a_stall():
    world = World()
    agent, exited, lost = world.agent(), world.worker("exited"), world.worker("lost")
    back = world.worker("back")
    for worker in (lost, back):
        world.turn(worker.is_unreachable())
    back.reconnects()
    world.turn(back.greets())
    world.turn(agent.reports(exited, KILLED))
    assert world.turn(events.Stalled(60.0), after=60.0) == []
    assert world.turn(after=0.02) == ["forget exited"]
    assert world.turn(after=0.98) == ["forget lost"]
    assert world.turn(back.credits(1)) == []


def test_results_of_a_session_that_its_worker_gave_up_during_a_stall_still_count_whichever_is_read_first():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker(credit=2)
    world.turn(gateway.submits(1, 2))
    before = worker.finishes(1)
    worker.reconnects()
    hello = worker.greets(running=[2], answered=[1], epoch=epoch(world))
    assert world.turn(events.Stalled(10.0), hello, before, after=10.0) == [
        "w1 ← WELCOME",
        "the old w1 ← REFUSE UNKNOWN_PEER: say HELLO again",
        "g ← REPLY 1 ok",
    ]
    assert world.turn(worker.finishes(1)) == [] and world.mesh.late == 1
    assert world.turn(worker.finishes(2)) == ["g ← REPLY 2 ok"]
    assert world.turn(worker.beats(), gateway.beats(), after=1.0) == ["w1 ← ACK 1 2"]


# Questions


def test_whoever_asks_is_told_how_things_are():
    world = World()
    gateway = world.gateway()
    assert world.turn(gateway.asks_for_stats()) == ["g ← STATS"]
    (stats,) = world.messages(Stats)
    assert stats.snapshot == world.dispatcher.snapshot()


@pytest.mark.parametrize("said", [b"", b"not zmesh"])
def test_a_broken_message_is_a_strike_and_nothing_else(said: bytes):
    world = World()
    gateway = world.gateway()
    assert world.turn(events.MessageBroken(gateway.address, f"{said!r} is no message"))[0].startswith("warning: ")
    assert world.turn(gateway.submits(1)) == []
