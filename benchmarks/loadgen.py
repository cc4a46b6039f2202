"""MLPerf LoadGen's Server scenario against an HTTP server: Poisson arrivals, latency from the scheduled time.

    PYTHON benchmarks/loadgen.py URL --rate 300 --seconds 8 --body '{"x": 1}'

PYTHON needs nothing but `pip install mlcommons-loadgen`, so it may be another one than zmesh's. Prints one line of
JSON. LoadGen draws the schedule, tells the time and counts; here is only what it calls the system under test:
connections that are kept open, a thread of LoadGen's that sends, and one that reads answers.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import select
import socket
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["main"]

CONNECTIONS = 128
LONGEST_SECONDS = 10.0
PERCENTILES = {"50.00": "p50", "90.00": "p90", "99.00": "p99"}


class Clients:
    """Connections to the server. LoadGen's thread calls `issue`, and `read` runs in its own."""

    def __init__(self, lg: Any, host: str, port: int, request: bytes) -> None:
        self._lg, self._request = lg, request
        self._poll = select.epoll()
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._waiting: deque[int] = deque()
        self._asked: dict[int, tuple[socket.socket, int, bytes]] = {}
        self.wrong = self.waited = 0
        for _ in range(CONNECTIONS):
            connection = socket.create_connection((host, port), LONGEST_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll.register(connection, select.EPOLLIN)
            self._idle.append(connection)

    def issue(self, samples: list[Any]) -> None:
        for sample in samples:
            with self._lock:
                if not self._idle:
                    self._waiting.append(sample.id)
                    self.waited += 1
                    continue
                connection = self._idle.pop()
                self._asked[connection.fileno()] = connection, sample.id, b""
            connection.sendall(self._request)

    def read(self) -> None:
        """For as long as the process lives."""
        while True:
            for fd, _ in self._poll.poll():
                connection, sample, before = self._asked[fd]
                more = connection.recv(65536)
                if not more:
                    raise ConnectionError("the server ended a connection")
                answer = before + more
                if _is_whole(answer):
                    self._answered(connection, sample, answer)
                else:
                    self._asked[fd] = connection, sample, answer

    def _answered(self, connection: socket.socket, sample: int, answer: bytes) -> None:
        self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(sample, 0, 0)])
        self.wrong += not answer.startswith(b"HTTP/1.1 200 ")
        with self._lock:
            if not self._waiting:
                del self._asked[connection.fileno()]
                self._idle.append(connection)
                return
            self._asked[connection.fileno()] = connection, self._waiting.popleft(), b""
        connection.sendall(self._request)


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and length is not None and len(body) >= int(length[1])


def _settings(lg: Any, rate: float, seconds: float, seed: int) -> Any:
    settings = lg.TestSettings()
    settings.scenario, settings.mode = lg.TestScenario.Server, lg.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(LONGEST_SECONDS * 1e9)
    settings.min_duration_ms, settings.max_duration_ms = int(seconds * 1e3), int(2 * seconds * 1e3)
    settings.min_query_count = int(rate * seconds)
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = seed
    return settings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--body", default='{"x": 1}')
    options = parser.parse_args()
    try:
        lg = importlib.import_module("mlperf_loadgen")
    except ImportError as error:
        print(f"{sys.executable} has no LoadGen ({error}): pip install mlcommons-loadgen", file=sys.stderr)
        return 2
    sys.setswitchinterval(0.0005)  # so that the thread that reads does not keep the one that sends waiting
    parts, body = urlsplit(options.url), options.body.encode()
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    clients = Clients(lg, str(parts.hostname), parts.port or 80, request)
    threading.Thread(target=clients.read, daemon=True).start()
    sut = lg.ConstructSUT(clients.issue, lambda: None)
    qsl = lg.ConstructQSL(1024, 1024, lambda samples: None, lambda samples: None)
    with tempfile.TemporaryDirectory() as folder:
        log = lg.LogSettings()
        log.log_output.outdir, log.log_output.copy_summary_to_stdout = folder, False
        for seconds in (options.warmup, options.seconds):
            lg.StartTestWithLogSettings(sut, qsl, _settings(lg, options.rate, seconds, options.seed), log)
        text = (Path(folder) / "mlperf_log_summary.txt").read_text()
    found = dict(re.findall(r"([\d.]+) percentile latency \(ns\)\s*: (\d+)", text))
    said = {name: int(found[percent]) / 1e9 for percent, name in PERCENTILES.items()}
    rate = re.search(r"(?:Scheduled|Completed) samples per second\s*: ([\d.]+)", text)
    assert rate is not None, text
    print(json.dumps({**said, "rate": float(rate[1]), "wrong": clients.wrong, "waited": clients.waited}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
