"""What agents are told to do to their workers: KILL what takes too long or is stuck, INTERRUPT what nobody wants."""

from collections.abc import Mapping

from tests.unit.core.world import KILLED, SEGFAULT, WorkerPeer, World, stage
from zmesh.core.events import Stalled
from zmesh.messages import Role, Status

GRACE = 0.02
OVERRAN = "request timeout: the stage took longer than 2 s"
KILL = "KILL w1 while it runs 1: stage embed took longer than 2 s"
UNWANTED = "nobody waits for its batch any more"


class Scene:
    """A stage whose batches may take 2 s, and w1 with lease 1 of the tasks 1 to `rows`."""

    def __init__(self, rows: int = 2, *, seconds: float = 2.0, credit: int = 1, **settings: object) -> None:
        self.world = World(stage(timeout_seconds=seconds, max_batch_size=rows, **settings))
        self.g, self.agent = self.world.gateway(), self.world.agent()
        self.w1 = self.world.worker(credit=credit)
        self.turn, self.wait, self.stage = self.world.turn, self.world.wait, self.world.stage()
        self.turn(self.g.submits(*range(1, rows + 1)))

    def next_turn(self) -> list[str]:
        """When the broker itself wants to be asked, but not for a heartbeat's sake."""
        at = self.world.dispatcher.next_wakeup()
        return self.turn(after=at - self.world.now)

    def is_killed(self, worker: WorkerPeer, lease: int) -> list[str]:
        self.turn(self.agent.reports(worker, KILLED, lease=lease))
        return self.turn(after=GRACE)

    def groups(self) -> Mapping[int, int]:
        return {task.id: task.group_max for task in self.world.mesh.tasks.values()}


def practised(**settings: object) -> Scene:
    """w1 has brought lease 1 to a good end and runs lease 2, of the tasks 11 and 12."""
    scene = Scene(seconds=0.0, **settings)
    scene.turn(scene.w1.finishes(1))
    scene.turn(scene.g.submits(11, 12))
    return scene


# What takes longer than its stage allows


def test_a_worker_is_killed_when_its_batch_takes_longer_than_the_stage_allows_and_a_grace():
    scene = Scene()
    began = scene.world.now
    assert scene.wait(2.9) == []
    assert scene.next_turn() == [f"agent ← {KILL}"]
    assert scene.world.now == began + 3.0


def test_it_is_told_in_time_and_not_with_the_next_heartbeat():
    scene = Scene(seconds=0.0)
    scene.turn(scene.w1.finishes(1), after=0.4)
    scene.stage.plan = stage(timeout_seconds=2.0)  # a broker that was started with other settings
    scene.turn(scene.g.submits(3))
    due = scene.world.now + 3.0
    while scene.next_turn() == []:
        assert scene.world.now < due
    assert scene.world.now == due


def test_it_is_told_again_every_heartbeat_until_the_worker_is_gone():
    scene = Scene()
    assert scene.wait(5.0) == [f"agent ← {KILL}"] * 3
    assert scene.is_killed(scene.w1, 1) == ["forget w1"]
    assert scene.wait(5.0) == []
    assert scene.stage.overdue_at is None


def test_the_time_of_a_batch_begins_when_the_one_before_is_done():
    scene = Scene(rows=1, credit=2)
    scene.turn(scene.g.submits(2))
    assert len(scene.world.record(scene.w1).leases) == 2
    scene.turn(scene.w1.finishes(1), after=2.5)
    assert scene.wait(2.9) == []
    assert scene.wait(0.1) == ["agent ← KILL w1 while it runs 2: stage embed took longer than 2 s"]


def test_rows_that_are_answered_bit_by_bit_start_the_time_anew():
    scene = Scene()
    scene.turn(scene.w1.finishes(1, 0), after=2.5)
    assert scene.wait(2.9) == []
    assert scene.wait(0.1) == [f"agent ← {KILL}"]


def test_each_of_several_workers_has_its_own_time():
    scene = Scene(rows=1)
    w2 = scene.world.worker("w2")
    scene.turn(w2.credits(1), scene.g.submits(2), after=1.0)
    assert scene.wait(2.5) == [f"agent ← {KILL}"]
    assert scene.wait(0.5)[-1] == "agent ← KILL w2 while it runs 2: stage embed took longer than 2 s"


def test_what_a_killed_worker_ran_runs_again_row_by_row_and_nothing_is_poisoned():
    scene = Scene()
    scene.wait(3.0)
    assert scene.is_killed(scene.w1, 1) == ["forget w1"]
    assert scene.groups() == {1: 1, 2: 1}
    assert (scene.stage.counts.deaths, scene.stage.counts.exits, scene.stage.counts.returned) == (1, 1, 2)
    w2 = scene.world.worker("w2")
    assert scene.turn(w2.credits(1)) == ["w2 ← TASKS 2: 1"]
    scene.wait(3.0)
    assert scene.is_killed(w2, 2) == ["forget w2", f"g ← REPLY 1 TIMEOUT '{OVERRAN}'"]
    assert scene.stage.counts.deaths == 2 and not scene.stage.counts.poisoned
    assert scene.stage.counts.tasks_error == 1


