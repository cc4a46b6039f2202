"""What a supervisor, a terminal and a container send to `zmesh`, and what is left afterwards."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import PROGRAMS, REPOSITORY, TEXT, ZMESH, RunningMesh, all_at_once, free_port, running, wait_until
from tests.hosts import children
from tests.load import APP as TWO_STAGES
from tests.load import assert_all_right, under_load

MOODY = Path(__file__).parent / "apps" / "moody.py"
NEW_PROCESSES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
REQUESTS = 32


def state(pid: int) -> str:
    """One letter; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def family(mesh: RunningMesh) -> list[int]:
    return children(mesh.process.pid)


@pytest.fixture
def new_processes(need: Callable[[object, str], None]) -> list[str]:
    """The beginning of a command that is process 1 of its own."""
    if os.geteuid() != 0:
        pytest.skip("a namespace of process numbers is for root")
    done = subprocess.run([*NEW_PROCESSES, "true"], capture_output=True, check=False)
    need(done.returncode == 0, f"a namespace of process numbers cannot be made here: {done.stderr.decode()}")
    return NEW_PROCESSES


# ── before anything has started ───────────────────────────────────────────────────────────────────────────────────

JOINING = ("--connect", "tcp://127.0.0.1:1")


@contextmanager
def importing(command: Sequence[str], sockets: Path) -> Iterator[subprocess.Popen[str]]:
    """A program whose app file takes a minute to import, and is about to."""
    env = {**TEXT, **os.environ, "MOOD": "heavy", "TMPDIR": str(sockets)}
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (("run", str(MOODY)), signal.SIGTERM),
        (("run", str(MOODY)), signal.SIGINT),
        (("worker", str(MOODY), *JOINING), signal.SIGTERM),
        (("gateway", str(MOODY), *JOINING), signal.SIGHUP),
        (("broker", str(MOODY), "--bind", "tcp://127.0.0.1:1"), signal.SIGTERM),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else signal.Signals(value).name,
)
def test_one_that_comes_while_the_app_file_is_imported_ends_it_with_0(
    line: Sequence[str], number: int, tmp_path: Path
) -> None:
    with importing([*ZMESH, *line], tmp_path) as process:
        process.send_signal(number)
        assert (process.wait(5), process.communicate()) == (0, ("", ""))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [[*ZMESH, "run", str(MOODY)], [sys.executable, str(MOODY)]], ids=["zmesh", "python"]
)
def test_process_1_heeds_a_sigterm_that_comes_while_the_app_file_is_imported(
    command: list[str], new_processes: list[str], tmp_path: Path
) -> None:
    """To a process 1 without a handler it would mean nothing."""
    with importing([*new_processes, *command], tmp_path) as outside:
        (inside,) = children(outside.pid)
        os.kill(inside, signal.SIGTERM)
        assert (outside.wait(5), outside.communicate()) == (0, ("", ""))


def test_python_with_an_app_heeds_one_from_run_on(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(
        "import time\nfrom zmesh import Server, Worker\n"
        "class Slow(list):\n    def __len__(self):\n        print('importing', flush=True)\n        time.sleep(60)\n"
        "class Echo(Worker):\n    multi_examples = Slow()\n    def forward(self, data):\n        return data\n"
        "server = Server()\nserver.append_worker(Echo)\n"
        "if __name__ == '__main__':\n    server.run()\n"
    )
    with importing([sys.executable, str(app)], tmp_path / "none") as process:
        process.send_signal(signal.SIGTERM)
        assert (process.wait(5), process.communicate()) == (0, ("", ""))


# ── process 1 of a container ──────────────────────────────────────────────────────────────────────────────────────


def test_process_1_reaps_orphans_and_leaves_its_own_children_to_those_who_wait_for_them(
    new_processes: list[str],
) -> None:
    with running(MOODY, command=[*new_processes, *ZMESH, "run", str(MOODY)]) as mesh:
        (agent,) = children(mesh.process.pid)
        own = children(agent)
        assert len(own) == PROGRAMS + 3
        assert mesh.post("/moody", b'{"orphans": 5, "helper": true}').status == 200
        wait_until(lambda: children(agent) == own, 5, "every orphan to be reaped")
        (worker,) = [pid for pid in own if children(pid)]  # the one with the helper
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: "ended: SIGKILL; it is started again" in mesh.log(), 5, "the agent to see how it ended")
        wait_until(
            lambda: len(children(agent)) == len(own) and not any(state(pid) == "Z" for pid in children(agent)), 10
        )
        os.kill(agent, signal.SIGTERM)
        assert mesh.process.wait(10) == 0, mesh.log()


# ── while requests are on their way ───────────────────────────────────────────────────────────────────────────────


