"""What becomes of the rows of a lease that ends without a result: returned, blamed, ended."""

import pytest

from tests.unit.core.world import ABORTED, KILLED, SEGFAULT, TERMINATED, Agent, Gateway, WorkerPeer, World, stage
from zmesh.core import endings
from zmesh.core.tasks import TaskState
from zmesh.messages import Phase, Tasks

GRACE = 0.02


class Scene:
    """A gateway, an agent, and a first worker that holds lease 1 of the tasks 1 to `rows` (and more if it may)."""

    def __init__(self, rows: int = 4, credit: int = 1, tasks: int = 0, **settings: object) -> None:
        self.world = World(stage(max_batch_size=rows, **settings))
        self.g: Gateway = self.world.gateway()
        self.agent: Agent = self.world.agent()
        self.w1: WorkerPeer = self.world.worker("w1", credit=credit)
        self.world.turn(self.g.submits(*range(1, (tasks or rows) + 1)))
        self.turn, self.stage = self.world.turn, self.world.stage()

    def dies(self, worker: WorkerPeer, code: int, **slate: object) -> list[str]:
        """What is done when it is certain that no more results come."""
        self.turn(self.agent.reports(worker, code, **slate))
        return self.turn(after=GRACE)

    def states(self) -> dict[int, TaskState]:
        return {task.id: task.state for task in self.world.mesh.tasks.values()}

    def deaths(self) -> dict[int, int]:
        return {task.id: task.deaths for task in self.world.mesh.tasks.values()}


# Who is charged


@pytest.mark.parametrize(
    ("code", "oom", "charged"),
    [
        (SEGFAULT, False, True),
        (ABORTED, False, True),
        (1, False, True),
        (137, False, True),
        (KILLED, True, True),
        (KILLED, False, False),
        (TERMINATED, False, False),
        (TERMINATED, True, False),
        (0, False, True),
        (0, True, True),
    ],
)
def test_only_an_end_from_within_is_charged(code: int, oom: bool, charged: bool):
    scene = Scene(rows=2)
    assert scene.dies(scene.w1, code, lease=1, oom=oom) == ["forget w1"]
    assert scene.deaths() == {1: charged, 2: charged}
    assert set(scene.states().values()) == {TaskState.SUSPECT if charged else TaskState.QUEUED}
    assert scene.stage.counts.deaths == charged
    assert (scene.stage.counts.exits, scene.stage.counts.returned) == (1, 2)


@pytest.mark.parametrize(
    ("phase", "row", "charged"),
    [
        (Phase.FORWARD, 0, [1, 2, 3, 4]),
        (Phase.DECODE, 1, [2]),
        (Phase.ENCODE, 3, [4]),
        (Phase.ENCODE, 4, []),
        (Phase.IDLE, 0, []),
        (Phase.STARTING, 0, []),
    ],
)
def test_a_death_is_charged_to_what_ran(phase: Phase, row: int, charged: list[int]):
    scene = Scene()
    scene.dies(scene.w1, SEGFAULT, lease=1, phase=phase, row=row)
    assert [id for id, deaths in scene.deaths().items() if deaths] == charged
    assert scene.stage.counts.deaths == bool(charged)


def test_what_waited_in_the_worker_returns_uncharged_to_the_front_in_order():
    scene = Scene(rows=2, credit=3, tasks=7)
    scene.dies(scene.w1, SEGFAULT, lease=1)
    assert scene.deaths() == {1: 1, 2: 1, 3: 0, 4: 0, 5: 0, 6: 0, 7: 0}
    worker = scene.world.worker("w2")
    assert scene.turn(worker.credits(1)) == ["w2 ← TASKS 4: 1"]
    assert scene.turn(worker.finishes(4))[0] == "w2 ← TASKS 5: 3 4, ACK 4"
    assert scene.turn(worker.finishes(5))[0] == "w2 ← TASKS 6: 2, ACK 5"
    assert scene.turn(worker.finishes(6))[0] == "w2 ← TASKS 7: 5 6, ACK 6"


