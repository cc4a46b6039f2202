"""Streams as a gateway hears them: whose events they are, whether one is missing, and whether all came.

A stream is bound to the first lease that says anything of it. Events count from 0 and are never said again, so after a
gap, or when the REPLY knows of more than were heard, a part of the stream is lost for good and it can only end in an
error. What a client has read is always the beginning of what was said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zmesh.core.effects import Deliver
from zmesh.messages import Chunk, Kind, LeaseId, Reply, Status, TaskId

if TYPE_CHECKING:
    from zmesh.core.requests import Request

__all__ = ["LOST_EVENTS", "Sequences"]

LOST_EVENTS = b"events of the stream were lost"
OK, AGAIN, INTERNAL, INLINE = int(Status.OK), int(Status.AGAIN), int(Status.INTERNAL), int(Kind.INLINE)


@dataclass(slots=True, eq=False)
class _Stream:
    lease: LeaseId
    heard: int


class Sequences:
    """The streams of one gateway. `begun` are those of which something was heard in the present session; `due` is to be
    delivered. Both are for reading."""

    def __init__(self) -> None:
        self.begun: dict[TaskId, _Stream] = {}
        self.due = Deliver([], [])

    def hear(self, chunk: Chunk, table: Mapping[TaskId, Request]) -> list[Request]:
        """Whose stream is broken by this: one before its event is missing. What nobody waits for is dropped."""
        broken = []
        for id, number, payload in zip(chunk.ids, chunk.seqs, chunk.payloads, strict=True):
            request = table.get(id)
            if request is None or request.sent_epoch != chunk.epoch:
                continue
            stream = self.begun.get(id)
            if stream is None:
                stream = self.begun[id] = _Stream(chunk.lease, 0)
            if stream.lease != chunk.lease or number < stream.heard:
                continue
            if number > stream.heard:
                broken.append(request)
            else:
                stream.heard += 1
                self.due.requests.append(request)
                self.due.payloads.append(payload)
        return broken

    def checked(self, reply: Reply) -> Reply:
        """`reply`, in which a stream that is not whole, or to be run again, ends in an error. All are forgotten."""
        statuses, payloads, kinds = list(reply.statuses), list(reply.payloads), list(reply.kinds)
        leases, chunks = reply.leases or [LeaseId(0)] * len(statuses), reply.chunks or [0] * len(statuses)
        for row, (id, lease, count) in enumerate(zip(reply.ids, leases, chunks, strict=True)):
            stream = self.begun.pop(id, None)
            if statuses[row] not in (OK, AGAIN) or (stream is None and not count):
                continue
            if stream is None or (stream.lease, stream.heard) != (lease, count):  # no lease is named with AGAIN
                statuses[row], payloads[row], kinds[row] = INTERNAL, LOST_EVENTS, INLINE
        return replace(reply, statuses=statuses, payloads=payloads, kinds=kinds)

    def forget(self, id: TaskId) -> None:
        self.begun.pop(id, None)

    def take_due(self) -> Deliver:
        due, self.due = self.due, Deliver([], [])
        return due

    def take_all(self) -> list[TaskId]:
        """All that were begun, which are forgotten."""
        ids = list(self.begun)
        self.begun.clear()
        return ids
