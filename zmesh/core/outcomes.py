"""What workers say of their batches: rows succeed and move on, or fail; a lease whose every row has a status is over.

A result belongs to (lease, row). A success counts as long as its task is not done and still at that stage, whoever
brings it; the task's other lease row is then void. An error counts only from the lease that holds the task now, and so
does everything about a stream.

Lease numbers mean nothing in another epoch. Results of an earlier one bring the ids of their tasks: what the gateways
have submitted again by then, and only successes, counts as a late success does.
"""

from __future__ import annotations

from zmesh.core import endings
from zmesh.core.events import BatchFinished
from zmesh.core.mesh import Mesh
from zmesh.core.stages import StageRecord
from zmesh.core.streams import counted, has_streamed
from zmesh.core.tasks import DONE, LEASED, Step, Task
from zmesh.core.workers import Lease, Presence, Worker
from zmesh.messages import Ack, Kind, LeaseId, Results, Status

__all__ = ["on_batch_finished"]

OK, AGAIN, INTERNAL, TIMEOUT = int(Status.OK), int(Status.AGAIN), int(Status.INTERNAL), int(Status.TIMEOUT)
INLINE = int(Kind.INLINE)
DRAINING = Presence.DRAINING
SHORTEST_SERVICE_SECONDS = 1e-6
COMPUTE_US_MAX = 2**63 - 1  # of a task over all stages; with more its REPLY could not be read, again and again


def _size(results: Results) -> int:
    """Bytes of its payloads, or what they stand for."""
    return sum(map(len, results.payloads) if results.sizes is None else results.sizes)


def on_batch_finished(mesh: Mesh, event: BatchFinished) -> None:
    worker = mesh.directory.author(event, mesh.now)
    if worker is None:
        return
    results = event.message
    if results.metrics:
        mesh.take_metrics(worker, event.address, results.metrics)
    if results.epoch != mesh.directory.epoch:
        _take_former(mesh, worker, results)  # they are not kept, so nothing is acknowledged
        return
    is_open = worker.session in mesh.directory.sessions
    lease = mesh.leases.get(results.lease) or mesh.late_leases.get(results.lease)
    if lease is None or lease.worker.peer != worker.peer:
        mesh.late += len(results.rows)
        if is_open:
            _acknowledge(mesh, worker, results.lease)  # it may let go of what nobody wants
        return
    if max(results.rows, default=0) >= len(lease.tasks):
        text = f"a result for row {max(results.rows)} of a batch of {len(lease.tasks)}"
        mesh.directory.strike(event.address, text, mesh.now)
        return
    stage = mesh.stages[worker.stage]
    _take_rows(mesh, stage, lease, results)
    if lease.left == 0:
        if lease.is_open:
            _finish(mesh, stage, lease)
        if is_open:
            _acknowledge(mesh, worker, lease.id)


def _acknowledge(mesh: Mesh, worker: Worker, lease: LeaseId) -> None:
    """With the next TASKS, or at the latest with the next sweep; one that drains gets no TASKS and waits for this."""
    worker.acks.append(lease)
    if worker.presence is DRAINING:
        mesh.tell(worker, Ack(worker.take_acks(), []))


def _take_rows(mesh: Mesh, stage: StageRecord, lease: Lease, results: Results) -> None:
    """Give each row its status, move successes on, and let the stage learn from the batch."""
    onward: dict[int, list[Task]] = {}
    if results.chunks is not None:
        results = counted(results, lease)
    is_plain = _is_plain(lease, results)
    taken, good = (_succeed_together if is_plain else _take_each)(mesh, stage, lease, results, onward)
    lease.left -= taken
    counts = stage.counts
    counts.tasks_ok += good
    counts.bytes_out += _size(results)
    if taken:
        lease.clock = mesh.now
        lease.succeeded = lease.succeeded or OK in results.statuses  # whoever wants it
        if lease.is_open and not lease.is_free:
            service = max(mesh.now - lease.started, SHORTEST_SERVICE_SECONDS)
            if good:
                lease.worker.seconds = stage.batcher.ran(mesh.now, taken, service, lease.worker.seconds)
            mesh.answered(stage, lease.tasks if is_plain else [lease.tasks[row] for row in results.rows])
    _send_on(mesh, onward)
    mesh.remember("results of", f"{stage.plan.name}/{lease.worker.worker_id}", lease.ids)


def _is_plain(lease: Lease, results: Results) -> bool:
    """Nearly always: all rows of a batch in order, all of them good, and nothing befell their tasks meanwhile."""
    tasks = lease.tasks
    return (
        not any(results.statuses)
        and lease.left == len(tasks)
        and results.rows == list(range(len(tasks)))
        and not [task for task in tasks if task.lease is not lease or task.state is not LEASED]
    )