def test_rows_of_a_killed_worker_whose_time_is_over_are_told_so():
    scene = Scene()
    scene.world.task(1).deadline = scene.world.now + 3.01
    scene.wait(3.0)
    assert scene.is_killed(scene.w1, 1) == ["forget w1", f"g ← REPLY 1 TIMEOUT '{OVERRAN}'"]
    assert scene.groups() == {2: 1}


def test_of_a_stage_that_runs_once_nothing_that_took_too_long_runs_again():
    scene = Scene(retry=False)
    scene.wait(3.0)
    assert scene.is_killed(scene.w1, 1) == [
        "forget w1",
        f"g ← REPLY 1 TIMEOUT '{OVERRAN}', 2 TIMEOUT '{OVERRAN}'",
    ]


def test_what_waited_in_a_killed_worker_returns_as_if_nothing_had_been():
    scene = Scene(credit=2)
    scene.turn(scene.g.submits(3, 4))
    scene.wait(3.0)
    scene.is_killed(scene.w1, 1)
    assert scene.groups() == {1: 1, 2: 1, 3: 0, 4: 0}


def test_a_worker_that_dies_of_something_else_before_it_is_killed_is_charged_with_that():
    scene = Scene()
    scene.wait(3.0)
    scene.turn(scene.agent.reports(scene.w1, SEGFAULT, lease=1))
    scene.turn(after=GRACE)
    assert scene.world.task(1).deaths == 1 and scene.groups() == {1: 1, 2: 1}
    assert [task.alone_deaths for task in scene.world.mesh.tasks.values()] == [0, 0]


def test_a_kill_that_hits_the_next_batch_is_held_against_nobody():
    scene = Scene(rows=1, credit=2)
    scene.turn(scene.g.submits(2))
    scene.wait(3.0)
    scene.turn(scene.w1.finishes(1))
    scene.is_killed(scene.w1, 2)
    assert scene.groups() == {2: 0} and scene.stage.counts.deaths == 0


def test_a_kill_from_elsewhere_in_time_is_none_for_taking_too_long():
    scene = Scene()
    scene.is_killed(scene.w1, 1)
    assert scene.groups() == {1: 0, 2: 0} and scene.stage.counts.deaths == 0


def test_a_broker_that_stood_still_kills_nobody_for_it():
    scene = Scene()
    assert scene.turn(Stalled(60.0), after=60.0) == []
    assert scene.wait(2.9) == []
    assert scene.wait(0.1) == [f"agent ← {KILL}"]


def test_a_worker_that_is_out_of_reach_is_not_killed_while_it_may_come_back():
    scene = Scene()
    assert scene.wait(2.5) == []
    scene.turn(scene.w1.is_unreachable())
    assert scene.wait(0.9, silent=[scene.w1]) == []
    scene.w1.reconnects()
    scene.turn(scene.w1.greets(running=[1], epoch=scene.world.mesh.directory.epoch))
    assert scene.wait(1.0) == [f"agent ← {KILL}"]


def test_a_batch_in_a_stage_with_a_timeout_is_given_to_others_only_when_no_kill_helps():
    scene = Scene(seconds=6.0)
    scene.wait(11.9)
    assert scene.stage.queue.waiting == 0
    scene.wait(1.0)
    assert scene.stage.queue.waiting == 2


# What the worker itself says of a batch that took too long


def test_rows_that_ended_with_an_alarm_run_again_alone_and_one_that_was_alone_is_told_so():
    scene = Scene()
    late = {0: Status.TIMEOUT, 1: Status.TIMEOUT}
    assert scene.turn(scene.w1.finishes(1, statuses=late)) == ["w1 ← TASKS 2: 1, ACK 1"]
    assert scene.groups() == {1: 1, 2: 1} and scene.world.task(1).deaths == 0
    assert (scene.stage.counts.returned, scene.stage.counts.tasks_error) == (2, 0)
    assert scene.turn(scene.w1.finishes(2, statuses=late, payload=b"too slow")) == [
        "w1 ← TASKS 3: 2, ACK 2",
        "g ← REPLY 1 TIMEOUT 'too slow'",
    ]
    assert scene.turn(scene.w1.finishes(3)) == ["g ← REPLY 2 ok"]
    assert scene.stage.counts.deaths == 0


