"""That the benchmarks run: one short round each. Their figures are not looked at, a busy machine has none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import Unavailable, python_of
from tests.harness import REPOSITORY

STAGES = ("stages", "--seconds", "1", "--rounds", "1", "--clients", "8", "--installed-only")


def bench(name: str, *arguments: str, **env: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **env}, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def need_wrk() -> None:
    """Not the fixture `need`: a benchmark is no check, so CI may do without."""
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed: apt-get install wrk")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_stages_are_measured_and_a_peer_that_is_not_installed_is_skipped_by_name(tmp_path: Path) -> None:
    need_wrk()
    said = bench(*STAGES, ZMESH_PEERS=str(tmp_path))
    assert "skipped: mosec (mosec is not installed: ./scripts/bench peers mosec)" in said
    assert "| zmesh" in said and "throughput of two stages beside one" in said


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_mosec_is_measured_where_it_is_installed() -> None:
    need_wrk()
    try:
        python_of("mosec", may_install=False)
    except Unavailable as why:
        pytest.skip(str(why))
    assert "two stages beside those of mosec" in bench(*STAGES)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_memory_and_start_are_measured_without_wrk(tmp_path: Path) -> None:
    said = bench("footprint", "--rounds", "1", "--installed-only", ZMESH_PEERS=str(tmp_path))
    assert "RSS of gateway + broker" in said
