"""What an operator may see."""

import json

import pytest

from tests.unit.core.world import SEGFAULT, World, stage
from zmesh.core.replies import ROW_BYTES
from zmesh.messages import LONG_TEXT_BYTES_MAX


def seen(world: World) -> dict:
    return json.loads(world.dispatcher.snapshot())


def test_a_broker_that_just_started_shows_its_stages_and_routes_and_nothing_in_them():
    world = World(stage("embed"), stage("rank"), routes={"/er": ["embed", "rank"], "/r": ["rank"]})
    shown = seen(world)
    directory = world.mesh.directory
    assert (shown["broker"], shown["epoch"]) == (directory.broker.hex(), directory.epoch)
    assert (shown["draining"], shown["tasks"], shown["task_bytes"]) == (False, 0, 0)
    assert [one["name"] for one in shown["stages"]] == ["embed", "rank"]
    assert shown["routes"] == [
        {"path": "/er", "stages": ["embed", "rank"], "ready": False},
        {"path": "/r", "stages": ["rank"], "ready": False},
    ]
    assert shown["counters"] == {
        "late": 0,
        "malformed": 0,
        "refused_peers": 0,
        "peers": 0,
        "leases": 0,
        "late_leases": 0,
        "kept_replies": 0,
        "kept_bytes": 0,
    }


def test_a_route_is_ready_when_all_its_stages_are():
    world = World(stage("embed"), stage("rank"), routes={"/er": ["embed", "rank"], "/r": ["rank"]})
    world.worker("r", "rank", credit=1)
    assert [route["ready"] for route in seen(world)["routes"]] == [False, True]
    world.worker("e", "embed", credit=1)
    assert [route["ready"] for route in seen(world)["routes"]] == [True, True]


def test_queues_leases_workers_and_counts_are_those_of_the_moment():
    world = World()
    gateway, agent = world.gateway(), world.agent()
    dying, worker = world.worker("dying", credit=1), world.worker("w1", credit=0)
    world.turn(gateway.submits(1, payload=b"123"))
    world.turn(agent.reports(dying, SEGFAULT, lease=1))
    world.turn(after=0.02)
    world.turn(gateway.submits(2, 3, payload=b"12345"))
    world.turn(gateway.sends_rubbish(), world.stranger().beats(), agent.asks_to_drain())
    shown = seen(world)
    embed = shown["stages"][0]
    assert (embed["queued"], embed["suspects"], embed["queued_bytes"], embed["leased"]) == (2, 1, 13, 0)
    assert (embed["ready_workers"], embed["was_ready"], embed["failing"]) == (0, True, None)
    assert embed["workers"] == [
        {"worker_id": 0, "host": "here", "pid": 17, "state": "starting", "leases": 0, "batches": 0, "tasks": 0}
    ]
    assert (embed["counters"]["deaths"], embed["counters"]["returned"]) == (1, 1)
    assert (shown["tasks"], shown["task_bytes"], shown["draining"]) == (3, 13, True)
    assert {name: shown["counters"][name] for name in ("late", "malformed", "refused_peers", "peers")} == {
        "late": 0,
        "malformed": 1,
        "refused_peers": 1,
        "peers": 3,
    }
    world.turn(worker.credits(1))
    world.turn(worker.finishes(2))
    embed = seen(world)["stages"][0]
    assert embed["workers"][0]["state"] == "ready"
    assert (embed["workers"][0]["leases"], embed["workers"][0]["batches"], embed["workers"][0]["tasks"]) == (1, 1, 1)
    assert embed["counters"]["released_crowd"] == 2 and embed["counters"]["released_single"] == 1
    assert (embed["counters"]["batches"], embed["counters"]["attempts"]) == (3, 4)
    assert embed["tallies"]["0"]["batch_size"]["sum"] == 4 and "counts" in embed["queue_seconds"]


def test_a_failing_stage_says_why_and_all_of_it_until_it_is_well():
    world = World()
    agent, worker = world.agent(), world.worker()
    trace = "Traceback (most recent call last):\n  File app.py\nValueError: no weights"
    world.turn(agent.reports(worker, 1, reason=trace, failing=True))
    embed = seen(world)["stages"][0]
    assert embed["failing"] == "stage embed does not start: ValueError: no weights"
    assert embed["traceback"] == trace
    world.turn(world.worker("w2").credits(1))
    embed = seen(world)["stages"][0]
    assert (embed["failing"], embed["traceback"]) == (None, "")


def test_the_tracebacks_of_all_stages_leave_a_snapshot_short_enough_to_be_told():
    world = World(*[stage(f"s{number}") for number in range(8)])
    agent = world.agent()
    for number in range(8):
        worker = world.worker(f"w{number}", f"s{number}")
        world.turn(agent.reports(worker, 1, reason="x" * LONG_TEXT_BYTES_MAX + "\nthe end", failing=True))
    assert all(one["traceback"].endswith("the end") for one in seen(world)["stages"])
    assert len(world.dispatcher.snapshot()) < LONG_TEXT_BYTES_MAX // 2


def test_answers_that_are_kept_and_tasks_that_are_held_back_are_shown():
    world = World(answer_bytes_max=100)
    gateway, worker = world.gateway(), world.worker(credit=2)
    world.turn(gateway.submits(1))
    world.turn(worker.finishes(1, payload=b"12345"))
    world.turn(gateway.submits(2, 3))
    shown = seen(world)
    assert (shown["counters"]["kept_replies"], shown["counters"]["kept_bytes"]) == (1, 5 + ROW_BYTES)
    assert (shown["stages"][0]["held"], shown["stages"][0]["queued"]) == (2, 0)


def test_metrics_of_user_code_go_before_what_the_workers_did_when_a_snapshot_is_too_long():
    world = World(stage("embed", max_batch_size=2))
    gateway = world.gateway()
    world.worker("w1", credit=1)
    world.turn(gateway.submits(1))
    long, none = [{"name": "x" * LONG_TEXT_BYTES_MAX}], {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.mesh.meters, "snapshot", lambda: long)
        shown = seen(world)
        assert shown["metrics"] == [] and shown["stages"][0]["tallies"] != none
        patch.setattr("zmesh.core.snapshot.LONG_TEXT_BYTES_MAX", 10)
        shown = seen(world)
        assert shown["metrics"] == [] and shown["stages"][0]["tallies"] == none
