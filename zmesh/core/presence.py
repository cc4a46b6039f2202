"""What peers say of themselves, and what is found out about them: greetings, credit, exits, lost links.

An agent's word that a process ended is believed; that a link broke is a reason to wait for its peer to come back, for a
while.
"""

from __future__ import annotations

from zmesh.core import endings
from zmesh.core.effects import Forget
from zmesh.core.events import (
    CreditGranted,
    DispatcherEvent,
    DrainAsked,
    MessageBroken,
    PeerBeat,
    PeerGreeted,
    PeerLeft,
    PeerUnreachable,
    SendFailed,
    StatsAsked,
    WorkerExited,
)
from zmesh.core.intake import cancel
from zmesh.core.mesh import Mesh
from zmesh.core.parts import tail
from zmesh.core.peers import Gateway, Peer
from zmesh.core.snapshot import snapshot_json
from zmesh.core.stages import StageRecord
from zmesh.core.tasks import Step
from zmesh.core.workers import Presence, PresenceStep, Worker
from zmesh.messages import (
    LONG_TEXT_BYTES_MAX,
    TEXT_BYTES_MAX,
    Ack,
    Drain,
    Hello,
    Reply,
    Role,
    Stats,
    Status,
    Tasks,
    WorkerState,
)

__all__ = [
    "end_peer",
    "end_worker",
    "give_up",
    "on_credit_granted",
    "on_drain_asked",
    "on_message_broken",
    "on_peer_beat",
    "on_peer_greeted",
    "on_peer_ignored",
    "on_peer_left",
    "on_peer_unreachable",
    "on_send_failed",
    "on_stats_asked",
    "on_worker_exited",
    "say_again",
]

FAILING_CHARS_MAX = 1000  # of the line that every client of a failing stage is answered
TRACEBACKS_BYTES_MAX = LONG_TEXT_BYTES_MAX // 4  # of all stages, so that a snapshot stays short enough to be told


def on_peer_greeted(mesh: Mesh, event: PeerGreeted) -> None:
    peer, former = mesh.directory.greet(event, mesh.now)
    if isinstance(peer, Worker):
        if event.message.epoch == mesh.directory.epoch:
            peer.total = peer.used = len(event.message.running) + len(event.message.waiting)
        if isinstance(former, Worker):
            _carry_over(mesh, former, peer, event.message)
        stage = mesh.stages[peer.stage]
        peer.tally = stage.tallies.of(peer.worker_id, "" if mesh.is_near(peer) else peer.host)
        stage.crew.join(peer)
    elif isinstance(peer, Gateway) and isinstance(former, Gateway):
        _succeed(mesh, former, peer)
    if isinstance(peer, Gateway) and mesh.drain is not None:
        mesh.tell(peer, mesh.drain)
    if peer is not None and former is not None:
        peer.is_retiring = former.is_retiring
    if peer is not None and peer.peer == mesh.agent and mesh.retiring is not None:
        _retire(mesh, peer, mesh.retiring)


def _succeed(mesh: Mesh, former: Gateway, peer: Gateway) -> None:
    """A gateway goes on in a new session: its tasks are its own, and what it may not have heard is said again."""
    for task in mesh.tasks.values():
        if task.gateway is former:
            task.gateway = peer
    mesh.owed.pop(former.session, None)
    mesh.owed[peer.session] = peer  # the turn is not over, and its answers may be too many
    peer.succeed(former, mesh.limits)
    if mesh.held.pop(former.session, None) is not None:
        mesh.held[peer.session] = peer
    say_again(mesh, peer)


def say_again(mesh: Mesh, gateway: Gateway) -> None:
    for reply in gateway.say_again():
        mesh.tell(gateway, reply)


def _carry_over(mesh: Mesh, former: Worker, peer: Worker, hello: Hello) -> None:
    """The leases that a worker still holds live on in its new session; the others were lost on the way."""
    former_oldest = former.oldest()
    if hello.epoch == mesh.directory.epoch and former.stage == peer.stage:
        answered = set(hello.answered)
        for lease_id in [*hello.running, *hello.waiting, *hello.answered]:
            lease = former.leases.pop(lease_id, None)
            if lease is not None:
                lease.worker = peer
                lease.is_free = lease_id in answered
                peer.leases[lease_id] = lease
    oldest = peer.oldest()
    if oldest is not None and oldest is not former_oldest:
        oldest.start(mesh.now)
    peer.succeed(former)
    stage = mesh.stages[former.stage]
    for lease in reversed(list(former.leases.values())):
        endings.unmake_lease(mesh, stage, lease)
    former.take(PresenceStep.END)
    stage.crew.part(former)
    mesh.awaken(stage)


