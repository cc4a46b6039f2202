"""What each worker did: from which moment to which, under whose name, and that nothing of it is ever taken back."""

import json

import pytest

from tests.unit.core.world import KILLED, SEGFAULT, WorkerPeer, World, stage
from zmesh.core import snapshot, stages
from zmesh.core.events import LoopLagged
from zmesh.core.tallies import HOST_CHARACTERS_MAX, OTHERS, SECONDS_BOUNDS, SIZE_BOUNDS, Histogram, Tallies, Tally
from zmesh.messages import Status


def tally(world: World, name: str = "0") -> Tally:
    return world.stage().tallies.by_name[name]


def seconds(histogram: Histogram) -> tuple[int, float]:
    """How many, and how long together."""
    return sum(histogram.counts), round(histogram.sum, 6)


def a_batch_of_two() -> tuple[World, WorkerPeer]:
    world = World(stage(max_batch_size=2))
    gateway, worker = world.gateway(), world.worker(credit=2)
    world.turn(gateway.submits(1, 2))
    return world, worker


def test_a_worker_is_busy_from_hand_out_to_the_last_result_of_its_batch():
    world, worker = a_batch_of_two()
    world.turn(worker.finishes(1, 0), after=0.25)
    assert seconds(tally(world).running) == (0, 0.0), "a part of a batch is no batch"
    world.turn(worker.finishes(1, 1), after=0.25)
    assert seconds(tally(world).running) == (1, 0.5)


def test_a_batch_without_a_good_result_says_nothing_of_how_long_results_take():
    world, worker = a_batch_of_two()
    world.turn(worker.finishes(1, statuses=dict.fromkeys((0, 1), Status.INTERNAL)), after=0.25)
    assert seconds(tally(world).running) == (0, 0.0)


def test_the_wait_of_a_batch_that_went_ahead_is_apart_from_its_run():
    world = World(stage(max_batch_size=2))
    gateway, worker = world.gateway(), world.worker(credit=2)
    world.turn(gateway.submits(1, 2))
    world.turn(gateway.submits(3, 4), after=1.0)
    assert len(world.record(worker).leases) == 2
    world.turn(worker.finishes(1), after=2.0)
    assert seconds(tally(world).ahead) == (1, 2.0)
    world.turn(worker.finishes(2), after=4.0)
    assert seconds(tally(world).ahead) == (1, 2.0), "who was free for its batch has nothing to show"
    assert seconds(tally(world).running) == (2, 7.0)


def test_a_batch_is_held_open_from_when_a_worker_and_its_first_task_are_there():
    world = World(stage(max_batch_size=4))
    gateway = world.gateway()
    world.turn(gateway.submits(1))
    world.wait(3.0)
    worker = world.worker()
    world.turn(worker.credits(1), after=0.5)
    assert seconds(tally(world).closing) == (1, 0.5)
    world.turn(worker.finishes(1), after=0.5)
    world.turn(gateway.submits(2), after=0.5)
    assert seconds(tally(world).closing) == (2, 0.5), "it waited for the task, and not the task for others"


def test_a_batch_that_goes_ahead_was_held_open_for_nobody():
    world = World(stage(max_batch_size=2))
    gateway, _ = world.gateway(), world.worker(credit=2)
    world.turn(gateway.submits(1, 2))
    world.turn(gateway.submits(3), after=0.5)
    world.turn(gateway.submits(4), after=0.5)
    assert seconds(tally(world).closing) == (2, 0.0)


def test_a_stage_that_does_not_batch_holds_nothing_open():
    world = World(stage(max_batch_size=1))
    gateway = world.gateway()
    world.turn(gateway.submits(1))
    world.turn(world.worker().credits(1), after=0.5)
    assert seconds(tally(world).closing) == (0, 0.0) and tally(world).batches == 1


def test_a_histogram_counts_up_to_each_bound_and_sums():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        histogram.add(value)
    histogram.add(2.0, times=2)
    assert histogram.snapshot() == {"counts": [2, 3, 1], "sum": 10.0}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 512, 513, 1024, 1025, 4096])
def test_a_size_is_counted_where_a_histogram_would_count_it(size: int):
    one, other = Tally(), Histogram(SIZE_BOUNDS)
    one.sizes[(size - 1).bit_length()] += 1
    other.add(size)
    shown = one.snapshot()["batch_size"]
    assert isinstance(shown, dict) and shown["counts"] == other.counts


