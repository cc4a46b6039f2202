"""Load from outside: wrk for closed loops, `zmesh bench` for open ones, raw sockets for one client and for bursts."""

from __future__ import annotations

import functools
import json
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from math import ceil
from statistics import median

__all__ = [
    "BODY",
    "Closed",
    "Open",
    "burst_round_trip",
    "has_open_loop",
    "need_wrk",
    "one_client",
    "open_loop",
    "parse_open_loop",
    "parse_wrk",
    "wrk",
]

BODY = '{"x": "abcdefghijklmnopqrstu"}'
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
TOTAL = re.compile(r"(\d+) requests in ([\d.]+)(us|ms|s|m),")


@dataclass
class Closed:
    """One run of wrk: answers, and per second; latency in seconds; answers that were not 2xx, broken connections."""

    requests: int
    rate: float
    p50: float
    p99: float
    wrong: int
    broken: int


@dataclass
class Open:
    """One open loop: 2xx answers per second; latency in seconds from when each was due; what went wrong."""

    rate: float
    p50: float
    p99: float
    wrong: int
    is_valid: bool  # the generator was not late itself


def need_wrk() -> None:
    """Ends the program with what to do when wrk is not there."""
    if shutil.which("wrk") is None:
        sys.exit("this benchmark needs wrk: apt-get install wrk")


def wrk(url: str, clients: int, seconds: float, body: str = BODY) -> Closed:
    """A closed loop of `clients` connections on one thread. RuntimeError without wrk, or without a server."""
    if shutil.which("wrk") is None:
        raise RuntimeError("this benchmark needs wrk: apt-get install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method='POST'\nwrk.body='{body}'\nwrk.headers['content-type']='application/json'\n")
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{ceil(seconds)}s", "--latency", "--timeout", "10s"]
        done = subprocess.run(
            [*command, "-s", script.name, url], capture_output=True, text=True, timeout=seconds + 60, check=False
        )
    if done.returncode:
        raise RuntimeError(f"wrk: {(done.stderr or done.stdout).strip()}")
    return parse_wrk(done.stdout)


def parse_wrk(text: str) -> Closed:
    """What wrk printed. AssertionError when it is not that."""
    rate, total = re.search(r"Requests/sec:\s+([\d.]+)", text), TOTAL.search(text)
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    assert rate is not None and total is not None, text
    return Closed(
        requests=int(total[1]),
        rate=float(rate[1]),
        p50=_latency(text, "50%"),
        p99=_latency(text, "99%"),
        wrong=int(wrong[1]) if wrong else 0,
        broken=sum(map(int, errors.groups())) if errors else 0,
    )


def _latency(text: str, percent: str) -> float:
    found = re.search(rf"\s{percent}\s+([\d.]+)(us|ms|s|m)\s", text)
    assert found is not None, text
    return float(found[1]) * UNITS[found[2]]


@functools.cache
def has_open_loop() -> bool:
    """Whether this zmesh has the command that makes open loops."""
    command = [sys.executable, "-m", "zmesh", "bench", "--help"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def open_loop(url: str, rate: float, seconds: float, body: str = BODY) -> Open:
    """Requests at random times, `rate` a second on average, whether or not the earlier ones were answered."""
    load = ["--rate", f"{rate:g}", "--arrivals", "poisson", "--seconds", f"{seconds:g}"]
    about = ["--data", body, "--header", "content-type: application/json", "--json", "-"]
    command = [sys.executable, "-m", "zmesh", "bench", url, *load, *about]
    # Its exit code says whether the figures can be believed, and so do they.
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90, check=False)
    if not done.stdout.startswith("{"):
        raise RuntimeError(f"zmesh bench: {done.stderr.strip() or done.stdout.strip()}")
    return parse_open_loop(done.stdout)


def parse_open_loop(text: str) -> Open:
    """What `zmesh bench --json -` printed."""
    result = json.loads(text)["result"]
    return Open(
        rate=result["goodput_per_second"],
        p50=result["latency"]["p50_ms"] / 1e3,
        p99=result["latency"]["p99_ms"] / 1e3,
        wrong=result["due"] - result["good"],
        is_valid=result["valid"],
    )


def _request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def one_client(port: int, path: str, requests: int, body: bytes = b'{"x": 1}') -> list[float]:
    """Latencies in seconds of one client that waits for each answer, without the cost of an HTTP library."""
    request, latencies = _request(path, body), []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(requests):
            started = time.perf_counter()
            connection.sendall(request)
            answer = b""
            while not _is_whole(answer):
                answer += connection.recv(65536)
            latencies.append(time.perf_counter() - started)
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    return latencies


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert length is not None, head
    return len(body) >= int(length[1])


def burst_round_trip(port: int, path: str, size: int, bursts: int = 60, body: bytes = b'{"x": 1}') -> float:
    """Median seconds from the first byte of `size` simultaneous requests to the last of their answers."""
    request = _request(path, body)
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(size)]
    poller, took = select.poll(), []
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poller.register(connection, select.POLLIN)
    by_fd = {connection.fileno(): connection for connection in connections}
    for _ in range(bursts):
        answers = dict.fromkeys(by_fd, b"")
        started, left = time.perf_counter(), size
        for connection in connections:
            connection.sendall(request)
        while left:
            for fd, _event in poller.poll(5000):
                answers[fd] += by_fd[fd].recv(65536)
                left -= _is_whole(answers[fd])
        took.append(time.perf_counter() - started)
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers.values())
    for connection in connections:
        connection.close()
    return median(took)
