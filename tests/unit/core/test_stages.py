"""One stage: who gets how many, now or later; and what is counted when a batch leaves."""

import pytest

from tests.unit.core.world import SEGFAULT, WorkerPeer, World, stage
from zmesh.core.batching import Release
from zmesh.core.stages import StageRecord
from zmesh.messages import Tasks


def suspects(world: World, count: int, *, of: int = 1) -> None:
    """So many suspects wait, and no worker is left; ids from `of`."""
    gateway, agent = world.gateway(), world.agent()
    size = world.plan.stages[0].max_batch_size
    for start in range(of, of + count, size):
        worker = world.worker(f"victim-{start}", credit=1)
        ids = range(start, min(start + size, of + count))
        (line,) = world.turn(gateway.submits(*ids))
        lease = int(line.split("TASKS ")[1].split(":")[0])
        world.turn(agent.reports(worker, SEGFAULT, lease=lease))
        world.turn(after=0.02)
    assert world.stage().queue.suspects == count


def test_nobody_waits_and_nobody_is_chosen():
    world = World()
    world.worker(credit=1)
    assert world.stage().choose(world.now) is None and world.stage().wake is None


def test_a_partial_batch_goes_to_an_idle_worker_and_waits_for_one_while_all_are_busy():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=2)
    assert world.turn(gateway.submits(1, 2)) == ["w1 ← TASKS 1: 1 2"]
    assert world.turn(gateway.submits(3)) == []
    assert world.turn(worker.finishes(1)) == ["w1 ← TASKS 2: 3, ACK 1", "g ← REPLY 1 ok, 2 ok"]


def test_a_full_batch_goes_one_ahead_to_a_busy_worker_with_credit():
    world = World()
    gateway = world.gateway()
    world.worker(credit=2)
    assert world.turn(gateway.submits(*range(1, 10))) == ["w1 ← TASKS 1: 1 2 3 4", "w1 ← TASKS 2: 5 6 7 8"]
    assert world.stage().counts.released[Release.FULL.value] == 2


def test_nothing_goes_ahead_where_batches_are_slow():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=2)
    world.turn(gateway.submits(1))
    world.turn(worker.finishes(1), after=0.2)
    assert world.turn(gateway.submits(2, 3, 4, 5)) == ["w1 ← TASKS 2: 2 3 4 5, ACK 1"]
    assert world.turn(gateway.submits(6, 7, 8, 9)) == []


def test_a_stage_that_does_not_batch_gives_out_one_at_a_time():
    world = World(stage(max_batch_size=1))
    world.worker(credit=2)
    gateway = world.gateway()
    assert world.turn(gateway.submits(1, 2, 3)) == ["w1 ← TASKS 1: 1", "w1 ← TASKS 2: 2"]
    assert world.stage().counts.released[Release.SINGLE.value] == 2


def test_a_partial_batch_waits_for_company_and_goes_when_its_window_is_over():
    world = World(stage(batching="fixed", max_wait_ms=10.0))
    gateway = world.gateway()
    world.worker(credit=1)
    assert world.turn(gateway.submits(1)) == []
    due = world.now + 0.010
    assert world.dispatcher.next_wakeup() == due
    assert world.turn(gateway.submits(2), after=0.004) == []
    assert world.turn(after=due - world.now) == ["w1 ← TASKS 1: 1 2"]
    assert world.stage().wake is None and world.stage().counts.released[Release.WINDOW.value] == 1


def test_a_burst_goes_to_one_worker_unless_the_stage_spreads():
    for spread, expected in (
        (False, ["w1 ← TASKS 1: 1 2 3"]),
        (True, ["w1 ← TASKS 1: 1 2", "w2 ← TASKS 2: 3"]),
    ):
        world = World(stage(spread=spread))
        world.worker("w1", credit=1)
        world.worker("w2", credit=1)
        assert world.turn(world.gateway().submits(1, 2, 3)) == expected


