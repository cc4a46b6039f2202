"""What silence and time say: who has not been heard for too long, what has run for too long, whom to ask.

Once per heartbeat everybody is looked at. A busy worker may be silent for as long as its model takes. When a socket saw
a connection end, and nobody can say whose it was, all its peers are told something at once: to the one who is gone it
cannot be sent, and so it names itself.
"""

from __future__ import annotations

from math import inf

from zmesh.core import endings, orders
from zmesh.core.events import ConnectionLost, Stalled
from zmesh.core.mesh import Mesh
from zmesh.core.peers import Gateway
from zmesh.core.presence import end_peer, end_worker, say_again
from zmesh.core.stages import StageRecord
from zmesh.core.workers import Lease, Worker
from zmesh.messages import Ack, Heartbeat

__all__ = ["on_connection_lost", "on_stalled", "probe", "sweep"]


def on_connection_lost(mesh: Mesh, event: ConnectionLost) -> None:
    due = mesh.probed.get(event.socket, -inf) + mesh.limits.probe_seconds
    mesh.probes.setdefault(event.socket, max(mesh.now, due))


def probe(mesh: Mesh) -> None:
    """Tell the peers of a socket something, so that those who are gone are found out."""
    for socket in [socket for socket, due in mesh.probes.items() if due <= mesh.now]:
        del mesh.probes[socket]
        mesh.probed[socket] = mesh.now
        for peer in mesh.directory.sessions.values():
            if peer.address[0] == socket and peer.lost_at is None:
                mesh.tell(peer, Heartbeat(mesh.directory.epoch, 0, []))


def on_stalled(mesh: Mesh, event: Stalled) -> None:
    """We did not run: silence and the age of leases in that time prove nothing, and last words may lie unread.

    Deadlines of requests do not move, and so nothing moves for answers that are kept.
    """
    gap = event.gap_seconds
    mesh.directory.forgive(gap)
    for lease in mesh.leases.values():
        lease.started += gap
        lease.clock += gap
        if lease.stuck_since is not None:
            lease.stuck_since += gap
    waited_for = [(ends_at, worker) for ends_at, worker in mesh.exiting if worker.ends_at == ends_at]
    mesh.exiting.clear()
    for ends_at, worker in waited_for:
        worker.ends_at = ends_at + gap
        mesh.exiting.append((worker.ends_at, worker))


def sweep(mesh: Mesh) -> None:
    """Once per heartbeat: what silence and time have done."""
    now, limits = mesh.now, mesh.limits
    for peer in list(mesh.directory.sessions.values()):
        if isinstance(peer, Worker):
            _sweep_worker(mesh, peer)
        else:
            since = peer.heard if peer.lost_at is None else peer.lost_at
            if now - since >= limits.dead_seconds:
                mesh.directory.give_up(peer)
                end_peer(mesh, peer)
            elif isinstance(peer, Gateway):
                _sweep_gateway(mesh, peer)
        if peer.session in mesh.directory.sessions and now - peer.told >= limits.heartbeat_seconds:
            mesh.tell(peer, Heartbeat(mesh.directory.epoch, 0, []))


def _sweep_gateway(mesh: Mesh, gateway: Gateway) -> None:
    gateway.kept.expire(mesh.now)
    mesh.relax(gateway)
    if gateway.lost_at is None:
        say_again(mesh, gateway)


def _sweep_worker(mesh: Mesh, worker: Worker) -> None:
    now, limits, stage = mesh.now, mesh.limits, mesh.stages[worker.stage]
    if worker.ends_at is not None:
        return  # its end is settled, see `Mesh.end_in`
    if not worker.leases and now - worker.heard >= limits.dead_seconds:
        end_worker(mesh, worker)
        return
    oldest = worker.oldest()
    if oldest is not None:
        _sweep_lease(mesh, stage, worker, oldest)
    while worker.acks:
        mesh.tell(worker, Ack(worker.take_acks(), []))


def _sweep_lease(mesh: Mesh, stage: StageRecord, worker: Worker, running: Lease) -> None:
    """It may be too old, and nobody may want it any more since its rows were answered by others."""
    is_expired = mesh.now - running.clock >= stage.lease_seconds(mesh.limits)
    if is_expired and stage.plan.retry:
        for lease in worker.leases.values():  # what waits behind it is stuck as well
            endings.hedge_lease(mesh, stage, lease)
        mesh.awaken(stage)
    if not running.is_wanted():
        orders.interrupt_unwanted(mesh, worker)
        if is_expired and not stage.plan.timeout_seconds:
            orders.kill_stuck(mesh, worker, running)
