"""Closed-loop clients of apps/two_stages.py while something happens, and answers that prove whose they are."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

from tests.harness import Answer, closed_loop

APP = Path(__file__).parent / "integration" / "apps" / "two_stages.py"
Answers = list[tuple[int, int, Answer]]


def doubled(client: int, number: int) -> tuple[str, bytes]:
    return "/double", json.dumps({"nonce": client * 1_000_000 + number}).encode()


def assert_all_right(answers: Answers, log: str) -> None:
    assert answers
    for client, number, answer in answers:
        nonce = client * 1_000_000 + number
        assert answer.status == 200, f"{answer}\n{log[-3000:]}"
        assert answer.json() == {"nonce": nonce, "answer": 2 * nonce + 1}


def under_load(port: int, act: Callable[[], object], clients: int = 32) -> Answers:
    """What the clients got while `act` ran, and a little before and after it."""
    over, failures = threading.Event(), list[BaseException]()
    served = threading.Semaphore(0)

    def actor() -> None:
        try:
            for _ in range(10 * clients):
                assert served.acquire(timeout=30), "nothing is served"
            act()
            for _ in range(10 * clients):
                assert served.acquire(timeout=30), "nothing is served after it"
        except BaseException as error:
            failures.append(error)
        finally:
            over.set()

    def body(client: int, number: int) -> tuple[str, bytes]:
        if number:
            served.release()
        return doubled(client, number)

    thread = threading.Thread(target=actor, daemon=True)
    thread.start()
    answers = closed_loop(port, clients, body, over.is_set)
    thread.join(60)
    if failures:
        raise failures[0]
    return answers
