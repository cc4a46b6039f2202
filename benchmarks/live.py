"""The batching rule on real processes: against five fixed windows chosen by hand for each load, and against mosec.

    ./scripts/bench live                                every cell, about twelve minutes
    ./scripts/bench live --only '2 x 10 ms' --rounds 3
    ./scripts/bench live --list
    ./scripts/bench live --installed-only               without mosec if it is not there

A model that sleeps 2, 10 or 50 ms per batch of up to 32, one or two workers. All six ways of batching are stages of one
mesh, so that they share everything else; `crowd` and mosec have a max_wait_time of 10 ms, the fixed windows are 0, 1,
2, 5 and 10 ms. Clients that wait for their answers come from wrk, those that do not from `zmesh bench`, and bursts of
8 to 32 within 2 ms from benchmarks/burst_load.py. Of the windows the best one of each cell counts. A closed cell shows
requests per second, the others mean latency in ms. Exit 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from statistics import median

from benchmarks.burst_load import bursts
from benchmarks.load import one_client, wrk
from benchmarks.report import conclude
from benchmarks.sides import APPS, Side, mosec, prepare, serving, zmesh
from tests.harness import ZMESH, RunningMesh

MAX_BATCH_SIZE, MAX_WAIT_MS = 32, 10
WINDOWS_MS = (0, 1, 2, 5, 10)
CLIENTS = (8, 32, 64, 128)
SERVICES_MS = (2, 10, 50)
WORKERS = (1, 2)
OPEN_LOADS = {"poisson": (0.2, 0.5, 0.8), "bursts": (0.1, 0.5)}
RATE_MAX = 1300  # requests a second that a generator in Python can send beside the mesh on two cores
WARMUP_SECONDS = 1.0  # what the rule needs to learn; the others have nothing to learn
WARMUP_SECONDS_OPEN = 0.5
LATE_SECONDS_MIN, LATE_SHARE = 0.002, 0.1  # a generator may be as late as this, or as this share of the latency

CLOSED_MIN, OPEN_MAX, MOSEC_MIN = 0.90, 1.10, 1.0
HEADER = f"{'':<31}{'crowd':>8}{''.join(f'{window:>6} ms' for window in WINDOWS_MS)}{'mosec':>9}   of best  of mosec"


class Missing(Exception):
    """A contender or a generator that is not there; says what to do."""


@dataclass(frozen=True)
class Load:
    """`amount` is clients, or a share of what the workers can do."""

    workers: int
    service_ms: int
    kind: str  # closed, poisson, bursts
    amount: float

    @property
    def rate(self) -> float:
        """Requests per second of an open loop."""
        return self.amount * self.workers * MAX_BATCH_SIZE / self.service_ms * 1000

    @property
    def text(self) -> str:
        what = f"{self.amount:.0f} clients" if self.kind == "closed" else f"{self.amount:.0%} {self.kind}"
        return f"{self.workers} x {self.service_ms} ms, {what}"


@dataclass
class Cell:
    """What each contender made of a load, one value per round: requests per second, or seconds of mean latency."""

    load: Load
    values: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    wrong: int = 0

    def value(self, name: str) -> float:
        return median(self.values[name])

    @property
    def of_best(self) -> float | None:
        """Over the best fixed window."""
        fixed = [self.value(name) for name in self.values if name.startswith("fixed")]
        if not fixed or "crowd" not in self.values:
            return None
        return self.value("crowd") / (max(fixed) if self.load.kind == "closed" else min(fixed))

    @property
    def of_mosec(self) -> float | None:
        """So many times as good as mosec: of throughput, or of speed."""
        if "mosec" not in self.values or "crowd" not in self.values:
            return None
        ratio = self.value("crowd") / self.value("mosec")
        return ratio if self.load.kind == "closed" else 1 / ratio

    def faults(self, seconds: float) -> list[str]:
        """The bars it misses. A run ends in the midst of a batch, so a rate is known to one batch of each worker."""
        found = []
        is_closed = self.load.kind == "closed"
        if self.of_best is not None and (self.of_best < CLOSED_MIN if is_closed else self.of_best > OPEN_MAX):
            found.append("best window")
        if self.of_mosec is not None:
            batch = min(self.load.amount, MAX_BATCH_SIZE * self.load.workers) / seconds if is_closed else 0.0
            if self.of_mosec + batch / self.value("mosec") < MOSEC_MIN:
                found.append("mosec")
        return found + (["wrong answers"] if self.wrong else [])

    def text(self, seconds: float) -> str:
        def shown(name: str) -> str:
            if name not in self.values:
                return "-"
            return f"{self.value(name):.0f}" if self.load.kind == "closed" else f"{self.value(name) * 1e3:.2f}"

        names = ["crowd", *(f"fixed{window}" for window in WINDOWS_MS), "mosec"]
        ratios = "".join("         -" if ratio is None else f"{ratio:10.3f}" for ratio in (self.of_best, self.of_mosec))
        faults = self.faults(seconds)
        line = f"{self.load.text:<31}{shown(names[0]):>8}{''.join(f'{shown(name):>9}' for name in names[1:])}{ratios}"
        return line + (f"  BELOW ITS BAR: {', '.join(faults)}" if faults else "")


def loads() -> Iterator[Load]:
    for workers, service in product(WORKERS, SERVICES_MS):
        yield from (Load(workers, service, "closed", clients) for clients in CLIENTS)
        for kind, shares in OPEN_LOADS.items():
            yield from (load for share in shares if (load := Load(workers, service, kind, share)).rate <= RATE_MAX)


# ── running them ──────────────────────────────────────────────────────────────────────────────────────────────────


def contenders(load: Load) -> list[Side]:
    """Both servers with the model of this load."""
    common = {"MS": load.service_ms, "BATCH": MAX_BATCH_SIZE, "WAIT": MAX_WAIT_MS}
    ours = {f"LIVE_{name}": value for name, value in common.items()}
    theirs = {f"MODEL_{name}": value for name, value in common.items()}
    windows = ",".join(map(str, WINDOWS_MS))
    return [
        zmesh("zmesh", "", APPS / "live.py", LIVE_WORKERS=load.workers, LIVE_WINDOWS=windows, **ours).at("/crowd"),
        mosec("mosec", "", APPS / "model_mosec.py", MODEL_NUM=load.workers, **theirs).at("/model"),
    ]


def measure(mesh: RunningMesh, cell: Cell, name: str, route: str, seconds: float) -> None:
    """One run of one contender."""
    load = cell.load
    one_client(mesh.port, route, 5)
    try:
        if load.kind == "closed":
            if name == "crowd":
                wrk(mesh.url + route, int(load.amount), WARMUP_SECONDS)
            run = wrk(mesh.url + route, int(load.amount), seconds)
            cell.wrong += run.wrong + run.broken
            value = run.rate
        elif load.kind == "poisson":
            value = poisson(mesh.url + route, load.rate, seconds)
        else:
            result = bursts(mesh.port, route, load.rate, seconds, warmup=WARMUP_SECONDS_OPEN)
            cell.wrong += result.wrong
            if result.late_p99 > max(LATE_SECONDS_MIN, LATE_SHARE * result.mean):
                raise Missing("the bursts were sent too late: is the machine quiet?")
            value = result.mean
    except Missing as reason:
        cell.skipped[name] = str(reason)
    else:
        cell.values.setdefault(name, []).append(value)


def poisson(url: str, rate: float, seconds: float) -> float:
    """Mean latency in seconds. Raises Missing when this zmesh has no `bench`."""
    command = [*ZMESH, "bench", url, "--rate", f"{rate:g}", "--arrivals", "poisson", "--seconds", f"{seconds:g}"]
    command += ["--warmup", f"{WARMUP_SECONDS_OPEN:g}", "--data", '{"x": 1}', "--json", "-"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if "No such command" in run.stderr or "no command" in run.stderr:
        raise Missing("`zmesh bench` is not in this zmesh")
    try:
        result = json.loads(run.stdout)["result"]
    except (ValueError, KeyError) as error:
        raise Missing(f"`zmesh bench` failed: {run.stderr.strip()[-200:]}") from error
    if not result["valid"]:
        whose = ", ".join(sorted({fault["whose"] for fault in result["faults"]}))
        raise Missing(f"`zmesh bench` does not trust its figures, for a fault of the {whose}: is the machine quiet?")
    return float(result["latency"]["mean_ms"]) / 1000


def run_group(group: Sequence[Load], rounds: int, seconds: float, sides: Sequence[Side]) -> Iterator[Cell]:
    """All loads of the same workers, on the same two servers; contenders in turn."""
    with contextlib.ExitStack() as stack:
        ours, *others = [stack.enter_context(serving(side)) for side in sides]
        for load in group:
            cell = Cell(load)
            for _ in range(rounds):
                measure(ours, cell, "crowd", "/crowd", seconds)
                for theirs in others:
                    measure(theirs, cell, "mosec", "/model", seconds)
                for window in WINDOWS_MS:
                    measure(ours, cell, f"fixed{window}", f"/fixed{window}", seconds)
            yield cell


def verdict(cells: Sequence[Cell], seconds: float) -> tuple[bool, str]:
    """Whether the bars hold, and a sentence for each."""
    lines = []
    for kind, what, bar in (
        ("closed", "throughput", CLOSED_MIN),
        ("poisson", "mean latency", OPEN_MAX),
        ("bursts", "mean latency", OPEN_MAX),
    ):
        ratios = [cell.of_best for cell in cells if cell.load.kind == kind and cell.of_best is not None]
        if ratios:
            worst, bound = (min(ratios), "at least") if kind == "closed" else (max(ratios), "at most")
            lines.append(
                f"{kind}: {worst:.3f} of the best window's {what} in the worst of {len(ratios)} cells ({bound} {bar})"
            )
    beside = [cell.of_mosec for cell in cells if cell.of_mosec is not None]
    if beside:
        worse = sum(ratio < MOSEC_MIN for ratio in beside)
        lines.append(
            f"mosec: {min(beside):.3f} to {max(beside):.3f} times as good, median {median(beside):.2f}; "
            f"not better in {worse} of {len(beside)} cells"
        )
    skipped = Counter((cell.load.kind, reason) for cell in cells for reason in cell.skipped.values())
    lines += [f"SKIPPED {kind}, {count} runs: {reason}" for (kind, reason), count in skipped.items()]
    missed = [cell for cell in cells if cell.faults(seconds)]
    lines.append(f"A BAR IS MISSED in {len(missed)} cells" if missed else "every bar is kept")
    return not missed, "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./scripts/bench live", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run; default 2")
    parser.add_argument("--rounds", type=int, default=1, help="of each cell, medians of them; default 1")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cells whose name matches this expression")
    parser.add_argument("--list", action="store_true", help="show the cells and run none")
    parser.add_argument("--installed-only", action="store_true", help="without mosec if it is not installed yet")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the cells there")
    given = parser.parse_args(arguments)
    chosen = [load for load in loads() if re.search(given.only, load.text)]
    if given.list or not chosen:
        print("\n".join(load.text for load in chosen) or f"no cell is called {given.only!r}; see --list")
        return int(not chosen)
    sides, _ = prepare(contenders(chosen[0]), not given.installed_only)
    names = {side.name for side in sides}
    started, cells = time.perf_counter(), []
    print(HEADER)
    for _, group in groupby(chosen, key=lambda load: (load.workers, load.service_ms)):
        loads_here = list(group)
        here = [side for side in contenders(loads_here[0]) if side.name in names]
        for cell in run_group(loads_here, given.rounds, given.seconds, here):
            cells.append(cell)
            print(cell.text(given.seconds), flush=True)
    return conclude(cells, verdict(cells, given.seconds), time.perf_counter() - started, given.json)


if __name__ == "__main__":
    sys.exit(main())