def test_a_row_that_ended_with_an_alarm_goes_on_while_its_neighbours_still_run():
    scene = Scene()
    w2 = scene.world.worker("w2", credit=1)
    assert scene.turn(scene.w1.finishes(1, 0, statuses={0: Status.TIMEOUT})) == ["w2 ← TASKS 2: 1"]
    assert scene.turn(w2.finishes(2)) == ["g ← REPLY 1 ok"]


def test_a_row_that_ended_with_an_alarm_and_has_no_time_left_is_told_so():
    scene = Scene()
    scene.world.task(1).deadline = scene.world.now + 1.0
    told = scene.turn(scene.w1.finishes(1, statuses={0: Status.TIMEOUT}), after=1.0)
    assert told[-1] == "g ← REPLY 1 TIMEOUT, 2 ok"


def test_of_a_stage_that_runs_once_all_rows_of_a_batch_that_took_too_long_are_told_so():
    scene = Scene(retry=False)
    told = scene.turn(scene.w1.finishes(1, statuses={0: Status.TIMEOUT, 1: Status.TIMEOUT}))
    assert told == ["g ← REPLY 1 TIMEOUT, 2 TIMEOUT"]


def test_at_a_stage_that_allows_any_time_a_row_that_says_it_took_too_long_has_said_so():
    scene = Scene(seconds=0.0)
    told = scene.turn(scene.w1.finishes(1, statuses={0: Status.TIMEOUT}))
    assert told == ["g ← REPLY 1 TIMEOUT, 2 ok"]


def test_that_a_row_took_too_long_counts_for_nothing_when_the_task_is_elsewhere():
    scene = Scene(seconds=0.0)
    scene.wait(10.0)
    assert scene.stage.queue.waiting == 2
    scene.turn(scene.w1.finishes(1, statuses={0: Status.TIMEOUT, 1: Status.TIMEOUT}))
    assert scene.groups() == {1: 0, 2: 0}


# What nobody wants


def test_a_worker_is_interrupted_when_nobody_wants_any_row_of_what_it_runs():
    scene = practised()
    assert scene.turn(scene.g.cancels(11)) == ["w1 ← CANCEL 11: client gone"]
    assert scene.turn(scene.g.cancels(12)) == [
        "w1 ← CANCEL 12: client gone",
        f"agent ← INTERRUPT w1 while it runs 2: {UNWANTED}",
    ]
    assert scene.wait(5.0) == [], "once"


def test_a_worker_that_has_brought_nothing_to_a_good_end_is_not_interrupted():
    scene = Scene(seconds=0.0)
    assert scene.turn(scene.g.cancels(1, 2)) == ["w1 ← CANCEL 1 2: client gone"]
    scene.turn(scene.w1.finishes(1, statuses={0: Status.CANCELLED, 1: Status.CANCELLED}))
    scene.turn(scene.g.submits(3, 4))
    assert scene.turn(scene.g.cancels(3, 4)) == ["w1 ← CANCEL 3 4: client gone"]


def test_a_worker_is_interrupted_once_for_each_batch_that_it_brings_to_a_good_end():
    scene = practised()
    assert scene.turn(scene.g.cancels(11, 12))[1:] == [f"agent ← INTERRUPT w1 while it runs 2: {UNWANTED}"]
    scene.turn(scene.w1.finishes(2), scene.g.submits(13), after=0.1)  # the interrupt came too late, and it counts not
    assert scene.turn(scene.g.cancels(13)) == ["w1 ← CANCEL 13: client gone"]
    scene.turn(scene.w1.finishes(3, statuses={0: Status.INTERNAL}), scene.g.submits(14), after=0.1)  # nor does an error
    assert scene.turn(scene.g.cancels(14)) == ["w1 ← CANCEL 14: client gone"]
    scene.turn(scene.w1.finishes(4), scene.g.submits(15), after=0.1)  # a success does, though nobody wanted it
    assert scene.turn(scene.g.cancels(15))[1:] == [f"agent ← INTERRUPT w1 while it runs 5: {UNWANTED}"]


def test_what_waits_behind_the_running_batch_is_no_reason_to_interrupt_it():
    scene = practised(credit=2)
    scene.turn(scene.g.submits(13, 14))
    assert len(scene.world.record(scene.w1).leases) == 2
    assert scene.turn(scene.g.cancels(13, 14)) == ["w1 ← CANCEL 13 14: client gone"]


def test_what_was_not_wanted_while_it_waited_is_interrupted_with_the_next_sweep_if_it_runs():
    scene = practised(credit=2)
    scene.turn(scene.g.submits(13, 14))
    scene.turn(scene.g.cancels(13, 14))
    scene.turn(scene.w1.finishes(2))
    assert f"agent ← INTERRUPT w1 while it runs 3: {UNWANTED}" in scene.wait(1.0)