def test_rows_that_were_answered_or_cancelled_are_not_touched():
    scene = Scene()
    assert scene.turn(scene.w1.finishes(1, 0)) == ["g ← REPLY 1 ok"]
    scene.turn(scene.g.cancels(2))
    scene.dies(scene.w1, SEGFAULT, lease=1)
    assert scene.states() == {3: TaskState.SUSPECT, 4: TaskState.SUSPECT}
    assert scene.stage.counts.returned == 2


def test_the_death_of_a_worker_whose_lease_was_finished_is_charged_to_nobody():
    scene = Scene(rows=2, credit=2, tasks=4)
    scene.turn(scene.w1.finishes(1))
    scene.dies(scene.w1, SEGFAULT, lease=1)
    assert scene.deaths() == {3: 0, 4: 0} and scene.stage.counts.deaths == 0


def test_nobody_is_charged_while_the_worker_has_not_exited():
    scene = Scene()
    assert endings.charged_rows(scene.world.record(scene.w1).leases[1]) == range(0)


def test_a_lost_connection_is_never_charged():
    scene = Scene()
    scene.turn(scene.w1.is_unreachable())
    assert scene.world.wait(1.0, silent=[scene.w1]) == ["forget w1"]
    assert set(scene.states().values()) == {TaskState.QUEUED} and scene.stage.counts.deaths == 0


# EXITED and RESULTS


def test_results_that_arrive_within_the_grace_win_over_the_end_of_their_process():
    scene = Scene(rows=2)
    assert scene.turn(scene.agent.reports(scene.w1, SEGFAULT, lease=1)) == ["agent ← ACK the end of w1"]
    assert scene.world.dispatcher.next_wakeup() == scene.world.now + GRACE
    assert scene.turn(scene.w1.finishes(1), after=0.01) == ["g ← REPLY 1 ok, 2 ok"]
    assert scene.turn(after=0.01) == ["forget w1"]
    assert scene.stage.counts.deaths == 0 and not scene.world.mesh.tasks


def test_results_and_the_end_of_their_process_in_one_turn_are_results():
    scene = Scene(rows=2)
    assert scene.turn(scene.agent.reports(scene.w1, SEGFAULT, lease=1), scene.w1.finishes(1)) == [
        "agent ← ACK the end of w1",
        "g ← REPLY 1 ok, 2 ok",
    ]


def test_a_worker_that_exited_is_given_nothing_more():
    scene = Scene(rows=2, credit=2)
    scene.turn(scene.agent.reports(scene.w1, KILLED, lease=1))
    assert scene.turn(scene.g.submits(5, 6)) == []


# Suspects and poison


def test_a_task_that_died_alone_twice_is_poisoned_and_innocents_succeed():
    scene = Scene(rows=2)
    scene.dies(scene.w1, SEGFAULT, lease=1)
    w2 = scene.world.worker("w2")
    assert scene.turn(w2.credits(1)) == ["w2 ← TASKS 2: 1"]
    scene.dies(w2, SEGFAULT, lease=2)
    w3 = scene.world.worker("w3")
    assert scene.turn(w3.credits(1)) == ["w3 ← TASKS 3: 2"]
    assert scene.turn(w3.finishes(3)) == ["w3 ← TASKS 4: 1, ACK 3", "g ← REPLY 2 ok"]
    assert scene.dies(w3, SEGFAULT, lease=4) == [
        "error: task 1 killed 3 workers of embed and is not run again",
        "forget w3",
        "g ← REPLY 1 POISONED 'worker died'",
    ]
    assert (scene.stage.counts.poisoned, scene.stage.counts.deaths) == (1, 3)


def test_a_task_whose_neighbours_were_answered_before_dies_alone():
    scene = Scene(rows=2)
    scene.turn(scene.w1.finishes(1, 0))
    scene.dies(scene.w1, SEGFAULT, lease=1)
    assert scene.world.task(2).alone_deaths == 1


