"""Faults for half an hour, and whether anything fills up meanwhile: `scripts/soak`, see `docs/testing.md`.

It is a run of `scripts/chaos` with the profile `soak`, judged by the same invariants, and then by its samples: once a
second the size and the open files of each process, and the tables of the broker. The second sixth of the run is
compared with its last, by medians: the first sixth is for warming up. Each series is one of

* a role (gateway, broker, worker, the agent): the largest process that has it at that moment;
* a process that lived for a quarter of the run and was not the only one of its role, over its own life;
* a table.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.chaos.checker import check
from tests.chaos.history import History, Record
from tests.chaos.plot import plot
from tests.chaos.profiles import PROFILES
from tests.chaos.report import report
from tests.chaos.run import torment
from zmesh.config import Limits

MIB = 1024  # of the KiB that samples have
GROWTH_KIB, GROWTH_SHARE = 10 * MIB, 0.10
GROWTH_FILES = 8
GROWTH_ROWS = 64  # of a table, while requests come and go
GROWTH_PEERS = 4
LIFE_SHARE = 0.25
TABLES = ("tasks", "leases", "late_leases", "kept", "queued", "suspects", "peers")
EMPTY_AT_THE_END = ("tasks", "leases", "kept", "queued", "suspects")


class Series(NamedTuple):
    """Moments in seconds from the first sample, and values: KiB, files or rows."""

    name: str
    kind: str  # rss, files, table
    at: list[float]
    values: list[float]


class Verdict(NamedTuple):
    is_flat: bool
    text: str


def series_of(samples: Sequence[Record]) -> list[Series]:
    """Of every role, of every process that lived long and was followed or preceded by another one, of every table."""
    began, ended = samples[0]["t"], samples[-1]["t"]
    roles: dict[str, dict[float, tuple[int, int]]] = defaultdict(dict)
    lives: dict[tuple[str, int], dict[float, tuple[int, int]]] = defaultdict(dict)
    for sample in samples:
        at = sample["t"] - began
        for role, pid, rss, files in sample["processes"]:
            if rss:  # else it had just ended
                most = roles[role].get(at, (0, 0))
                roles[role][at] = (max(most[0], rss), max(most[1], files))
                lives[role, pid][at] = (rss, files)
    found: dict[str, dict[float, tuple[int, int]]] = dict(roles)
    for (role, pid), life in lives.items():
        is_only = len(life) == len(roles[role])
        if not is_only and max(life) - min(life) >= LIFE_SHARE * (ended - began):
            found[f"{role} {pid}"] = life
    result = []
    for name, life in found.items():
        result.append(Series(name, "rss", list(life), [float(rss) for rss, _ in life.values()]))
        result.append(Series(name, "files", list(life), [float(files) for _, files in life.values()]))
    known = [sample for sample in samples if "stages" in sample]
    times = [sample["t"] - began for sample in known]
    return result + [Series(name, "table", times, [_rows(sample, name) for sample in known]) for name in TABLES]


def _rows(sample: Record, table: str) -> float:
    if table in ("queued", "suspects"):
        return float(sum(stage[table] for stage in sample["stages"]))
    return float(sample[table])


def judged(one: Series) -> Verdict:
    """Whether it is as low in its last sixth as in its second."""
    sixth = max(1, len(one.values) // 6)
    early, late = median(one.values[sixth : 2 * sixth] or one.values), median(one.values[-sixth:])
    if one.kind == "rss":
        bound = early * (1 + GROWTH_SHARE) + GROWTH_KIB
        figures = f"{early / MIB:.1f} → {late / MIB:.1f} MiB, at most {bound / MIB:.1f}"
    elif one.kind == "files":
        bound = early + GROWTH_FILES
        figures = f"{early:g} → {late:g} open files, at most {bound:g}"
    elif one.name == "late_leases":  # remembered until there are so many, and never emptied
        bound, late = float(Limits().late_leases_max), max(one.values)
        figures = f"{early:g} → {one.values[-1]:g} rows, never more than {late:g}, at most {bound:g}"
    else:
        bound = early + (GROWTH_PEERS if one.name == "peers" else GROWTH_ROWS)
        figures = f"{early:g} → {late:g} rows, at most {bound:g}"
    return Verdict(late <= bound, f"{one.name}: {figures}")


def emptied(samples: Sequence[Record]) -> Verdict:
    """What the last sample has left in tables that must be empty after the load."""
    known = [sample for sample in samples if "stages" in sample]
    left = {name: rows for name in EMPTY_AT_THE_END if (rows := _rows(known[-1], name))} if known else {"known": 0}
    return Verdict(not left, f"after the load: {left or 'tasks, leases, kept answers and queues are empty'}")


def under_load(history: History) -> list[Record]:
    """The samples from the first one to the end of the load."""
    until = history.phases.get("drain", float("inf"))
    return [sample for sample in history.samples if sample["t"] <= until]


def write_csv(path: Path, all_series: Sequence[Series]) -> None:
    """A line a second: seconds, and each series as `name kind`."""
    rows: dict[float, dict[str, float]] = defaultdict(dict)
    for one in all_series:
        for at, value in zip(one.at, one.values, strict=True):
            rows[at][f"{one.name} {one.kind}"] = value
    names = [f"{one.name} {one.kind}" for one in all_series]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", *names])
        for at, row in sorted(rows.items()):
            writer.writerow([round(at, 2), *(row.get(name, "") for name in names)])


def write_svg(path: Path, all_series: Sequence[Series], title: str, marks: Mapping[str, Sequence[float]]) -> None:
    panels = {
        "resident MiB": [(s.name, s.at, [v / MIB for v in s.values]) for s in all_series if s.kind == "rss"],
        "open files": [(s.name, s.at, s.values) for s in all_series if s.kind == "files"],
        "rows": [(s.name, s.at, s.values) for s in all_series if s.kind == "table"],
    }
    path.write_text(plot(title, panels, marks))


def judge(directory: Path, to: Path) -> int:
    """0 when every invariant held and everything was flat. Writes `soak.csv` and `soak.svg` into `to`."""
    history = History.read(directory)
    violations = check(history)
    print(report(history, violations))
    samples = under_load(history)
    all_series = series_of(samples)
    began = samples[0]["t"]
    marks = {"kill-broker": [fault.at - began for fault in history.faults if fault.name == "kill-broker"]}
    to.mkdir(parents=True, exist_ok=True)
    write_csv(to / "soak.csv", all_series)
    minutes = (samples[-1]["t"] - began) / 60
    title = f"soak: {minutes:.1f} minutes, {len(history.faults)} faults, seed {history.settings.get('seed')}"
    write_svg(to / "soak.svg", all_series, title, marks)
    verdicts = [*map(judged, all_series), emptied(history.samples)]
    print(f"\n{title}; medians of the second sixth and of the last")
    for verdict in verdicts:
        print(f"  {'flat  ' if verdict.is_flat else 'FAILED'}  {verdict.text}")
    print(f"samples and plot: {to / 'soak.csv'}, {to / 'soak.svg'}; the history is in {directory}")
    return int(bool(violations) or not all(verdict.is_flat for verdict in verdicts))


def main(args: Sequence[str] | None = None) -> int:
    """0 when every invariant held and nothing grew, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of load in all")
    parser.add_argument("--seed", type=int, help="of the schedule and the workload; printed if not given")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--to", metavar="DIRECTORY", help="where soak.csv and soak.svg go; beside the history if not given"
    )
    parser.add_argument("--check", metavar="DIRECTORY", help="judge a recorded history again; run nothing")
    arguments = parser.parse_args(args)
    if arguments.check:
        return judge(Path(arguments.check), Path(arguments.to or arguments.check))
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1_000_000)
    profile = PROFILES["soak"]
    print(f"soak: {profile.says}; {arguments.minutes:g} min, {arguments.clients} clients, seed {seed}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="zmesh-soak-"))
    torment(profile, arguments.minutes * 60, seed, arguments.clients, directory, lambda line: print(line, flush=True))
    return judge(directory, Path(arguments.to or directory))


if __name__ == "__main__":
    raise SystemExit(main())
