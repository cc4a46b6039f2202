"""What becomes of the rows of a lease that ends without a result.

Inference is pure, so a row is simply run again; the exceptions are what this file is about. A process that died may
have died *of* a row: then everything it was running is charged with a death and becomes suspect, and a row that died
alone twice is answered 500 and never run again. What merely waited in the process is returned as if nothing had been.
A stage that may run a task only once answers 500 for what it was running, since nobody can know how far it got.

A batch that takes longer than its stage allows ends with an alarm in its process, or with the process. Any of its rows
may be the reason: each of them that has time left is run again, alone, and one that was alone is answered 408.

A row that has streamed is never run again, whatever happened: see `streams`.

A payload that a stage has left in a store may be lost, or out of reach. Nobody here has another, so its task begins
anew at its first stage, unless a stage that it has behind it may run it only once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmesh.core.streams import break_off, has_streamed
from zmesh.core.tasks import Step, Task, TaskState
from zmesh.core.workers import Presence
from zmesh.messages import Phase, Status

if TYPE_CHECKING:
    from zmesh.core.mesh import Mesh
    from zmesh.core.stages import StageRecord
    from zmesh.core.workers import Lease

__all__ = ["charged_rows", "end_lease", "hedge_lease", "set_apart", "start_over", "unmake_lease"]

BROKEN_STREAM = b"its worker was lost in the middle of the stream"
ANEW_MS = 10  # until a task whose payload was lost is submitted again
KILLED, TERMINATED = -9, -15  # by signal; `import signal` is not for a module that only decides


def charged_rows(lease: Lease) -> range:
    """The rows of a lease that its worker's death is charged to; empty when it is nobody's fault.

    A signal from outside (SIGTERM, SIGKILL without an out-of-memory kill) says nothing about the rows. An exit with 0
    does: a worker that leaves runs nothing any more, so this is user code that has called `sys.exit()`.
    """
    exited = lease.worker.exit
    if exited is None or exited.lease != lease.id:
        return range(0)
    if exited.code == TERMINATED or (exited.code == KILLED and not exited.oom):
        return range(0)
    if exited.phase in (Phase.DECODE, Phase.ENCODE):
        return range(exited.row, min(exited.row + 1, len(lease.tasks)))
    return range(len(lease.tasks)) if exited.phase is Phase.FORWARD else range(0)


def end_lease(mesh: Mesh, stage: StageRecord, lease: Lease) -> None:
    """The lease is over and its worker gone. Its rows go back to the front, are blamed, or end."""
    overran = _has_overrun(lease)
    once_only = not stage.plan.retry and _may_have_run(lease)
    blamed = charged_rows(lease)
    back: list[Task] = []
    if blamed or overran:
        stage.counts.deaths += 1
    if lease.streamed:
        status, text = (Status.TIMEOUT, _too_long(stage)) if overran else (Status.INTERNAL, BROKEN_STREAM)
        break_off(mesh, stage, lease, status, text)
    for row, task in _open_rows(lease):
        if overran:
            _overrun(mesh, stage, task)
        elif once_only:
            mesh.close(task, Step.FAIL, int(Status.INTERNAL), b"outcome unknown")
        elif row in blamed:
            _blame(mesh, stage, lease, task, group_max=lease.left // 2 if len(blamed) > 1 else 1)
        elif _may_return(mesh, stage, task):
            back.append(task)
    _return(mesh, stage, back)
    _retire(mesh, stage, lease)


def unmake_lease(mesh: Mesh, stage: StageRecord, lease: Lease) -> None:
    """The batch never arrived; what its worker was granted for it is the caller's to give back."""
    break_off(mesh, stage, lease, Status.INTERNAL, BROKEN_STREAM)
    _return(mesh, stage, [task for _, task in _open_rows(lease) if _may_return(mesh, stage, task)])
    _retire(mesh, stage, lease)


def hedge_lease(mesh: Mesh, stage: StageRecord, lease: Lease) -> None:
    """The batch takes far too long: its rows are run elsewhere as well, once, and the first success counts."""
    rows = [task for _, task in _open_rows(lease) if not task.hedged and not has_streamed(task)]
    for task in rows:
        task.hedged = True
    _return(mesh, stage, rows)


def set_apart(mesh: Mesh, stage: StageRecord, task: Task) -> bool:
    """Its batch took longer than the stage allows. Whether it is run again, alone; else it may be told so.

    At a stage that allows any time it is user code that says so, of this row and no other.
    """
    assert task.lease is not None, "only what a worker has can take too long"
    plan = stage.plan
    if not plan.timeout_seconds or len(task.lease.tasks) == 1 or not plan.retry or task.deadline <= mesh.now:
        return False
    if has_streamed(task):
        return False
    _suspect(stage, task, group_max=1)
    return True