def test_deaths_are_forgotten_at_the_next_stage():
    world = World(stage("embed"), stage("rank"))
    gateway, agent, w1 = world.gateway(), world.agent(), world.worker("w1", credit=1)
    world.turn(gateway.submits(1))
    world.turn(agent.reports(w1, SEGFAULT, lease=1))
    world.turn(after=GRACE)
    w2 = world.worker("w2")
    world.turn(w2.credits(1))
    world.turn(w2.finishes(2))
    assert world.task(1).deaths == 0 and world.task(1).state is TaskState.QUEUED


def test_a_suspect_that_is_returned_stays_a_suspect():
    scene = Scene(rows=1)
    scene.dies(scene.w1, SEGFAULT, lease=1)
    w2 = scene.world.worker("w2")
    scene.turn(w2.credits(1))
    scene.dies(w2, KILLED, lease=2)
    assert scene.states() == {1: TaskState.SUSPECT} and scene.deaths() == {1: 1}
    assert scene.stage.queue.suspects == 1


def test_a_row_that_a_death_points_at_runs_alone_and_its_neighbours_as_before():
    scene = Scene(rows=4)
    scene.dies(scene.w1, SEGFAULT, lease=1, phase=Phase.DECODE, row=1)
    assert {task.id: task.group_max for task in scene.world.mesh.tasks.values()} == {1: 0, 2: 1, 3: 0, 4: 0}
    assert scene.world.task(2).alone_deaths == 0


def test_a_group_that_dies_is_halved_until_the_guilty_one_is_alone():
    scene = Scene(rows=8)
    for id in range(1, 9):
        scene.world.task(id).deadline = scene.world.now + 2.0
    scene.stage.batcher.ran(scene.world.now, 8, 1.0)
    sizes, kills, worker = [], 1, scene.w1
    scene.dies(worker, SEGFAULT, lease=1)
    while scene.world.mesh.tasks:
        worker = scene.world.worker(f"w{kills + 1}")
        scene.turn(worker.credits(1))
        while leases := list(scene.world.record(worker).leases.values()):
            ids = [task.id for task in leases[0].tasks]
            sizes.append(len(ids))
            if 6 in ids:
                kills += 1
                scene.dies(worker, SEGFAULT, lease=leases[0].id)
                break
            scene.turn(worker.finishes(leases[0].id))
    assert sizes == [4, 4, 2, 2, 1, 1, 1]
    assert scene.stage.counts.tasks_ok == 7 and scene.stage.counts.poisoned == 1
    assert kills == scene.stage.counts.deaths == 5, "3 + log2(8) at most"


# Once only


def test_a_stage_that_runs_once_answers_outcome_unknown_for_what_ran_and_leases_again_what_waited():
    scene = Scene(rows=2, credit=2, tasks=4, retry=False)
    assert scene.dies(scene.w1, SEGFAULT, lease=1) == [
        "forget w1",
        "g ← REPLY 1 INTERNAL 'outcome unknown', 2 INTERNAL 'outcome unknown'",
    ]
    w2 = scene.world.worker("w2")
    assert scene.turn(w2.credits(1)) == ["w2 ← TASKS 3: 3 4"]


def test_a_stage_that_runs_once_does_not_trust_a_kill_from_outside_either():
    scene = Scene(rows=1, retry=False)
    assert scene.dies(scene.w1, KILLED, lease=1)[1] == "g ← REPLY 1 INTERNAL 'outcome unknown'"


def test_of_a_stage_that_runs_once_a_lease_before_the_running_one_has_run_and_its_results_are_lost():
    scene = Scene(rows=1, credit=3, tasks=3, retry=False)
    assert scene.dies(scene.w1, SEGFAULT, lease=2)[1] == (
        "g ← REPLY 2 INTERNAL 'outcome unknown', 1 INTERNAL 'outcome unknown'"
    )
    assert scene.states() == {3: TaskState.QUEUED}


@pytest.mark.parametrize(("phase", "known"), [(Phase.IDLE, False), (Phase.STARTING, True)])
def test_of_a_stage_that_runs_once_nobody_knows_what_an_idle_worker_ran(phase: Phase, known: bool):
    scene = Scene(rows=1, retry=False)
    scene.dies(scene.w1, TERMINATED, lease=0, phase=phase)
    assert scene.states() == ({1: TaskState.QUEUED} if known else {})


