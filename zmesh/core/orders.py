"""What a broker has the agents do to its workers: interrupt what nobody wants, end what takes too long.

An order names the lease that it is about. The agent carries it out only while the worker runs just that, so an order
that comes late, or twice, harms nobody. None of them is the end of a lease here: RESULTS or EXITED are.

* INTERRUPT, when nobody wants any row of what a worker runs. Not before a worker has brought a batch to a good end, and
  then at most once for each: a first batch may take long (a compiler at work), longer than anybody waits, and must be
  let through, or nothing would ever be served.
* KILL, when a batch takes longer than its stage allows and a little: it did not heed the alarm in its own process.
* KILL of a stuck worker of a stage that allows any time: its batch is far older than usual, and nobody has wanted it
  for long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmesh.messages import Kill

if TYPE_CHECKING:
    from zmesh.core.mesh import Mesh
    from zmesh.core.stages import StageRecord
    from zmesh.core.workers import Lease, Worker

__all__ = ["interrupt_unwanted", "kill_overdue", "kill_stuck"]


def interrupt_unwanted(mesh: Mesh, worker: Worker) -> None:
    """Interrupt what it runs, if nobody wants any of it and its worker may be interrupted."""
    lease = worker.oldest()
    if worker.may_interrupt and lease is not None and not lease.is_wanted():
        worker.may_interrupt, lease.is_interrupted = False, True
        _order(mesh, worker, lease, "nobody waits for its batch any more", interrupt=True)


def kill_overdue(mesh: Mesh, stage: StageRecord) -> None:
    """End the workers of this stage that run a batch for longer than it allows, and know when to look again.

    An order may be lost, so it is repeated until the worker is gone or has answered.
    """
    now, limits = mesh.now, mesh.limits
    reason = f"stage {stage.plan.name} took longer than {stage.plan.timeout_seconds:g} s"
    stage.overdue_at = None
    for worker in stage.crew.busy.values():
        lease = worker.oldest()
        assert lease is not None, "who is busy runs something"
        due = stage.kill_at(lease, limits)
        if due <= now:
            due = now + limits.heartbeat_seconds
            if worker.ends_at is None:  # else its end is settled
                lease.killed_at = now
                _order(mesh, worker, lease, reason)
        stage.overdue_at = due if stage.overdue_at is None else min(stage.overdue_at, due)


def kill_stuck(mesh: Mesh, worker: Worker, lease: Lease) -> None:
    """Nobody wants this lease, which runs for far too long: end its worker if that has been so for a while."""
    if lease.stuck_since is None:
        lease.stuck_since = mesh.now
    limits = mesh.limits
    patience = limits.stuck_seconds if worker.has_succeeded else limits.stuck_first_seconds
    if mesh.now - lease.stuck_since >= patience:
        _order(mesh, worker, lease, "it is stuck in a batch that nobody waits for any more")


def _order(mesh: Mesh, worker: Worker, lease: Lease, reason: str, *, interrupt: bool = False) -> None:
    """Tell the agents of its host; the one that started it knows."""
    agents = [agent for agent in mesh.directory.agents() if agent.host == worker.host]
    for agent in agents:
        mesh.tell(agent, Kill(worker.peer, lease.id, reason, interrupt))
    if not agents and not worker.is_beyond_reach:
        worker.is_beyond_reach = True
        name = f"{mesh.stages[worker.stage].plan.name}/{worker.worker_id}"
        text = f"no agent of host {worker.host} is connected, so worker {name} cannot be ended or interrupted"
        mesh.report("warning", f"{text}: {reason}")
