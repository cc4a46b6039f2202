"""Crashes on demand: what is counted, that it happens once, and that a slip of the pen is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, ZMESH
from zmesh.crashing import VARIABLE

APP = REPOSITORY / "tests" / "integration" / "apps" / "two_stages.py"
COMES_THRICE = """
from zmesh.crashing import check, crash_at
from zmesh.messages import Ack, Goodbye
check()
for number in range(3):
    print("comes", flush=True)
    crash_at("worker.heard", Goodbye([]))
    crash_at("worker.sent", Ack([], []))
    crash_at("worker.heard", Ack([], []))
"""


def process(text: str) -> subprocess.CompletedProcess[str]:
    """Comes to `worker.heard.ack` three times."""
    env = {**os.environ, VARIABLE: text}
    line = [sys.executable, "-c", COMES_THRICE]
    return subprocess.run(line, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(("text", "times"), [("worker.heard.ack", 1), ("worker.forward,worker.heard.ack:3", 3)])
def test_it_ends_where_it_was_told_to_and_no_earlier(text: str, times: int) -> None:
    ended = process(text)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.count("comes") == times


def test_whoever_does_not_come_there_or_not_so_often_lives() -> None:
    for text in ("", "worker.heard.tasks", "worker.heard.ack:4"):
        assert process(text).returncode == 0


def test_with_a_file_it_happens_once(tmp_path: Path) -> None:
    file = tmp_path / "here"
    text = f"worker.heard.ack:2@{file}"
    ended = process(text)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.count("comes") == 2
    assert int(file.read_text()) > 1
    assert process(text).returncode == 0
    file.unlink()
    assert process(text).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("worker.heard.task", "names a point that there is not: 'worker.heard.task'; docs/testing.md lists them"),
        ("broker.next_step,worker", "names a point that there is not: 'worker'; docs/testing.md lists them"),
        ("broker.next_step:0", "what follows broker.next_step: must be a number from 1, not '0'"),
        ("broker.next_step:x@/tmp/x", "what follows broker.next_step: must be a number from 1, not 'x'"),
        ("broker.next_step@/no/such/x", "there is no directory for the file /no/such/x"),
    ],
)
def test_a_slip_of_the_pen_is_one_line_and_exit_code_2(text: str, said: str) -> None:
    line = [*ZMESH, "run", str(APP), "--port", "0"]
    env = {**os.environ, VARIABLE: text}
    ended = subprocess.run(line, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("zmesh: ZMESH_CRASH_AT")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
