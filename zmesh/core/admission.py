"""Admit or shed: one question, answered from numbers alone.

A task is counted against the queue of its first stage and against the whole mesh, by count and by bytes. Moving on to
the next stage is never asked here: refusing that would hold up the very work that makes room.
"""

from __future__ import annotations

from zmesh.config import Limits

__all__ = ["shed_reason"]


def shed_reason(
    limits: Limits, stage: str, queue_tasks: int, queue_bytes: int, mesh_tasks: int, mesh_bytes: int, size: int
) -> str | None:
    """Why a task of `size` bytes is refused now, in words for the client; None admits it.

    A single task is admitted to an empty queue whatever its size: its body was already bounded at the door.
    """
    if queue_tasks >= limits.queue_tasks_max:
        return f"the queue of {stage} is full ({limits.queue_tasks_max} tasks)"
    if queue_tasks and queue_bytes + size > limits.queue_bytes_max:
        return f"the queue of {stage} is full ({limits.queue_bytes_max} bytes)"
    if mesh_tasks >= limits.mesh_tasks_max:
        return f"the mesh is full ({limits.mesh_tasks_max} tasks)"
    if mesh_tasks and mesh_bytes + size > limits.mesh_bytes_max:
        return f"the mesh is full ({limits.mesh_bytes_max} bytes)"
    return None