def test_a_batch_whose_rows_were_answered_by_another_worker_is_interrupted():
    scene = practised()
    scene.wait(10.0)
    w2 = scene.world.worker("w2")
    assert scene.turn(w2.credits(1)) == ["w2 ← TASKS 3: 11 12"]
    assert scene.wait(3.0) == []
    assert scene.turn(w2.finishes(3)) == ["g ← REPLY 11 ok, 12 ok"]
    assert f"agent ← INTERRUPT w1 while it runs 2: {UNWANTED}" in scene.wait(1.0)


def test_a_batch_whose_rows_went_on_to_the_next_stage_is_wanted_no_more():
    world = World(stage("embed"), stage("rank"))
    gateway, _, w1, w2 = world.gateway(), world.agent(), world.worker(credit=1), world.worker("w2")
    world.turn(gateway.submits(1))
    world.turn(w1.finishes(1))
    world.turn(gateway.submits(2))
    world.wait(10.0)
    world.turn(w2.credits(1))
    assert world.wait(1.0) == []
    world.turn(w2.finishes(3))
    assert f"agent ← INTERRUPT w1 while it runs 2: {UNWANTED}" in world.wait(1.0)


def test_a_worker_that_comes_back_may_be_interrupted_as_before():
    scene = practised()
    record = scene.world.record(scene.w1)
    scene.w1.reconnects()
    scene.turn(scene.w1.greets(running=[2], epoch=scene.world.mesh.directory.epoch))
    again = scene.world.record(scene.w1)
    assert again is not record and (again.batches, again.tasks) == (1, 2)
    assert scene.turn(scene.g.cancels(11, 12))[-1] == f"agent ← INTERRUPT w1 while it runs 2: {UNWANTED}"


# What is stuck


def stuck_after(scene: Scene) -> float:
    """Seconds until the worker of this scene, whose batch nobody wants any more, is killed."""
    began = scene.world.now
    for _ in range(100):
        if any("KILL" in line for line in scene.wait(1.0)):
            return round(scene.world.now - began, 3)
    raise AssertionError("it is never killed")


def test_a_worker_that_is_stuck_is_killed_10_s_after_its_lease_was_over_and_nobody_wanted_it():
    scene = practised()
    scene.wait(4.0)
    scene.turn(scene.g.cancels(11, 12))
    assert stuck_after(scene) == 6.0 + 10.0
    scene = practised()
    scene.wait(14.0)
    scene.turn(scene.g.cancels(11, 12))
    assert stuck_after(scene) == 1.0 + 10.0, "seen with the next sweep"


def test_one_that_has_brought_nothing_to_a_good_end_gets_60_s():
    scene = Scene(seconds=0.0)
    scene.turn(scene.g.cancels(1, 2))
    assert stuck_after(scene) == 10.0 + 60.0


def test_one_whose_rows_somebody_waits_for_is_not_stuck():
    scene = practised()
    assert scene.wait(59.0) == []


def test_where_batches_may_take_so_long_and_no_longer_a_worker_is_not_stuck_before():
    scene = Scene(seconds=100.0)
    scene.turn(scene.w1.finishes(1))
    scene.turn(scene.g.submits(3, 4))
    scene.turn(scene.g.cancels(3, 4))
    assert not any("KILL" in line for line in scene.wait(100.9))
    assert any("KILL" in line for line in scene.wait(0.1))


def test_a_broker_that_stood_still_takes_nobody_for_stuck():
    scene = practised()
    scene.turn(scene.g.cancels(11, 12))
    scene.wait(15.0)
    assert scene.turn(Stalled(100.0), after=100.0) == []
    assert stuck_after(scene) == 5.0


def test_the_death_of_a_stuck_worker_is_charged_to_nobody_and_what_waited_goes_on():
    scene = practised(credit=2)
    scene.turn(scene.g.submits(13, 14))
    scene.turn(scene.g.cancels(11, 12))
    scene.wait(20.0)
    scene.is_killed(scene.w1, 2)
    assert scene.groups() == {13: 0, 14: 0} and scene.stage.counts.deaths == 0


# Who is told


def test_the_agents_of_the_workers_host_are_told_and_no_others():
    world = World(stage(timeout_seconds=2.0))
    gateway, _, _ = world.gateway(), world.agent("near"), world.agent("also near")
    world.turn(world.stranger("far", Role.AGENT).greets(host="there"))
    world.worker(credit=1)
    world.turn(gateway.submits(1))
    assert world.wait(3.0) == [f"near ← {KILL}", f"also near ← {KILL}"]


def test_that_no_agent_is_there_is_said_once():
    world = World(stage(timeout_seconds=2.0))
    gateway = world.gateway()
    world.worker(credit=1)
    world.turn(gateway.submits(1))
    assert world.wait(5.0) == [
        "warning: no agent of host here is connected, so worker embed/0 cannot be ended or interrupted: "
        "stage embed took longer than 2 s"
    ]