def test_of_a_stage_that_runs_once_nobody_knows_what_a_worker_out_of_reach_runs():
    scene = Scene(rows=1, credit=2, tasks=2, retry=False)
    scene.turn(scene.w1.is_unreachable())
    unknown = "g ← REPLY 2 INTERNAL 'outcome unknown', 1 INTERNAL 'outcome unknown'"
    assert scene.world.wait(1.0, silent=[scene.w1]) == ["forget w1", unknown]


def test_of_a_stage_that_runs_once_only_the_running_lease_of_a_worker_that_says_goodbye_is_unknown():
    scene = Scene(rows=1, credit=2, tasks=2, retry=False)
    assert scene.turn(scene.w1.leaves(1, 2)) == ["forget w1", "g ← REPLY 1 INTERNAL 'outcome unknown'"]
    assert scene.states() == {2: TaskState.QUEUED}


def test_results_of_a_stage_that_runs_once_count_though_they_are_late_as_long_as_nobody_was_told():
    scene = Scene(rows=1, retry=False)
    scene.turn(scene.agent.reports(scene.w1, SEGFAULT, lease=1))
    assert scene.turn(scene.w1.finishes(1)) == ["g ← REPLY 1 ok"]
    assert scene.turn(after=GRACE) == ["forget w1"]
    assert scene.turn(scene.w1.finishes(1)) == []


# Too many returns


def test_a_task_that_is_given_back_more_than_five_times_ends_with_an_error():
    scene = Scene(rows=1)
    for lease in range(1, 6):
        assert scene.turn(scene.w1.cannot_be_sent(lease)) == [f"w1 ← TASKS {lease + 1}: 1"]
    assert scene.world.task(1).attempt == 6
    assert scene.turn(scene.w1.cannot_be_sent(6)) == ["g ← REPLY 1 INTERNAL 'given back 6 times by stage embed'"]
    assert scene.stage.counts.deaths == 0


def test_it_does_not_matter_how_a_task_was_given_back():
    scene = Scene(rows=1)
    workers = [scene.w1] + [scene.world.worker(f"w{number}", credit=1) for number in range(2, 7)]
    told = [scene.turn(worker.leaves(lease)) for lease, worker in enumerate(workers, start=1)]
    assert told[:2] == [["forget w1", "w2 ← TASKS 2: 1"], ["forget w2", "w3 ← TASKS 3: 1"]]
    assert told[-1] == ["forget w6", "g ← REPLY 1 INTERNAL 'given back 6 times by stage embed'"]


def test_deaths_are_not_returns():
    scene = Scene(rows=1)
    scene.dies(scene.w1, SEGFAULT, lease=1)
    assert scene.world.task(1).returns == 0


# Unsent


def test_a_batch_that_could_not_be_sent_goes_to_the_front_in_order_and_its_credit_is_whole():
    scene = Scene(rows=2, tasks=4)
    scene.turn(scene.w1.is_unreachable())
    assert scene.turn(scene.w1.cannot_be_sent(1)) == []
    assert scene.world.record(scene.w1).credit == 1
    w2 = scene.world.worker("w2")
    assert scene.turn(w2.credits(1)) == ["w2 ← TASKS 2: 1 2"]


def test_a_suspect_that_could_not_be_sent_stays_a_suspect():
    scene = Scene(rows=1)
    scene.dies(scene.w1, SEGFAULT, lease=1)
    w2 = scene.world.worker("w2")
    scene.turn(w2.credits(1))
    assert scene.turn(w2.cannot_be_sent(2)) == ["w2 ← TASKS 3: 1"]
    assert scene.world.mesh.leases[3].suspect and scene.deaths() == {1: 1}


# Far too long


def hedged(**settings: object) -> Scene:
    """Lease 1 runs for ten seconds already."""
    scene = Scene(rows=2, **settings)
    assert scene.world.wait(10.0) == []
    return scene


