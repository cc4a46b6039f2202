"""Strikes a mesh by a schedule that a seed gives, looks at it each second, and writes both down."""

from __future__ import annotations

import heapq
import http.client
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple

from tests.chaos.faults import Fault, Hit, Stroke
from tests.chaos.layouts import TormentedMesh

SAMPLE_SECONDS = 1.0
TICKS = os.sysconf("SC_CLK_TCK")


class Planned(NamedTuple):
    stroke: Stroke
    name: str


def schedule(faults: Mapping[str, Fault], seed: int, seconds: float) -> list[Planned]:
    """The same for the same arguments, whatever the mesh does. Each fault has dice of its own, so that leaving one out
    changes nothing for the others."""
    planned = [
        Planned(stroke, name)
        for name, fault in faults.items()
        for stroke in fault.strokes(Random(f"{seed}/{name}"), seconds)
    ]
    return sorted(planned)


class Journal:
    """A file of JSON lines that several threads write to."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def note(self, e: str, **fields: object) -> None:
        fields.setdefault("t", monotonic())
        with self._lock:
            if not self._file.closed:
                self._file.write(json.dumps({"e": e, **fields}) + "\n")

    def close(self) -> None:
        with self._lock:
            self._file.close()


class Nemesis:
    """`command` speaks to the clients. After `run` every fault is over, or in `failures`."""

    def __init__(
        self, mesh: TormentedMesh, journal: Journal, faults: Mapping[str, Fault], command: Callable[..., None]
    ) -> None:
        self.mesh, self.directory, self.command = mesh, mesh.directory, command
        self._journal, self._faults = journal, faults
        self._ids = count(1)
        self._threads: list[threading.Thread] = []
        self.struck = 0
        self.failures: list[str] = []

    def run(self, planned: Sequence[Planned], seconds: float, wait: Callable[[float], None]) -> None:
        """`wait(seconds)` returns after that time, or raises to end it all."""
        began = monotonic()
        order = count()
        todo: list[tuple[float, int, Callable[[], None]]] = []

        def at(moment: float, call: Callable[[], None]) -> None:
            heapq.heappush(todo, (moment, next(order), call))

        for stroke, name in planned:
            at(began + stroke.at, lambda stroke=stroke, name=name: self._strike(name, stroke, at))
        at(began + seconds, lambda: None)
        try:
            while todo:
                wait(max(0.0, todo[0][0] - monotonic()))
                while todo and todo[0][0] <= monotonic():
                    heapq.heappop(todo)[2]()
        finally:
            for thread in self._threads:
                thread.join(120)

    def _strike(self, name: str, stroke: Stroke, at: Callable[[float, Callable[[], None]], None]) -> None:
        number, now = next(self._ids), monotonic()
        try:
            hit = self._faults[name].strike(self, stroke)
        except (OSError, AssertionError) as error:
            self._journal.note("missed", name=name, why=str(error))
            return
        if hit is None:
            self._journal.note("missed", name=name, why="nobody is there")
            return
        self.struck += 1
        self._journal.note(
            "fault", id=number, t=now, name=name, pid=hit.pid, target=hit.target, seconds=stroke.seconds, **hit.notes
        )
        if hit.undo is None:
            return
        if stroke.seconds:
            at(now + stroke.seconds, lambda: self._undo(number, name, hit))
        else:  # it takes its own time
            thread = threading.Thread(target=self._undo, args=(number, name, hit), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _undo(self, number: int, name: str, hit: Hit) -> None:
        assert hit.undo is not None, "only what lasts is ended"
        try:
            hit.undo()
        except Exception as error:
            self.failures.append(f"{name} could not be undone: {error!r}")
        self._journal.note("over", id=number)


class Sampler:
    """A thread that asks `/mesh` each second and looks at the processes; `beside` are others that are ours."""

    def __init__(self, mesh: TormentedMesh, journal: Journal, beside: Sequence[int] = ()) -> None:
        self._mesh, self._journal, self._beside = mesh, journal, beside
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.take()

    def take(self) -> dict[str, Any] | None:
        """The sample that was written; None when the mesh could not be asked."""
        processes = self._mesh.processes()
        found = {
            "processes": [[role, pid, *size_of(pid)] for role, pid in processes],
            "cpu": [
                *cpu_seconds(),
                sum(spent_by(pid) for pid in [os.getpid(), *self._beside, *(p for _, p in processes)]),
            ],
        }
        try:
            sample = {**in_short(self._mesh.snapshot()), **found}
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._journal.note("mesh", error=repr(error), **found)
            return None
        self._journal.note("mesh", **sample)
        return sample


def in_short(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    counters = snapshot["counters"]
    return {
        "epoch": snapshot["epoch"],
        "tasks": snapshot["tasks"],
        "kept": counters["kept_replies"],
        "kept_bytes": counters["kept_bytes"],
        "peers": counters["peers"],
        "leases": counters["leases"],
        "late_leases": counters["late_leases"],
        "stages": [
            {
                "name": stage["name"],
                "queued": stage["queued"],
                "suspects": stage["suspects"],
                "held": stage["held"],
                "leased": stage["leased"],
                "failing": stage["failing"],
                "deaths": stage["counters"]["deaths"],
                "workers": [
                    [worker["worker_id"], worker["pid"], worker["state"], worker["leases"], worker["batches"]]
                    for worker in stage["workers"]
                ],
            }
            for stage in snapshot["stages"]
        ],
    }


def size_of(pid: int) -> tuple[int, int]:
    """Resident KiB and open files; zeros when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        rss = next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
        return rss, len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0, 0


def cpu_seconds() -> tuple[float, float]:
    """What all CPUs of this machine have had to give since it started, and what of it was idle."""
    spent = [int(word) / TICKS for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(spent), spent[3] + spent[4]


def spent_by(pid: int) -> float:
    """CPU seconds of a process and those of its children that have ended; 0 when it has ended itself."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) / TICKS
