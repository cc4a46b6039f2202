"""Memory and start: RSS of gateway + broker and of an echo worker, ready time of `zmesh run`, import times.

./scripts/bench footprint [--rounds 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.load import cpu_seconds, one_client
from tests.harness import running

APP = Path(__file__).parent.parent / "examples" / "echo" / "app.py"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(arguments).rounds
    ready = []
    for _ in range(rounds):
        with running(APP, ready=False) as mesh:
            ready.append(mesh.wait_ready())
            one_client(mesh.port, "/inference", 500)
            memory = {
                name: psutil.Process(pid).memory_info().rss for pid, (name, _) in cpu_seconds(mesh.process.pid).items()
            }
    print(f"zmesh run examples/echo/app.py ready: {median(ready):.2f} s (median of {rounds})")
    for name, rss in memory.items():
        print(f"RSS of {name} after 500 requests: {rss / 1e6:.1f} MB")
    for what, code in {
        "zmesh.cli": "import zmesh.cli",
        "a worker (zmesh.stage)": "import zmesh.stage",
        "nothing": "",
    }.items():
        print(f"python -c 'import' of {what}: {_wall([sys.executable, '-c', code], rounds) * 1e3:.0f} ms")
    print(f"zmesh --help: {_wall([sys.executable, '-m', 'zmesh', '--help'], rounds) * 1e3:.0f} ms")
    return 0


def _wall(command: list[str], rounds: int) -> float:
    """Median wall seconds of a command, after one run that fills the caches."""
    took = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - started)
    return median(took[1:])


if __name__ == "__main__":
    sys.exit(main())
