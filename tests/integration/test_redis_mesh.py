"""Stages that hand on through Redis: one of their own, or one that they were told of; and what becomes of both."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.harness import ZMESH, RunningMesh, free_port, running, wait_until
from tests.load import doubled
from tests.redises import SERVERS, program, redis_server
from zmesh.embedded import answers

Need = Callable[[object, str], None]
APP = Path(__file__).parent / "apps" / "through_redis.py"


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, need: Need) -> str:
    return program(request.param, need)


@pytest.fixture
def only(server: str, tmp_path: Path) -> dict[str, str]:
    """An environment in which that server is the one to be found."""
    (tmp_path / "redis-server").symlink_to(server)
    return {"PATH": str(tmp_path)}


def own_redis(mesh: RunningMesh) -> psutil.Process:
    """The agent's child that is a Redis, as soon as it is one."""

    def found() -> list[psutil.Process]:
        children = psutil.Process(mesh.process.pid).children()
        return [child for child in children if "redis-server" in child.cmdline()[0] or "*:0" in child.cmdline()[0]]

    def one() -> list[psutil.Process]:
        try:
            return found()
        except (psutil.NoSuchProcess, IndexError):
            return []

    wait_until(one, 20, "a Redis of its own")
    return one()[0]


def ask(mesh: RunningMesh, nonce: int) -> int:
    path, body = doubled(0, nonce)
    answer = mesh.post(path, body)
    assert answer.status != 200 or answer.json() == {"nonce": nonce, "answer": 2 * nonce + 1}
    return answer.status


def test_the_stages_of_one_host_have_a_redis_of_their_own_that_dies_and_comes_back(only: dict[str, str]) -> None:
    import redis

    with running(APP, env=only) as mesh:
        assert [ask(mesh, nonce) for nonce in range(20)] == [200] * 20
        own = own_redis(mesh)
        assert [one for one in own.net_connections("inet") if one.status == psutil.CONN_LISTEN] == []
        (path,) = {one.laddr for one in own.net_connections("unix") if one.laddr}
        folder = Path(str(path)).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        client = redis.Redis.from_url(f"unix://{path}")
        assert client.info("stats")["total_commands_processed"] > 20, "it was used"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        wait_until(lambda: client.dbsize() == 0, 5, "everything to be released")
        own.kill()
        wait_until(lambda: "redis ended: SIGKILL; it is started again at once" in mesh.log(), 10, "a word about it")
        again = own_redis(mesh)
        assert again.pid != own.pid
        wait_until(lambda: answers(str(path)), 10, "the new one to answer")
        wait_until(lambda: ask(mesh, 1) == 200, 10, "answers again")
        wait_until(lambda: client.info("stats")["total_commands_processed"] > 5, 10, "the new one to be used")
        assert mesh.stop() == 0
        assert not again.is_running() and not folder.exists()


def test_a_redis_of_its_own_does_not_outlive_an_agent_that_is_killed(only: dict[str, str]) -> None:
    with running(APP, env=only) as mesh:
        own = own_redis(mesh)
        mesh.process.kill()
        mesh.process.wait()
        wait_until(lambda: not own.is_running() or own.status() == psutil.STATUS_ZOMBIE, 10, "its Redis to be gone")


def test_a_mesh_uses_the_redis_that_its_file_names_and_tells_nobody_the_password(server: str) -> None:
    with redis_server(server, "--requirepass", "hush") as there:
        watcher = there.client(password="hush")
        env = {"APP_REDIS_URL": f"unix://:hush@{there.socket}", "PATH": "/nowhere"}
        with running(APP, "--log-level", "debug", env=env) as mesh:
            assert [ask(mesh, nonce) for nonce in range(20)] == [200] * 20
            assert watcher.info("commandstats")["cmdstat_set"]["calls"] >= 1
            wait_until(lambda: watcher.dbsize() == 0, 5, "everything to be released")
            said = mesh.log() + mesh.get("/mesh").body.decode() + mesh.get("/metrics").body.decode()
            there.kill()
            wait_until(lambda: ask(mesh, 1) and "does not answer" in mesh.log(), 10, "a word that it is away")
            assert mesh.stop() == 0
            assert "hush" not in said + mesh.log()
            commands = [*ZMESH, "check", str(APP), "-o", "json"]
        shown = subprocess.run(commands, env={**os.environ, **env}, capture_output=True, text=True, check=True)
        assert '"needs_redis": true' in shown.stdout and "hush" not in shown.stdout + shown.stderr


def test_a_redis_that_hangs_never_hangs_a_worker_beyond_a_deadline(server: str) -> None:
    with redis_server(server) as there, running(APP, "--timeout", "1000", "--redis-url", there.url) as mesh:
        assert ask(mesh, 1) == 200
        os.kill(there.pid, signal.SIGSTOP)
        statuses = [ask(mesh, nonce) for nonce in range(6)]
        assert set(statuses) <= {200, 500, 408} and statuses.count(200) >= 4, "what Redis does not take goes otherwise"
        os.kill(there.pid, signal.SIGCONT)
        wait_until(lambda: [ask(mesh, nonce) for nonce in range(10)] == [200] * 10, 10, "all to be well")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--redis-url", ":hush@localhost"], "zmesh: --redis-url (ZMESH_REDIS_URL) must be redis://HOST:PORT, "),
        (["--bind", f"tcp://127.0.0.1:{free_port()}"], "zmesh: stage Make hands on through Redis, and other hosts "),
    ],
)
def test_a_mesh_that_could_not_hand_on_does_not_start(words: list[str], said: str) -> None:
    command = [*ZMESH, "run", str(APP), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode in (1, 2) and done.stderr.startswith(said), done.stderr
    assert done.stderr.count("\n") == 1 and "hush" not in done.stderr
