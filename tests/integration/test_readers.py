"""Server-sent events with real processes and both lanes: who reads slowly, leaves or loses a worker is alone in it."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.harness import RunningMesh, running, wait_until

pytestmark = pytest.mark.slow

APPS = Path(__file__).parent / "apps"
EXAMPLE = Path(__file__).parents[2] / "examples" / "sse" / "app.py"
LANES = ("fast", "asgi")
STEPS = 40  # of 20 ms
LARGE = 300_000  # bytes of an event: a second of them is more than sockets and the gateway keep for a reader
GAP_SECONDS_MAX = 1.0  # between two events, on a machine that may be busy


class Reading:
    """One request for a stream over a raw socket, with the time at which each piece of its answer came."""

    def __init__(self, mesh: RunningMesh, path: str, body: bytes, *, room: int = 0) -> None:
        self.socket = socket.socket()
        if room:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", mesh.port))
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)
        self.pieces: list[tuple[float, bytes]] = []

    def read_some(self) -> bool:
        piece = self.socket.recv(1 << 20)
        if piece:
            self.pieces.append((time.monotonic(), piece))
        return bool(piece)

    def read_all(self) -> Reading:
        while self.read_some():
            pass
        self.socket.close()
        return self

    @property
    def raw(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    @property
    def status(self) -> int:
        return int(self.raw[9:12])

    @property
    def text(self) -> str:
        """The body without the marks of its chunks."""
        head, _, rest = self.raw.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" not in head:
            return rest.decode()
        found = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            found.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        return b"".join(found).decode()

    @property
    def events(self) -> list[str]:
        return [one for one in self.text.split("\n\n") if one and one != ":"]

    def seen(self) -> list[dict[str, object]]:
        """What the worker said of itself in each event."""
        return [json.loads(match) for match in re.findall(r"^data: (\{.*\})$", self.text, re.MULTILINE)]

    def gaps(self) -> list[float]:
        times = [at for at, _ in self.pieces]
        return [later - earlier for earlier, later in pairwise(times)]


@pytest.fixture(name="meshes", scope="module")
def meshes_fixture() -> Iterator[dict[str, RunningMesh]]:
    """They start together, which takes hardly longer than one."""
    with ExitStack() as stack:
        apps = {lane: (APPS / "streams.py", "--lane", lane, "--timeout", "20000") for lane in LANES}
        meshes = {name: stack.enter_context(running(*line, ready=False)) for name, line in apps.items()}
        meshes["example"] = stack.enter_context(running(EXAMPLE, env={"SSE_PACE": "0.01"}, ready=False))
        for mesh in meshes.values():
            mesh.wait_ready()
        yield meshes


@pytest.fixture(name="mesh", scope="module", params=LANES)
def mesh_fixture(meshes: dict[str, RunningMesh], request: pytest.FixtureRequest) -> RunningMesh:
    return meshes[request.param]


def counts(mesh: RunningMesh) -> dict[str, int]:
    """How many requests ended with each code."""
    text = mesh.get("/metrics").body.decode()
    found: dict[str, int] = {}
    for code, times in re.findall(r'throughput_total\{code="(\d+)",endpoint="/\w+"\} (\d+)', text):
        found[code] = found.get(code, 0) + int(times)
    return found


@contextmanager
def counted(mesh: RunningMesh, **codes: int) -> Iterator[None]:
    """Each stream of the block counts once, with the code that it ended with."""
    before = counts(mesh)
    yield
    expected = {**before, **{code[1:]: before.get(code[1:], 0) + times for code, times in codes.items()}}
    wait_until(lambda: counts(mesh) == expected, what=f"{expected}, there are {counts(mesh)}")


def test_of_four_in_a_batch_a_slow_one_and_one_that_leaves_do_not_disturb_the_others(mesh: RunningMesh):
    with counted(mesh, _200=2, _408=1, _499=1):
        _four_in_a_batch(mesh)


def _four_in_a_batch(mesh: RunningMesh) -> None:
    plain, large = json.dumps({"steps": STEPS}).encode(), json.dumps({"steps": STEPS, "size": LARGE}).encode()
    slow = Reading(mesh, "/paced", large, room=4096)
    leaver = Reading(mesh, "/paced", plain)
    good = [Reading(mesh, "/paced", plain) for _ in range(2)]
    threads = [threading.Thread(target=one.read_all, daemon=True) for one in good]
    for thread in threads:
        thread.start()
    while leaver.raw.count(b"data: {") < 5:
        assert leaver.read_some()
    leaver.socket.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    for number, one in enumerate(good):
        seen = one.seen()
        assert [event["step"] for event in seen] == list(range(STEPS))
        assert {event["batch"] for event in seen} == {4}
        assert one.events[-1].startswith("data: "), "it ended well"
        gaps, whole = sorted(one.gaps()), one.pieces[-1][0] - one.pieces[0][0]
        print(f"good reader {number}: {STEPS} events in {whole:.2f} s, gaps: half are below "
              f"{gaps[len(gaps) // 2] * 1000:.0f} ms, the longest {gaps[-1] * 1000:.0f} ms")  # fmt: skip
        assert gaps[-1] < GAP_SECONDS_MAX
        left = {index for event in seen for index in event["left"]}  # type: ignore[attr-defined]
        assert left == {0, 1}, "the worker was told of the one who left and of the slow one"
    slow.read_all()
    assert slow.status == 200
    assert slow.events[-1].startswith(
        "event: error\ndata: SSE inference error: 408: Request Timeout: request timeout: its reader is too slow: "
    )
    steps = [event["step"] for event in slow.seen()]
    assert steps == list(range(len(steps)))
    assert len(steps) < STEPS


def test_a_worker_that_dies_before_its_first_event_is_not_noticed(mesh: RunningMesh, tmp_path: Path):
    body = json.dumps({"dies_before": 0, "heard": str(tmp_path), "mark": str(tmp_path / "died")}).encode()
    with counted(mesh, _200=1):
        read = Reading(mesh, "/alone", body).read_all()
    assert (tmp_path / "died").exists()
    assert read.events == [f"data: {step} of attempt 2" for step in range(4)]


def test_after_its_first_event_it_ends_the_stream_with_an_error(mesh: RunningMesh, tmp_path: Path):
    heard = tmp_path / "heard"
    body = json.dumps({"dies_before": 2, "heard": str(heard), "mark": str(tmp_path / "died")}).encode()
    with counted(mesh, _500=1):
        read = Reading(mesh, "/alone", body)
        while b"1 of attempt 1" not in read.raw:
            assert read.read_some()
        heard.touch()
        read.read_all()
    reason = "inference internal error: its worker was lost in the middle of the stream"
    assert read.status == 200
    assert read.events == [
        "data: 0 of attempt 1",
        "data: 1 of attempt 1",
        f"event: error\ndata: SSE inference error: 500: Internal Server Error: {reason}",
    ]
    wait_until(lambda: mesh.get("/readyz").status == 200, what="its successor")


def test_a_deadline_ends_a_stream_with_an_error_and_the_worker_is_free_again(mesh: RunningMesh):
    for _ in range(2):
        sent = time.monotonic()
        answer = mesh.post("/alone", b'{"endless": true}', {"x-request-timeout": "0.3"})
        said = "SSE inference error: 408: Request Timeout: request timeout: no answer before the deadline"
        assert answer.body.decode() == f"data: 0 of attempt 1\n\nevent: error\ndata: {said}\n\n"
        assert time.monotonic() - sent < 5


def test_the_example_speaks_to_several_at_once(meshes: dict[str, RunningMesh]):
    texts = ["Once upon a time", "Hi", "", "there lived a king"]
    readings = [Reading(meshes["example"], "/inference", json.dumps({"text": text}).encode()) for text in texts]
    error = "SSE inference error: 422: Unprocessable Content: request validation error: text is required"
    for text, reading in zip(texts, readings, strict=True):
        events = [f"data: {word}" for word in text.split()] or [f"event: error\ndata: {error}"]
        assert reading.read_all().events == events
