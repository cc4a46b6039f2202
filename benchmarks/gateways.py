"""Echo through one, two and four gateways, with the CPU of each process: how the HTTP side scales over cores.

    ./scripts/bench gateways [--seconds 4] [--rounds 3] [--clients 64,256]

wrk, max batch 64, max wait 10 ms, one worker; medians of rounds in turn, each with a mesh of its own. Gateways, broker,
worker and wrk share the cores of this machine, so more gateways are faster only where there are cores for them: the
table says how many were in use. The last column is arithmetic: the rate at which the first of the processes would fill
a core, if each had one of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.load import Closed, wrk
from benchmarks.usage import cpu_seconds
from tests.harness import RunningMesh, running, wait_until

APP = Path(__file__).parent.parent / "examples" / "echo" / "app.py"
ROUTE = "/inference"
ENV = {"ECHO_BATCH": "64", "ECHO_WAIT": "10"}
LAYOUTS = {  # how they are shown, and what they are started with
    "1, with the broker": (1, ()),
    "1": (1, ("--isolate-broker",)),
    "2": (2, ("--gateways", "2")),
    "4": (4, ("--gateways", "4")),
}
HEAD = (
    "gateways",
    "clients",
    "req/s",
    "p50 ms",
    "p99 ms",
    "gateways",
    "broker",
    "worker",
    "cores",
    "share",
    "would fill",
)
UNITS = ("", "", "", "", "", "us/req", "us/req", "us/req", "in use", "of CPU", "a core at")


@dataclass
class Run:
    """One run of wrk: what it says, and the CPU seconds of each process meanwhile, by name and pid."""

    closed: Closed
    seconds: float
    spent: dict[tuple[str, int], float]

    @property
    def requests(self) -> float:
        return self.closed.rate * self.seconds

    def per_request(self, group: str) -> float:
        """CPU microseconds of all processes of this group."""
        return sum(used for (name, _), used in self.spent.items() if name == group) / self.requests * 1e6

    def busiest(self) -> float:
        """CPU microseconds for each request of the mesh of the process that has the most."""
        return max(self.spent.values()) / self.requests * 1e6

    def shares(self) -> list[float]:
        """What part of the CPU of all gateways each of them had, the smallest first."""
        used = sorted(used for (name, _), used in self.spent.items() if name.startswith("gateway"))
        return [one / sum(used) for one in used]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="64,256")
    options = parser.parse_args(arguments)
    crowds = [int(text) for text in options.clients.split(",")]
    runs: dict[tuple[str, int], list[Run]] = {}
    for _ in range(options.rounds):
        for layout, (count, given) in LAYOUTS.items():
            with running(APP, "--timeout", "30000", *given, env=ENV) as mesh:
                wait_until(lambda mesh=mesh, count=count: _there(mesh) == count, 30, "every gateway")
                for clients in crowds:
                    wrk(mesh.url + ROUTE, clients, 1)
                    runs.setdefault((layout, clients), []).append(_run(mesh, clients, options.seconds))
    print(f"{os.cpu_count()} cores for gateways, broker, worker and wrk; medians of {options.rounds} runs of", end=" ")
    print(f"{options.seconds:g} s")
    print(_line(HEAD), _line(UNITS), sep="\n")
    for (layout, clients), found in runs.items():
        print(_line((layout, str(clients), *_row(found))))
    wrong = sum(run.closed.wrong + run.closed.broken for found in runs.values() for run in found)
    print(f"{wrong} wrong answers")
    return int(wrong > 0)


def _there(mesh: RunningMesh) -> int:
    return len(mesh.mesh().get("gateways", "1"))  # one alone is in no list


def _run(mesh: RunningMesh, clients: int, seconds: float) -> Run:
    before = cpu_seconds(mesh.process.pid)
    closed = wrk(mesh.url + ROUTE, clients, seconds)
    after = cpu_seconds(mesh.process.pid)
    spent: Counter[tuple[str, int]] = Counter()
    for pid, (name, used) in after.items():
        spent[name, pid] = used - before.get(pid, (name, 0.0))[1]
    return Run(closed, seconds, dict(spent))


def _row(runs: list[Run]) -> tuple[str, ...]:
    def middle(values: list[float], form: str) -> str:
        return format(median(values), form)

    has_broker = any(name == "broker" for run in runs for name, _ in run.spent)
    shares = [run.shares() for run in runs]
    return (
        middle([run.closed.rate for run in runs], ".0f"),
        middle([run.closed.p50 * 1e3 for run in runs], ".2f"),
        middle([run.closed.p99 * 1e3 for run in runs], ".2f"),
        middle([run.per_request("gateway + broker") for run in runs], ".1f"),
        middle([run.per_request("broker") for run in runs], ".1f") if has_broker else "-",
        middle([run.per_request("worker") for run in runs], ".1f"),
        middle([sum(run.spent.values()) / run.seconds for run in runs], ".2f"),
        "-".join(f"{median([one[end] for one in shares]):.0%}" for end in ((0, -1) if len(shares[0]) > 1 else (0,))),
        middle([1e6 / run.busiest() for run in runs], ".0f"),
    )


def _line(cells: tuple[str, ...]) -> str:
    return cells[0].ljust(18) + "".join(cell.rjust(11) for cell in cells[1:])


if __name__ == "__main__":
    sys.exit(main())
