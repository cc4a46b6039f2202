"""Large results through shared memory: the short forms of `python -m tests.chaos.large_results`."""

import shutil
import subprocess

import pytest

from tests.chaos.large_results import TINY, tiny, with_kills


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
