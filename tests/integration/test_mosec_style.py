"""Files written for mosec, of which nothing but the name of the library was replaced: each is started in three ways,
asked, answered right and stopped.

All of a way are started at once, because most of the time of a start is spent waiting for other processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgpack
import pytest

from tests.harness import ZMESH, RunningMesh, running, wait_until

APPS = Path(__file__).parent / "apps" / "mosec_style"
WAYS = ("python", "zmesh run", "isolate-broker")
GATEWAYS = 1  # besides the agent, processes that run the app file as __main__

Check = Callable[[RunningMesh], None]


def ask(mesh: RunningMesh, path: str, body: bytes, **headers: str) -> tuple[int, bytes, str]:
    answer = mesh.post(path, body, headers)
    return answer.status, answer.body, answer.headers.get("content-type", "").partition(";")[0]


def single(mesh: RunningMesh) -> None:
    assert mesh.post("/inference", b'{"x": 3}').json() == {"x": 9}
    assert ask(mesh, "/inference", b"{}")[:2] == (422, b"request validation error: 'x' is missing - send a number")
    assert ask(mesh, "/inference", b'{"x": "client"}')[:2] == (400, b"bad request: bad request")
    assert ask(mesh, "/inference", b'{"x": "server"}')[:2] == (500, b"internal error: the disk is full")
    assert ask(mesh, "/inference", b'{"x": []}')[:2] == (500, b"inference internal error")
    status, text, _ = ask(mesh, "/inference", b'{"x": "mosec"}')
    assert status == 500 and text.endswith(b" error: on purpose")
    status, text, _ = ask(mesh, "/inference", b"{")
    assert status == 400 and text.startswith(b"decoding error: ")
    wait_until(lambda: "a worker of Square" in mesh.log(), what="the line of the user's logger")


def pipeline(mesh: RunningMesh) -> None:
    answer = mesh.post("/inference", b'{"words": "how many words"}')
    assert answer.json() == {"words": 3, "letters": 12} and answer.headers["content-type"] == "application/json"
    assert ask(mesh, "/inference", b"{}")[:2] == (422, b"request validation error: cannot find key 'words'")


def batch(mesh: RunningMesh) -> None:
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda x: mesh.post("/inference", b'{"x": %d}' % x).json(), range(32)))
    assert [answer["x"] for answer in answers] == [2 * x for x in range(32)]
    assert 1 < max(answer["batch"] for answer in answers) <= 8
    metrics = mesh.get("/metrics").body.decode().splitlines()
    assert [line for line in metrics if line.startswith("zmesh_remaining_task ")] == ["zmesh_remaining_task 0.0"]


def routes(mesh: RunningMesh) -> None:
    assert mesh.post("/inference", b"mosec").json() == {"length": 5}
    body = msgpack.packb({"name": "mosec-test", "bin": b"mosec"})
    status, packed, kind = ask(mesh, "/v1/inference", body)
    assert (status, msgpack.unpackb(packed), kind) == (200, {"length": 5}, "application/msgpack")
    assert mesh.post("/tell", b'{"x": 1}').json() == mesh.post("/v1/tell", b'{"x": 1}').json()
    assert mesh.post("/tell/", b"{}").status == 404
    document = mesh.get("/openapi/metadata.json").json()
    (asked,) = document["paths"]["/tell"]["post"]["requestBody"]["content"].values()
    assert asked["schema"] == {"$ref": "#/components/schemas/Question"}
    assert document["components"]["schemas"]["Question"]["required"] == ["x"]
    given = document["paths"]["/v1/inference"]["post"]["responses"]["200"]["content"]
    assert given == {"application/msgpack": {}}


def typed(mesh: RunningMesh) -> None:
    body = msgpack.packb({"name": "a", "values": [1, 2.5]})
    status, packed, kind = ask(mesh, "/inference", body)
    assert (status, msgpack.unpackb(packed), kind) == (200, {"total": 3.5, "shape": [2]}, "application/msgpack")
    assert msgpack.unpackb(ask(mesh, "/single", body)[1]) == 2
    wrong = ask(mesh, "/inference", msgpack.packb({"name": "a", "values": "no"}))[:2]
    assert wrong == (422, b"request validation error: Expected `array`, got `str` - at `$.values`")
    status, said, _ = ask(mesh, "/single", b"\xc1")
    assert status == 400 and said.startswith(b"decoding error: ")
    document = mesh.get("/openapi/metadata.json").json()
    content = document["paths"]["/single"]["post"]["requestBody"]["content"]
    assert content["application/msgpack"]["schema"] == {"$ref": "#/components/schemas/Request"}
    assert document["components"]["schemas"]["Request"]["required"] == ["name", "values"]


def text(mesh: RunningMesh) -> None:
    assert ask(mesh, "/inference", "eins zwei drei für".encode()) == (200, "eins-zwei-drei-für".encode(), "text/plain")
    assert ask(mesh, "/inference", b"\xff")[:2] == (400, b"decoding error: this is not UTF-8")
    assert ask(mesh, "/inference", b"for nothing")[:2] == (500, b"encoding error: it cannot be said")


def env(mesh: RunningMesh) -> None:
    with ThreadPoolExecutor(2) as clients:
        answers = list(clients.map(lambda _: mesh.post("/inference", b'{"seconds": 0.3}').json(), range(2)))
    told = sorted((answer["device"], answer["worker_id"]) for answer in answers)
    assert told == [("cuda:0", 1), ("cuda:1", 2)]
    assert {answer["after"] for answer in answers} == {os.environ.get("DEVICE")}


def sse(mesh: RunningMesh) -> None:
    def events(body: bytes) -> list[tuple[str, str]]:
        answer = mesh.post("/inference", body)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
        found = []
        for block in answer.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            found += [(fields.get("event", "message"), fields["data"])] if fields else []
        return found

    with ThreadPoolExecutor(4) as clients:
        told = clients.map(lambda name: events(b'{"text": "%s"}' % name), [b"one", b"two", b"three", b"four"])
        refused = clients.submit(events, b'{"bad": "req"}')
        for name, said in zip(("one", "two", "three", "four"), told, strict=True):
            assert said == [("message", f"{name} {step}") for step in range(5)]
    why = "SSE inference error: 422: Unprocessable Content: request validation error: text is required"
    assert refused.result() == [("error", why)]


def timeouts(mesh: RunningMesh) -> None:
    def seconds(path: str, seconds: float) -> tuple[int, bytes]:
        return ask(mesh, path, b'{"seconds": %g}' % seconds)[:2]

    with ThreadPoolExecutor(5) as clients:
        late = clients.submit(seconds, "/long", 10)
        caught = clients.submit(seconds, "/careful", 10)
        in_time = clients.submit(seconds, "/careful", 0.01)
        assert seconds("/short", 0.01)[0] == 200
        status, said = seconds("/short", 10)
        assert status == 408 and b"timeout" in said
        assert in_time.result()[0] == 200
        assert caught.result()[0] == 200 and b"until the alarm" in caught.result()[1]
        assert late.result()[0] == 408  # --timeout, which is 1.5 s here, counts though the stage would allow more


def flags(mesh: RunningMesh) -> None:
    assert mesh.post("/inference", b'{"x": 5}').json() == {"x": 10, "fast": True}


def daemon(mesh: RunningMesh) -> None:
    assert mesh.post("/inference", b'{"x": 5}').json() == {"x": 5}
    assert [is_running(pid) for pid in daemons(mesh)] == [True] + [False] * GATEWAYS  # a copy is ended at once


def daemons(mesh: RunningMesh) -> list[int]:
    return [int(line.split()[1]) for line in mesh.log().splitlines() if line.startswith("DAEMON ")]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (single, pipeline, batch, routes, typed, text, env, sse, timeouts, flags, daemon)
}
OURS = {"timeouts": ("--timeout", "1500")}
THEIRS = {"flags": ("--scale", "2", "--fast")}


def started(name: str, way: str, held: ExitStack) -> RunningMesh:
    app = str(APPS / f"{name}.py")
    ours, theirs = OURS.get(name, ()), THEIRS.get(name, ())
    if way == "python":
        return held.enter_context(running(app, *ours, *theirs, command=[sys.executable, app], ready=False))
    more = ("--isolate-broker",) if way == "isolate-broker" else ()
    rest = ("--", *theirs) if theirs else ()
    return held.enter_context(running(app, *more, *ours, *rest, ready=False))


@pytest.fixture(scope="module", params=WAYS)
def meshes(request: pytest.FixtureRequest) -> Iterator[dict[str, RunningMesh]]:
    """Those that a test of this run wants, all started at the same time."""
    items = [item for item in request.session.items if getattr(item, "module", None) is request.module]
    specs = [getattr(item, "callspec", None) for item in items]
    chosen = {spec.params.get("name") for spec in specs if spec is not None}
    with ExitStack() as held:
        yield {name: started(name, request.param, held) for name in CHECKS if name in chosen}


@pytest.mark.parametrize("name", CHECKS)
def test_a_file_written_for_mosec_is_served_right(meshes: dict[str, RunningMesh], name: str):
    mesh = meshes[name]
    mesh.wait_ready(50)
    CHECKS[name](mesh)
    mesh.process.send_signal(signal.SIGTERM)  # all end at once too: the next test waits for them


def test_all_of_them_end_with_0_and_leave_nothing_behind(meshes: dict[str, RunningMesh]):
    for name, mesh in meshes.items():
        assert mesh.process.wait(20) == 0, f"{name}\n{mesh.log()}"
    for pid in daemons(meshes["daemon"]) if "daemon" in meshes else []:
        assert not is_running(pid)


def test_every_file_is_asked():
    assert {path.stem for path in APPS.glob("*.py")} == set(CHECKS)


def test_they_are_mosecs_own_but_for_the_name():
    """No name is used that mosec has not, and no keyword."""
    ours = {"Stage", "batching=", "spread=", "retry=", "current_task", "zmesh.mixins", "http_status", "prefix"}
    for path in APPS.glob("*.py"):
        assert [word for word in ours if word in path.read_text()] == [], path.name


def test_the_end_of_a_daemon_is_the_end_of_the_server():
    with running(APPS / "daemon.py") as mesh:
        assert mesh.post("/inference", b'{"x": 5}').json() == {"x": 5}
        os.kill(daemons(mesh)[0], signal.SIGKILL)
        assert mesh.process.wait(10) == 1
        last = mesh.log().splitlines()[-1]
        assert last == "zmesh: daemon sleeper ended: SIGKILL, and the server with it"


def test_ctrl_c_ends_the_daemon_too_and_is_no_failure():
    app = str(APPS / "daemon.py")
    with running(app, command=["setsid", sys.executable, app]) as mesh:
        os.killpg(mesh.process.pid, signal.SIGINT)
        assert mesh.process.wait(10) == 0, mesh.log()
        assert "and the server with it" not in mesh.log()


def test_check_starts_nothing_and_ends_the_daemon_that_the_file_has_started(tmp_path: Path):
    app = tmp_path / "app.py"  # one that would wait for its daemon for ever
    app.write_text((APPS / "daemon.py").read_text().replace("process.terminate()", "pass"))
    done = subprocess.run([*ZMESH, "check", str(app)], check=True, capture_output=True, text=True, timeout=30)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("DAEMON ")]
    assert not is_running(int(line.split()[1]))
