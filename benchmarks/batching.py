"""How well batches are cut: crowds, steady traffic and bursts, simulated, against fixed windows chosen by hand.

Clients are closed-loop (each asks again 125-375 µs after its answer) or open-loop (one by one, or 8-32 within 2 ms).
The gateway handles one request at a time, 25 µs in each direction; a hop to or from a worker takes 100 µs; a batch of
up to 32 takes as long as the cell says, whatever its size. Nothing else is modelled: when a batch leaves, and for
whom, is decided by the code that ships.

    python -m benchmarks.batching                  every cell, 5 seeds
    python -m benchmarks.batching --worst          one worker and the eight worst cells, within a minute
    python -m benchmarks.batching --workers 1 --services 10 --seeds 1

Each cell is run with `crowd` and with five fixed windows, on the same arrivals, and compared with the best of these.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

from zmesh.core.batching import Batcher

__all__ = ["Cell", "Driver", "Load", "Started", "ThinStage", "World", "run_cells", "run_worst", "verdict"]

MAX_BATCH_SIZE = 32
MAX_WAIT_SECONDS = 0.005
FIXED_SECONDS = (0.0, 0.0005, 0.001, 0.002, 0.005)
PREFETCH = 2
GATEWAY_SECONDS = 25e-6
HOP_SECONDS = 100e-6
THINK_SECONDS = 250e-6
START_SECONDS = 0.060  # clients start one by one: no policy may profit from a common start
BURST_SECONDS = 0.002
BURST_SIZES = (8, 32)
RATE_MAX = 18_000  # requests a second that a gateway of 2 x 25 µs can still carry

CLIENTS = (1, 2, 3, 4, 8, 16, 32, 48, 64, 128)
POISSON_LOADS = (0.02, 0.2, 0.5, 0.8, 0.95)
BURST_LOADS = (0.1, 0.5)

CLOSED_MIN = 0.94
CLOSED_MIN_OF_ONE = 0.88
POISSON_MAX = 1.05
BURST_MAX = 1.15


# ── who decides ───────────────────────────────────────────────────────────────────────────────────────────────────


class Started(NamedTuple):
    """A batch on its way to a worker."""

    worker: int
    lease: int
    tasks: list[int]


class Driver(Protocol):
    """The broker's half. Tasks are numbered from 0 in the order of their submission."""

    next_wakeup: float | None

    def submit(self, count: int, now: float) -> list[Started]: ...

    def finished(self, worker: int, lease: int, service_seconds: float, now: float) -> list[Started]: ...

    def wake(self, now: float) -> list[Started]: ...


class Busy:
    """What a broker knows of one worker."""

    def __init__(self) -> None:
        self.leases: deque[tuple[int, int]] = deque()  # (lease, tasks), the first one is running
        self.idle_since = 0.0
        self.running_since = 0.0


class ThinStage:
    """One stage that asks a `Batcher` as the dispatcher does, and nothing else."""

    def __init__(self, batcher: Batcher, workers: int) -> None:
        self.batcher = batcher
        self.workers = [Busy() for _ in range(workers)]
        self.queue: deque[tuple[int, float]] = deque()
        self.next_wakeup: float | None = None
        self.task_count = 0
        self.lease_count = 0

    def submit(self, count: int, now: float) -> list[Started]:
        self.queue.extend((self.task_count + i, now) for i in range(count))
        self.task_count += count
        self.batcher.arrived(now, count)
        return self.wake(now)

    def finished(self, worker: int, lease: int, service_seconds: float, now: float) -> list[Started]:
        busy = self.workers[worker]
        number, count = busy.leases.popleft()
        assert number == lease, "workers answer in order"
        busy.idle_since = busy.running_since = now
        self.batcher.answered(now, count, service_seconds, True)
        return self.wake(now)

    def wake(self, now: float) -> list[Started]:
        started: list[Started] = []
        self.next_wakeup = None
        while len(self.queue) >= MAX_BATCH_SIZE and (worker := self._for_full_batch()) is not None:
            started.append(self._lease(worker, now))
        while self.queue:
            idle = [worker for worker, busy in enumerate(self.workers) if not busy.leases]
            if not idle:
                break
            worker = min(idle, key=lambda worker: self.workers[worker].idle_since)
            finishes = [self._free_at(busy) for busy in self.workers if busy.leases]
            waiting, oldest = len(self.queue), self.queue[0][1]
            since = self.workers[worker].idle_since
            due = self.batcher.due(now, waiting, oldest, since, len(idle) - 1, min(finishes, default=None))
            if due > now + 1e-9:
                self.next_wakeup = due
                break
            started.append(self._lease(worker, now))
        return started

    def _for_full_batch(self) -> int | None:
        most = PREFETCH if self.batcher.prefetch_pays() else 1
        free = [worker for worker, busy in enumerate(self.workers) if len(busy.leases) < most]
        return min(free, key=self._eagerness) if free else None

    def _eagerness(self, worker: int) -> tuple[int, float]:
        busy = self.workers[worker]
        return len(busy.leases), self._free_at(busy) if busy.leases else busy.idle_since

    def _free_at(self, busy: Busy) -> float:
        return busy.running_since + len(busy.leases) * self.batcher.service

    def _lease(self, worker: int, now: float) -> Started:
        tasks = [self.queue.popleft()[0] for _ in range(min(MAX_BATCH_SIZE, len(self.queue)))]
        self.lease_count += 1
        busy = self.workers[worker]
        if not busy.leases:
            busy.running_since = now
        busy.leases.append((self.lease_count, len(tasks)))
        return Started(worker, self.lease_count, tasks)


