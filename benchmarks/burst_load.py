"""Bursts from outside: 8 to 32 requests within 2 ms, again and again, by the clock and not by the answers."""

from __future__ import annotations

import re
import select
import socket
import time
from dataclasses import dataclass, field
from random import Random
from statistics import fmean, quantiles

__all__ = ["Bursts", "burst_schedule", "bursts"]

SIZES = (8, 32)
WITHIN_SECONDS = 0.002
ANSWER_SECONDS_MAX = 10.0
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass
class Bursts:
    """Latencies in seconds from when a request was due; `late` is how long after that it was sent."""

    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    wrong: int = 0

    @property
    def mean(self) -> float:
        return fmean(self.latencies)

    @property
    def late_p99(self) -> float:
        return quantiles(self.late, n=100)[98]


def burst_schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, ascending, with `rate` of them a second on average."""
    random, due, start = Random(seed), [], 0.0
    while start < seconds:
        due += [start + random.random() * WITHIN_SECONDS for _ in range(random.randint(*SIZES))]
        start += random.expovariate(rate / fmean(SIZES))
    return sorted(due)


def bursts(port: int, path: str, rate: float, seconds: float, seed: int = 1, warmup: float = 1.0) -> Bursts:
    """Send the schedule of `seconds` after one of `warmup`, which is not counted."""
    body = b'{"x": 1}'
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request, result = head.encode() + body, Bursts()
    schedule = burst_schedule(rate, warmup + seconds, seed)
    free = [_connect(port) for _ in range(2 * SIZES[1])]
    asked: dict[socket.socket, float] = {}
    answers: dict[socket.socket, bytes] = {}
    start, number = time.perf_counter(), 0
    end = start + warmup + seconds + ANSWER_SECONDS_MAX
    while number < len(schedule) or asked:
        now = time.perf_counter()
        assert now < end, f"no answer within {ANSWER_SECONDS_MAX} s"
        while number < len(schedule) and start + schedule[number] <= now:
            connection = free.pop() if free else _connect(port)
            connection.sendall(request)
            asked[connection], answers[connection] = start + schedule[number], b""
            if schedule[number] >= warmup:
                result.late.append(time.perf_counter() - asked[connection])
            number += 1
        pause = start + schedule[number] - time.perf_counter() if number < len(schedule) else 1.0
        for connection in select.select(list(asked), [], [], max(0.0, pause))[0]:
            received = connection.recv(65536)
            assert received, "the server closed a connection that waits for its answer"
            answers[connection] += received
            if not _is_whole(answers[connection]):
                continue
            due = asked.pop(connection)
            if due - start >= warmup:
                result.latencies.append(time.perf_counter() - due)
                result.wrong += not answers[connection].startswith(b"HTTP/1.1 200")
            free.append(connection)
    for connection in free:
        connection.close()
    return result


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return bool(end) and len(body) >= int(length[1] if length else 0)
