"""What becomes of the rows of a lease that ends without a result.

Inference is pure, so a row is simply run again; the exceptions are what this file is about. A process that died may
have died *of* a row: then everything it was running is charged with a death and becomes suspect, and a row that died
alone twice is answered 500 and never run again. What merely waited in the process is returned as if nothing had been.
A stage that may run a task only once answers 500 for what it was running, since nobody can know how far it got.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmesh.core.tasks import Step, Task, TaskState
from zmesh.core.workers import Presence
from zmesh.messages import Phase, Status

if TYPE_CHECKING:
    from zmesh.core.mesh import Mesh
    from zmesh.core.stages import StageRecord
    from zmesh.core.workers import Lease

__all__ = ["charged_rows", "end_lease", "hedge_lease", "unmake_lease"]

KILLED, TERMINATED = -9, -15  # by signal; `import signal` is not for a module that only decides


def charged_rows(lease: Lease) -> range:
    """The rows of a lease that its worker's death is charged to; empty when it is nobody's fault.

    A signal from outside (SIGTERM, SIGKILL without an out-of-memory kill) and a clean exit say nothing about the rows.
    """
    exited = lease.worker.exit
    if exited is None or exited.lease != lease.id:
        return range(0)
    if exited.code in (0, TERMINATED) or (exited.code == KILLED and not exited.oom):
        return range(0)
    if exited.phase in (Phase.DECODE, Phase.ENCODE):
        return range(exited.row, min(exited.row + 1, len(lease.tasks)))
    return range(len(lease.tasks)) if exited.phase is Phase.FORWARD else range(0)


def end_lease(mesh: Mesh, stage: StageRecord, lease: Lease) -> None:
    """The lease is over and its worker gone. Its rows go back to the front, are blamed, or end."""
    once_only = not stage.plan.retry and _may_have_run(lease)
    blamed = charged_rows(lease)
    back: list[Task] = []
    if blamed:
        stage.counts.deaths += 1
    for row, task in _open_rows(lease):
        if once_only:
            mesh.close(task, Step.FAIL, int(Status.INTERNAL), b"outcome unknown")
        elif row in blamed:
            _blame(mesh, stage, task, alone=lease.left == 1)
        elif _may_return(mesh, stage, task):
            back.append(task)
    _return(mesh, stage, back)
    _retire(mesh, stage, lease)


def unmake_lease(mesh: Mesh, stage: StageRecord, lease: Lease) -> None:
    """The batch never arrived; what its worker was granted for it is the caller's to give back."""
    _return(mesh, stage, [task for _, task in _open_rows(lease) if _may_return(mesh, stage, task)])
    _retire(mesh, stage, lease)


def hedge_lease(mesh: Mesh, stage: StageRecord, lease: Lease) -> None:
    """The batch takes far too long: its rows are run elsewhere as well, once, and the first success counts."""
    rows = [task for _, task in _open_rows(lease) if not task.hedged]
    for task in rows:
        task.hedged = True
    _return(mesh, stage, rows)


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
    suspects = [task for task in tasks if task.deaths]
    for task in tasks:
        task.take(Step.BLAME if task.deaths else Step.RETURN)
        task.lease = None
        task.attempt += 1
    stage.leased -= len(tasks)
    stage.counts.returned += len(tasks)
    innocents = [task for task in tasks if not task.deaths]
    stage.queue.push_front(mesh.not_held(stage, innocents) if mesh.held else innocents)
    for task in suspects:
        stage.queue.push_suspect(task)


def _blame(mesh: Mesh, stage: StageRecord, task: Task, alone: bool) -> None:
    task.deaths += 1
    task.alone_deaths += alone
    if task.alone_deaths >= mesh.limits.deaths_max:
        stage.counts.poisoned += 1
        mesh.close(task, Step.POISON, int(Status.POISONED), b"worker died")
        text = f"task {task.id:x} killed {task.deaths} workers of {stage.plan.name} and is not run again"
        mesh.report("error", text)
        return
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
