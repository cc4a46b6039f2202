"""Bytes that wait at later steps of the mesh, and which steps they hold up.

Moving on to the next stage is never refused, since that would hold up the very work that makes room. So what bounds the
queues of later stages is that nothing new is begun: while more than `bytes_max` wait beyond a step, tasks at that step
are not leased. Beyond the last step nothing waits, so a last step is never held up; and beyond the furthest step at
which anything waits there is nothing either, so somebody can always go on, whichever way routes cross each other.

Shared by all queues of a mesh, which tell it what comes and goes. Suspects count; what is held back for a gateway that
does not take its answers does not, or that gateway would hold up the others.
"""

from __future__ import annotations

__all__ = ["Midway"]


class Midway:
    """`beyond[hop]` are the bytes that wait at steps after that one."""

    __slots__ = ("beyond", "bytes_max", "fell")

    def __init__(self, bytes_max: int, hops: int) -> None:
        self.bytes_max = bytes_max
        self.beyond = [0] * hops
        self.fell = False  # back within the bound: who was held up may go on

    def add(self, hop: int, size: int) -> None:
        """So many bytes more wait at this step, or fewer."""
        for before in range(hop):
            was_over = self.withholds(before)
            self.beyond[before] += size
            if was_over and not self.withholds(before):
                self.fell = True

    def withholds(self, hop: int) -> bool:
        """Whether tasks at this step are not leased now."""
        return self.beyond[hop] > self.bytes_max