def on_credit_granted(mesh: Mesh, event: CreditGranted) -> None:
    worker = mesh.directory.known(event, Worker, mesh.now)
    if worker is None:
        return
    credit, stage = event.message, mesh.stages[worker.stage]
    if credit.metrics:
        mesh.take_metrics(worker, event.address, credit.metrics)
    worker.total = max(worker.total, credit.total)
    if credit.state is WorkerState.READY and worker.presence <= Presence.READY:
        worker.take(PresenceStep.READY)
        stage.was_ready, stage.failing, stage.traceback = True, None, ""
    elif credit.state is WorkerState.DRAINING and worker.presence <= Presence.DRAINING:
        worker.take(PresenceStep.DRAIN)
    stage.crew.sort(worker)
    mesh.awaken(stage)


def on_worker_exited(mesh: Mesh, event: WorkerExited) -> None:
    """EXITED overtakes RESULTS, so the last results of the process get a moment to arrive."""
    agent = _with_role(mesh, event, Role.AGENT)
    if agent is None:
        return
    exited = event.message
    mesh.tell(agent, Ack([], [exited.peer]))
    worker = mesh.directory.worker_of(exited.peer)
    if worker is not None and worker.exit is None:
        worker.exit = exited
        stage = mesh.stages[worker.stage]
        stage.counts.exits += 1
        worker.take(PresenceStep.EXIT)
        stage.crew.sort(worker)
        limits = mesh.limits
        mesh.end_in(limits.exit_grace_seconds if mesh.is_near(worker) else limits.exit_grace_far_seconds, worker)
    for stage in mesh.stages:
        if stage.plan.name == exited.stage and exited.failing:
            _fail_stage(mesh, stage, exited.reason)


