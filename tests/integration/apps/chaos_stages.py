"""What `scripts/chaos` torments: stages that write down every batch they run, and answers that prove their request.

Each worker process appends to a file of its own in `$CHAOS_DIR`: a line when a batch begins, before anything can end
the process, and one when it is done. A payload that says `poison` ends the process. While `$CHAOS_DIR/slow-first` is
there, the first batch of a worker takes a second, or $CHAOS_SLOW_SECONDS.
"""

import json
import os
import resource
import time
from pathlib import Path

from zmesh import Server, Stage, Worker

DIRECTORY = Path(os.environ.get("CHAOS_DIR", "."))
SECONDS = float(os.environ.get("CHAOS_MS", "5")) / 1000
WORKERS = int(os.environ.get("CHAOS_WORKERS", "2"))
BATCH = int(os.environ.get("CHAOS_BATCH", "16"))
ROUTES = os.environ.get("CHAOS_ROUTES", "double").split(",")
SLOW_SECONDS = float(os.environ.get("CHAOS_SLOW_SECONDS", "1"))


class Recorded(Worker):
    def __init__(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # aborts are meant
        name = f"executions-{self.stage}-{os.getpid()}-{time.monotonic_ns()}.jsonl"
        self._file = os.open(DIRECTORY / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._first = True

    def note(self, **fields: object) -> None:
        os.write(self._file, json.dumps(fields).encode() + b"\n")

    def forward(self, data: list[dict]) -> list[dict]:
        nonces = [item["nonce"] for item in data]
        self.note(e="begin", t=time.monotonic(), stage=self.stage, pid=os.getpid(), n=nonces)
        if any(item.get("poison") for item in data):
            os.abort()
        if self._first and (DIRECTORY / "slow-first").exists():
            time.sleep(SLOW_SECONDS)
        self._first = False
        time.sleep(SECONDS)
        results = [self.one(item) for item in data]
        self.note(e="end", t=time.monotonic(), pid=os.getpid())
        return results


class First(Recorded):
    def one(self, item: dict) -> dict:
        return {"nonce": item["nonce"], "doubled": 2 * item["nonce"]}


class Second(Recorded):
    def one(self, item: dict) -> dict:
        return {"nonce": item["nonce"], "answer": item["doubled"] + 1}


class Whole(Recorded):
    """The same in one step."""

    def one(self, item: dict) -> dict:
        return {"nonce": item["nonce"], "answer": 2 * item["nonce"] + 1}


class Once(Whole):
    """... and never twice."""


def server() -> Server:
    settings = {"num": WORKERS, "max_batch_size": BATCH, "max_wait_time": 5}
    shapes = {
        "double": lambda: [Stage(First, **settings), Stage(Second, **settings)],
        "whole": lambda: [Stage(Whole, **settings)],
        "once": lambda: [Stage(Once, **settings, retry=False)],
    }
    mesh = Server()
    mesh.register_runtime({f"/{shape}": shapes[shape]() for shape in ROUTES})
    return mesh


if __name__ == "__main__":
    server().run()
