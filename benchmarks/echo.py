"""Echo through the whole path: latency of one client, and wrk at 64 and 256 with the CPU seconds of each process.

    ./scripts/bench echo [--seconds 5] [--rounds 3] [--profile FILE]
    ./scripts/bench echo --against DIRECTORY

`--profile` records the gateway process with py-spy (raw stacks) during the 64-client run. `--against` takes turns with
the zmesh of another checkout (`git worktree add DIRECTORY COMMIT`), with the same Python and libraries, and shows both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles

from benchmarks.load import cpu_seconds, one_client, wrk
from tests.harness import REPOSITORY, RunningMesh, running

APP = Path(__file__).parent.parent / "examples" / "echo" / "app.py"
ROUTE = "/inference"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", default="64")
    parser.add_argument("--wait", default="10")
    parser.add_argument("--profile", default="")
    parser.add_argument("--against", metavar="DIRECTORY", default="")
    options = parser.parse_args(arguments)
    env = {"ECHO_BATCH": options.batch, "ECHO_WAIT": options.wait}
    if options.against:
        return _compare(Path(options.against).resolve(), env, options.seconds, options.rounds)
    with running(APP, "--timeout", "30000", env=env) as mesh:
        one_client(mesh.port, ROUTE, 200)
        latencies = one_client(mesh.port, ROUTE, 2000)
        p99 = quantiles(latencies, n=100)[98]
        print(f"one client, max batch {options.batch}, max wait {options.wait} ms:", end=" ")
        print(f"p50 {median(latencies) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms")
        for clients in (64, 256):
            wrk(mesh.url + ROUTE, clients, 1)
            _rounds(mesh, clients, options.seconds, options.rounds)
        if options.profile:
            _profile(mesh, options.profile, options.seconds)
    return 0 if median(latencies) <= 0.001 else 1


def _compare(other: Path, env: Mapping[str, str], seconds: float, rounds: int) -> int:
    """Rounds in turn, each with a mesh of its own; medians."""
    sides = {"there": other, "here": REPOSITORY}
    rates: dict[tuple[str, int], list[float]] = {}
    costs: dict[tuple[str, int], list[float]] = {}
    for side, root in sides.items():
        print(f"{side}: {_zmesh_of(root)}")
    for _ in range(rounds):
        for side, root in sides.items():
            with running(APP, "--timeout", "30000", env={**env, **_importing(root)}) as mesh:
                for clients in (64, 256):
                    wrk(mesh.url + ROUTE, clients, 1)
                    before = sum(used for _, used in cpu_seconds(mesh.process.pid).values())
                    run = wrk(mesh.url + ROUTE, clients, seconds)
                    spent = sum(used for _, used in cpu_seconds(mesh.process.pid).values()) - before
                    assert not run.wrong and not run.broken, run
                    rates.setdefault((side, clients), []).append(run.rate)
                    costs.setdefault((side, clients), []).append(spent / (run.rate * seconds) * 1e6)
    for clients in (64, 256):
        shown = {side: (median(rates[side, clients]), median(costs[side, clients])) for side in sides}
        (rate_there, cost_there), (rate, cost) = shown["there"], shown["here"]
        print(
            f"{clients} clients: {rate_there:.0f} → {rate:.0f} req/s ({rate / rate_there - 1:+.1%}), "
            f"CPU of all processes {cost_there:.1f} → {cost:.1f} us/request ({cost / cost_there - 1:+.1%}); "
            f"medians of {rounds} x {seconds:g} s"
        )
    return 0


def _importing(root: Path) -> dict[str, str]:
    """So that every process of a mesh has the zmesh of that checkout, wherever it is started."""
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(root)}


def _zmesh_of(root: Path) -> str:
    """Where it is. AssertionError when it is not the one of that checkout."""
    command = [sys.executable, "-c", "import zmesh; print(zmesh.__file__)"]
    env = {**os.environ, **_importing(root)}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found).is_relative_to(root), f"{found} is not in {root}"
    return found


def _rounds(mesh: RunningMesh, clients: int, seconds: float, rounds: int) -> None:
    before = cpu_seconds(mesh.process.pid)
    runs = [wrk(mesh.url + ROUTE, clients, seconds) for _ in range(rounds)]
    after = cpu_seconds(mesh.process.pid)
    rate = median(run.rate for run in runs)
    total = sum(run.rate for run in runs) * seconds
    spent: dict[str, float] = {}
    for pid, (name, used) in after.items():
        spent[name] = spent.get(name, 0.0) + used - before.get(pid, (name, 0.0))[1]
    cpu = ", ".join(f"{name} {used:.1f} s ({used / total * 1e6:.1f} us/request)" for name, used in spent.items())
    wrong = sum(run.wrong + run.broken for run in runs)
    p50, p99 = median(run.p50 for run in runs), median(run.p99 for run in runs)
    print(f"{clients} clients: {rate:.0f} req/s (median of {rounds} x {seconds:g} s), p50 {p50 * 1e3:.2f} ms,", end=" ")
    print(f"p99 {p99 * 1e3:.2f} ms, {wrong} wrong; CPU: {cpu}")


def _profile(mesh: RunningMesh, path: str, seconds: float) -> None:
    gateway = next(pid for pid, (name, _) in cpu_seconds(mesh.process.pid).items() if name.startswith("gateway"))
    command = [
        str(Path(sys.executable).parent / "py-spy"),
        "record",
        "--pid",
        str(gateway),
        "--duration",
        f"{seconds:.0f}",
        "--format",
        "raw",
        "-o",
        path,
    ]
    with subprocess.Popen(command) as spy:
        wrk(mesh.url + ROUTE, 64, seconds + 1)
        spy.wait(seconds + 30)
    print(f"profile of the gateway process: {path}")


if __name__ == "__main__":
    sys.exit(main())