def stopped_with_requests(mesh: RunningMesh, folder: Path, stop: Callable[[], object], said: str = "") -> None:
    """Every request that was accepted before it is told to stop gets its answer, and nothing is left.

    None is answered before that was heeded, and `said`.
    """
    pids, gate = family(mesh), folder / "gate"
    bodies = [json.dumps({"until": str(gate)}).encode()] * REQUESTS
    with all_at_once(mesh.port, "/moody", bodies) as answers:
        wait_until(lambda: mesh.mesh()["gateway"]["requests"] == REQUESTS, 20, "all of them to be accepted")
        stop()
        wait_until(lambda: not is_listening(mesh.port), 5, "the signal to be heeded")
        wait_until(lambda: said in mesh.log(), 5, said)
        gate.touch()
    assert [answer.status for answer in answers] == [200] * REQUESTS, answers
    assert mesh.process.wait(10) == 0, mesh.log()
    assert not any(map(is_alive, pids))


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_sigterm_to_the_whole_process_group_loses_nothing(tmp_path: Path) -> None:
    """`kill -TERM -- -PGID`. Once per second it says how many remain."""
    command = ["setsid", *ZMESH, "run", str(MOODY)]
    with running(MOODY, "--timeout", "20000", command=command) as mesh:
        assert os.getpgid(mesh.process.pid) == mesh.process.pid
        said = f"requests left to answer: {REQUESTS}, for 1"  # seconds, and some
        stopped_with_requests(mesh, tmp_path, lambda: os.killpg(mesh.process.pid, signal.SIGTERM), said)


@contextmanager
def at_a_terminal(*arguments: str) -> Iterator[tuple[RunningMesh, Callable[[], object]]]:
    """A mesh in the foreground of a terminal, and what presses Ctrl-C there."""
    port = free_port()
    pid, keyboard = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        os.execv(sys.executable, [*ZMESH, "run", str(MOODY), "--port", str(port), *arguments])
    process = Foreground(pid, keyboard)
    mesh = RunningMesh(process, port, Path(os.devnull))  # type: ignore[arg-type]
    try:
        mesh.wait_ready()
        yield mesh, lambda: os.write(keyboard, b"\x03")
    finally:
        process.end()


class Foreground:
    """As much of a Popen as the harness asks of one, for a process at the other end of a terminal."""

    def __init__(self, pid: int, keyboard: int) -> None:
        self.pid, self._keyboard, self._code = pid, keyboard, None

    def poll(self) -> int | None:
        os.set_blocking(self._keyboard, False)
        try:
            os.read(self._keyboard, 65536)  # so that it never waits for somebody to read its screen
        except OSError:
            pass
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, seconds: float) -> int:
        wait_until(lambda: self.poll() is not None, seconds, "the program at the terminal to end")
        assert self._code is not None
        return self._code

    def end(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(5)
        os.close(self._keyboard)


def test_ctrl_c_in_a_terminal_loses_nothing(tmp_path: Path) -> None:
    with at_a_terminal("--timeout", "20000") as (mesh, ctrl_c):
        stopped_with_requests(mesh, tmp_path, ctrl_c)


def test_ctrl_c_twice_ends_it_now(tmp_path: Path) -> None:
    with at_a_terminal("--timeout", "60000") as (mesh, ctrl_c):
        pids = family(mesh)
        bodies = [json.dumps({"until": str(tmp_path / "never")}).encode()]
        with pytest.raises(OSError), all_at_once(mesh.port, "/moody", bodies):
            wait_until(lambda: mesh.mesh()["gateway"]["requests"] == 1, 5, "it to be accepted")
            ctrl_c()
            wait_until(lambda: not is_listening(mesh.port), 5, "the first to be heeded")
            ctrl_c()
            assert mesh.process.wait(5) == 130
        assert not any(map(is_alive, pids))


def test_children_that_are_told_to_stop_by_somebody_else_go_on_and_lose_nothing() -> None:
    """Who signals every process of a unit, or one worker after the other, does not end what their agent wants."""
    arguments = ("--isolate-broker", "--timeout", "30000")
    with running(TWO_STAGES, *arguments) as mesh:
        pids = family(mesh)
        assert len(pids) == 6

        def roll() -> None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                for pid in pids:
                    os.kill(pid, number)
                    assert mesh.get("/livez").status == 200

        answers = under_load(mesh.port, roll)
        assert_all_right(answers, mesh.log())
        assert family(mesh) == pids
        assert mesh.stop() == 0


# ── without a word ────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_outlives_an_agent_that_is_killed() -> None:
    """Not a worker in native code, and not what workers have started."""
    with running(MOODY, "--isolate-broker", "--timeout", "60000") as mesh:
        pids = family(mesh)
        helper = mesh.post("/moody", b'{"helper": true}').json()["helper"]
        assert len(pids) == 5 and is_alive(helper)
        bodies = [b'{"helper": true, "stuck": true}'] * 2
        with pytest.raises(OSError), all_at_once(mesh.port, "/moody", bodies):
            wait_until(lambda: sum(len(children(pid)) for pid in pids) == 3, 5, "both workers to be stuck")
            helpers = [child for pid in pids for child in children(pid)]
            assert helper in helpers
            mesh.process.kill()
            killed = time.monotonic()
            wait_until(lambda: not any(map(is_alive, pids + helpers)), 1, "everything to be gone")
            print(f"gone {1000 * (time.monotonic() - killed):.0f} ms after its agent")
