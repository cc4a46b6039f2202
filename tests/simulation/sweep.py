"""Many seeds on several processors. Each seed is a world of its own, so where it runs changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.simulation.simulation import Failed, Report, run

__all__ = ["parted", "play", "sweep"]


def sweep(seeds: Iterable[int], processes: int) -> tuple[list[Report], list[Failed]]:
    """The reports of the seeds that hold, and the failures of the others, each in the order of the seeds."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return parted(pool.map(play, seeds, chunksize=4))


def parted(played: Iterable[Report | Failed]) -> tuple[list[Report], list[Failed]]:
    results = list(played)
    reports = [result for result in results if isinstance(result, Report)]
    return reports, [result for result in results if isinstance(result, Failed)]


def play(seed: int) -> Report | Failed:
    try:
        return run(seed)
    except Failed as failed:
        return failed
