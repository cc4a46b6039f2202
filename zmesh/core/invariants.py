"""What must always hold between the parts of a dispatcher. One function, called after every step in tests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from zmesh.core.tasks import Task, TaskState
from zmesh.core.workers import Presence, Worker
from zmesh.messages import Kind, SessionId

if TYPE_CHECKING:
    from zmesh.core.dispatcher import Dispatcher
    from zmesh.core.mesh import Mesh
    from zmesh.core.stages import StageRecord

__all__ = ["check"]


def check(dispatcher: Dispatcher) -> None:
    """Raises AssertionError, with the story of the task where it concerns one."""
    mesh = dispatcher.mesh
    for stage in mesh.stages:
        _check_queue(mesh, stage)
        for worker in stage.crew.workers.values():
            _check_worker(mesh, stage, worker)
    assert all(due <= mesh.now + mesh.limits.probe_seconds for due in mesh.probes.values()), "a probe is put off"
    assert [at for at, _ in mesh.exiting] == sorted(at for at, _ in mesh.exiting), "ends out of order"
    _check_leases(mesh)
    _check_tasks(mesh)
    _check_answers(mesh)
    _check_shares(mesh)
    _check_midway(mesh)


def _check_queue(mesh: Mesh, stage: StageRecord) -> None:
    living = list(stage.queue.living())
    assert len(living) == len({task.id for task in living}), f"{stage.plan.name}: a task waits twice"
    assert stage.queue.waiting == sum(t.state is TaskState.QUEUED for t in living), f"{stage.plan.name}: waiting"
    assert stage.queue.suspects == sum(t.state is TaskState.SUSPECT for t in living), f"{stage.plan.name}: suspects"
    held = [task for task in living if task.state is TaskState.HELD]
    assert stage.queue.held == len(held), f"{stage.plan.name}: held"
    assert stage.queue.held_bytes == sum(task.size for task in held), f"{stage.plan.name}: held bytes"
    free = [task for task in living if task.state is not TaskState.HELD]
    assert stage.queue.bytes == sum(task.size for task in free), f"{stage.plan.name}: queued bytes"
    assert all(task.id in mesh.tasks for task in living), f"{stage.plan.name}: a waiting task is unknown"
    assert stage.failing is None or not stage.crew.ready(), f"{stage.plan.name}: failing with workers that are ready"


def _check_shares(mesh: Mesh) -> None:
    """What of a gateway's waits at each stage is counted for it, and gateways are."""
    waiting: Counter[tuple[SessionId, int]] = Counter()
    sizes: Counter[tuple[SessionId, int]] = Counter()
    for task in mesh.tasks.values():
        if task.state in (TaskState.QUEUED, TaskState.SUSPECT):
            waiting[task.gateway.session, task.stage] += 1
            sizes[task.gateway.session, task.stage] += task.size
    gateways = mesh.directory.gateways()
    assert mesh.directory.gateway_count == len(gateways), "gateways"
    for gateway in gateways:
        for stage, share in gateway.shares.items():
            name, place = f"gateway {gateway.session:x} at {mesh.stages[stage].plan.name}", (gateway.session, stage)
            assert (share.tasks, share.bytes) == (waiting[place], sizes[place]), f"{name}: its share"


def _check_midway(mesh: Mesh) -> None:
    """Bytes beyond each step, and who is available for them."""
    for hop, beyond in enumerate(mesh.midway.beyond):
        waiting = [task for task in mesh.tasks.values() if task.state in (TaskState.QUEUED, TaskState.SUSPECT)]
        assert beyond == sum(task.size for task in waiting if task.hop > hop), f"bytes beyond step {hop}"
    for stage in mesh.stages:
        queued = [task for task in stage.queue.living() if task.state is TaskState.QUEUED]
        may_go = [task for task in queued if task.is_last_hop or not mesh.midway.withholds(task.hop)]
        assert stage.queue.available == len(may_go), f"{stage.plan.name}: available"


