"""`zmesh bench` against servers that are told how to behave, and against a mesh."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.harness import REPOSITORY, ZMESH, running, wait_until
from zmesh.bench.load import Load
from zmesh.bench.loops import generate
from zmesh.bench.target import reach, target

ECHO = REPOSITORY / "examples" / "echo" / "app.py"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"


@dataclass
class RawServer:
    """One thread per connection. `answer(number)` is what request `number` of all gets; None ends the connection, and
    what is said by `never` comes when nobody listens any more."""

    answer: Callable[[int], bytes | None]
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=512))
    requests: list[bytes] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    gone: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __post_init__(self) -> None:
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/x"

    def stop_listening(self) -> None:
        try:
            self.listener.shutdown(socket.SHUT_RDWR)  # which wakes who accepts
        except OSError:
            pass  # it was done before
        self.listener.close()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        read = b""
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                while not (whole := _whole(read)):
                    try:
                        more = connection.recv(65536)
                    except OSError:
                        return
                    if not more:
                        return
                    read += more
                with self.lock:
                    self.requests.append(read[:whole])
                    number = len(self.requests) - 1
                read = read[whole:]
                said = self.answer(number)
                if self.answer is never:
                    self.gone.wait()
                if said is None:
                    return
                try:
                    connection.sendall(said)
                except OSError:
                    return
                if b"connection: close" in said:
                    return


def _whole(read: bytes) -> int:
    """The length of the first request, or 0 if it is not all there."""
    head, end, body = read.partition(b"\r\n\r\n")
    if not end:
        return 0
    _, _, length = head.partition(b"content-length: ")
    size = int(length.split(b"\r\n")[0]) if length else 0
    return len(head) + 4 + size if len(body) >= size else 0


@contextmanager
def serving(answer: Callable[[int], bytes | None]) -> Iterator[RawServer]:
    server = RawServer(answer)
    threading.Thread(target=server.accept, daemon=True).start()
    try:
        yield server
    finally:
        server.gone.set()
        server.stop_listening()


def never(number: int) -> None:
    """See RawServer."""


def bench(url: str, *arguments: str, seconds: float = 45) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON, and stderr."""
    line = [*ZMESH, "bench", url, *arguments, "--json", "-"]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else {}, done.stderr


def whose(result: dict[str, Any]) -> list[str]:
    return [fault["whose"] for fault in result["faults"]]


# ── what a stall does to the figures ──────────────────────────────────────────────────────────────────────────────


def stalling(seconds: float, at: int) -> Callable[[int], bytes]:
    """All connections of the server stand still once, from request `at` on."""
    gate = threading.Event()
    gate.set()

    def answer(number: int) -> bytes:
        if number == at:
            gate.clear()
            threading.Timer(seconds, gate.set).start()
        gate.wait()
        return OK

    return answer


@pytest.mark.slow
def test_a_stall_of_a_second_is_in_the_latency_of_all_who_would_have_come_meanwhile():
    """One connection, so that only one request is in flight while the server stands still. A generator that measured
    from the moment of sending would see one slow request of 400, and a p90 of nothing."""
    with serving(stalling(1.0, at=150)) as server:
        code, said, err = bench(
            server.url,
            "--rate",
            "100",
            "--arrivals",
            "constant",
            "--seconds",
            "4",
            "--warmup",
            "0.5",
            "--connections",
            "1",
        )
    result = said["result"]
    assert result["due"] == 400 and result["statuses"] == {"200": 400}
    # 100 of 400 were due during the stall, and waited for 1 s to 0 s: the 40th of them for 0.6 s. A busy machine can
    # only make them longer.
    latency = result["latency"]
    assert latency["p90_ms"] >= 500 and latency["max_ms"] >= latency["p99_ms"] >= 950
    assert result["waited_for_connection"]["count"] >= 95, "those who waited did so for a connection"
    assert result["lateness"]["p90_ms"] < 400, "the wait for a connection is not the generator's own lateness"
    assert code in (0, 5) and err == ""


