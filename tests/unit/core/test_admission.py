"""Admit or shed, from numbers alone."""

import pytest

from zmesh.config import Limits
from zmesh.core.admission import shed_reason

LIMITS = Limits(queue_tasks_max=4, queue_bytes_max=100, mesh_tasks_max=10, mesh_bytes_max=1000)


def reason(*, queue_tasks: int = 0, queue_bytes: int = 0, mesh_tasks: int = 0, mesh_bytes: int = 0, size: int = 10):
    return shed_reason(LIMITS, "embed", queue_tasks, queue_bytes, mesh_tasks, mesh_bytes, size)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({}, None),
        ({"queue_tasks": 3, "queue_bytes": 90, "mesh_tasks": 9, "mesh_bytes": 990}, None),
        ({"queue_tasks": 4}, "the queue of embed is full (4 tasks)"),
        ({"queue_tasks": 1, "queue_bytes": 91}, "the queue of embed is full (100 bytes)"),
        ({"mesh_tasks": 10}, "the mesh is full (10 tasks)"),
        ({"mesh_tasks": 1, "mesh_bytes": 991}, "the mesh is full (1000 bytes)"),
    ],
)
def test_a_task_is_shed_when_a_count_or_a_sum_of_bytes_is_reached(numbers: dict[str, int], why: str | None):
    assert reason(**numbers) == why


def test_a_single_large_task_is_admitted_where_nobody_waits():
    assert reason(size=5000) is None
    assert reason(size=5000, mesh_tasks=1) == "the mesh is full (1000 bytes)"
