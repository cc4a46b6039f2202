"""Large results through shared memory: the short forms of `python -m tests.chaos.large_results`."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.chaos.large_results import APP, MEMORY, TINY, Result, run_some, tiny, with_kills
from tests.harness import running, wait_until
from zmesh.crashing import VARIABLE


def test_killed_workers_cost_no_request_and_leave_nothing_in_memory() -> None:
    result = with_kills(400, seconds=0.3)
    assert result.statuses == {200: sum(result.statuses.values())} and not result.wrong
    assert result.kills > 0 and result.files_most > 0, "something was killed, and went through memory"
    assert result.left_behind == []


def test_with_next_to_no_shared_memory_nobody_dies() -> None:
    if not shutil.which("unshare") or subprocess.run([*TINY, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes a right that is not here")
    result = tiny(40)
    assert result.statuses.total() >= 40 and not result.wrong


POINTS = ["worker.heard.ack", "worker.heard.tasks", "worker.forward", "worker.sending.results", "worker.sent.results"]


def test_a_crash_at_any_point_of_a_worker_costs_no_request(tmp_path: Path) -> None:
    """Before and after each of the moments at which a reference is made, used or released."""
    before, result = set(MEMORY.iterdir()), Result()
    orders = ",".join(f"{point}:{1 + 4 * number}@{tmp_path / point}" for number, point in enumerate(POINTS))
    with running(APP, "--timeout", "20000", env={VARIABLE: orders}) as mesh:
        run_some(mesh, result, 300, lambda client: 100_000)
        wait_until(lambda: len(list(tmp_path.iterdir())) == len(POINTS), what="somebody to end at each of them")
        run_some(mesh, result, 50, lambda client: 100_000)
        assert result.statuses.total() >= 300 and not result.wrong
        assert [stage["counters"]["deaths"] for stage in mesh.mesh()["stages"]] == [0, 0, 0]
        assert mesh.stop() == 0
    assert [path for path in set(MEMORY.iterdir()) - before if path.name.startswith("zmesh")] == []