@pytest.mark.slow
def test_a_closed_loop_hides_the_same_stall():
    """Why there is an open loop."""
    with serving(stalling(1.0, at=120)) as server:
        _, said, _ = bench(server.url, "--clients", "1", "--seconds", "4", "--warmup", "0")
    latency = said["result"]["latency"]
    assert latency["max_ms"] >= 950 and latency["p99_ms"] < 500


# ── a generator that is late ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_generator_that_was_stopped_says_that_it_was_late_and_not_the_server():
    with serving(lambda number: OK) as server:
        line = [*ZMESH, "bench", server.url, "--rate", "200", "--seconds", "2", "--warmup", "0.1", "--json", "-"]
        with subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
            wait_until(lambda: len(server.requests) > 100, what="the load to run")
            process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            wait_until(lambda: time.monotonic() - stopped > 0.5)
            process.send_signal(signal.SIGCONT)
            out, _ = process.communicate(timeout=30)
    result = json.loads(out)["result"]
    assert process.returncode == 5 and not result["valid"]
    assert whose(result) == ["generator"]
    assert result["lateness"]["max_ms"] >= 400 and result["latency"]["max_ms"] >= 400
    # Nothing was left out: what was due while it stood still was sent afterwards.
    assert sum(result["statuses"].values()) == result["due"] == len(server.requests) - _warmed_up(result, server)


def _warmed_up(result: dict[str, Any], server: RawServer) -> int:
    """Requests before the measured ones. The schedule is one, so it is what is left."""
    before = len(server.requests) - int(result["due"])
    assert 0 <= before < 60, "0.1 s at 200 req/s"
    return before


@pytest.mark.slow
def test_a_generator_whose_loop_was_blocked_says_so_too(tmp_path: Path):
    """In this process, with a blow that takes the loop for 0.3 s."""
    with serving(lambda number: OK) as server:
        blows = iter([0.3])

        def block(elapsed: float, figures: object) -> None:
            end = time.monotonic() + next(blows, 0.0)
            while time.monotonic() < end:
                pass

        aim = target(server.url)
        figures = generate(aim, reach(aim), Load(seconds=1.0, rate=100.0, arrivals="constant"), block)
    assert figures.due == figures.good == 100
    assert 0.2 < figures.lateness.longest < 1.0


# ── bounds ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_server_that_says_nothing_costs_each_request_its_timeout_and_no_more():
    with serving(never) as server:
        begun = time.monotonic()
        code, said, _ = bench(
            server.url, "--rate", "50", "--seconds", "1", "--warmup", "0", "--timeout", "500", "--connections", "8"
        )
        took = time.monotonic() - begun
    result = said["result"]
    assert result["timed_out"] == result["due"] > 30 and result["statuses"] == {}
    assert 500 <= result["latency"]["p50_ms"] <= 800
    assert result["connections_at_most"] <= 8 < result["connections_opened"], "one that timed out is of no use"
    assert code == 5 and "timed out): try one with curl first" in result["faults"][0]["text"]
    assert took < 15


@pytest.mark.slow
def test_what_finds_neither_a_connection_nor_room_to_wait_is_not_sent_and_counted():
    with serving(never) as server:
        aim = target(server.url)
        load = Load(seconds=0.5, rate=200.0, arrivals="constant", connections=2, waiting_max=5, timeout_seconds=1.0)
        figures = generate(aim, reach(aim), load)
    assert figures.due == 100 and figures.not_sent == 93 and figures.timed_out == 7
    assert figures.connections == 2


@pytest.mark.slow
def test_a_closed_loop_has_its_clients_and_no_more():
    with serving(lambda number: OK) as server:
        code, said, _ = bench(server.url, "--clients", "150", "--seconds", "0.5", "--warmup", "0.1")
    result = said["result"]
    assert code == 0 and result["valid"] and whose(result) == []
    assert (result["connections_at_most"], result["connections_opened"]) == (150, 150)
    assert result["statuses"] == {"200": result["due"]} and result["lateness"]["count"] == 0


