"""What an operator may see: the broker's state as one JSON text, for `/mesh`, `/readyz` and `/metrics`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zmesh.core.tallies import SECONDS_BOUNDS, SIZE_BOUNDS
from zmesh.core.workers import Presence, Worker
from zmesh.messages import LONG_TEXT_BYTES_MAX

if TYPE_CHECKING:
    from zmesh.core.mesh import Mesh
    from zmesh.core.peers import Peer
    from zmesh.core.stages import StageRecord

__all__ = ["snapshot_json"]


def snapshot_json(mesh: Mesh) -> str:
    """Counts, queues, workers and routes. Numbers of events only grow while the broker lives."""
    stages = mesh.stages
    routes = [
        {
            "path": route.path,
            "stages": [stages[index].plan.name for index in route.stages],
            "ready": all(stages[index].crew.ready() for index in route.stages),
        }
        for route in mesh.routes.values()
    ]
    directory = mesh.directory
    gateways = directory.gateways()
    return _shortened(
        {
            "broker": directory.broker.hex(),
            "epoch": directory.epoch,
            "draining": mesh.drain is not None or mesh.retiring is not None,
            "tasks": len(mesh.tasks),
            "task_bytes": mesh.task_bytes,
            "midway_bytes": mesh.midway.beyond[0],
            "stages": [_stage(stage) for stage in stages],
            "routes": routes,
            "agents": [_agent(agent) for agent in directory.agents()],
            "metrics": mesh.meters.snapshot(),
            "loop_lag": mesh.loop_lag.snapshot(),
            "bounds": {"size": SIZE_BOUNDS, "seconds": SECONDS_BOUNDS},
            "counters": {
                "late": mesh.late,
                "malformed": directory.malformed,
                "refused_peers": directory.refused,
                "peers": len(directory.sessions),
                "leases": len(mesh.leases),
                "late_leases": len(mesh.late_leases),
                "kept_replies": sum(len(gateway.kept) for gateway in gateways),
                "kept_bytes": sum(gateway.kept.bytes for gateway in gateways),
            },
        }
    )


def _shortened(whole: dict[str, Any]) -> str:
    """As text that one message can carry: if need be without the metrics of user code, and in a mesh of thousands of
    workers without what each of them did."""
    text = json.dumps(whole)
    if len(text) > LONG_TEXT_BYTES_MAX:
        whole = {**whole, "metrics": []}
        text = json.dumps(whole)
    if len(text) > LONG_TEXT_BYTES_MAX:
        text = json.dumps({**whole, "stages": [{**stage, "tallies": {}} for stage in whole["stages"]]})
    return text


def _stage(stage: StageRecord) -> dict[str, object]:
    tallies = stage.tallies
    counts = {name: value for name, value in asdict(stage.counts).items() if name != "released"}
    counts |= {"batches": tallies.batches, "attempts": tallies.tasks}
    counts |= {f"released_{reason}": count for reason, count in stage.counts.released.items()}
    return {
        "name": stage.plan.name,
        "queued": stage.queue.waiting,
        "suspects": stage.queue.suspects,
        "held": stage.queue.held,
        "queued_bytes": stage.queue.bytes,
        "leased": stage.leased,
        "ready_workers": stage.crew.ready(),
        "was_ready": stage.was_ready,
        "failing": stage.failing,
        "traceback": stage.traceback,
        "workers": [_worker(worker) for worker in stage.crew.workers.values()],
        "counters": counts,
        "batches_up": stage.plan.max_batch_size > 1,
        "tallies": {name: tally.snapshot() for name, tally in tallies.by_name.items()},
        "queue_seconds": stage.queue_seconds.snapshot(),
    }


def _agent(agent: Peer) -> dict[str, object]:
    return {"host": agent.host, "pid": agent.pid, "draining": agent.is_retiring}


def _worker(worker: Worker) -> dict[str, object]:
    return {
        "worker_id": worker.worker_id,
        "host": worker.host,
        "pid": worker.pid,
        "state": Presence(worker.presence).name.lower(),
        "leases": len(worker.leases),
        "batches": worker.batches,
        "tasks": worker.tasks,
    }
