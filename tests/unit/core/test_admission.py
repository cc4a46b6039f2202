"""Admit or shed, from numbers alone."""

import pytest

from zmesh.config import Limits
from zmesh.core.admission import Room

LIMITS = Limits(queue_tasks_max=4, queue_bytes_max=100, mesh_tasks_max=10, mesh_bytes_max=1000)


def room(**numbers: int) -> Room:
    nothing = dict.fromkeys(("queue_tasks", "queue_bytes", "own_tasks", "own_bytes", "mesh_tasks", "mesh_bytes"), 0)
    return Room(limits=LIMITS, stage="embed", **{"gateways": 1, **nothing, **numbers})


def reason(*, size: int = 10, **numbers: int) -> str | None:
    return room(**numbers).refusal(size)


FULL_TASKS, FULL_BYTES = "the queue of embed is full (4 tasks)", "the queue of embed is full (100 bytes)"


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({}, None),
        ({"queue_tasks": 3, "queue_bytes": 90, "mesh_tasks": 9, "mesh_bytes": 990}, None),
        ({"queue_tasks": 4}, FULL_TASKS),
        ({"queue_tasks": 1, "queue_bytes": 91}, FULL_BYTES),
        ({"mesh_tasks": 10}, "the mesh is full (10 tasks)"),
        ({"mesh_tasks": 1, "mesh_bytes": 991}, "the mesh is full (1000 bytes)"),
    ],
)
def test_a_task_is_shed_when_a_count_or_a_sum_of_bytes_is_reached(numbers: dict[str, int], why: str | None):
    assert reason(**numbers) == why


def test_a_single_large_task_is_admitted_where_nobody_waits():
    assert reason(size=5000) is None
    assert reason(size=5000, mesh_tasks=1) == "the mesh is full (1000 bytes)"


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"queue_tasks": 4, "own_tasks": 1}, None),
        ({"queue_tasks": 7, "own_tasks": 1}, None),
        ({"queue_tasks": 4, "own_tasks": 2}, FULL_TASKS),
        ({"queue_tasks": 3, "queue_bytes": 150, "own_tasks": 1, "own_bytes": 40}, None),
        ({"queue_tasks": 3, "queue_bytes": 150, "own_tasks": 1, "own_bytes": 41}, FULL_BYTES),
        ({"queue_tasks": 4, "own_tasks": 1, "own_bytes": 41}, FULL_TASKS),
        ({"queue_tasks": 4, "mesh_tasks": 10}, "the mesh is full (10 tasks)"),
        ({"queue_tasks": 4, "has_share": False}, FULL_TASKS),
    ],
)
def test_above_the_bound_one_of_two_gateways_is_admitted_below_half_of_it(numbers: dict[str, int], why: str | None):
    assert reason(gateways=2, **numbers) == why


def test_a_gateway_by_itself_has_no_share_above_the_bound():
    assert reason(queue_tasks=4, own_tasks=1, gateways=1) == FULL_TASKS


def test_more_gateways_than_places_have_no_share_either():
    assert reason(queue_tasks=4, gateways=5) == FULL_TASKS


def test_what_is_taken_counts_everywhere():
    taken = room(gateways=2)
    taken.take(7)
    assert taken == room(gateways=2, queue_tasks=1, queue_bytes=7, own_tasks=1, own_bytes=7, mesh_tasks=1, mesh_bytes=7)


@pytest.mark.parametrize("gateways", [1, 2, 3, 4])
def test_a_queue_is_never_longer_than_twice_its_bound(gateways: int):
    """Each takes all it can get, the flood first."""
    waiting = 0
    for _ in range(gateways):
        its = room(gateways=gateways, queue_tasks=waiting)
        while its.refusal(1) is None:
            its.take(1)
        waiting = its.queue_tasks
        assert its.own_tasks >= 4 // gateways, "nobody is left without its share"
    assert waiting <= 2 * LIMITS.queue_tasks_max
