"""Alarms and interrupts that come just when a batch ends: they break off that batch or nothing."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import monotonic
from typing import NamedTuple

from tests.chaos.proofs.few import lines_of, lonely
from tests.chaos.proofs.findings import Findings
from tests.harness import Answer, RunningMesh, exchange, wait_until

CLIENTS = 4  # as many as there are workers, so that nothing waits
TIMEOUT_SECONDS = 0.030
DEADLINE_SECONDS = 0.015
INNOCENT_MS = 1.0
GIVE_UP_SECONDS = 600.0
SHARE = 0.01  # of the near things, that must have gone either way


class Asked(NamedTuple):
    n: int
    is_edge: bool
    answer: Answer


def alarms(found: Findings) -> None:
    """Batches that end within 1 ms of their stage's timeout, 10 000 times: 200 or 408, nobody else is hit."""
    times = 100 if found.is_short else 10_000

    def edge(dice: Random) -> tuple[float, dict[str, str]]:
        return TIMEOUT_SECONDS * 1000 + dice.uniform(-0.7, 0.3), {}

    with lonely("edge", "--timeout", "30000", STAGE_TIMEOUT=str(TIMEOUT_SECONDS)) as (mesh, directory):
        near = Path(directory).glob
        _hold_no_wrong_victim(found, mesh, directory, edge, lambda: _count(near("near-*.jsonl")) >= times)
        found.note(f"{_count(near('near-*.jsonl'))} batches ended within 1 ms of their timeout")


def interrupts(found: Findings) -> None:
    """Requests whose deadline comes as their batch ends, 10 000 times: 200 or 408, nobody else is hit."""
    times = 100 if found.is_short else 10_000
    asked = Counter[str]()

    def edge(dice: Random) -> tuple[float, dict[str, str]]:
        asked["edge"] += 1
        return DEADLINE_SECONDS * 1000 + dice.uniform(-2.0, 1.0), {"x-request-timeout": str(DEADLINE_SECONDS)}

    with lonely("edge", "--timeout", "30000") as (mesh, directory):
        _hold_no_wrong_victim(found, mesh, directory, edge, lambda: asked["edge"] >= times)


def _hold_no_wrong_victim(
    found: Findings,
    mesh: RunningMesh,
    directory: Path,
    edge: Callable[[Random], tuple[float, dict[str, str]]],
    is_enough: Callable[[], bool],
) -> None:
    wait_until(lambda: len(mesh.worker_pids()) == CLIENTS, what="all workers")
    pids = sorted(mesh.worker_pids())
    asked = _crowd(mesh.port, edge, is_enough)
    snapshot, after = mesh.mesh(), sorted(mesh.worker_pids())
    edges = Counter(str(one.answer.status) for one in asked if one.is_edge)
    wrong = [one for one in asked if one.answer.status == 200 and one.answer.json() != {"n": one.n}]
    ends = {line["n"]: line for path in directory.glob("ends-*.jsonl") for line in lines_of(path)}
    fired = Counter(line["by"] for line in ends.values())
    refused = [one for one in asked if not one.is_edge and one.answer.status != 200]
    slow = [one for one in refused if ends.get(one.n, {}).get("after", 0.0) > TIMEOUT_SECONDS / 2]
    victims = [one for one in refused if one not in slow]
    total = sum(edges.values())
    found.hold(
        set(edges) <= {"200", "408"}, f"{total} of them: {dict(edges)}, {len(wrong)} with an answer not their own"
    )
    found.hold(min(edges["200"], edges["408"]) >= SHARE * total, "it went either way, often enough to mean something")
    found.hold(
        sum(fired.values()) >= SHARE * total, f"user code was broken off {sum(fired.values())} times: {dict(fired)}"
    )
    others = f"{len(asked) - total} others beside them, {len(victims)} hit"
    found.hold(not victims and not wrong, f"{others} ({len(slow)} took too long themselves, on this machine)")
    for one in [*victims, *wrong][:3]:
        found.note(f"{one.n}: {one.answer.status} {one.answer.body[:80]!r}")
    deaths = sum(stage["counters"]["deaths"] for stage in snapshot["stages"])
    malformed = snapshot["counters"]["malformed"]
    found.hold(not malformed and not deaths, f"{malformed} malformed messages, {deaths} deaths")
    found.hold(pids == after, f"{len(set(pids) & set(after))} of {len(pids)} workers are the same as before")


def _count(paths: object) -> int:
    return sum(path.read_bytes().count(b"\n") for path in paths)  # type: ignore[attr-defined]


def _crowd(
    port: int, edge: Callable[[Random], tuple[float, dict[str, str]]], is_enough: Callable[[], bool]
) -> list[Asked]:
    """A closed loop of clients that ask in turn for a near thing and for one that nothing should hit."""
    asked: list[Asked] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def client(index: int) -> None:
        dice = Random(index)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        n = index * 1_000_000
        try:
            while not over.is_set():
                n += 1
                is_edge = n % 2 == 0
                ms, headers = edge(dice) if is_edge else (INNOCENT_MS, {})
                body = json.dumps({"n": n, "ms": ms}).encode()
                asked.append(Asked(n, is_edge, exchange(connection, "POST", "/go", body, headers)))
        except BaseException as error:
            failures.append(error)
            over.set()
        finally:
            connection.close()

    threads = [threading.Thread(target=client, args=(index,), daemon=True) for index in range(1, CLIENTS + 1)]
    end = monotonic() + GIVE_UP_SECONDS
    for thread in threads:
        thread.start()
    while not over.wait(0.1):
        if is_enough() or monotonic() > end:
            over.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a client never got its answer"
    if failures:
        raise failures[0]
    return asked
