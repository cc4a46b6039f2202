"""PickleIPCMixin in a real mesh: what it carries, and that a worker does not trust its agent to have refused it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.harness import ZMESH, running, wait_until
from zmesh.config import Plan, RoutePlan, Settings, StagePlan
from zmesh.pipe import Slate
from zmesh.processes import Child

APP = Path(__file__).parent / "apps" / "pickled.py"


def test_objects_of_ones_own_go_from_stage_to_stage() -> None:
    with running(APP) as mesh:
        assert mesh.post("/inference", b'"how many words"').json() == {"words": 3}
        refused = mesh.post("/inference", b"[1, 2]")
        assert refused.status == 500
        assert refused.body.startswith(b"encoding error: the value cannot be pickled: ")


def test_workers_join_over_the_private_sockets_of_the_host(tmp_path: Path) -> None:
    with running(APP, "--path", str(tmp_path), "--stage", "Split", ready=False) as mesh:
        wait_until((tmp_path / "front.s").exists, what="the socket of the broker")
        command = [*ZMESH, "worker", str(APP), "--connect", f"ipc://{tmp_path}/front.s", "--stage", "Count"]
        joined = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            mesh.wait_ready()
            assert mesh.post("/inference", b'"how many words"').json() == {"words": 3}
        finally:
            joined.terminate()
            joined.wait(20)


def test_a_worker_that_is_sent_to_tcp_all_the_same_refuses_to_start() -> None:
    stage = StagePlan(name="Count", worker="Count")  # which says nothing of what the class does
    plan = Plan(stages=(stage,), routes=(RoutePlan(path="/count", stages=("Count",)),))
    document = {
        "app": str(APP), "user_args": [], "plan": plan.to_json(), "settings": Settings().to_json(),
        "stage": "Count", "worker_id": 1, "front": "tcp://127.0.0.1:5555", "role": "worker", "fronts": [],
    }  # fmt: skip
    child = Child("Count/1", [sys.executable, "-m", "zmesh.stage"], document, slate=Slate.make())
    said: list[dict[str, Any]] = []
    try:
        wait_until(lambda: said.extend(child.pipe.receive() or []) or said, what="the word of the worker")
    finally:
        child.kill()
        child.reap()
        child.close()
    assert said[0]["say"] == "failed"
    assert str(said[0]["line"]).startswith(
        "stage Count unpickles what it is handed, and this version has no keys for tcp:"
    )
