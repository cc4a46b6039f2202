"""The worlds and the table of batching, played in processes of their own from the beginning of a run of pytest.

Unit tests need one processor, and tests of real processes mostly wait. These need all there is and nobody's attention,
so they begin first and run only where nobody else wants to run; their own tests come late, and wait for what is left.
Chosen alone, they begin just the same.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import IO

from benchmarks.batching import Cell, measure, worst_jobs
from tests.simulation.simulation import Failed, Report
from tests.simulation.sweep import parted, play

__all__ = ["SEEDS", "Ahead", "Played"]

SEEDS = (*range(200), 477)  # in none of the first 200 does a late success move on a task that is HELD
SECONDS_MAX = 480.0
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Played:
    """What came of it: the seeds that hold, those that do not, and the cells of the table."""

    reports: list[Report]
    failures: list[Failed]
    cells: list[Cell]


@dataclass
class Ahead:
    """Begun when it is made."""

    _result: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    _log: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def __post_init__(self) -> None:
        result = self._result.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.simulation.ahead", str(result)],
            pass_fds=[result],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,  # whose end is ours
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        with contextlib.suppress(ProcessLookupError):  # it is over
            os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))  # as will be its children

    def played(self) -> Played:
        """Waits until everything was played. AssertionError when that failed."""
        code = self._process.wait(SECONDS_MAX)
        self._log.seek(0)
        assert code == 0, f"what was played ahead ended with {code}:\n{self._log.read().decode(errors='replace')}"
        self._result.seek(0)
        played = pickle.load(self._result)
        assert isinstance(played, Played)
        return played

    def end(self) -> None:
        """Nobody asks any more."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.close()
        self._result.close()
        self._log.close()


def _end_with_parent() -> None:
    """Even if that is killed."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """The only argument is the descriptor to write to."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn")) as pool:
        cells = pool.map(measure, worst_jobs())
        seeds = pool.map(play, SEEDS, chunksize=4)
        reports, failures = parted(seeds)
        played = Played(reports, failures, list(cells))
    with open(int(sys.argv[1]), "wb") as result:
        pickle.dump(played, result)


if __name__ == "__main__":
    from tests.simulation import ahead

    ahead.main()  # not our own: what is pickled has to be found again by its name
