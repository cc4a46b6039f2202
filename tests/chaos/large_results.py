"""Large results through shared memory while workers are killed: `python -m tests.chaos.large_results --help`.

Every request is answered, and rightly; what killed workers left in memory is taken away when its time is over, and all
of it with the mesh. With too little memory (`tiny`, in a namespace with a /dev/shm of its own) results
go through the broker, and one that is too large for that is a clear error; nobody dies of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import REPOSITORY, ZMESH, Answer, RunningMesh, closed_loop, running, wait_until

APP = REPOSITORY / "tests" / "integration" / "apps" / "large_results.py"
MEMORY = Path("/dev/shm")
CLIENTS = 8
SOME = 500  # requests, before the clients are made anew
KILL_SECONDS = 0.5  # between two kills, on average
TIMEOUT_MS = 10_000
LINGER_SECONDS = 30 + 5  # until what nobody released is taken away, after its deadline
TINY_BYTES = 8 * 1024 * 1024
TOO_LARGE = 100_000_000  # for a message


@dataclass
class Result:
    """What became of it all."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[Answer] = field(default_factory=list)
    kills: int = 0
    files_most: int = 0
    left_behind: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, nonce: int, answer: Answer) -> None:
        self.statuses[answer.status] += 1
        if answer.status != 200 or not (answer.json()["right"] and answer.json()["nonce"] == nonce):
            self.wrong.append(answer)


def ask(nonce: int, size: int) -> tuple[str, bytes]:
    return "/widen", json.dumps({"nonce": nonce, "bytes": size}).encode()


def files() -> list[Path]:
    """All that runs of ours have in shared memory now."""
    return [path for path in MEMORY.glob("zmesh-*/*/*") if path.name != "lock"]


@contextmanager
def killing(mesh: RunningMesh, result: Result, seed: int, seconds: float) -> Iterator[None]:
    """Any worker, of either stage, again and again."""
    dice, over = random.Random(seed), threading.Event()

    def kill() -> None:
        while not over.wait(dice.expovariate(1 / seconds)):
            if pids := mesh.worker_pids():
                try:
                    os.kill(dice.choice(pids), signal.SIGKILL)
                    result.kills += 1
                except ProcessLookupError:
                    pass  # killed before, and not yet replaced
            result.files_most = max(result.files_most, len(files()))

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def with_kills(requests: int, *, seed: int = 1, seconds: float = KILL_SECONDS, stays: bool = False) -> Result:
    """So many requests while workers are killed. With `stays` the mesh lives on until memory is empty."""
    result, before = Result(), set(MEMORY.iterdir())
    started = time.monotonic()
    with running(APP, "--timeout", str(TIMEOUT_MS), "--restarts-per-minute", "100000") as mesh:
        with killing(mesh, result, seed, seconds):
            while (left := requests - result.statuses.total()) > 0:
                run_some(mesh, result, min(left, SOME), lambda client: 100_000 + 1000 * client)
        result.seconds = time.monotonic() - started
        if stays:
            wait_until(lambda: not files(), TIMEOUT_MS / 1000 + LINGER_SECONDS + 30, "memory to be empty")
        if result.wrong:
            print(mesh.log()[-4000:])
        assert mesh.stop() == 0, mesh.log()
    result.left_behind = [str(path) for path in set(MEMORY.iterdir()) - before if path.name.startswith("zmesh")]
    return result


def run_some(mesh: RunningMesh, result: Result, requests: int, size: Callable[[int], int]) -> None:
    """At least so many, by several clients at once, each with results of the size of its own."""
    left = [None] * requests

    def is_over() -> bool:
        try:
            left.pop()
        except IndexError:
            return True
        return False

    for client, number, answer in closed_loop(mesh.port, CLIENTS, lambda c, n: ask(nonce_of(c, n), size(c)), is_over):
        result.take(nonce_of(client, number), answer)


def nonce_of(client: int, number: int) -> int:
    return client * 1_000_000 + number


TINY = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={TINY_BYTES} tmpfs {MEMORY} && exec "$@"', "sh"]


def tiny(requests: int, command: Sequence[str] = TINY) -> Result:
    """With next to no shared memory; AssertionError when anybody dies of it."""
    result, line = Result(), [*command, *ZMESH, "run", str(APP)]
    with running(APP, "--timeout", "20000", command=line) as mesh:
        run_some(mesh, result, requests, lambda client: 5_000_000)
        refused = mesh.post(*ask(1, TOO_LARGE))
        assert refused.status == 500, refused
        assert refused.body.startswith(
            b"internal error: a result of 100000018 bytes is too large for a message, and"
        ), refused
        assert b"No space left on device" in refused.body
        assert mesh.post(*ask(2, 1000)).json()["right"], "and then it serves as before"
        assert "No space left on device: until that is mended, large results go through the broker" in mesh.log()
        assert [stage["counters"]["exits"] for stage in mesh.mesh()["stages"]] == [0, 0, 0], "nobody died"
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill-seconds", type=float, default=KILL_SECONDS, help="between two kills, on average")
    parser.add_argument("--tiny", action="store_true", help="with a /dev/shm of 8 MiB; needs the right to mount one")
    given = parser.parse_args()
    if given.tiny:
        result = tiny(given.requests)
    else:
        result = with_kills(given.requests, seed=given.seed, seconds=given.kill_seconds, stays=True)
    for answer in result.wrong[:5]:
        print(answer.status, answer.body[:300])
    print(f"{dict(result.statuses)} in {result.seconds:.0f} s, {result.kills} kills, {result.files_most} files at most")
    print(f"wrong: {len(result.wrong)}, left behind: {result.left_behind}")
    return 1 if result.wrong or result.left_behind else 0


if __name__ == "__main__":
    sys.exit(main())