# ── what servers do ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_errors_are_no_goodput_and_do_not_flatter_the_latency():
    def answer(number: int) -> bytes:
        if number % 2:
            return BUSY
        threading.Event().wait(0.05)
        return OK

    with serving(answer) as server:
        code, said, _ = bench(server.url, "--rate", "100", "--seconds", "1.5", "--warmup", "0.2")
    result = said["result"]
    good, busy = result["statuses"]["200"], result["statuses"]["429"]
    assert good + busy == result["due"] and abs(good - busy) < 40
    assert result["goodput_per_second"] == pytest.approx(good / 1.5, rel=0.4)  # some shift over the ends
    assert result["latency"]["count"] == good and result["latency"]["p50_ms"] >= 50
    assert result["latency_of_others"]["count"] == busy
    assert code in (0, 5)


@pytest.mark.slow
@pytest.mark.parametrize("load", [("--rate", "100"), ("--clients", "3")])
def test_connections_that_end_without_an_answer_are_counted_and_replaced(load: tuple[str, ...]):
    with serving(lambda number: None if number % 4 == 3 else OK) as server:
        _, said, _ = bench(server.url, *load, "--seconds", "1", "--warmup", "0.1")
    result = said["result"]
    assert result["due"] == result["statuses"]["200"] + result["broken"]
    assert result["broken"] == pytest.approx(result["due"] / 4, abs=3)
    assert result["connections_opened"] > result["broken"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", "200"),
        (b"HTTP/1.0 201 Created\r\nconnection: close\r\n\r\nall until the end", "201"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "200"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "200"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "204"),
        (b"HTTP/1.1 302 Found\r\nlocation: /y\r\ncontent-length: 0\r\n\r\n", "302"),
    ],
)  # fmt: skip
def test_answers_of_all_kinds_are_read_and_redirects_are_not_followed(answer: bytes, status: str):
    with serving(lambda number: answer) as server:
        _, said, _ = bench(server.url, "--rate", "100", "--seconds", "0.5", "--warmup", "0")
    result = said["result"]
    assert result["statuses"] == {status: result["due"]}
    assert len(server.requests) == result["due"] and {line[:6] for line in server.requests} == {b"GET /x"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        OK + OK,
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nok",
    ],
)  # fmt: skip
def test_what_is_no_answer_breaks_a_connection_and_not_the_generator(answer: bytes):
    with serving(lambda number: answer) as server:
        code, said, err = bench(server.url, "--rate", "50", "--seconds", "0.5", "--warmup", "0")
    result = said["result"]
    assert err == "" and code in (0, 5)
    assert result["due"] == result["broken"] + sum(result["statuses"].values())
    assert result["connections_opened"] >= result["due"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("load", [("--rate", "100", "--connections", "4"), ("--clients", "4")])
def test_a_server_that_goes_away_in_the_middle_is_counted_and_ends_nothing(load: tuple[str, ...]):
    with serving(lambda number: OK) as server:
        stopped = threading.Event()

        def answer(number: int) -> bytes | None:
            if number == 30:
                server.stop_listening()
                stopped.set()
            return None if stopped.is_set() else OK

        server.answer = answer
        _, said, err = bench(server.url, *load, "--seconds", "1", "--warmup", "0")
    result = said["result"]
    assert err == ""
    # A client tries again ten times a second.
    assert 20 < result["unconnected"] < 100 and result["broken"] >= 1
    assert result["due"] == sum(result["statuses"].values()) + result["broken"] + result["unconnected"]


@pytest.mark.slow
def test_a_client_whose_connection_is_closed_after_each_answer_gets_another():
    closing = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    with serving(lambda number: closing) as server:
        _, said, _ = bench(server.url, "--clients", "2", "--seconds", "0.7", "--warmup", "0")
    result = said["result"]
    assert result["due"] > 10 and result["statuses"] == {"200": result["due"]}
    assert result["connections_opened"] >= result["due"] and result["connections_at_most"] == 2


@pytest.mark.slow
def test_bodies_are_sent_in_turn_with_the_headers_that_were_typed(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(f'"{name}"')
    with serving(lambda number: OK) as server:
        arguments = ["--data", f"@{tmp_path}", "-d", "3", "-H", "x-request-timeout: 2", "--method", "PUT"]
        bench(server.url, "--clients", "1", "--seconds", "0.2", "--warmup", "0", *arguments)
    bodies = [request.partition(b"\r\n\r\n")[2] for request in server.requests]
    assert bodies[:6] == [b'"a"', b'"b"', b"3"] * 2
    assert all(line.startswith(b"PUT /x ") and b"\r\nx-request-timeout: 2\r\n" in line for line in server.requests)


# ── the sweep ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_sweep_finds_the_knee_of_a_server_whose_capacity_is_known():
    """One answer after another, 10 ms each: 100 a second. Below that its queue is short."""
    turn = threading.Lock()

    def answer(number: int) -> bytes:
        with turn:
            threading.Event().wait(0.01)
        return OK

    with serving(answer) as server:
        arguments = [
            "--seconds",
            "1",
            "--warmup",
            "0.3",
            "--timeout",
            "1000",
            "--rate",
            "25",
            "--arrivals",
            "constant",
        ]
        code, said, _ = bench(server.url, "--sweep", "--slo-ms", "300", *arguments)
    sweep = said["sweep"]
    assert sweep["steps"][0]["rate"] == 25 and sweep["alone"]["goodput_per_second"] < 105
    # It cannot do more than 100, of which 95 % are enough; on a busy machine it does less.
    assert 20 <= sweep["knee_per_second"] <= 115, sweep["text"]
    assert not any(step["carried"] for step in sweep["steps"] if step["rate"] > 115)
    assert (code == 0) == sweep["knee_is_of_server"]


# ── what a person sees ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_report_is_text_and_the_json_goes_to_its_file(tmp_path: Path):
    with serving(lambda number: OK) as server:
        file = tmp_path / "out.json"
        line = [*ZMESH, "bench", server.url, "--clients", "2", "--seconds", "0.3", "--warmup", "0", "--json", str(file)]
        done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"GET {server.url}\nclosed loop, 2 clients, 0.3 s after 0 s of warm-up\n\nrequests ")
    assert done.stdout.endswith("\nvalid\n")
    said = json.loads(file.read_text())
    assert said["zmesh_bench"] == 1 and said["result"]["valid"] is True
    assert said["parameters"]["clients"] == 2 and said["parameters"]["timeout_ms"] == 10_000


@pytest.mark.slow
def test_a_terminal_sees_progress_on_one_line_that_is_gone_at_the_end():
    with serving(lambda number: OK) as server:
        parent, child = pty.openpty()
        line = [*ZMESH, "bench", server.url, "--rate", "50", "--seconds", "1", "--warmup", "0.2"]
        process = subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=child)
        os.close(child)
        seen = b""
        while select.select([parent], [], [], 30)[0]:
            try:
                more = os.read(parent, 4096)
            except OSError:  # nobody has the other end any more
                break
            seen += more
        process.wait(30)
        os.close(parent)
    parts = seen.split(b"\r")
    assert len(parts) >= 3 and b"\n" not in seen
    assert b" of 1.2 s, " in seen and b"answers 2xx" in seen
    assert parts[-1] == b"\x1b[K"


@pytest.mark.slow
def test_an_interrupt_ends_it_without_a_traceback():
    with serving(lambda number: OK) as server:
        line = [*ZMESH, "bench", server.url, "--clients", "1", "--seconds", "30"]
        process = subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: len(server.requests) > 20, what="the load to run")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.strip()) == (130, "", "")


# ── a mesh ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_echo_example_is_measured_from_outside(tmp_path: Path):
    with running(ECHO) as mesh:
        code, said, err = bench(
            f"{mesh.url}/inference", "--rate", "100", "--seconds", "1.5", "--data", '{"x": 1}', "-d", '{"x": [1, 2]}'
        )
        _, refused, _ = bench(f"{mesh.url}/inference", "--clients", "1", "--seconds", "0.3", "--data", "no json")
    result = said["result"]
    assert result["statuses"] == {"200": result["due"]}, err
    assert result["goodput_per_second"] == pytest.approx(result["offered_per_second"], rel=0.4)
    assert 0 < result["latency"]["p50_ms"] <= result["latency"]["p99_ms"] <= result["latency"]["max_ms"]
    assert code == 0 or whose(result) == ["generator"], result
    assert set(refused["result"]["statuses"]) == {"400"} and whose(refused["result"]) == ["server"]