def _succeed_together(
    mesh: Mesh, stage: StageRecord, lease: Lease, results: Results, onward: dict[int, list[Task]]
) -> tuple[int, int]:
    """What `_take_each` does with the rows of a plain batch, in whole columns. How many were taken, and are good."""
    tasks, compute_us = lease.tasks, results.compute_us
    count = len(tasks)
    lease.answered = bytearray(b"\1" * count)
    for task in tasks:
        task.compute_us += compute_us
        if task.compute_us > COMPUTE_US_MAX:
            task.compute_us = COMPUTE_US_MAX
    last = count if stage.is_alone else sum([task.hop == task.route.last for task in tasks])
    if last in (0, count):  # nearly always
        stage.leased -= count
        if last:
            mesh.finish(tasks, results.payloads, results.kinds)
        else:
            memory = lease.worker.memory
            onward |= mesh.advance(tasks, results.payloads, results.kinds, results.sizes, memory)
    else:
        for index, task in enumerate(tasks):
            _succeed(mesh, task, results, index, lease.worker, onward)
    return count, count


def _take_each(
    mesh: Mesh, stage: StageRecord, lease: Lease, results: Results, onward: dict[int, list[Task]]
) -> tuple[int, int]:
    """Row by row. How many were taken, and how many are good."""
    good = taken = 0
    for index, (row, status) in enumerate(zip(results.rows, results.statuses, strict=True)):
        if lease.answered[row]:
            continue
        lease.answered[row] = 1
        taken += 1
        task = lease.tasks[row]
        if not _is_at(task, stage) or (task.lease is not lease and (status != OK or has_streamed(task))):
            mesh.late += 1
            continue
        task.compute_us = min(task.compute_us + results.compute_us, COMPUTE_US_MAX)
        if status == OK:
            good += 1
            _succeed(mesh, task, results, index, lease.worker, onward)
        elif status == TIMEOUT and endings.set_apart(mesh, stage, task):
            mesh.awaken(stage)
        elif status == AGAIN and task.kind != INLINE:
            mesh.leave(task)
            endings.start_over(mesh, stage, task)
        else:
            stage.counts.tasks_error += 1
            known = status if status != AGAIN else INTERNAL  # of a payload that came with the task nothing can be lost
            mesh.close(task, Step.FAIL, known, results.payloads[index], results.kinds[index])
    return taken, good


def _take_former(mesh: Mesh, worker: Worker, results: Results) -> None:
    """Results of another epoch, by the ids of their tasks; the lease that has such a task now is void for its row."""
    stage = mesh.stages[worker.stage]
    onward: dict[int, list[Task]] = {}
    if results.chunks is not None:
        results = counted(results)
    ids, good = results.ids or [], 0
    for index, (id, status) in enumerate(zip(ids, results.statuses, strict=False)):
        task = mesh.tasks.get(id)
        if status == OK and task is not None and _is_at(task, stage) and not has_streamed(task):
            good += 1
            task.compute_us = min(task.compute_us + results.compute_us, COMPUTE_US_MAX)
            _succeed(mesh, task, results, index, worker, onward)
    stage.counts.tasks_ok += good
    stage.counts.bytes_out += _size(results)
    mesh.late += len(results.rows) - good
    stage.queue.sweep()
    _send_on(mesh, onward)
    mesh.remember("results of another epoch at", stage.plan.name, ids)


def _is_at(task: Task, stage: StageRecord) -> bool:
    return task.state is not DONE and task.route.stages[task.hop] == stage.index


def _succeed(
    mesh: Mesh, task: Task, results: Results, index: int, worker: Worker, onward: dict[int, list[Task]]
) -> None:
    """This stage is done with the task: it is answered, or goes to the stages in `onward`."""
    payload, kind = results.payloads[index], results.kinds[index]
    if task.is_last_hop:
        mesh.close(task, Step.FINISH, OK, payload, kind)
        return
    mesh.leave(task)
    sizes = None if results.sizes is None else [results.sizes[index]]
    for following, tasks in mesh.advance([task], [payload], [kind], sizes, worker.memory).items():
        onward.setdefault(following, []).extend(tasks)


def _send_on(mesh: Mesh, onward: dict[int, list[Task]]) -> None:
    for following, tasks in onward.items():
        mesh.enqueue(mesh.stages[following], tasks)


def _finish(mesh: Mesh, stage: StageRecord, lease: Lease) -> None:
    """Only a finished lease grants credit."""
    worker = lease.worker
    if lease.succeeded:
        worker.tally.running.add(mesh.now - lease.started)
    worker.batches += 1
    worker.tasks += len(lease.tasks)
    if lease.succeeded and not lease.is_interrupted:
        worker.has_succeeded = worker.may_interrupt = True
    del mesh.leases[lease.id]
    stage.crew.release(worker, lease, mesh.now, grant=True)
    mesh.awaken(stage)
