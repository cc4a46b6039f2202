"""Play seeds, or one of them again.

python -m tests.simulation --seed 17             # what CI did with it
python -m tests.simulation --seed 17 --verbose   # ... with a transcript, and everything checked after every turn
python -m tests.simulation --seeds 0-199         # many, on all processors, and what they hit
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation import coverage
from tests.simulation.simulation import Failed, Report, Simulation, run
from tests.simulation.sweep import sweep

LINE_CHARACTERS_MAX = 400
RARE = 20  # what was hit less often than this is shown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one seed")
    which.add_argument("--seeds", type=span, metavar="FROM-TO", help="all seeds from one to another, both included")
    parser.add_argument(
        "--verbose", action="store_true", help="with --seed: the transcript, and the story of a failure"
    )
    parser.add_argument("--task", type=int, help="with --verbose: only the lines about this request, by its nonce")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="with --seeds")
    given = parser.parse_args(arguments)
    if given.seeds is not None:
        return play_many(given.seeds, given.processes)
    return play(given.seed, is_told=given.verbose, nonce=given.task)


def span(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def play(seed: int, *, is_told: bool, nonce: int | None) -> int:
    def show(simulation: Simulation) -> None:
        if is_told:
            ask = simulation.checks.asks[nonce] if nonce is not None else None
            for line in simulation.world.transcript:
                if ask is None or ask.id in line.ids or line.who in ("fault", "world"):
                    print(str(line)[:LINE_CHARACTERS_MAX])

    try:
        report = run(seed, is_told=is_told, listen=show)
    except Failed as failed:
        if is_told:
            print("\nthe story of the request that failed:" if failed.story else "")
            for line in failed.story:
                print(str(line)[:LINE_CHARACTERS_MAX])
        print(failed)
        return 1
    print(f"seed {seed}: {summary([report])}")
    return 0


def play_many(seeds: range, processes: int) -> int:
    started = time.monotonic()
    reports, failures = sweep(seeds, processes)
    for failure in failures:
        print(failure)
    hits: Counter[str] = sum((report.hits for report in reports), Counter())
    print(f"{len(reports)} seeds in {time.monotonic() - started:.1f} s: {summary(reports)}")
    rare = sorted((hits[what], what) for what in coverage.everything() if 0 < hits[what] < RARE)
    print(f"rare: {', '.join(f'{what} {count}' for count, what in rare) or 'nothing'}")
    print(f"failed: {len(failures)}; never hit: {', '.join(coverage.missing(hits)) or 'nothing'}")
    return bool(failures)


def summary(reports: Iterable[Report]) -> str:
    reports = list(reports)
    outcomes: Counter[str] = sum((report.outcomes for report in reports), Counter())
    kinds: Counter[str] = sum((report.kinds for report in reports), Counter())
    virtual = sum(report.seconds for report in reports)
    return (
        f"{sum(report.tasks for report in reports)} requests, {sum(report.faults for report in reports)} faults, "
        f"{sum(report.messages for report in reports)} messages in {virtual:.0f} s of virtual time\n"
        f"outcomes: {listed(outcomes)}\nfaults: {listed(kinds)}"
    )


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