def test_each_worker_is_expected_when_its_own_batches_end():
    world = World()
    gateway, quick, slow = world.gateway(), world.worker("quick", credit=1), world.worker("slow", credit=1)
    world.turn(gateway.submits(1))
    world.turn(quick.finishes(1), after=0.010)
    world.turn(gateway.submits(2))
    world.turn(slow.finishes(2), after=0.100)
    assert world.turn(gateway.submits(3))[0].startswith("quick ← TASKS 3")
    assert world.turn(gateway.submits(4))[0].startswith("slow ← TASKS 4")
    free_in = world.stage()._free_in
    assert free_in(world.now + 0.004) == pytest.approx(0.006)
    world.turn(quick.finishes(3), after=0.010)
    assert free_in(world.now) == pytest.approx(0.090)
    world.turn(slow.finishes(4), after=0.090)
    assert free_in(world.now) == float("inf")


# Several stages


def two_stages(**routes: list[str]) -> World:
    """`embed` and `rank`, which both learn; unless `routes` say otherwise /go leads through both."""
    settings = {"batching": "crowd", "max_batch_size": 8, "max_wait_ms": 5.0}
    paths = {f"/{path}": names for path, names in routes.items()}
    return World(stage("embed", **settings), stage("rank", **settings), routes=paths or None)


def test_a_partial_batch_waits_for_the_one_that_the_stage_before_has_nearly_done():
    world = two_stages()
    gateway = world.gateway()
    one, other, last = [world.worker(name, of, credit=1) for name, of in (("e1", ""), ("e2", ""), ("r", "rank"))]
    world.turn(gateway.submits(1))
    assert world.turn(one.finishes(1), after=0.010) == ["r ← TASKS 2: 1"]
    world.turn(last.finishes(2), after=0.010)
    assert world.turn(gateway.submits(2, 3), after=0.5) == ["e2 ← TASKS 3: 2 3"]
    assert world.turn(gateway.submits(4, 5), after=0.002) == ["e1 ← TASKS 4: 4 5, ACK 1"]
    assert world.turn(other.finishes(3), after=0.008) == []
    assert world.now + 0.002 < world.dispatcher.next_wakeup() < world.now + 0.0021
    assert world.turn(one.finishes(4), after=0.002)[0] == "r ← TASKS 5: 2 3 4 5, ACK 2"


def test_only_those_count_whose_next_stage_it_is():
    world = two_stages(both=["embed", "rank"], one=["embed"], last=["rank"])
    gateway = world.gateway()
    world.worker("e1", credit=1)
    world.worker("e2", credit=1)
    world.turn(gateway.submits(1, 2, route="/both"), gateway.submits(3, route="/one"))
    world.turn(gateway.submits(4, route="/both"), after=0.001)
    world.stage("embed").batcher.ran(world.now, 1, 0.010)
    assert world.stage("rank")._coming(world.now) == [(pytest.approx(100.010), 2), (pytest.approx(100.011), 1)]


def test_clients_of_a_route_come_back_to_every_stage_of_it_when_its_last_one_has_answered():
    world = two_stages()
    gateway, first, last = world.gateway(), world.worker("e", credit=1), world.worker("r", "rank", credit=1)
    embed, rank = world.stage("embed").batcher, world.stage("rank").batcher
    world.turn(gateway.submits(1, 2))
    world.turn(first.finishes(1), after=0.010)
    assert embed._answer.opened == rank._answer.opened == rank._onward.opened == float("-inf")
    assert embed._onward.opened == world.now
    world.turn(last.finishes(2), after=0.010)
    assert embed._answer.opened == rank._answer.opened == world.now
    assert embed._answer._expected == rank._answer._expected == 2
    assert embed._onward.opened < world.now and rank._onward.opened == float("-inf")


def test_routes_that_share_a_stage_are_told_apart():
    world = two_stages(both=["embed", "rank"], last=["rank"])
    gateway, first, last = world.gateway(), world.worker("e", credit=1), world.worker("r", "rank", credit=1)
    world.turn(gateway.submits(1, 2, 3, route="/both"))
    world.turn(first.finishes(1), gateway.submits(4, route="/last"), after=0.010)
    world.turn(last.finishes(2), after=0.010)
    assert world.stage("embed").batcher._answer._expected == 3
    assert world.stage("rank").batcher._answer._expected == 4


# Suspects


