"""The stages of `scripts/prove`, as many shapes of an app as $SHAPE can name."""

import itertools
import json
import os
import time
from pathlib import Path

from zmesh import Server, Stage, Worker

DIRECTORY = Path(os.environ.get("PROOF_DIR", "."))
SHAPE = os.environ.get("SHAPE", "sleep")
MS = float(os.environ.get("MS", "20"))
TIMEOUT_SECONDS = float(os.environ.get("STAGE_TIMEOUT", "0"))
GROWN_BYTES = 10 * 1024 * 1024


def bare(item: dict) -> dict:
    return {"n": item["n"]}


class Sleep(Worker):
    """A model that takes as long for one as for a full batch."""

    def forward(self, data: list[dict]) -> list[dict]:
        time.sleep(MS / 1000)
        return [bare(item) for item in data]


class Back(Sleep):
    """The other one of two that work in either order."""


class Grow(Worker):
    """A little in, much out."""

    def forward(self, data: dict) -> dict:
        return {"n": data["n"], "grown": os.urandom(1024) * (GROWN_BYTES // 1024)}


class Shrink(Worker):
    """Slow, and with little to say of it."""

    def forward(self, data: dict) -> dict:
        assert len(data["grown"]) == GROWN_BYTES
        time.sleep(MS / 1000)
        return bare(data)


class Gate(Worker):
    """Notes whom it runs, and waits for a file to appear."""

    def forward(self, data: dict) -> dict:
        note("runs", n=data["n"])
        while not (DIRECTORY / "open").exists():
            time.sleep(0.01)
        return bare(data)


class Stuck(Worker):
    """One that says `stuck` never comes back from a loop of the interpreter's own, which heeds no signal."""

    def forward(self, data: list[dict]) -> list[dict]:
        note("batches", pid=os.getpid(), n=[item["n"] for item in data])
        if any(item.get("stuck") for item in data):
            sum(itertools.repeat(0))
        return [bare(item) for item in data]


def note(name: str, **fields: object) -> None:
    with open(DIRECTORY / f"{name}.jsonl", "a") as file:
        file.write(json.dumps(fields) + "\n")


def routes() -> dict[str, list[Stage]]:
    match SHAPE:
        case "sleep":
            return {"/go": [Stage(Sleep, max_batch_size=8, max_wait_time=5)]}
        case "crossing":
            there, back = (Stage(worker, max_batch_size=8, max_wait_time=5) for worker in (Sleep, Back))
            return {"/there": [there, back], "/back": [back, there]}
        case "growing":
            return {"/go": [Stage(Grow, num=2), Stage(Shrink)]}
        case "gate":
            return {"/go": [Stage(Gate)]}
        case "stuck":
            settings = {"max_batch_size": 8, "max_wait_time": 500, "batching": "fixed", "timeout": TIMEOUT_SECONDS}
            return {"/go": [Stage(Stuck, num=2, **settings)]}
    raise ValueError(f"no shape is called {SHAPE}")


if __name__ == "__main__":
    server = Server()
    server.register_runtime(routes())
    server.run()
