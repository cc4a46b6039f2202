"""The core and the wire are small and pure, so their own unit tests alone must reach every branch of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.beside import VARIABLE
from tests.harness import REPOSITORY

SECONDS_MAX = 300


@pytest.mark.timeout(SECONDS_MAX)
def test_the_unit_tests_of_the_core_reach_every_branch_of_it(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environ |= {"ZMESH_FAST": "1", "COVERAGE_FILE": str(tmp_path / "coverage")}
    tests = "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/core", "tests/unit/test_wire.py"
    for words in (
        ("run", "--branch", *tests),
        ("report", "--fail-under=100", "--include=zmesh/core/*,zmesh/wire.py"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "coverage", *words],
            cwd=REPOSITORY,
            env=environ,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
