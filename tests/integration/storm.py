"""Alarms and interrupts around the end of a batch, thousands of them: `python -m tests.integration.storm --help`.

A real worker process runs pairs of batches of four rows. The first of a pair takes about a millisecond, and something
is fired at it from one millisecond before its end to one after: the timer of its stage and a stray alarm, or an
interrupt that the test sends as an agent that does not look would, so that it often comes too late. The second is the
next in line and has done nothing wrong. Every frame must be readable and every row be answered once (`LoneWorker` sees
to that); what was fired must have hit nobody else.

How soon a test sees that a batch has begun depends on the machine. So a batch for an interrupt takes a little longer
than the one before if that was over too soon, and else a little less: about half of them are hit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.lone_worker import LoneWorker, lone_worker
from zmesh.messages import LeaseId, Status

APP = Path(__file__).parent / "apps" / "stubborn.py"
BATCH_MS, NEXT_MS, ROWS = 1.0, 0.1, 4
STEP_MS, SHORTEST_MS = 0.05, 0.2
IDLE_SHARE = 0.1  # of the pairs whose second batch comes later, so that the worker waits in its poller when it is hit


def bodies(lease: int, ms: float) -> list[bytes]:
    return [json.dumps({"nonce": 100 * lease + row, "ms": ms}).encode() for row in range(ROWS)]


def storm(kind: str, count: int, seed: int) -> Counter[str]:
    """Fire `count` times; AssertionError when anything went wrong. Counts the statuses of both batches of the pairs."""
    dice = random.Random(seed)
    seen: Counter[str] = Counter()
    timeout = BATCH_MS / 1000 if kind == "alarm" else 0.0
    long_ms = BATCH_MS
    with lone_worker(APP, "Witness", timeout=timeout) as worker:
        for target in range(1, 2 * count, 2):
            is_idle = dice.random() < IDLE_SHARE
            ms = dice.uniform(0, 2) * BATCH_MS if kind == "alarm" else long_ms
            worker.lease(target, bodies(target, ms))
            if not is_idle:
                worker.lease(target + 1, bodies(target + 1, NEXT_MS))
            _fire(worker, kind, target, dice.uniform(0, 2) * BATCH_MS / 1000)
            hit = _judge(worker, target, timeout, seen, "target")
            long_ms = max(SHORTEST_MS, long_ms + (STEP_MS if hit is Status.OK else -STEP_MS))
            if is_idle:
                worker.lease(target + 1, bodies(target + 1, NEXT_MS))
            missed = _judge(worker, target + 1, timeout, seen, "next")
            assert kind == "alarm" or missed is Status.OK, (
                f"lease {target + 1} was hit instead of {target} ({hit.name})"
            )
    return seen


def _fire(worker: LoneWorker, kind: str, lease: int, after: float) -> None:
    """`after` so many seconds from its beginning, whether it still runs then or not. An alarm besides the stage's own
    is a stray one, which must not strike anybody before the time is over."""
    worker.wait(lambda: worker.is_done(lease) or worker.slate.read().lease == lease)
    until = time.monotonic() + after
    while time.monotonic() < until:
        pass
    if kind == "interrupt":
        worker.child.interrupt(LeaseId(lease))
    else:
        signal.pidfd_send_signal(worker.child.pidfd, signal.SIGALRM)


def _judge(worker: LoneWorker, lease: int, timeout: float, seen: Counter[str], whose: str) -> Status:
    answers = worker.answer(lease)
    (status,) = {status for status, _ in answers}
    seen[f"{whose} {status.name}"] += 1
    if status is Status.OK:
        for row, (_, payload) in enumerate(answers):
            said = json.loads(payload)
            assert said["nonce"] == 100 * lease + row
            for nonce, ms in said["blows"] if row == 0 else ():
                early = timeout and ms < 1000 * timeout
                assert not early, f"lease {nonce // 100} was struck after {ms} ms, by an alarm of another"
    else:
        assert status is (Status.TIMEOUT if timeout else Status.CANCELLED), answers
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.storm", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="how many shots, half of them of each kind")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for kind in ("alarm", "interrupt"):
        started = time.monotonic()
        seen = storm(kind, given.count // 2, given.seed)
        print(f"{kind}: {given.count // 2} in {time.monotonic() - started:.1f} s; {dict(sorted(seen.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
