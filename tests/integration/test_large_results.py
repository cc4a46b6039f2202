"""Large results on one host: through shared memory by themselves, and what if they are lost there."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from tests.harness import REPOSITORY, Answer, RunningMesh, running, wait_until

APP = REPOSITORY / "tests" / "integration" / "apps" / "large_results.py"


@pytest.fixture(scope="module", name="mesh")
def running_mesh() -> Iterator[RunningMesh]:
    with running(APP, "--timeout", "20000") as mesh:
        yield mesh


def ask(mesh: RunningMesh, nonce: int, size: int, route: str = "/widen") -> Answer:
    return mesh.post(route, json.dumps({"nonce": nonce, "bytes": size}).encode())


def memory_of(mesh: RunningMesh) -> Path:
    """Where this run has its files: the directory of whose lock its agent is the holder."""
    held = [os.readlink(link) for link in Path(f"/proc/{mesh.process.pid}/fd").iterdir() if link.is_symlink()]
    (lock,) = [Path(path) for path in held if path.startswith("/dev/shm/zmesh-") and path.endswith("/lock")]
    return lock.parent


def waiting(mesh: RunningMesh) -> list[Path]:
    """Files that nobody has released."""
    return [path for path in memory_of(mesh).iterdir() if path.name != "lock" and path.suffix != ".spare"]


def counters(mesh: RunningMesh, stage: str) -> dict[str, int]:
    (found,) = [one["counters"] for one in mesh.mesh()["stages"] if one["name"] == stage]
    return dict(found)


@pytest.mark.parametrize("size", [1000, 100_000, 10_000_000, 100_000_000])
def test_results_of_any_size_arrive_whole(mesh: RunningMesh, size: int):
    answer = ask(mesh, size, size)
    assert answer.status == 200, answer
    assert answer.json() == {"nonce": size, "bytes": size // 32 * 32, "right": True}


def test_a_result_that_was_used_is_released_and_its_file_written_again(mesh: RunningMesh):
    for nonce in range(5):
        assert ask(mesh, nonce, 3_000_000).json()["right"]
    wait_until(lambda: not waiting(mesh), what="the broker to have acknowledged everything")
    spare = [path for path in memory_of(mesh).iterdir() if 3_000_000 <= path.stat().st_size < 3_001_000]
    assert 1 <= len(spare) < 5


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def lost_on_the_way(mesh: RunningMesh, route: str) -> Answer:
    """The answer of a request whose large result is taken away before the next stage has read it."""
    wait_until(lambda: not waiting(mesh), what="memory to be empty")
    pids = [w["pid"] for stage in mesh.mesh()["stages"] if stage["name"] == "Measure" for w in stage["workers"]]
    answers: list[Answer] = []
    thread = Thread(target=lambda: answers.append(ask(mesh, 7, 200_000, route)))
    with stopped(pids):
        thread.start()
        wait_until(lambda: waiting(mesh) and counters(mesh, "Measure")["attempts"], what="a large result")
        for path in waiting(mesh):
            path.unlink()
    thread.join(20)
    return answers[0]


def test_a_request_whose_result_is_lost_midway_begins_anew(mesh: RunningMesh):
    before = counters(mesh, "Widen")["tasks_ok"]
    answer = lost_on_the_way(mesh, "/widen")
    assert answer.status == 200 and answer.json()["right"]
    assert counters(mesh, "Widen")["tasks_ok"] == before + 2


def test_one_that_must_not_run_twice_is_told_so(mesh: RunningMesh):
    answer = lost_on_the_way(mesh, "/once")
    told = b"inference internal error: the result of stage WidenOnce is lost, and stage WidenOnce must not run again"
    assert (answer.status, answer.body) == (500, told)


def test_with_no_shared_memory_everything_goes_through_the_broker():
    before = {path.name for path in Path("/dev/shm").iterdir()}
    with running(APP, "--no-shared-memory", "--timeout", "20000") as mesh:
        assert ask(mesh, 1, 2_000_000).json()["right"]
        assert "stage Widen hands 1.9 MiB on to the next stage" in mesh.log()
        assert {path.name for path in Path("/dev/shm").glob("zmesh-*")} <= before
        assert ask(mesh, 2, 100_000_000).status == 413


def test_a_killed_run_leaves_its_directory_to_be_swept_by_the_next():
    with running(APP) as killed:
        place = memory_of(killed)
        assert ask(killed, 1, 2_000_000).json()["right"]
        killed.process.kill()
        killed.process.wait()
    assert place.is_dir()
    with running(APP) as following:
        assert not place.exists() and memory_of(following).is_dir()
