"""Files of tests that run in a pytest of their own beside this one, and are reported here as if they had run here.

They start one program after another and wait for each, so a second processor is free, and nobody in them looks at the
time that anything takes. A run of everything is a quarter shorter for it. Whoever names tests, or chooses among them,
gets them here, one after another; so does a run whose neighbour has died.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["SECONDS_MAX", "VARIABLE", "Beside", "Teller", "is_beside"]

NAMES = ("dry_run", "every_branch", "examples", "mistakes", "mosec_style", "openapi", "redis_mesh", "redis_store")
FILES = tuple(f"tests/integration/test_{name}.py" for name in NAMES)
VARIABLE = "TESTS_BESIDE"  # in the environment of the other pytest: the descriptor for its reports
SECONDS_MAX = 600.0  # for the next report
REPOSITORY = Path(__file__).parents[1]


def is_beside(nodeid: str) -> bool:
    return nodeid.split("::")[0] in FILES


class Beside:
    """The other pytest, from its start on. Its reports come by a pipe, and a thread keeps them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._reports: dict[str, list[Any]] = defaultdict(list)
        self._news, self._is_over = threading.Condition(), False
        reader, writer = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *FILES],
            cwd=REPOSITORY,
            env=os.environ | {VARIABLE: str(writer)},
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what is to be said is in the reports
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(writer)
        self._thread = threading.Thread(target=self._listen, args=(reader,), daemon=True)
        self._thread.start()

    def _listen(self, reader: int) -> None:
        with os.fdopen(reader) as lines:
            for line in lines:
                data = json.loads(line)
                with self._news:
                    self._reports[data["nodeid"]].append(data)
                    self._news.notify_all()
        with self._news:
            self._is_over = True
            self._news.notify_all()

    def reports_of(self, nodeid: str) -> Iterator[pytest.TestReport]:
        """All of one test, when it was run; none if it never will be."""
        with self._news:
            self._news.wait_for(lambda: self._is_over or self._is_done(nodeid), SECONDS_MAX)
            told = self._reports[nodeid] if self._is_done(nodeid) else []
        for data in told:
            if isinstance(data["longrepr"], list):
                data["longrepr"] = tuple(data["longrepr"])  # where and why a test was skipped; JSON has no tuples
            yield self._config.hook.pytest_report_from_serializable(config=self._config, data=data)

    def _is_done(self, nodeid: str) -> bool:
        return any(data["when"] == "teardown" for data in self._reports[nodeid])

    def end(self) -> None:
        """Nobody asks any more."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._thread.join()


class Teller:
    """A plugin of the other pytest: says what became of each test. It ends when nobody listens any more."""

    def __init__(self, config: pytest.Config, fd: int) -> None:
        self._config, self._line = config, os.fdopen(fd, "w", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._line.write(json.dumps(data) + "\n")