def test_the_successor_of_a_worker_goes_on_where_that_ended():
    world = World(stage(max_batch_size=2))
    gateway, agent, worker = world.gateway(), world.agent(), world.worker("w1", credit=1)
    world.turn(gateway.submits(1, 2))
    world.turn(worker.finishes(1), after=0.5)
    world.turn(agent.reports(worker, KILLED))
    world.turn(after=1.0)
    world.turn(gateway.submits(3, 4), world.worker("w2").credits(1))
    assert (tally(world).batches, tally(world).tasks) == (2, 4)
    assert list(world.stage().tallies.by_name) == ["0"]
    assert seconds(tally(world).running) == (1, 0.5)


def test_workers_of_other_hosts_have_the_name_of_their_host_too():
    far, near = World(host="head"), World(host="here")
    for world in (far, near):
        world.worker()
    assert (list(far.stage().tallies.by_name), list(near.stage().tallies.by_name)) == (["0@here"], ["0"])


def test_only_so_many_are_kept_apart_and_the_rest_share_one():
    tallies = Tallies(2)
    kept = tallies.of(1), tallies.of(1, "far" + "x" * 1000)
    assert list(tallies.by_name) == ["1", "1@far" + "x" * (HOST_CHARACTERS_MAX - 3)]
    assert tallies.of(2) is tallies.of(3, "far") is tallies.by_name[OTHERS]
    assert (tallies.of(1), tallies.of(1, "far" + "x" * 1000)) == kept


def test_the_room_for_names_is_shared_by_the_stages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "TALLIES_MAX", 40)
    for count, most in ((1, 40), (2, 20), (10, 8)):
        world = World(*[stage(f"s{number}") for number in range(count)])
        tallies = world.mesh.stages[0].tallies
        for number in range(41):
            tallies.of(number)
        assert len(tallies.by_name) == most + 1


def test_bytes_are_counted_as_they_go_to_workers_and_come_back():
    world = World(stage("a", max_batch_size=2), stage("b"))
    gateway, agent = world.gateway(), world.agent()
    first, second = world.worker("a1", "a", credit=1), world.worker("b1", "b", credit=1)
    world.turn(gateway.submits(1, 2, payload=b"12345"))
    world.turn(agent.reports(first, SEGFAULT, lease=1))
    world.turn(after=0.02)
    counts = [one.counts for one in world.mesh.stages]
    assert (counts[0].bytes_in, counts[0].bytes_out) == (10, 0)
    first = world.worker("a2", "a", credit=0)
    world.turn(first.credits(1))
    assert (counts[0].bytes_in, counts[0].bytes_out) == (15, 0), "one of the suspects has gone again, alone"
    world.turn(first.finishes(2, payload=b"123"))
    assert (counts[0].bytes_in, counts[0].bytes_out) == (20, 3)
    assert (counts[1].bytes_in, counts[1].bytes_out) == (3, 0)
    world.turn(second.finishes(3, payload=b"1"))
    assert (counts[1].bytes_in, counts[1].bytes_out) == (3, 1)


def test_what_expired_before_it_could_leave_went_nowhere():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(1, ms=10, payload=b"12345"))
    worker = world.worker()
    world.turn(worker.credits(1), after=1.0)
    assert (world.stage().counts.expired, world.stage().counts.bytes_in) == (1, 0)


def test_how_late_the_loop_ran_is_added_up():
    world = World()
    for late in (0.25, 0.0, -0.001):
        world.turn(LoopLagged(late))
    assert seconds(world.mesh.loop_lag) == (3, 0.25)


def test_a_snapshot_that_no_message_could_carry_leaves_out_what_each_worker_did(monkeypatch: pytest.MonkeyPatch):
    world, _ = a_batch_of_two()
    whole = world.dispatcher.snapshot()
    monkeypatch.setattr(snapshot, "LONG_TEXT_BYTES_MAX", len(whole))
    assert world.dispatcher.snapshot() == whole
    monkeypatch.setattr(snapshot, "LONG_TEXT_BYTES_MAX", len(whole) - 1)
    shorter, seen = json.loads(world.dispatcher.snapshot()), json.loads(whole)
    assert seen["stages"][0].pop("tallies") and shorter["stages"][0].pop("tallies") == {}
    assert shorter == seen


def test_the_bounds_of_durations_hold_those_of_mosec():
    assert set(SECONDS_BOUNDS) >= {0.001 * 2**power for power in range(13)}
    assert set(SIZE_BOUNDS) >= {2.0**power for power in range(10)}
