"""`zmesh run` as a parent: it starts, reports, replaces and ends its children, and leaves nothing behind."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PROGRAMS, ZMESH, Answer, RunningMesh, running, wait_until
from zmesh.transport import private_directory

APP = Path(__file__).parent / "apps" / "moody.py"


def children(pid: int) -> dict[int, str]:
    """Command lines by process number."""
    found = {}
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has just ended
    return found


def gateway_of(mesh: RunningMesh) -> int:
    (pid,) = [pid for pid, line in children(mesh.process.pid).items() if " gateway " in line]
    return pid


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def ask(mesh: RunningMesh, **data: Any) -> Any:
    answer = mesh.post("/moody", json.dumps(data).encode())
    assert answer.status == 200, answer
    return answer.json()


def in_background(call: Callable[[], Answer]) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []

    def work() -> None:
        with suppress(OSError, HTTPException):  # then there is no answer
            answers.append(call())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, answers


def wait_busy(mesh: RunningMesh) -> None:
    wait_until(lambda: any(stage["leased"] for stage in mesh.mesh()["stages"]), 5, "a request to run")


def test_it_says_when_and_where_it_is_ready_and_how_to_try_it():
    with running(APP) as mesh:
        wait_until(lambda: "try it" in mesh.log())
        said = mesh.log()
        assert f"zmesh is ready on {mesh.url}" in said
        assert re.search(r"^Moody +Moody +2 +1 +-$", said, re.MULTILINE)
        curl = re.search(r"^try it: (curl .*)$", said, re.MULTILINE)
        assert curl is not None
        answered = subprocess.run(curl[1], shell=True, capture_output=True, check=True)
        assert json.loads(answered.stdout)["worker_id"] in (1, 2)


def test_every_worker_has_its_own_environment_and_ours_is_untouched():
    with running(APP, "--", "--mine", "x") as mesh:
        seen: dict[int, Any] = {}
        wait_until(lambda: seen.update({(got := ask(mesh))["worker_id"]: got}) or len(seen) == 2)
        assert {number: got["env"] for number, got in seen.items()} == {1: "one", 2: "two"}
        assert seen[1]["argv"] == ["--mine", "x"]
        assert "CARD=" not in Path(f"/proc/{mesh.process.pid}/environ").read_text()


def test_nothing_is_left_after_sigterm(tmp_path: Path):
    with running(APP, "--path", str(tmp_path / "s")) as mesh:
        helper = ask(mesh, helper=True)["helper"]
        family = [*children(mesh.process.pid), helper]
        assert len(family) == PROGRAMS + 3 + 1
        assert mesh.stop() == 0
        assert not any(map(is_alive, family))
        assert not (tmp_path / "s").exists()


def test_what_the_user_keeps_in_the_socket_directory_stays(tmp_path: Path):
    (tmp_path / "weights.bin").write_bytes(b"weeks of work")
    with running(APP, "--path", str(tmp_path)) as mesh:
        assert mesh.post("/moody", b"{}").status == 200
        assert mesh.stop() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "weights.bin"]
    assert (tmp_path / "weights.bin").read_bytes() == b"weeks of work"


def test_nothing_is_left_when_the_agent_itself_is_killed(tmp_path: Path):
    with running(APP, "--path", str(tmp_path / "s")) as mesh:
        family = list(children(mesh.process.pid))
        assert mesh.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not any(map(is_alive, family)), 5, "the children to follow")
        private_directory(str(tmp_path / "s")).remove()  # nobody holds it


def test_a_killed_worker_is_replaced_at_once():
    with running(APP) as mesh:
        first = ask(mesh)
        helper = ask(mesh, helper=True)
        os.kill(helper["pid"], signal.SIGKILL)
        started = time.monotonic()
        wait_until(lambda: not is_alive(helper["helper"]), 5, "what it had started to end with it")
        pids = {first["pid"], helper["pid"]}
        wait_until(lambda: ask(mesh)["pid"] not in pids, 5, "another worker")
        assert time.monotonic() - started < 5


def test_a_killed_gateway_is_replaced_on_the_same_port_and_the_workers_live_on():
    with running(APP) as mesh:
        wait_until(lambda: len(mesh.worker_pids()) == 3)
        pids = set(mesh.worker_pids())
        former = gateway_of(mesh)
        os.kill(former, signal.SIGKILL)
        wait_until(lambda: not is_alive(former))
        # The listening socket is the agent's, so this waits in its backlog.
        assert mesh.post("/moody", b"{}", timeout=20).status == 200
        wait_until(lambda: set(mesh.worker_pids()) == pids, 10, "the same workers")
        assert gateway_of(mesh) != former


def test_a_request_that_was_accepted_is_answered_before_the_end():
    with running(APP, "--timeout", "20000") as mesh:
        pids = list(children(mesh.process.pid))
        thread, answers = in_background(lambda: mesh.post("/moody", b'{"seconds": 1.5}'))
        wait_busy(mesh)
        assert mesh.stop() == 0
        thread.join(5)
        assert answers and answers[0].status == 200, answers
        assert not any(map(is_alive, pids))


def test_a_drain_that_runs_out_of_time_ends_with_4():
    with running(APP, "--timeout", "60000", "--drain-timeout", "300") as mesh:
        thread, answers = in_background(lambda: mesh.post("/moody", b'{"seconds": 30}'))
        wait_busy(mesh)
        started = time.monotonic()
        assert mesh.stop() == 4
        assert time.monotonic() - started < 5
        thread.join(5)
        assert answers and answers[0].status == 503, answers


def test_sigint_twice_ends_it_now():
    with running(APP, "--timeout", "60000") as mesh:
        pids = list(children(mesh.process.pid))
        in_background(lambda: mesh.post("/moody", b'{"seconds": 30}'))
        wait_busy(mesh)
        mesh.process.send_signal(signal.SIGINT)
        wait_until(lambda: "SIGINT" in mesh.log())
        assert mesh.stop(signal.SIGINT, 5) == 130
        assert not any(map(is_alive, pids))


def test_sigterm_while_it_starts_ends_it_at_once():
    with running(APP, env={"MOOD": "slow"}, ready=False) as mesh:
        wait_until(lambda: mesh.process.poll() is None and len(children(mesh.process.pid)) == PROGRAMS + 3)
        started = time.monotonic()
        assert mesh.stop() == 0
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("mood", "why"), [("broken", "RuntimeError: no model here"), ("dies", "it ended before it was ready: exit code 9")]
)
def test_a_stage_that_never_starts_ends_the_run_with_3_and_says_why(mood: str, why: str):
    with running(APP, env={"MOOD": mood}, ready=False) as mesh:
        assert mesh.process.wait(20) == 3
        *before, last = mesh.log().strip().splitlines()
        assert last == f"zmesh: stage Moody failed to start 3 times: {why}"
        assert ("Traceback" in "\n".join(before)) == (mood == "broken")


def test_a_stage_that_never_starts_is_served_around_if_asked_for():
    with running(APP, "--on-start-failure", "serve", env={"MOOD": "broken"}, ready=False) as mesh:
        wait_until(lambda: mesh.log().count("failed to start") >= 3)

        def refused() -> bool:
            try:
                return mesh.post("/moody", b"{}", timeout=10).status == 503
            except OSError:
                return False

        wait_until(refused)
        assert b"no model here" in mesh.post("/moody", b"{}").body
        assert mesh.post("/other", b'{"a": 1}').status == 200
        assert mesh.stop() == 0


def test_a_worker_that_dies_before_it_has_done_anything_is_started_again_ever_more_rarely():
    with running(APP, "--stage", "Moody:1", "--stage", "Other:1", "--timeout", "30000") as mesh:
        pattern = re.compile(r"Moody/1 ended: exit code 7; it is started again (?:at once|in ([\d.]+) s)")
        fresh = count()  # for what has killed workers is refused at the door when it comes again
        while len(pattern.findall(mesh.log())) < 4:  # each such request costs two of them
            assert mesh.post("/moody", b'{"die": 7, "number": %d}' % next(fresh)).status == 500
            assert mesh.post("/other", b'{"a": 1}').status == 200
        waits = [float(seconds or 0) for seconds in pattern.findall(mesh.log())[:4]]
        assert waits == [pytest.approx(due, rel=0.2, abs=0.06) for due in (0, 0.1, 0.5, 2)]
        assert mesh.stop() == 0


def test_a_stage_whose_workers_end_too_often_is_failing_and_the_rest_lives():
    with running(APP, "--stage", "Moody:1", "--stage", "Other:1", "--restarts-per-minute", "1") as mesh:
        os.kill(first := ask(mesh)["pid"], signal.SIGKILL)
        os.kill(second := ask(mesh)["pid"], signal.SIGKILL)
        assert first != second
        wait_until(lambda: any(stage["failing"] for stage in mesh.mesh()["stages"]), 5, "the stage to be failing")
        answer = mesh.post("/moody", b"{}")
        why = "stage Moody does not start: its workers ended more than 1 times within a minute, the last by SIGKILL"
        assert (answer.status, answer.headers["retry-after"]) == (503, "30")
        assert answer.body.decode() == f"service unavailable: {why}"
        assert mesh.post("/other", b'{"a": 1}').status == 200
        shown = subprocess.run([*ZMESH, "status", mesh.url], capture_output=True, text=True, check=True)
        assert shown.stdout.splitlines()[-1] == why
        assert mesh.stop() == 0


def finished(*arguments: str) -> tuple[int, list[str]]:
    ended = subprocess.run([*ZMESH, "run", str(APP), *arguments], capture_output=True, timeout=20, check=False)
    return ended.returncode, ended.stderr.decode().strip().splitlines()


def test_a_port_in_use_is_one_readable_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = finished("--port", str(port))
    assert code == 1
    assert len(lines) == 1 and f"cannot listen on 127.0.0.1:{port}: port {port} is in use" in lines[0]


def test_a_host_that_is_not_ours_is_one_readable_line():
    code, lines = finished("--host", "192.0.2.1", "--port", "0")
    assert code == 1
    assert len(lines) == 1 and "192.0.2.1 is not an address of this machine" in lines[0]


def test_a_stage_that_is_not_there_is_one_readable_line():
    code, lines = finished("--stage", "Model", "--port", "0")
    assert code != 0
    assert len(lines) == 1 and "there is no stage 'Model'; the stages are: Moody, Other" in lines[0]


def test_a_socket_directory_in_use_is_one_readable_line(tmp_path: Path):
    held = private_directory(str(tmp_path / "s"))
    code, lines = finished("--path", str(tmp_path / "s"), "--port", "0")
    held.remove()
    assert code == 1
    assert len(lines) == 1 and "in use by another zmesh" in lines[0]


def test_only_the_stages_asked_for_are_started():
    with running(APP, "--stage", "Moody:1", ready=False) as mesh:
        wait_until(lambda: "try it" in mesh.log())
        assert len(children(mesh.process.pid)) == PROGRAMS + 1
        assert ask(mesh)["env"] == "one"