def test_suspects_run_alone_and_take_turns_with_ordinary_batches_on_one_worker():
    world = World()
    suspects(world, 3)
    gateway = world.peers[0]
    worker = world.worker("w1")
    world.turn(gateway.submits(*range(11, 19)))
    assert world.turn(worker.credits(2)) == ["w1 ← TASKS 2: 1"]
    given = []
    for lease in range(2, 6):
        world.turn(worker.finishes(lease))
        given += [message.columns.ids for message in world.messages(Tasks) if isinstance(message, Tasks)]
    assert given == [[11, 12, 13, 14], [2], [15, 16, 17, 18], [3]]


def test_while_a_suspect_waits_nothing_goes_ahead_so_that_it_finds_an_idle_worker_even_under_full_load():
    world = World()
    gateway, agent = world.gateway(), world.agent()
    victim = world.worker("victim", credit=1)
    world.turn(gateway.submits(1))
    worker = world.worker("w1", credit=2)
    world.turn(gateway.submits(*range(11, 40)))
    assert len(world.record(worker).leases) == 2
    world.turn(agent.reports(victim, SEGFAULT, lease=1))
    assert world.turn(after=0.02) == ["forget victim"]
    assert world.turn(worker.finishes(2)) == ["g ← REPLY 11 ok, 12 ok, 13 ok, 14 ok"]
    assert world.turn(worker.finishes(3))[0] == "w1 ← TASKS 4: 1, ACK 2 3"
    assert world.turn(worker.finishes(4))[:2] == ["w1 ← TASKS 5: 19 20 21 22, ACK 4", "w1 ← TASKS 6: 23 24 25 26"]


def test_no_more_than_a_quarter_of_the_ready_workers_run_suspects():
    world = World()
    suspects(world, 4)
    workers = [world.worker(f"w{number}") for number in range(8)]
    given = [line for worker in workers for line in world.turn(worker.credits(1))]
    assert given == ["w0 ← TASKS 2: 1", "w1 ← TASKS 3: 2"]  # the second one when the eighth was ready
    assert world.turn(workers[0].finishes(2))[0] == "w2 ← TASKS 4: 3"


def test_suspects_go_when_nobody_else_waits_whosever_turn_it_is():
    world = World()
    suspects(world, 2)
    worker = world.worker("w1", credit=0)
    assert world.turn(worker.credits(1)) == ["w1 ← TASKS 2: 1"]
    assert world.turn(worker.finishes(2)) == ["w1 ← TASKS 3: 2, ACK 2", "g ← REPLY 1 ok"]


def test_a_partial_batch_that_waits_for_company_keeps_its_turn():
    world = World(stage(batching="fixed", max_wait_ms=10.0, max_batch_size=2))
    suspects(world, 2)
    gateway, worker = world.peers[0], world.worker("w1")
    assert world.turn(worker.credits(1)) == ["w1 ← TASKS 2: 1"]
    assert world.turn(gateway.submits(11)) == []
    assert world.turn(worker.finishes(2), after=0.005) == ["g ← REPLY 1 ok"]
    assert world.turn(after=0.010) == ["w1 ← TASKS 3: 11, ACK 2"]
    assert world.turn(worker.finishes(3)) == ["w1 ← TASKS 4: 2, ACK 3", "g ← REPLY 11 ok"]


def of_service(seconds: float, *, left: float, waiting: int = 8, ready: int = 1) -> list[int]:
    """How many suspects leave together at first, where batches take `seconds` and those who wait have `left`."""
    world = World(stage(max_batch_size=waiting))
    gateway, agent, victim = world.gateway(), world.agent(), world.worker("victim", credit=1)
    world.turn(gateway.submits(1000))
    world.turn(victim.finishes(1), after=seconds)
    world.turn(gateway.submits(*range(1, waiting + 1), ms=round((left + 0.02) * 1000)))
    world.turn(agent.reports(victim, SEGFAULT, lease=2))
    world.turn(after=0.02)
    idle = [world.worker(f"w{number}") for number in range(ready)]
    world.turn(*[worker.credits(1) for worker in idle])
    return [len(message.columns.ids) for message in world.messages(Tasks) if isinstance(message, Tasks)]


