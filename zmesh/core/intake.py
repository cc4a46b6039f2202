"""What gateways say: tasks are admitted or shed, and cancelled."""

from __future__ import annotations

from collections.abc import Set

from zmesh.core.admission import Room
from zmesh.core.events import TasksCancelled, TasksSubmitted
from zmesh.core.mesh import Mesh
from zmesh.core.orders import interrupt_unwanted
from zmesh.core.parts import lists
from zmesh.core.peers import Gateway
from zmesh.core.stages import StageRecord
from zmesh.core.tasks import Route, Step, Task
from zmesh.core.workers import Worker
from zmesh.messages import Cancel, SessionId, Status, Submit, TaskId

__all__ = ["cancel", "on_tasks_cancelled", "on_tasks_submitted"]

AGAIN_AFTER_MS = "100"
NOBODY: frozenset[TaskId] = frozenset()


def on_tasks_submitted(mesh: Mesh, event: TasksSubmitted) -> None:
    gateway = mesh.directory.known(event, Gateway, mesh.now)
    if gateway is None:
        return
    submit = event.message
    mesh.acknowledge(gateway, submit.handled)
    # These answers were said in this session already, or will be, so nothing is said twice here.
    answered = gateway.answered() if submit.again else NOBODY
    is_in_doubt = submit.again and gateway.was_given_up  # it may have run already
    if submit.all:
        gateway.was_given_up = False
    route = mesh.routes.get(submit.route)
    if route is None:
        _refuse(mesh, gateway, submit, answered, Status.INTERNAL, f"the broker knows no route {submit.route}")
        return
    failing = [text for index in route.stages if (text := mesh.stages[index].failing)]
    if failing:
        _refuse(mesh, gateway, submit, answered, Status.UNAVAILABLE, failing[0])
    elif is_in_doubt and not all(mesh.stages[index].plan.retry for index in route.stages):
        _refuse(mesh, gateway, submit, answered, Status.INTERNAL, "outcome unknown")
    elif mesh.drain is not None:
        _refuse(mesh, gateway, submit, answered, Status.AGAIN, AGAIN_AFTER_MS)
    else:
        _admit(mesh, gateway, route, submit, answered)


def _refuse(mesh: Mesh, gateway: Gateway, submit: Submit, answered: Set[TaskId], status: Status, text: str) -> None:
    for task_id, left in zip(submit.columns.ids, submit.columns.remaining_ms, strict=True):
        if task_id not in mesh.tasks and task_id not in answered:
            mesh.refuse(gateway, task_id, status, text, mesh.now + left / 1000)


def _admit(mesh: Mesh, gateway: Gateway, route: Route, submit: Submit, answered: Set[TaskId]) -> None:
    stage, columns, now, tasks = mesh.stages[route.stages[0]], submit.columns, mesh.now, mesh.tasks
    room = _room(mesh, gateway, stage)
    if columns.ids and not answered and tasks.keys().isdisjoint(columns.ids):
        size = sum(map(len, columns.payloads))
        if submit.again or room.has_for(len(columns.ids), size):  # nearly always
            _admit_all(mesh, gateway, route, submit, size)
            return
    admitted: list[Task] = []
    contexts = columns.contexts or [None] * len(columns.ids)
    for task_id, left, kind, payload, context in zip(
        columns.ids, columns.remaining_ms, columns.kinds, columns.payloads, contexts, strict=True
    ):
        if task_id in tasks or task_id in answered:
            continue  # submitted before: SUBMIT is idempotent
        size = len(payload)
        if not submit.again and (reason := room.refusal(size)) is not None:
            stage.counts.shed += 1
            mesh.refuse(gateway, task_id, Status.SHED, reason, now + left / 1000)
            continue
        room.take(size)
        task = Task(task_id, route, gateway, payload, kind, now + left / 1000, now, context)
        tasks[task_id] = task
        mesh.task_bytes += size
        admitted.append(task)
    if admitted:
        mesh.remember("submitted to", route.path, columns.ids)
        mesh.enqueue(stage, admitted)


def _admit_all(mesh: Mesh, gateway: Gateway, route: Route, submit: Submit, size: int) -> None:
    """Nobody in this message is known, and there is room for everybody: whole columns at once."""
    columns, now, known = submit.columns, mesh.now, len(mesh.tasks)
    ids = columns.ids
    contexts = columns.contexts or [None] * len(ids)
    admitted = [
        Task(id, route, gateway, payload, kind, now + left / 1000, now, context)
        for id, payload, kind, left, context in zip(
            ids, columns.payloads, columns.kinds, columns.remaining_ms, contexts, strict=True
        )
    ]
    mesh.tasks.update(zip(ids, admitted, strict=True))
    assert len(mesh.tasks) == known + len(ids), "a message names each of its tasks once"
    mesh.task_bytes += size
    mesh.remember("submitted to", route.path, ids)
    mesh.enqueue(mesh.stages[route.stages[0]], admitted, size)


def _room(mesh: Mesh, gateway: Gateway, stage: StageRecord) -> Room:
    """What waits now. What is held back takes no room from other gateways, and its own gateway has no share then."""
    queue, share, is_held = stage.queue, gateway.shares[stage.index], gateway.session in mesh.held
    return Room(
        limits=mesh.limits,
        stage=stage.plan.name,
        gateways=mesh.directory.gateway_count,
        queue_tasks=queue.waiting + queue.suspects + (queue.held if is_held else 0),
        queue_bytes=queue.bytes + (queue.held_bytes if is_held else 0),
        own_tasks=share.tasks,
        own_bytes=share.bytes,
        mesh_tasks=len(mesh.tasks),
        mesh_bytes=mesh.task_bytes,
        has_share=not is_held,
    )


def on_tasks_cancelled(mesh: Mesh, event: TasksCancelled) -> None:
    gateway = mesh.directory.known(event, Gateway, mesh.now)
    if gateway is not None:
        mesh.acknowledge(gateway, event.message.handled)
        tasks = [task for task_id in event.message.ids if (task := mesh.tasks.get(task_id)) is not None]
        cancel(mesh, [task for task in tasks if task.gateway is gateway], event.message.reason)


def cancel(mesh: Mesh, tasks: list[Task], reason: str) -> None:
    """Nobody wants these any more: those that wait go, of those that run their workers are told, or interrupted."""
    holders: dict[SessionId, tuple[Worker, list[TaskId]]] = {}
    for task in tasks:
        stage = mesh.stages[task.stage]
        stage.counts.cancelled += 1
        if task.lease is not None:
            worker = task.lease.worker
            holders.setdefault(worker.session, (worker, []))[1].append(task.id)
        mesh.close(task, Step.CANCEL)
        stage.queue.sweep()
    for worker, ids in holders.values():
        for part in lists(ids, mesh.limits.message_rows_max):
            mesh.tell(worker, Cancel(part, reason))
        interrupt_unwanted(mesh, worker)
    if tasks:
        mesh.remember("cancelled:", reason, [task.id for task in tasks])
