"""How well batches are cut: crowds, steady traffic and bursts, simulated, against fixed windows chosen by hand.

The world is that of `benchmarks.simulated`; who decides when a batch leaves is the dispatcher that ships.

    python -m benchmarks.batching                    every cell, 5 seeds: about an hour of a core
    python -m benchmarks.batching --rows one         one stage with equal workers
    python -m benchmarks.batching --only '10 → 1 x 50 ms, .* clients' --seeds 1
    python -m benchmarks.batching --worst            one worker and the worst cells of all rows, in CI
    python -m benchmarks.batching --rows two --list  what there is

Each cell is run with `crowd` and with fixed windows, on the same arrivals, and compared with the best of these: of five
windows, and where there are two stages of the 25 pairs of them (one seed of each, and all seeds of the best three).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.report import conclude
from benchmarks.simulated import Core, Crew, Load, World

__all__ = ["Cell", "Job", "measure", "run_cells", "verdict", "worst_jobs"]

MAX_WAIT_SECONDS = 0.005
FIXED_SECONDS = (0.0, 0.0005, 0.001, 0.002, 0.005)
PAIRS_TRIED = 3
RATE_MAX = 18_000  # requests a second that a gateway of 2 x 25 µs can still carry

CLIENTS = (1, 2, 3, 4, 8, 16, 32, 48, 64, 128)
FEW_CLIENTS = (4, 16, 32, 64, 128)
POISSON_LOADS = (0.02, 0.2, 0.5, 0.8, 0.95)
FEW_POISSON_LOADS = (0.2, 0.5, 0.8)
BURST_LOADS = (0.1, 0.5)

CLOSED_MIN = 0.95
CLOSED_MIN_OF_ONE = 0.90
OPEN_MAX = {"poisson": 1.05, "bursts": 1.10}
SHARE_MIN = 0.90  # of all other rows, in throughput or in speed


# ── the cells ─────────────────────────────────────────────────────────────────────────────────────────────────────


def crew(workers: int, service_ms: float, sigma: float = 0.0) -> Crew:
    return Crew((service_ms / 1000,) * workers, sigma)


def of(
    *crews: Crew,
    clients: Iterable[int] = FEW_CLIENTS,
    poisson: Iterable[float] = FEW_POISSON_LOADS,
    routes: tuple[tuple[int, ...], ...] = (),
) -> Iterator[Load]:
    """All kinds of load that these stages can be put under."""
    yield from (Load(crews, "closed", count, routes) for count in clients)
    for kind, shares in (("poisson", poisson), ("bursts", BURST_LOADS)):
        yield from (load for share in shares if (load := Load(crews, kind, share, routes)).rate <= RATE_MAX)


def one_stage(workers: Iterable[int] = (1, 2, 4), services_ms: Iterable[float] = (2, 10, 50)) -> Iterator[Load]:
    for count, service in product(workers, services_ms):
        yield from of(crew(count, service), clients=CLIENTS, poisson=POISSON_LOADS)


def varying() -> Iterator[Load]:
    """Batches of a stage take unequal time: a lognormal with a sigma of 20 or of 50 %."""
    for count, service, sigma in product((1, 2), (10, 50), (0.2, 0.5)):
        yield from of(crew(count, service, sigma))


def mixed() -> Iterator[Load]:
    """One worker is ten times as slow as the other, or as three others."""
    for fast in (1, 3):
        yield from of(Crew((0.010,) * fast + (0.100,)))


def two_stages() -> Iterator[Load]:
    for (first, second), (few, many) in product(
        ((2, 10), (10, 2), (10, 10), (10, 50), (50, 10)), ((1, 1), (1, 2), (2, 1), (2, 2))
    ):
        yield from of(crew(few, first), crew(many, second))


def shared() -> Iterator[Load]:
    """Two routes share a stage, which is the second step of one of them; or both the last step of."""
    for first, second in ((2, 10), (10, 10), (10, 50)):
        yield from of(crew(1, first), crew(1, second), routes=((0, 1), (1,)))
    yield from of(crew(1, 10), crew(1, 10), crew(1, 10), routes=((0, 2), (1, 2)))


ROWS: dict[str, Callable[[], Iterator[Load]]] = {
    "one": one_stage,
    "varying": varying,
    "mixed": mixed,
    "two": two_stages,
    "shared": shared,
}


# ── one of them ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cell:
    """One load, measured. `ratio` is crowd over the best fixed window: of throughput (closed), or of mean latency."""

    row: str
    load: Load
    ratio: float
    worst_seed: float
    best_windows_seconds: tuple[float, ...]
    best: float
    crowd: float
    worst_window: float  # what the worst fixed window makes of it, over the best
    seeds: int

    @property
    def share_of_best(self) -> float:
        """Of throughput, or of speed."""
        return self.ratio if self.load.kind == "closed" else 1 / self.ratio

    @property
    def is_good(self) -> bool:
        if self.row != "one":
            return self.share_of_best >= SHARE_MIN
        return self.ratio >= CLOSED_MIN if self.load.kind == "closed" else self.ratio <= OPEN_MAX[self.load.kind]

    @property
    def text(self) -> str:
        if self.load.kind == "closed":
            values = f"best fixed {self.best:7.0f}/s, crowd {self.crowd:7.0f}/s"
        else:
            values = f"best fixed {self.best * 1e3:6.2f} ms, crowd {self.crowd * 1e3:6.2f} ms"
        windows = " + ".join(f"{window * 1e3:g}" for window in self.best_windows_seconds)
        return (
            f"{self.load.text}: {values} = {self.ratio:.3f} of best (worst seed {self.worst_seed:.3f}, "
            f"best window {windows} ms, worst window {self.worst_window:.2f})"
            f"{'' if self.is_good else '  below its bar'}"
        )


@dataclass(frozen=True)
class Job:
    """How one cell is measured. Without `windows` all are tried."""

    row: str
    load: Load
    seeds: int = 5
    windows: tuple[tuple[float, ...], ...] = ()
    tick_seconds: float = 0.0


def measure(job: Job) -> Cell:
    load, which = job.load, 0 if job.load.kind == "closed" else 1
    stages = len(load.crews)

    def values(mode: str, windows: tuple[float, ...], seeds: int = job.seeds) -> list[float]:
        worlds = [World(load, Core(mode, windows, load), seed, job.tick_seconds) for seed in range(1, seeds + 1)]
        return [world.run()[which] for world in worlds]

    hardest, weakest = (min, max) if which == 0 else (max, min)
    tried = list(job.windows or product(FIXED_SECONDS, repeat=stages))
    worst_of_one = 0.0
    if stages > 1 and len(tried) > PAIRS_TRIED:
        once = {windows: values("fixed", windows, 1)[0] for windows in tried}
        tried = sorted(tried, key=lambda windows: once[windows], reverse=which == 0)[:PAIRS_TRIED]
        worst_of_one = (min if which == 0 else max)(once.values())
    crowd = values("crowd", (MAX_WAIT_SECONDS,) * stages)
    fixed = {windows: values("fixed", windows) for windows in tried}
    ratios = {windows: [a / b for a, b in zip(crowd, of_these, strict=True)] for windows, of_these in fixed.items()}
    best = hardest(ratios, key=lambda windows: statistics.median(ratios[windows]))
    worst = weakest(ratios, key=lambda windows: statistics.median(ratios[windows]))
    return Cell(
        row=job.row,
        load=load,
        ratio=statistics.median(ratios[best]),
        worst_seed=hardest(ratios[best]),
        best_windows_seconds=best,
        best=statistics.median(fixed[best]),
        crowd=statistics.median(crowd),
        worst_window=(worst_of_one or statistics.median(fixed[worst])) / statistics.median(fixed[best]),
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


# What the whole table found: the fixed window in ms that is hardest to beat, for each load of one worker in the order
# of `one_stage`, and for the cells of all rows that come nearest to their bars. A quick run tries no other.
ONE_WORKER_MS = {
    2: (0, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    10: (0, 0.5, 0.5, 0.5, 0.5, 0.5, 2, 5, 0, 0, 0, 0, 0, 0, 0, 2, 2),
    50: (0, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 2, 0, 0, 0, 0, 0, 0, 0, 2, 2),
}
WORST_MS: tuple[tuple[str, Load, tuple[float, ...]], ...] = (
    ("one", Load((crew(2, 2),), "closed", 48), (0,)),
    ("one", Load((crew(4, 10),), "closed", 128), (2,)),
    ("one", Load((crew(2, 50),), "closed", 64), (1,)),
    ("one", Load((crew(2, 10),), "closed", 64), (5,)),
    ("one", Load((crew(2, 2),), "poisson", 0.5), (0,)),
    ("one", Load((crew(4, 50),), "poisson", 0.95), (5,)),
    ("one", Load((crew(4, 10),), "bursts", 0.5), (2,)),
    ("one", Load((crew(4, 50),), "bursts", 0.1), (2,)),
    ("two", Load((crew(1, 10), crew(1, 10)), "poisson", 0.8), (0, 0)),
    ("two", Load((crew(2, 10), crew(1, 10)), "closed", 64), (1, 2)),
    ("two", Load((crew(1, 2), crew(1, 10)), "closed", 32), (1, 5)),
    ("two", Load((crew(1, 2), crew(2, 10)), "closed", 64), (1, 5)),
    ("two", Load((crew(2, 10), crew(2, 10)), "closed", 128), (5, 0)),
    ("two", Load((crew(1, 10), crew(1, 2)), "closed", 16), (5, 0)),
)
WORST_SEEDS = {"one": 5, "two": 3}  # two stages take longer


def worst_jobs() -> list[Job]:
    """One worker, and the worst cells of the whole table, for `verdict`."""
    jobs = [
        Job(row, load, WORST_SEEDS[row], (tuple(window_ms / 1000 for window_ms in windows),))
        for row, load, windows in WORST_MS
    ]
    for service_ms, windows in ONE_WORKER_MS.items():
        for load, window_ms in zip(one_stage([1], [service_ms]), windows, strict=True):
            jobs.append(Job("one", load, windows=((window_ms / 1000,),)))
    return jobs


def verdict(cells: Sequence[Cell]) -> tuple[bool, str]:
    """Whether the bars hold, and a sentence for each."""
    one = [cell for cell in cells if cell.row == "one"]
    closed = sorted(cell.ratio for cell in one if cell.load.kind == "closed")
    lines, good = [], True
    if closed:
        good = closed[0] >= CLOSED_MIN_OF_ONE and (len(closed) == 1 or closed[1] >= CLOSED_MIN)
        lines.append(
            f"closed loop: {closed[0]:.3f} of the best fixed throughput in the worst cell "
            f"(at least {CLOSED_MIN_OF_ONE:.2f}), {closed[min(1, len(closed) - 1)]:.3f} in the next "
            f"(at least {CLOSED_MIN:.2f})"
        )
    for kind, bar in OPEN_MAX.items():
        ratio = max((cell.ratio for cell in one if cell.load.kind == kind), default=0.0)
        if ratio:
            good = good and ratio <= bar
            lines.append(f"{kind}: {ratio - 1:+.1%} of the best fixed mean latency (at most {bar - 1:+.0%})")
    for row in list(ROWS)[1:]:
        shares = [cell.share_of_best for cell in cells if cell.row == row]
        if shares:
            good = good and min(shares) >= SHARE_MIN
            lines.append(
                f"{row}: {min(shares):.3f} of the best fixed throughput or speed in the worst of {len(shares)} cells, "
                f"median {statistics.median(shares):.3f} (at least {SHARE_MIN:.2f})"
            )
    return good, "\n".join([*lines, "every bar is kept" if good else "A BAR IS MISSED"])


def chosen_jobs(given: argparse.Namespace) -> list[Job]:
    if given.worst:
        jobs = worst_jobs()
    else:
        loads = [(row, load) for row in given.rows.split(",") for load in ROWS[row]()]
        jobs = [Job(row, load, given.seeds, (), given.tick / 1000) for row, load in loads]
    return [job for job in jobs if re.search(given.only, job.load.text)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batching",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {', '.join(ROWS)}; default all")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cells whose name matches this expression")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--worst", action="store_true", help="one worker and the worst cells, as CI does")
    parser.add_argument("--list", action="store_true", help="show the cells and run none")
    parser.add_argument("--tick", type=float, default=0.0, help="round timers up to so many ms, as a real loop does")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the cells there")
    given = parser.parse_args(arguments)
    if unknown := set(given.rows.split(",")) - set(ROWS):
        parser.error(f"there are no rows called {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    jobs, started = chosen_jobs(given), time.perf_counter()
    if given.list or not jobs:
        print("\n".join(f"{job.row}: {job.load.text}" for job in jobs) or f"no cell is called {given.only!r}")
        return int(not jobs)
    cells = run_cells(jobs, report=lambda cell: print(cell.text, flush=True))
    return conclude(cells, verdict(cells), time.perf_counter() - started, given.json)


if __name__ == "__main__":
    sys.exit(main())
