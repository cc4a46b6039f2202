"""How well batches are cut: crowds, steady traffic and bursts, simulated, against fixed windows chosen by hand.

Clients are closed-loop (each asks again 125-375 µs after its answer) or open-loop (one by one, or 8-32 within 2 ms).
The gateway handles one request at a time, 25 µs in each direction; a hop to or from a worker takes 100 µs; a batch of
up to 32 takes as long as the cell says, whatever its size. Nothing else is modelled: when a batch leaves, and for
whom, is decided by the code that ships.

    python -m benchmarks.batching                  every cell, 5 seeds
    python -m benchmarks.batching --worst          one worker and the eight worst cells, in two minutes of a core
    python -m benchmarks.batching --workers 1 --services 10 --seeds 1

Each cell is run with `crowd` and with five fixed windows, on the same arrivals, and compared with the best of these.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
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
from typing import NamedTuple

from zmesh.config import Limits, Plan, RoutePlan, StagePlan
from zmesh.core.dispatcher import Dispatcher
from zmesh.core.effects import Send
from zmesh.core.events import Address, BatchFinished, CreditGranted, DispatcherEvent, PeerGreeted, TasksSubmitted, Tick
from zmesh.messages import (
    Columns,
    Credit,
    Hello,
    Kind,
    LeaseId,
    PeerId,
    Results,
    Role,
    SessionId,
    State,
    Status,
    Submit,
    TaskId,
    Tasks,
    Welcome,
    WorkerState,
)

__all__ = ["Cell", "Core", "Job", "Load", "Started", "World", "run_cells", "run_worst", "verdict"]

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
    tasks: Sequence[int]


class Core:
    """The dispatcher that ships, with one gateway and the workers of one stage: it is told what a broker would tell it.

    Tasks are numbered from 0 in the order of their submission.
    """

    def __init__(self, mode: str, window_seconds: float, workers: int) -> None:
        stage = StagePlan(
            name="model",
            worker="Model",
            num=workers,
            max_batch_size=MAX_BATCH_SIZE,
            max_wait_ms=window_seconds * 1000,
            batching=mode,
        )
        self._plan = Plan(stages=(stage,), routes=(RoutePlan(path="/inference", stages=("model",)),))
        # Nobody here falls silent or sheds, so nobody's pulse is taken.
        limits = Limits(queue_tasks_max=10**6, mesh_tasks_max=10**6, heartbeat_seconds=1e6, dead_seconds=3e6)
        self._dispatcher = Dispatcher(self._plan, limits, Random(0), now=0.0)
        self._gateway = self._greet((0, b"gateway"), Role.GATEWAY)
        self._workers = [self._greet((1, b"worker %d" % i), Role.WORKER) for i in range(workers)]
        for address, session in self._workers:
            self._handle(CreditGranted(address, session, Credit(PREFETCH, WorkerState.READY)), 0.0)
        self._numbers = {session: number for number, (_, session) in enumerate(self._workers)}
        self._leased: dict[int, int] = {}  # tasks of each lease
        self._task_count = 0

    def _greet(self, address: Address, role: Role) -> tuple[Address, SessionId]:
        peer = PeerId(address[1].ljust(16))
        hello = Hello([1], role, peer, 1, "here", 1, self._plan.fingerprint, "model" if role is Role.WORKER else "")
        for effect in self._dispatcher.handle(PeerGreeted(address, hello), now=0.0):
            if isinstance(effect, Send) and isinstance(effect.message, Welcome):
                self._epoch = effect.message.epoch
                return address, effect.message.session
        raise AssertionError(f"{role.name} was not welcome")

    @property
    def next_wakeup(self) -> float:
        return self._dispatcher.next_wakeup()

    def submit(self, count: int, now: float) -> list[Started]:
        ids = [TaskId(self._task_count + i) for i in range(count)]
        self._task_count += count
        columns = Columns(
            ids=ids,
            states=[int(State.INGRESS | State.EGRESS)] * count,
            remaining_ms=[10**9] * count,
            attempts=[1] * count,
            kinds=[int(Kind.INLINE)] * count,
            payloads=[b""] * count,
        )
        return self._handle(TasksSubmitted(*self._gateway, Submit("/inference", columns)), now)

    def finished(self, worker: int, lease: int, service_seconds: float, now: float) -> list[Started]:
        count = self._leased.pop(lease)
        results = Results(
            epoch=self._epoch,
            lease=LeaseId(lease),
            rows=list(range(count)),
            statuses=[int(Status.OK)] * count,
            kinds=[int(Kind.INLINE)] * count,
            payloads=[b""] * count,
            compute_us=int(service_seconds * 1e6),
        )
        return self._handle(BatchFinished(*self._workers[worker], results), now)

    def wake(self, now: float) -> list[Started]:
        return self._handle(Tick(), now)

    def _handle(self, event: DispatcherEvent, now: float) -> list[Started]:
        batches = []
        for effect in self._dispatcher.handle(event, now=now):
            match effect:
                case Send(session=session, message=Tasks() as tasks):
                    self._leased[tasks.lease] = len(tasks.columns.ids)
                    batches.append(Started(self._numbers[session], tasks.lease, tasks.columns.ids))
        return batches


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
        return max(3.0, 120 * self.service_seconds, min(40.0, 3000 / self.rate))

    @property
    def text(self) -> str:
        what = f"{self.amount:4.0f} clients" if self.kind == "closed" else f"{self.amount:4.0%} {self.kind:<7}"
        return f"{self.workers} workers x {self.service_seconds * 1e3:3.0f} ms, {what}"


class World:
    """Clients, a gateway and workers around a core, from a seed."""

    def __init__(self, load: Load, core: Core, seed: int, tick_seconds: float = 0.0) -> None:
        self.load = load
        self.core = core
        self.random = Random(seed)
        self.seconds = load.seconds
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
        self.perform(self.core.submit(1, self.now))

    def wake(self, when: float) -> None:
        if self.wakes == when:
            self.wakes = None
            self.perform(self.core.wake(self.now))

    def perform(self, batches: list[Started]) -> None:
        for batch in batches:
            self.at(self.now + HOP_SECONDS, self.receive, batch)
        due = self.core.next_wakeup
        if self.tick:
            due = self.now + self.tick * math.ceil((due - self.now) / self.tick)
        if due != self.wakes:
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
        self.perform(self.core.finished(batch.worker, batch.lease, self.load.service_seconds, self.now))


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
    def text(self) -> str:
        if self.load.kind == "closed":
            values = f"best fixed {self.best:7.0f}/s, crowd {self.crowd:7.0f}/s"
        else:
            values = f"best fixed {self.best * 1e3:6.2f} ms, crowd {self.crowd * 1e3:6.2f} ms"
        return (
            f"{self.load.text}: {values} = {self.ratio:.3f} of best (worst seed {self.worst_seed:.3f}, "
            f"best window {self.best_window_seconds * 1e3:g} ms, worst window {self.worst_window:.2f})"
            f"{'' if self.is_good else '  below its bar'}"
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
    tick_seconds: float = 0.0


def measure(job: Job) -> Cell:
    load, seeds = job.load, range(1, job.seeds + 1)
    which = 0 if load.kind == "closed" else 1

    def values(mode: str, window: float) -> list[float]:
        cores = [Core(mode, window, load.workers) for _ in seeds]
        return [World(load, core, seed, job.tick_seconds).run()[which] for core, seed in zip(cores, seeds, strict=True)]

    crowd = values("crowd", MAX_WAIT_SECONDS)
    fixed = {window: values("fixed", window) for window in job.windows}
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


# What the whole table found: the fixed window in ms that is hardest to beat, for each load of one worker in the order
# of `loads`, and for the eight cells of several workers that come nearest to their bars. A quick run tries no other.
ONE_WORKER_MS = {
    2: (0, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    10: (0, 0.5, 0.5, 0.5, 0.5, 0.5, 2, 5, 0, 0, 0, 0, 0, 0, 0, 2, 2),
    50: (0, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 2, 0, 0, 0, 0, 0, 0, 0, 2, 2),
}
WORST_MS = (
    (Load(2, 0.002, "closed", 48), 0),
    (Load(4, 0.010, "closed", 128), 2),
    (Load(2, 0.050, "closed", 64), 1),
    (Load(2, 0.010, "closed", 64), 5),
    (Load(2, 0.002, "poisson", 0.5), 0),
    (Load(4, 0.050, "poisson", 0.95), 5),
    (Load(4, 0.010, "bursts", 0.5), 2),
    (Load(4, 0.050, "bursts", 0.1), 2),
)


def worst_jobs() -> list[Job]:
    jobs = [Job(load, windows=(window_ms / 1000,)) for load, window_ms in WORST_MS]
    for service_ms, windows in ONE_WORKER_MS.items():
        for load, window_ms in zip(loads([1], [service_ms]), windows, strict=True):
            jobs.append(Job(load, windows=(window_ms / 1000,)))
    return jobs


def run_worst() -> list[Cell]:
    """One worker and the eight worst cells, for `verdict`; two minutes on two cores."""
    return run_cells(worst_jobs())


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
            f"closed loop: {closed[0]:.3f} of the best fixed throughput in the worst cell "
            f"(at least {CLOSED_MIN_OF_ONE}), {closed[min(1, len(closed) - 1)]:.3f} in the next (at least {CLOSED_MIN})"
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
    parser.add_argument(
        "--worst", action="store_true", help="one worker and the eight worst cells, in two minutes of a core"
    )
    parser.add_argument("--tick", type=float, default=0.0, help="round timers up to so many ms, as a real loop does")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the cells there")
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    if given.worst:
        jobs = worst_jobs()
    else:
        workers = [int(text) for text in given.workers.split(",")]
        services = [float(text) for text in given.services.split(",")]
        jobs = [Job(load, seeds=given.seeds, tick_seconds=given.tick / 1000) for load in loads(workers, services)]
    cells = run_cells(jobs, report=lambda cell: print(cell.text, flush=True))
    good, text = verdict(cells)
    print(f"{text} ({len(cells)} cells, {time.perf_counter() - started:.0f} s)")
    if given.json:
        given.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
