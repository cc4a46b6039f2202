"""Streams as the broker sees them: who may speak to a client before its answer, and what that costs.

The events of a task belong to one lease: the one that has the task. What any other lease says is dropped, since no
client may be told two stories. With the first event that is passed on the task *has streamed*, and is never run again:
what would give it to another worker ends it, and nothing but a result of that same lease can end it well. Before its
first event a task of a stream is like any other. One that was given out twice, because its first batch took so long,
goes to whoever speaks first: a model may take long before it says anything, and then it need not do so twice.

Events are not kept here, and not counted: the worker says with its result how many there were, and the gateway, who
wrote them, compares.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from zmesh.core.tasks import Step, TaskState
from zmesh.messages import EVENT_BYTES_MAX, Cancel, Results, SessionId, Status

if TYPE_CHECKING:
    from zmesh.core.events import ChunkArrived
    from zmesh.core.mesh import Mesh
    from zmesh.core.peers import Gateway
    from zmesh.core.stages import StageRecord
    from zmesh.core.tasks import Task
    from zmesh.core.workers import Lease
    from zmesh.messages import Chunk

__all__ = ["break_off", "counted", "has_streamed", "on_chunk_arrived"]

INTERNAL = int(Status.INTERNAL)


def on_chunk_arrived(mesh: Mesh, event: ChunkArrived) -> None:
    worker = mesh.directory.author(event, mesh.now)
    if worker is None:
        return
    chunk = event.message
    if (largest := max(map(len, chunk.payloads), default=0)) > EVENT_BYTES_MAX:
        mesh.directory.strike(event.address, f"an event of {largest} bytes, at most {EVENT_BYTES_MAX}", mesh.now)
        return
    lease = mesh.leases.get(chunk.lease)
    if chunk.epoch != mesh.directory.epoch or lease is None or lease.worker.peer != worker.peer:
        mesh.late += len(chunk.ids)
        return
    stage = mesh.stages[worker.stage]
    rows_of: dict[SessionId, tuple[Gateway, list[int]]] = {}
    for row, id in enumerate(chunk.ids):
        task = mesh.tasks.get(id)
        if task is None or not task.is_last_hop or not (task.lease is lease or _take_back(mesh, stage, lease, task)):
            mesh.late += 1
            continue
        if lease.streamed is None:
            lease.streamed = set()
        lease.streamed.add(id)
        rows_of.setdefault(task.gateway.session, (task.gateway, []))[1].append(row)
    for gateway, rows in rows_of.values():
        mesh.tell(gateway, chunk if len(rows) == len(chunk.ids) else _part(chunk, rows))
    if rows_of and not stage.plan.timeout_seconds:  # a timeout is for the whole of a batch, and its alarm with it
        lease.clock = mesh.now


def _take_back(mesh: Mesh, stage: StageRecord, lease: Lease, task: Task) -> bool:
    """Whether this lease has the task again: it was given out a second time, and nobody has spoken yet."""
    is_its_row = any(held is task and not answered for held, answered in zip(lease.tasks, lease.answered, strict=True))
    if not is_its_row or task.stage != stage.index or task.state is TaskState.HELD or has_streamed(task):
        return False
    if task.lease is not None:
        mesh.tell(task.lease.worker, Cancel([task.id], "another worker has begun to answer"))
    else:
        mesh.leave(task)
        task.take(Step.LEASE)
        stage.leased += 1
        stage.queue.sweep()
    task.lease = lease
    return True


def has_streamed(task: Task) -> bool:
    """Whether its client was told something by the lease that has it."""
    lease = task.lease
    return lease is not None and lease.streamed is not None and task.id in lease.streamed


def break_off(mesh: Mesh, stage: StageRecord, lease: Lease, status: Status, text: bytes) -> None:
    """A lease ends without a result: of its rows, those that have streamed end with it."""
    for task in lease.tasks:
        if task.lease is lease and task.state is TaskState.LEASED and has_streamed(task):
            stage.counts.tasks_error += 1
            mesh.close(task, Step.FAIL, int(status), text)


def counted(results: Results, lease: Lease | None = None) -> Results:
    """`results`, in which a success with events counts only if `lease` has its task: anybody else's were dropped.

    How many there were is noted for the REPLY.
    """
    statuses = list(results.statuses)
    for index, (row, count) in enumerate(zip(results.rows, results.chunks or (), strict=False)):
        if not count:
            continue
        task = lease.tasks[row] if lease is not None else None
        if task is None or task.lease is not lease or task.state is not TaskState.LEASED:
            statuses[index] = INTERNAL
        else:
            assert lease is not None, "a task without a lease"
            task.gateway.owed.note_stream(task.id, lease.id, count)
    return replace(results, statuses=statuses)


def _part(chunk: Chunk, rows: list[int]) -> Chunk:
    """Some rows of it."""
    ids, seqs, payloads = chunk.ids, chunk.seqs, chunk.payloads
    return replace(
        chunk,
        ids=[ids[row] for row in rows],
        seqs=[seqs[row] for row in rows],
        payloads=[payloads[row] for row in rows],
    )