def test_suspects_run_one_by_one_if_all_are_through_in_half_the_time_that_the_most_urgent_has():
    assert of_service(0.5, left=8.1) == [1]


def test_else_they_run_in_the_smallest_groups_that_are():
    assert of_service(0.5, left=7.9) == [2]
    assert of_service(0.5, left=3.9) == [4]


def test_no_group_is_larger_than_half_of_the_batch_that_died():
    assert of_service(0.5, left=0.6) == [4]
    assert of_service(0.5, left=0.6, waiting=3) == [1]


def test_more_suspects_at_a_time_need_smaller_groups():
    assert of_service(0.5, left=4.1, ready=7) == [2]
    assert of_service(0.5, left=4.1, ready=8) == [1, 1]


def test_as_long_as_nobody_knows_how_long_a_batch_takes_suspects_run_one_by_one():
    world = World()
    suspects(world, 4)
    assert world.turn(world.worker().credits(1)) == ["w1 ← TASKS 2: 1"]


def test_one_that_is_late_already_hurries_nobody():
    world = World(stage(max_batch_size=8))
    agent, gateway, victim = world.agent(), world.gateway(), world.worker("victim", credit=2)
    world.turn(gateway.submits(1000))
    world.turn(victim.finishes(1), after=1.0)
    world.turn(gateway.submits(1, 2, 3), gateway.submits(4, ms=10))
    world.turn(agent.reports(victim, SEGFAULT, lease=2))
    world.turn(after=0.02)
    assert world.turn(world.worker().credits(1)) == ["w1 ← TASKS 3: 1"]


# Counting and time


def test_a_batch_that_leaves_is_counted_and_its_wait_measured():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(1, 2))
    world.turn(gateway.submits(3), after=0.25)
    worker = world.worker("w1")
    world.turn(worker.credits(1), after=0.25)
    record: StageRecord = world.stage()
    assert (record.tallies.batches, record.tallies.tasks, record.leased) == (1, 3, 3)
    assert record.queue_seconds.sum == 1.25
    assert world.task(1).queue_us == 500_000 and world.task(3).queue_us == 250_000


def practised(world: World, worker: WorkerPeer, batches: int, seconds: float) -> None:
    """The stage has seen so many batches and knows how long they take."""
    gateway = world.peers[0]
    for number in range(1, batches + 1):
        world.turn(gateway.submits(1000 + number))
        world.turn(worker.finishes(number), after=seconds)


def test_a_task_that_cannot_make_it_is_let_go_only_while_no_worker_is_idle():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker(credit=2)
    practised(world, worker, 20, 0.040)
    record = world.stage()
    assert record.least_remaining(world.now) == 0.0
    assert world.turn(gateway.submits(1, ms=30)) == ["w1 ← TASKS 21: 1, ACK 20"]  # an idle worker may try
    assert record.least_remaining(world.now) > 0.039
    assert world.turn(gateway.submits(2, ms=30)) == ["g ← REPLY 2 TIMEOUT 'no answer before the deadline'"]
    assert world.turn(gateway.submits(3, ms=50)) == ["w1 ← TASKS 22: 3"]


def test_without_enough_experience_nobody_is_let_go_early():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker(credit=2)
    practised(world, worker, 3, 0.040)
    world.turn(gateway.submits(1))
    assert world.turn(gateway.submits(2, ms=1)) == ["w1 ← TASKS 5: 2"]


def test_a_lease_may_run_for_a_multiple_of_the_usual_time_and_never_for_less_than_the_least():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    assert world.stage().lease_seconds(world.limits) == 10.0
    for id, seconds in ((1, 1.0), (2, 4.0), (3, 1.0)):
        world.turn(gateway.submits(id))
        world.turn(worker.finishes(id), after=seconds)
    assert world.stage().lease_seconds(world.limits) == 20.0


def test_where_batches_may_take_so_long_and_no_longer_a_lease_runs_until_its_worker_should_be_gone():
    quick, slow = World(stage(timeout_seconds=2.0)), World(stage(timeout_seconds=60.0))
    assert quick.stage().lease_seconds(quick.limits) == 10.0
    assert slow.stage().lease_seconds(slow.limits) == 60.0 + 1.0 + 5.0
