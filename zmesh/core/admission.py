"""Admit or shed: one question, answered from numbers alone.

A task is counted against the queue of its first stage and against the whole mesh, by count and by bytes. Moving on to
the next stage is never asked here: refusing that would hold up the very work that makes room.

A gateway that floods a queue does not take the room of another: above the bound of a queue a gateway is still admitted
while less than its share of the bound waits there for it. So a queue is never longer than twice its bound, and with one
gateway nothing is different.
"""

from __future__ import annotations

from dataclasses import dataclass

from zmesh.config import Limits

__all__ = ["Room"]


@dataclass(slots=True, kw_only=True)
class Room:
    """What waits as a gateway submits, in all and for it alone (`own_*`); `take` counts what it is admitted."""

    limits: Limits
    stage: str
    gateways: int
    queue_tasks: int
    queue_bytes: int
    own_tasks: int
    own_bytes: int
    mesh_tasks: int
    mesh_bytes: int
    has_share: bool = True  # a gateway that does not take its answers has none

    def take(self, size: int) -> None:
        """One more task of this many bytes waits."""
        self.queue_tasks += 1
        self.own_tasks += 1
        self.mesh_tasks += 1
        self.queue_bytes += size
        self.own_bytes += size
        self.mesh_bytes += size

    def has_for(self, tasks: int, size: int) -> bool:
        """Whether so many tasks, of so many bytes together, are surely all admitted."""
        limits = self.limits
        return (
            self.queue_tasks + tasks <= limits.queue_tasks_max
            and self.queue_bytes + size <= limits.queue_bytes_max
            and self.mesh_tasks + tasks <= limits.mesh_tasks_max
            and self.mesh_bytes + size <= limits.mesh_bytes_max
        )

    def refusal(self, size: int) -> str | None:
        """Why a task of `size` bytes is refused now, in words for the client; None admits it.

        A single task is admitted to an empty queue whatever its size: its body was already bounded at the door.
        """
        limits = self.limits
        if self.queue_tasks >= limits.queue_tasks_max and not self._is_below_its_share(size):
            return f"the queue of {self.stage} is full ({limits.queue_tasks_max} tasks)"
        if self.queue_tasks and self.queue_bytes + size > limits.queue_bytes_max and not self._is_below_its_share(size):
            return f"the queue of {self.stage} is full ({limits.queue_bytes_max} bytes)"
        if self.mesh_tasks >= limits.mesh_tasks_max:
            return f"the mesh is full ({limits.mesh_tasks_max} tasks)"
        if self.mesh_tasks and self.mesh_bytes + size > limits.mesh_bytes_max:
            return f"the mesh is full ({limits.mesh_bytes_max} bytes)"
        return None

    def _is_below_its_share(self, size: int) -> bool:
        limits, sharers = self.limits, self.gateways
        return (
            self.has_share
            and sharers > 1
            and self.own_tasks < limits.queue_tasks_max // sharers
            and self.own_bytes + size <= limits.queue_bytes_max // sharers
        )
