"""What happened in a run of `scripts/chaos`, as records that anybody may read again.

A history is a directory of files of JSON lines. `e` says what a line is and `t` when, in seconds of the machine's
monotonic clock, which all processes share:

| file | `e` | says |
| --- | --- | --- |
| `clients.jsonl` | `sent` | nonce `n` went to route `r`, with `d` seconds to live; `how` is "poison" or nothing |
| | `answer` | the answer: status `s`, the request it names `i`, and nonce `g` and answer `a` in it, or its text `x` |
| | `extra` | an answer that nobody was waiting for |
| | `left` | the client left without waiting |
| | `broken`, `lost` | the connection ended before the answer; none came until long after the deadline |
| | `late` | how late this process itself was in the second before, `s` seconds |
| `executions-*.jsonl` | `begin`, `end` | a batch of nonces `n` began at `stage` in process `pid`, and was done |
| `nemesis.jsonl` | `phase` | `name` begins: load, baseline, nemesis, recovery, drain, over |
| | `fault` | number `id`, `name`, the `pid` and `target` it hit, and `seconds` if it lasts |
| | `over` | fault `id` is over |
| | `missed` | there was nobody to hit |
| | `exit` | in the end, program `name` ended with `code` |
| `mesh.jsonl` | `mesh` | `/mesh` in short, and size and open files of each process, or the `error` of asking |
| `settings.json` | `settings` | what was run |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class Answer(NamedTuple):
    at: float
    status: int
    request_id: int
    nonce: int | None
    answer: int | None
    text: str


@dataclass(slots=True)
class Batch:
    """One call of `forward`. `end` is None for ever when its process ended first."""

    stage: str
    pid: int
    begin: float
    nonces: list[int]
    end: float | None = None


@dataclass(slots=True)
class Request:
    nonce: int
    route: str
    sent: float
    timeout: float
    how: str = ""
    answers: list[Answer] = field(default_factory=list)
    runs: list[Batch] = field(default_factory=list)
    left: float | None = None
    broken: float | None = None
    lost: float | None = None

    @property
    def deadline(self) -> float:
        return self.sent + self.timeout

    @property
    def done(self) -> float:
        """When its client knew, or gave up; its deadline if nothing says."""
        moments = [answer.at for answer in self.answers[:1]] + [self.left, self.broken, self.lost]
        return min((moment for moment in moments if moment is not None), default=self.deadline)


@dataclass(slots=True)
class Fault:
    id: int
    name: str
    at: float
    over: float
    pid: int
    target: str
    gone_in: float = 0.0  # seconds until the children of a killed agent were gone


@dataclass
class History:
    settings: dict[str, Any] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    extras: list[Record] = field(default_factory=list)
    strangers: list[Record] = field(default_factory=list)  # about nonces that were never sent
    faults: list[Fault] = field(default_factory=list)
    missed: int = 0
    exits: dict[str, int] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    samples: list[Record] = field(default_factory=list)
    lateness: list[tuple[float, float]] = field(default_factory=list)

    @staticmethod
    def of(records: Iterable[Record]) -> History:
        """Records of each file in its order; the files in the order of `read`."""
        history = History()
        running: dict[int, Batch] = {}
        faults: dict[int, Fault] = {}
        for record in records:
            match record["e"]:
                case "begin":
                    batch = Batch(record["stage"], record["pid"], record["t"], record["n"])
                    running[record["pid"]] = batch
                    history._began(batch, record)
                case "end":
                    if (ended := running.pop(record["pid"], None)) is not None:
                        ended.end = record["t"]
                case "fault":
                    fault = Fault(
                        record["id"],
                        record["name"],
                        record["t"],
                        record["t"],
                        record.get("pid", 0),
                        record.get("target", ""),
                        record.get("gone_in", 0.0),
                    )
                    faults[fault.id] = fault
                    history.faults.append(fault)
                case "over":
                    faults[record["id"]].over = record["t"]
                case "phase":
                    history.phases[record["name"]] = record["t"]
                case "mesh":
                    history.samples.append(record)
                case "settings":
                    history.settings = dict(record)
                case "late":
                    history.lateness.append((record["t"], record["s"]))
                case "missed":
                    history.missed += 1
                case "exit":
                    history.exits[record["name"]] = record["code"]
                case "extra":
                    history.extras.append(record)
                case _:
                    history._of_client(record)
        history.faults.sort(key=lambda fault: fault.at)
        return history

    def _began(self, batch: Batch, record: Record) -> None:
        self.batches.append(batch)
        for nonce in batch.nonces:
            if (request := self.requests.get(nonce)) is not None:
                request.runs.append(batch)
            else:
                self.strangers.append(record)

    def _of_client(self, record: Record) -> None:
        nonce, at = record["n"], record["t"]
        if record["e"] == "sent":
            self.requests[nonce] = Request(nonce, record["r"], at, record["d"], record.get("how", ""))
            return
        request = self.requests.get(nonce)
        if request is None:
            self.strangers.append(record)
            return
        match record["e"]:
            case "answer":
                said = record.get("i", -1), record.get("g"), record.get("a"), record.get("x", "")
                request.answers.append(Answer(at, record["s"], *said))
            case "left":
                request.left = at
            case "broken":
                request.broken = at
            case "lost":
                request.lost = at
            case unknown:
                raise ValueError(f"no record is called {unknown!r}")

    @staticmethod
    def read(directory: Path) -> History:
        """Raises ValueError for a line that is none of ours; a last line that was cut off by a kill is left out."""
        names = ["settings.json", "clients.jsonl", "nemesis.jsonl", "mesh.jsonl"]
        runs = sorted(path.name for path in directory.glob("executions-*.jsonl"))
        return History.of(record for name in [*names, *runs] for record in _lines(directory / name))


def _lines(path: Path) -> Iterator[Record]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