def _fail_stage(mesh: Mesh, stage: StageRecord, reason: str) -> None:
    """Its workers do not start, and none is left."""
    if stage.crew.ready():
        return
    stage.failing = f"stage {stage.plan.name} does not start: {_first_words(reason)[:FAILING_CHARS_MAX]}"
    stage.traceback = tail(reason, min(TEXT_BYTES_MAX, TRACEBACKS_BYTES_MAX // len(mesh.stages)))
    mesh.report("error", stage.failing)
    mesh.awaken(stage)


def _first_words(reason: str) -> str:
    """`KeyError: 'x'` of a traceback: what follows its last frame. More lines of the message, and notes, come later."""
    lines = reason.strip().splitlines() or ["for an unknown reason"]
    frames = [index for index, line in enumerate(lines) if line.startswith('  File "')]
    if not frames:
        return lines[-1]
    return next((line for line in lines[frames[-1] + 1 :] if not line.startswith("    ")), lines[-1])


def give_up(mesh: Mesh, stage: StageRecord, reason: str) -> None:
    """The stage is failing: say so at once to those who wait there, however they came."""
    for task in stage.queue.living():
        mesh.close(task, Step.FAIL, int(Status.UNAVAILABLE), reason.encode())
    stage.queue.sweep()
    stage.wake = None  # nobody waits here, so there is nothing to ask again about


def end_worker(mesh: Mesh, worker: Worker) -> None:
    """Nothing more is expected of this session; what it holds is given to others."""
    if worker.presence is Presence.GONE:
        return
    stage = mesh.stages[worker.stage]
    held = [task.id for lease in worker.leases.values() for task in lease.tasks]
    mesh.remember("lost with", f"{stage.plan.name}/{worker.worker_id}", held)
    for lease in reversed(list(worker.leases.values())):
        endings.end_lease(mesh, stage, lease)
    worker.take(PresenceStep.END)
    stage.crew.part(worker)
    mesh.directory.close(worker)
    mesh.meters.gone(worker.peer)
    mesh.effects.append(Forget(worker.address))
    mesh.awaken(stage)


def end_peer(mesh: Mesh, peer: Peer) -> None:
    """A gateway or an agent is gone for good; nobody waits for that gateway's tasks any more."""
    mesh.directory.close(peer)
    mesh.effects.append(Forget(peer.address))
    mesh.held.pop(peer.session, None)
    mesh.owed.pop(peer.session, None)
    cancel(mesh, [task for task in mesh.tasks.values() if task.gateway is peer], "its gateway is gone")


def on_peer_left(mesh: Mesh, event: PeerLeft) -> None:
    peer = mesh.directory.known(event, Peer, mesh.now)
    if isinstance(peer, Worker):
        end_worker(mesh, peer)
    elif peer is not None:
        end_peer(mesh, peer)


def on_peer_unreachable(mesh: Mesh, event: PeerUnreachable) -> None:
    """Its process may come back, over another connection: a worker within its grace, others within `dead_seconds`."""
    peer = mesh.directory.at(event.address)
    if peer is None or peer.lost_at is not None:
        return
    peer.lost_at = mesh.now
    if isinstance(peer, Worker):
        peer.take(PresenceStep.LOSE)
        mesh.stages[peer.stage].crew.sort(peer)
        if peer.presence is Presence.LOST:
            mesh.end_in(mesh.limits.hello_grace_seconds, peer)


def on_send_failed(mesh: Mesh, event: SendFailed) -> None:
    """An unsent TASKS un-makes its lease. An unsent REPLY is said again with the next sweep or in the next session, an
    unsent acknowledgement with the next TASKS or sweep."""
    peer, message = mesh.directory.at(event.address), event.message
    if isinstance(peer, Gateway) and isinstance(message, Reply):
        peer.kept.lose(message)
    elif isinstance(peer, Worker) and isinstance(message, Ack):
        peer.acks += message.leases
    elif isinstance(peer, Worker) and isinstance(message, Tasks):
        peer.acks += message.acks
        lease = peer.leases.get(message.lease)
        if lease is not None:
            stage = mesh.stages[peer.stage]
            endings.unmake_lease(mesh, stage, lease)
            peer.used -= 1
            stage.crew.sort(peer)
            mesh.awaken(stage)


def on_peer_beat(mesh: Mesh, event: PeerBeat) -> None:
    peer = mesh.directory.known(event, Peer, mesh.now)
    if isinstance(peer, Gateway):
        mesh.acknowledge(peer, event.message.handled)


def on_stats_asked(mesh: Mesh, event: StatsAsked) -> None:
    peer = _with_role(mesh, event, Role.GATEWAY, Role.ADMIN)
    if peer is not None:
        mesh.tell(peer, Stats(snapshot_json(mesh)))


def on_drain_asked(mesh: Mesh, event: DrainAsked) -> None:
    """What an admin asks of a host, or of the program that we are a part of, is for the agents there to do.

    Otherwise it is for us: nothing new is admitted, and gateways hear that our end will be no accident.
    """
    peer, drain = _with_role(mesh, event, Role.AGENT, Role.ADMIN), event.message
    if peer is None:
        return
    is_from_elsewhere = peer.role is Role.ADMIN and peer.address[0] >= 0
    if drain.host or (mesh.agent is not None and is_from_elsewhere):
        if not drain.host:
            mesh.retiring = drain  # and said again to an agent that comes back, until we are gone
        for agent in mesh.directory.agents():
            if agent.host == drain.host or (not drain.host and agent.peer == mesh.agent):
                _retire(mesh, agent, drain)
        return
    mesh.drain = drain
    for gateway in mesh.directory.gateways():
        mesh.tell(gateway, drain)


def _retire(mesh: Mesh, agent: Peer, drain: Drain) -> None:
    agent.is_retiring = True
    mesh.tell(agent, drain)


def _with_role(mesh: Mesh, event: WorkerExited | StatsAsked | DrainAsked, *roles: Role) -> Peer | None:
    """The peer that said this, if its role may; else it is struck."""
    peer = mesh.directory.known(event, Peer, mesh.now)
    if peer is None or peer.role in roles:
        return peer
    mesh.directory.strike(event.address, f"{peer.role.name} may not say this", mesh.now)
    return None


def on_message_broken(mesh: Mesh, event: MessageBroken) -> None:
    mesh.directory.strike(event.address, event.reason, mesh.now)


def on_peer_ignored(mesh: Mesh, event: DispatcherEvent) -> None:
    """A worker that is not listened to is given nothing; what it holds is run elsewhere, uncharged."""
    worker = mesh.directory.at(getattr(event, "address", (0, b"")))
    if isinstance(worker, Worker):
        worker.take(PresenceStep.LOSE)
        end_worker(mesh, worker)