def start_over(mesh: Mesh, stage: StageRecord, task: Task) -> None:
    """What the stage before has left for it cannot be had. No queue and no lease counts it any more."""
    before = [mesh.stages[index].plan for index in task.route.stages[: task.hop]]
    once_only = next((plan.name for plan in before if not plan.retry), None)
    if once_only is None:
        stage.counts.returned += 1
        mesh.begin_anew(task, ANEW_MS)
        return
    stage.counts.tasks_error += 1
    text = f"the result of stage {before[-1].name} is lost, and stage {once_only} must not run again"
    mesh.bury(task, Step.FAIL, int(Status.INTERNAL), text.encode())


def _has_overrun(lease: Lease) -> bool:
    """Whether its worker was ended because of the time it took."""
    exited = lease.worker.exit
    return lease.killed_at is not None and exited is not None and (exited.lease, exited.code) == (lease.id, KILLED)


def _overrun(mesh: Mesh, stage: StageRecord, task: Task) -> None:
    task.deaths += 1
    if not set_apart(mesh, stage, task):
        stage.counts.tasks_error += 1
        mesh.close(task, Step.FAIL, int(Status.TIMEOUT), _too_long(stage))


def _too_long(stage: StageRecord) -> bytes:
    return f"request timeout: the stage took longer than {stage.plan.timeout_seconds:g} s".encode()


def _may_have_run(lease: Lease) -> bool:
    """Whether any row may have reached `forward`. Leases run in the order of their numbers.

    What is older than the lease on the slate has run, and its results are lost. An idle worker ran all that it was
    given or saw none of it, and one that is merely out of reach may be running anything: nobody can know.
    """
    worker, exited = lease.worker, lease.worker.exit
    if exited is None:
        return worker.presence is Presence.LOST or worker.oldest() is lease
    return lease.id <= exited.lease if exited.lease else exited.phase is not Phase.STARTING


def _open_rows(lease: Lease) -> list[tuple[int, Task]]:
    """Rows without a status whose task still belongs to this lease."""
    return [
        (row, task)
        for row, task in enumerate(lease.tasks)
        if not lease.answered[row] and task.lease is lease and task.state is TaskState.LEASED
    ]


def _may_return(mesh: Mesh, stage: StageRecord, task: Task) -> bool:
    """Count the return; a task that came back too often ends here."""
    task.returns += 1
    if task.returns <= mesh.limits.requeues_max:
        return True
    text = f"given back {task.returns} times by stage {stage.plan.name}"
    mesh.close(task, Step.FAIL, int(Status.INTERNAL), text.encode())
    return False


def _return(mesh: Mesh, stage: StageRecord, tasks: list[Task]) -> None:
    suspects = [task for task in tasks if task.group_max]
    for task in tasks:
        task.take(Step.BLAME if task.group_max else Step.RETURN)
        task.lease = None
        task.attempt += 1
    stage.leased -= len(tasks)
    stage.counts.returned += len(tasks)
    innocents = [task for task in tasks if not task.group_max]
    stage.queue.push_front(mesh.not_held(stage, innocents) if mesh.held else innocents)
    for task in suspects:
        stage.queue.push_suspect(task)


def _blame(mesh: Mesh, stage: StageRecord, lease: Lease, task: Task, group_max: int) -> None:
    task.deaths += 1
    task.alone_deaths += lease.left == 1
    if task.alone_deaths >= mesh.limits.deaths_max:
        stage.counts.poisoned += 1
        mesh.report("error", f"task {task.id:x} killed {task.deaths} workers of {stage.plan.name} and is not run again")
        mesh.close(task, Step.POISON, int(Status.POISONED), b"worker died")
        return
    _suspect(stage, task, group_max)


def _suspect(stage: StageRecord, task: Task, group_max: int) -> None:
    """Run it apart, in a batch of so many at most, and never in a larger one than before."""
    task.group_max = min(task.group_max or group_max, group_max) or 1
    task.take(Step.BLAME)
    task.lease = None
    task.attempt += 1
    stage.leased -= 1
    stage.counts.returned += 1
    stage.queue.push_suspect(task)


def _retire(mesh: Mesh, stage: StageRecord, lease: Lease) -> None:
    """Keep an ended lease for a while: its results may still be on their way."""
    mesh.leases.pop(lease.id, None)
    stage.crew.release(lease.worker, lease, mesh.now, grant=False)
    late = mesh.late_leases
    late[lease.id] = lease
    while len(late) > mesh.limits.late_leases_max:
        late.popitem(last=False)