def _check_worker(mesh: Mesh, stage: StageRecord, worker: Worker) -> None:
    name, crew = f"{stage.plan.name}/{worker.worker_id}", stage.crew
    assert worker.session in mesh.directory.sessions, f"{name}: at work without a session"
    assert worker.presence is not Presence.GONE, f"{name}: gone and still at work"
    assert worker.credit >= 0, f"{name}: above its credit"
    ends = worker.presence in (Presence.LOST, Presence.EXITING)
    assert ends == ((worker.ends_at, worker) in mesh.exiting), f"{name}: its end is settled or not"
    _check_patience(mesh, stage, worker, name)
    usable = worker.presence is Presence.READY and worker.credit > 0
    assert (worker.session in crew.idle) == (usable and not worker.leases), f"{name}: idle or not"
    assert (worker.session in crew.busy) == bool(worker.leases), f"{name}: busy or not"
    oldest = worker.oldest()
    ahead = usable and oldest is not None and not oldest.suspect
    assert (worker.session in crew.ahead) == ahead, f"{name}: may be given work ahead or not"
    for lease in worker.leases.values():
        assert mesh.leases.get(lease.id) is lease and lease.worker is worker, f"{name}: lease {lease.id}"
        assert lease.left == len(lease.tasks) - sum(lease.answered), f"{name}: rows left of lease {lease.id}"
        assert lease.left > 0, f"{name}: lease {lease.id} has no row left"
        assert len(lease.tasks) <= stage.plan.max_batch_size, f"{name}: lease {lease.id} is too large"
    suspects = [lease for lease in worker.leases.values() if lease.suspect]
    assert not suspects or len(worker.leases) == 1, f"{name}: a suspect has company"
    for lease in suspects:
        least = min([task.group_max for task in lease.tasks if task.lease is lease], default=len(lease.tasks))
        assert len(lease.tasks) <= least, f"{name}: a group of {len(lease.tasks)} has one that may be in {least}"


def _check_patience(mesh: Mesh, stage: StageRecord, worker: Worker, name: str) -> None:
    """Where batches may take so long and no longer, somebody looks in time."""
    oldest = worker.oldest()
    if oldest is not None and stage.plan.timeout_seconds:
        latest = max(stage.kill_at(oldest, mesh.limits), mesh.now + mesh.limits.heartbeat_seconds)
        asked = stage.overdue_at is not None and stage.overdue_at <= latest
        assert asked, f"{name}: nobody looks whether lease {oldest.id} takes too long"


def _check_leases(mesh: Mesh) -> None:
    for lease in mesh.leases.values():
        assert lease.is_open and lease.worker.leases.get(lease.id) is lease, f"lease {lease.id} is in nobody's hands"
    late = mesh.late_leases
    assert not any(lease.is_open for lease in late.values()), "a lease that ended is open"
    assert len(late) <= mesh.limits.late_leases_max, "more ended leases than may be kept"


def _check_tasks(mesh: Mesh) -> None:
    leased: Counter[int] = Counter()
    for task in mesh.tasks.values():
        story = "; ".join(mesh.story(task.id))
        assert task.state is not TaskState.SUSPECT or task.group_max, (
            f"task {task.id:x} is suspected of nothing: {story}"
        )
        assert task.state is not TaskState.DONE, f"task {task.id:x} is done and still here: {story}"
        if task.state is TaskState.LEASED:
            leased[task.stage] += 1
            _check_leased(mesh, task, story)
        else:
            assert task.lease is None, f"task {task.id:x} waits and has a lease: {story}"
    for stage in mesh.stages:
        assert stage.leased == leased[stage.index], f"{stage.plan.name}: leased tasks"
    waiting = sum(len(list(stage.queue.living())) for stage in mesh.stages)
    assert waiting + sum(leased.values()) == len(mesh.tasks), "each task waits or is leased"
    assert mesh.task_bytes == sum(task.size for task in mesh.tasks.values()), "bytes of all tasks"


def _check_leased(mesh: Mesh, task: Task, story: str) -> None:
    lease = task.lease
    assert lease is not None and lease.is_open, f"task {task.id:x} is leased by nobody: {story}"
    assert lease.worker.stage == task.stage, f"task {task.id:x} is leased at another stage: {story}"
    is_there = task.kind != Kind.HOST_BOUND or lease.worker.memory == task.memory
    assert is_there, f"task {task.id:x} is leased where nobody can open its payload: {story}"
    rows = [row for row, held in enumerate(lease.tasks) if held is task]
    assert len(rows) == 1 and not lease.answered[rows[0]], f"task {task.id:x}: its row is answered: {story}"


def _check_answers(mesh: Mesh) -> None:
    """What a gateway did not acknowledge is counted, and above the bound nothing of its own is leased."""
    for gateway in mesh.directory.gateways():
        kept = gateway.kept
        name, numbers = f"gateway {gateway.session:x}", [one.reply.number for one in kept.said]
        assert numbers == sorted(set(numbers)), f"{name}: kept answers out of order"
        assert not numbers or numbers[-1] <= gateway.number, f"{name}: an answer was never said"
        assert kept.bytes == sum(one.bytes for one in (*kept.said, *kept.unsaid)), f"{name}: bytes of kept answers"
        if kept.bytes > mesh.limits.answer_bytes_max:
            assert gateway.session in mesh.held, f"{name}: too many answers, and its tasks are leased"
    for session in mesh.held:
        assert session in mesh.directory.sessions, f"held back for the gateway {session:x}, which is gone"
    for task in mesh.tasks.values():
        held = task.gateway.session in mesh.held
        assert not (held and task.state is TaskState.QUEUED), f"task {task.id:x} may be leased, its gateway is full"
        assert held or task.state is not TaskState.HELD, f"task {task.id:x} is held back for nothing"
