"""Load from outside: wrk for closed loops, and bursts over raw sockets for round trips. Every loop is bounded."""

from __future__ import annotations

import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from math import ceil
from statistics import median

import psutil

__all__ = ["Closed", "burst_round_trip", "cpu_seconds", "one_client", "wrk"]

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass
class Closed:
    """One run of wrk: requests per second, latency in seconds, answers that were not 2xx, broken connections."""

    rate: float
    p50: float
    p99: float
    wrong: int
    broken: int


def wrk(url: str, clients: int, seconds: float, body: str = '{"x": "abcdefghijklmnopqrstu"}') -> Closed:
    """A closed loop of `clients` connections on one thread. Raises RuntimeError when wrk is not installed."""
    if shutil.which("wrk") is None:
        raise RuntimeError("this benchmark needs wrk: apt-get install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method='POST'\nwrk.body='{body}'\nwrk.headers['content-type']='application/json'\n")
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{ceil(seconds)}s", "--latency", "--timeout", "10s"]
        text = subprocess.run(
            [*command, "-s", script.name, url], capture_output=True, text=True, timeout=seconds + 60, check=True
        ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    assert rate is not None, text
    return Closed(
        float(rate[1]),
        _latency(text, "50%"),
        _latency(text, "99%"),
        int(wrong[1]) if wrong else 0,
        sum(map(int, errors.groups())) if errors else 0,
    )


def _latency(text: str, percent: str) -> float:
    found = re.search(rf"\s{percent}\s+([\d.]+)(us|ms|s|m)\s", text)
    assert found is not None, text
    return float(found[1]) * UNITS[found[2]]


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


def cpu_seconds(pid: int) -> dict[int, tuple[str, float]]:
    """CPU seconds so far of a process and all its descendants: pid → (what it is, seconds)."""
    root = psutil.Process(pid)
    lines = {process: process.cmdline() for process in [root, *root.children(recursive=True)]}
    has_lone_broker = any("zmesh.serving" in line for line in lines.values())
    spent = {}
    for process, line in lines.items():
        if process.pid == pid:
            name = "agent"
        elif "zmesh.serving" in line:
            name = "broker"
        elif "gateway" in line:
            name = "gateway" if has_lone_broker else "gateway + broker"
        else:
            name = "worker"
        times = process.cpu_times()
        spent[process.pid] = (name, times.user + times.system)
    return spent