def test_rows_that_take_far_too_long_are_run_elsewhere_as_well_and_the_first_success_counts():
    scene = hedged()
    w2 = scene.world.worker("w2")
    assert scene.turn(w2.credits(1)) == ["w2 ← TASKS 2: 1 2"]
    assert scene.turn(w2.finishes(2, 0)) == ["g ← REPLY 1 ok"]
    assert scene.turn(scene.w1.finishes(1)) == ["g ← REPLY 2 ok"]
    assert scene.turn(w2.finishes(2, 1)) == []
    assert [scene.world.record(worker).credit for worker in (scene.w1, w2)] == [1, 1]


def test_the_slow_worker_is_neither_dead_nor_given_more_and_its_success_counts_while_the_rows_wait():
    scene = hedged()
    assert scene.states() == {1: TaskState.QUEUED, 2: TaskState.QUEUED}
    assert scene.turn(scene.w1.finishes(1)) == ["g ← REPLY 1 ok, 2 ok"]
    assert scene.stage.counts.deaths == 0


def test_an_error_of_the_slow_worker_counts_for_nothing_once_its_rows_are_given_to_others():
    scene = hedged()
    scene.turn(scene.w1.finishes(1, statuses={0: 7, 1: 7}))
    assert scene.states() == {1: TaskState.LEASED, 2: TaskState.LEASED}
    assert [message.columns.ids for message in scene.world.messages(Tasks)] == [[1, 2]]


def test_the_death_of_the_slow_worker_does_not_touch_rows_that_are_given_to_others():
    scene = hedged()
    scene.dies(scene.w1, SEGFAULT, lease=1)
    assert scene.deaths() == {1: 0, 2: 0} and scene.stage.queue.waiting == 2


def test_rows_are_given_to_one_other_worker_however_long_both_take():
    scene = hedged()
    w2, w3 = scene.world.worker("w2"), scene.world.worker("w3")
    assert scene.turn(w2.credits(1)) == ["w2 ← TASKS 2: 1 2"]
    assert scene.turn(w3.credits(1)) == []
    for _ in range(4):
        assert scene.world.wait(12.0) == []
    assert scene.states() == {1: TaskState.LEASED, 2: TaskState.LEASED}
    assert scene.world.task(1).returns == 0 and not scene.world.record(w3).leases


def test_what_waits_behind_a_batch_that_takes_far_too_long_is_run_elsewhere_too():
    world = World(stage(max_batch_size=1))
    gateway, stuck = world.gateway(), world.worker(credit=2)
    world.turn(gateway.submits(1, 2))
    assert len(world.record(stuck).leases) == 2
    world.wait(10.0)
    other = world.worker("w2")
    assert sorted(world.turn(other.credits(2))) == ["w2 ← TASKS 3: 2", "w2 ← TASKS 4: 1"]


def test_a_stage_that_runs_once_waits_for_its_worker_however_long_it_takes():
    scene = hedged(retry=False)
    assert scene.states() == {1: TaskState.LEASED, 2: TaskState.LEASED}


def test_rows_that_are_answered_bit_by_bit_do_not_take_too_long():
    scene = Scene(rows=2)
    scene.world.wait(2.0)
    assert scene.turn(scene.w1.finishes(1, 0)) == ["g ← REPLY 1 ok"]
    scene.world.wait(9.0)
    assert scene.states() == {2: TaskState.LEASED}
    scene.world.wait(1.0)
    assert scene.states() == {2: TaskState.QUEUED}


def test_results_that_are_said_again_are_no_news():
    scene = Scene(rows=2)
    scene.turn(scene.w1.finishes(1, 0))
    scene.world.wait(9.0)
    scene.turn(scene.w1.finishes(1, 0))
    scene.world.wait(1.0)
    assert scene.states() == {2: TaskState.QUEUED}


def test_slow_leases_that_finish_in_the_end_are_not_kept():
    scene = hedged()
    scene.turn(scene.w1.finishes(1))
    assert not scene.world.mesh.leases and not scene.world.mesh.late_leases


def test_ended_leases_are_kept_for_late_results_within_a_bound():
    world = World(stage(max_batch_size=1), late_leases_max=2)
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    for lease in range(1, 5):
        world.turn(worker.cannot_be_sent(lease))
    assert list(world.mesh.late_leases) == [3, 4]
