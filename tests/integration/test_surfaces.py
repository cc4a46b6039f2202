"""What a running mesh shows of itself, and what happens while it starts and when it ends."""

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, running, wait_until

ECHO = REPOSITORY / "examples" / "echo" / "app.py"
MSGPACK = REPOSITORY / "examples" / "msgpack" / "app.py"
APPS = Path(__file__).parent / "apps"


def test_every_page_of_the_gateway_answers() -> None:
    with running(ECHO) as mesh:
        assert mesh.post("/inference", b'{"x": 1}').json() == {"x": 1}
        assert b"zmesh" in mesh.get("/").body
        assert mesh.get("/livez").status == 200
        assert mesh.get("/readyz").json()["ready"] is True
        stages = mesh.mesh()["stages"]
        assert [stage["name"] for stage in stages] == ["Echo"]
        metrics = mesh.get("/metrics")
        assert b'zmesh_throughput_total{code="200",endpoint="/inference"} 1' in metrics.body
        assert metrics.headers["content-type"].startswith("text/plain")
        document = mesh.get("/openapi/metadata.json").json()
        assert document["openapi"].startswith("3.1") and "/inference" in document["paths"]
        page = mesh.get("/openapi/swagger/")
        assert page.status == 200 and b"swagger" in page.body
        assert mesh.get("/docs").status == 404


@pytest.mark.parametrize("lane", ["fast", "asgi"])
def test_http_2_is_refused_and_the_connection_ends(lane: str) -> None:
    with running(ECHO, "--lane", lane) as mesh, socket.create_connection(("127.0.0.1", mesh.port), 10) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        with client.makefile("rb") as answer:
            assert answer.readline() == b"HTTP/1.1 400 Bad Request\r\n"
            assert answer.read().endswith(b"Invalid HTTP request received.")


def test_a_request_that_arrives_before_any_worker_is_held_and_answered(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with running(APPS / "slow_start.py", "--timeout", "30000", ready=False, env={"GO": str(go)}) as mesh:

        def listening() -> bool:
            try:
                return mesh.get("/livez").status == 200
            except OSError:
                return False

        wait_until(listening)
        assert mesh.get("/readyz").status == 503
        assert mesh.get("/readyz").json()["ready"] is False
        with ThreadPoolExecutor() as asking:
            held = asking.submit(mesh.post, "/inference", b'{"x": 1}')
            wait_until(lambda: any(stage["queued"] for stage in mesh.mesh()["stages"]), what="a request that waits")
            go.touch()
            answer = held.result()
        assert (answer.status, answer.json()) == (200, {"x": 1})


def test_msgpack_goes_in_and_comes_out() -> None:
    import msgpack

    with running(MSGPACK) as mesh:
        answer = mesh.post("/square", msgpack.packb({"x": 3}))
        assert answer.headers["content-type"] == "application/msgpack"
        assert msgpack.unpackb(answer.body)["y"] == 9


def test_sigterm_finishes_what_was_accepted_and_ends_with_0() -> None:
    with running(APPS / "two_stages.py", "--timeout", "30000", env={"FIRST_MS": "300"}) as mesh:
        import threading

        answers = []
        sender = threading.Thread(
            target=lambda: answers.append(mesh.post("/double", json.dumps({"nonce": 4}).encode()))
        )
        sender.start()
        wait_until(lambda: any(stage["leased"] for stage in mesh.mesh()["stages"]), what="a lease")
        assert mesh.stop(signal.SIGTERM) == 0
        sender.join(5)
        assert [answer.status for answer in answers] == [200]
        assert answers[0].json() == {"nonce": 4, "answer": 9}