Policy = tuple[str, float]  # batching mode and window
MakeDriver = Callable[[Policy, int], Driver]


def thin(policy: Policy, workers: int) -> Driver:
    mode, window = policy
    return ThinStage(Batcher(MAX_BATCH_SIZE, window, mode), workers)


# ── the world around it ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Load:
    """What a stage has to serve."""

    workers: int
    service_seconds: float
    kind: str  # closed, poisson, bursts
    amount: float  # clients, or the share of the workers' capacity that is asked for

    @property
    def rate(self) -> float:
        return self.amount * MAX_BATCH_SIZE * self.workers / self.service_seconds

    @property
    def seconds(self) -> float:
        """Long enough for a stage to learn, and for some thousand tasks."""
        if self.kind == "closed":
            return max(3.0, 300 * self.service_seconds)
        return min(40.0, max(3.0, 3000 / self.rate))

    @property
    def text(self) -> str:
        what = f"{self.amount:4.0f} clients" if self.kind == "closed" else f"{self.amount:4.0%} {self.kind:<7}"
        return f"{self.workers} workers x {self.service_seconds * 1e3:3.0f} ms, {what}"


class World:
    """Clients, a gateway and workers around a driver, from a seed."""

    def __init__(self, load: Load, driver: Driver, seed: int, seconds: float, tick_seconds: float = 0.0) -> None:
        self.load = load
        self.driver = driver
        self.random = Random(seed)
        self.seconds = seconds
        self.tick = tick_seconds
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.count = 0
        self.gateway_free = 0.0
        self.wakes: float | None = None
        self.asked: list[float] = []  # by task: when its client asked
        self.asking: deque[float] = deque()  # in the gateway
        self.latencies: list[float] = []
        self.running: list[bool] = [False] * load.workers
        self.received: list[deque[Started]] = [deque() for _ in range(load.workers)]

    def at(self, when: float, call: Callable[..., None], *arguments: object) -> None:
        self.count += 1
        heapq.heappush(self.heap, (when, self.count, call, arguments))

    def run(self) -> tuple[float, float]:
        """Answers per second, and their mean latency, after the first fifth."""
        if self.load.kind == "closed":
            for _ in range(int(self.load.amount)):
                self.at(self.random.random() * START_SECONDS, self.ask)
        else:
            self.at(0.0, self.generate)
        heap, pop = self.heap, heapq.heappop
        while heap and heap[0][0] <= self.seconds:
            self.now, _, call, arguments = pop(heap)
            call(*arguments)
        return len(self.latencies) / (0.8 * self.seconds), statistics.fmean(self.latencies or [self.seconds])

    def generate(self) -> None:
        if self.load.kind == "poisson":
            self.ask()
            self.at(self.now + self.random.expovariate(self.load.rate), self.generate)
            return
        for _ in range(self.random.randint(*BURST_SIZES)):
            self.at(self.now + self.random.random() * BURST_SECONDS, self.ask)
        self.at(self.now + self.random.expovariate(self.load.rate / statistics.fmean(BURST_SIZES)), self.generate)

    def ask(self) -> None:
        self.gateway_free = max(self.gateway_free, self.now) + GATEWAY_SECONDS
        self.asking.append(self.now)
        self.at(self.gateway_free, self.submit)

    def submit(self) -> None:
        self.asked.append(self.asking.popleft())
        self.perform(self.driver.submit(1, self.now))

    def wake(self, when: float) -> None:
        if self.wakes == when:
            self.wakes = None
            self.perform(self.driver.wake(self.now))

    def perform(self, batches: list[Started]) -> None:
        for batch in batches:
            self.at(self.now + HOP_SECONDS, self.receive, batch)
        due = self.driver.next_wakeup
        if due is not None and self.tick:
            due = max(due, self.now + self.tick * (1 + (due - self.now) // self.tick))
        if due is not None and (self.wakes is None or due != self.wakes):
            self.at(due, self.wake, due)
        self.wakes = due

    def receive(self, batch: Started) -> None:
        self.received[batch.worker].append(batch)
        if not self.running[batch.worker]:
            self.start(batch.worker)

    def start(self, worker: int) -> None:
        self.running[worker] = bool(self.received[worker])
        if self.running[worker]:
            self.at(self.now + self.load.service_seconds, self.finish, self.received[worker].popleft())

    def finish(self, batch: Started) -> None:
        self.start(batch.worker)
        self.at(self.now + HOP_SECONDS, self.answer, batch)

    def answer(self, batch: Started) -> None:
        for task in batch.tasks:
            self.gateway_free = max(self.gateway_free, self.now) + GATEWAY_SECONDS
            if self.now > 0.2 * self.seconds:
                self.latencies.append(self.gateway_free - self.asked[task])
            if self.load.kind == "closed":
                self.at(self.gateway_free + THINK_SECONDS * (0.5 + self.random.random()), self.ask)
        self.perform(self.driver.finished(batch.worker, batch.lease, self.load.service_seconds, self.now))


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cell:
    """One load, measured. `ratio` is crowd over the best fixed window: of throughput (closed), or of mean latency."""

    load: Load
    ratio: float
    worst_seed: float
    best_window_seconds: float
    best: float
    crowd: float
    worst_window: float  # what the worst fixed window makes of it, over the best
    seeds: int

    @property
    def is_good(self) -> bool:
        bar = {"closed": CLOSED_MIN, "poisson": POISSON_MAX, "bursts": BURST_MAX}[self.load.kind]
        return self.ratio >= bar if self.load.kind == "closed" else self.ratio <= bar

    @property
    def margin(self) -> float:
        """How far from its bar, as a share of what the bar allows; below 0 it is missed."""
        match self.load.kind:
            case "closed":
                return (self.ratio - CLOSED_MIN) / (1 - CLOSED_MIN)
            case "poisson":
                return (POISSON_MAX - self.ratio) / (POISSON_MAX - 1)
            case _:
                return (BURST_MAX - self.ratio) / (BURST_MAX - 1)

    @property
    def text(self) -> str:
        if self.load.kind == "closed":
            values = f"best fixed {self.best:7.0f}/s, crowd {self.crowd:7.0f}/s"
        else:
            values = f"best fixed {self.best * 1e3:6.2f} ms, crowd {self.crowd * 1e3:6.2f} ms"
        return (
            f"{self.load.text}: {values} = {self.ratio:.3f} of best (worst seed {self.worst_seed:.3f}, "
            f"best window {self.best_window_seconds * 1e3:g} ms, worst window {self.worst_window:.2f})"
            f"{'' if self.is_good else '  BAR MISSED'}"
        )


def loads(workers: Iterable[int], services_ms: Iterable[float]) -> Iterator[Load]:
    services = [ms / 1000 for ms in services_ms]
    for count in workers:
        for service in services:
            yield from (Load(count, service, "closed", clients) for clients in CLIENTS)
            for kind, shares in (("poisson", POISSON_LOADS), ("bursts", BURST_LOADS)):
                yield from (load for share in shares if (load := Load(count, service, kind, share)).rate <= RATE_MAX)


@dataclass(frozen=True)
class Job:
    """How one cell is measured."""

    load: Load
    seeds: int = 5
    windows: tuple[float, ...] = FIXED_SECONDS
    shorter: float = 1.0
    tick_seconds: float = 0.0
    make: MakeDriver = thin


def measure(job: Job) -> Cell:
    load, seeds = job.load, range(1, job.seeds + 1)
    which = 0 if load.kind == "closed" else 1

    def values(policy: Policy) -> list[float]:
        seconds = load.seconds * job.shorter
        return [
            World(load, job.make(policy, load.workers), seed, seconds, job.tick_seconds).run()[which] for seed in seeds
        ]

    crowd = values(("crowd", MAX_WAIT_SECONDS))
    fixed = {window: values(("fixed", window)) for window in job.windows}
    ratios = {window: [a / b for a, b in zip(crowd, of_window, strict=True)] for window, of_window in fixed.items()}
    hardest, weakest = (min, max) if which == 0 else (max, min)
    best = hardest(ratios, key=lambda window: statistics.median(ratios[window]))
    worst = weakest(ratios, key=lambda window: statistics.median(ratios[window]))
    return Cell(
        load=load,
        ratio=statistics.median(ratios[best]),
        worst_seed=hardest(ratios[best]),
        best_window_seconds=best,
        best=statistics.median(fixed[best]),
        crowd=statistics.median(crowd),
        worst_window=statistics.median(fixed[worst]) / statistics.median(fixed[best]),
        seeds=job.seeds,
    )


def run_cells(jobs: Sequence[Job], processes: int = 2, report: Callable[[Cell], None] | None = None) -> list[Cell]:
    """Measure in `processes` at a time; `report` hears of each cell in order."""
    cells = []
    with multiprocessing.get_context("spawn").Pool(min(processes, os.cpu_count() or 1)) as pool:
        for cell in pool.imap(measure, jobs):
            cells.append(cell)
            if report:
                report(cell)
    return cells


def verdict(cells: Sequence[Cell]) -> tuple[bool, str]:
    """Whether the bars hold, and a sentence for each."""
    closed = sorted(cell.ratio for cell in cells if cell.load.kind == "closed")
    poisson = max((cell.ratio for cell in cells if cell.load.kind == "poisson"), default=0.0)
    bursts = max((cell.ratio for cell in cells if cell.load.kind == "bursts"), default=0.0)
    lines, good = [], True
    if closed:
        good = closed[0] >= CLOSED_MIN_OF_ONE and (len(closed) == 1 or closed[1] >= CLOSED_MIN)
        lines.append(
            f"closed loop: {closed[0]:.3f} of the best fixed throughput in the worst cell (at least {CLOSED_MIN_OF_ONE})"
            f", {closed[min(1, len(closed) - 1)]:.3f} in the next (at least {CLOSED_MIN})"
        )
    for kind, ratio, bar in (("poisson", poisson, POISSON_MAX), ("bursts", bursts, BURST_MAX)):
        if ratio:
            good = good and ratio <= bar
            lines.append(f"{kind}: {ratio - 1:+.1%} of the best fixed mean latency (at most {bar - 1:+.0%})")
    return good, "\n".join([*lines, "every bar is kept" if good else "A BAR IS MISSED"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", default="1,2,4", help="worker counts")
    parser.add_argument("--services", default="2,10,50", help="ms per batch")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--worst", action="store_true", help="one worker and the eight worst cells, within a minute")
    parser.add_argument("--tick", type=float, default=0.0, help="ms to which timers are rounded up")
    parser.add_argument("--kinds", default="closed,poisson,bursts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the cells there")
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    workers = [int(text) for text in given.workers.split(",")]
    services = [float(text) for text in given.services.split(",")]
    jobs = [
        Job(load, seeds=given.seeds, tick_seconds=given.tick / 1000)
        for load in loads(workers, services)
        if load.kind in given.kinds.split(",")
    ]
    cells = run_cells(jobs, report=lambda cell: print(cell.text, flush=True))
    good, text = verdict(cells)
    print(f"{text} ({len(cells)} cells, {time.perf_counter() - started:.0f} s)")
    if given.json:
        given.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
