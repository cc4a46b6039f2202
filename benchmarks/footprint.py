"""Memory and start: resident size of an echo server, time until it is ready, import times; beside mosec.

./scripts/bench footprint [--rounds 5] [--write]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import asdict
from statistics import median

from benchmarks.load import one_client
from benchmarks.peers import Unavailable, installed_version
from benchmarks.report import Data, Verdict, add_options, at_most, finish, table
from benchmarks.sides import APPS, Side, mosec, prepare, serving, skip, zmesh
from benchmarks.usage import memory
from tests.harness import REPOSITORY

REQUESTS = 500
IMPORTS = {"zmesh.cli": "import zmesh.cli", "zmesh.stage, a worker": "import zmesh.stage", "nothing": ""}


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="bench footprint", description=(__doc__ or "").splitlines()[0])
    add_options(parser, seconds=0.0, rounds=5)
    options = parser.parse_args(given)
    wanted = [
        zmesh("zmesh", "", REPOSITORY / "examples" / "echo" / "app.py"),
        mosec("mosec", "", APPS / "echo_mosec.py"),
    ]
    sides, skipped = prepare(wanted, not options.installed_only)
    found: Data = {}
    for side in sides:
        try:
            found[side.name] = _measure(side, options.rounds)
        except Unavailable as why:
            skip(side, why, skipped)
    data: Data = {
        "rounds": options.rounds,
        "versions": {side.peer: installed_version(side.peer) for side in sides if side.peer},
        "sides": found,
        "imports": {
            **{name: _wall([sys.executable, "-c", code], options.rounds) for name, code in IMPORTS.items()},
            "zmesh --help": _wall([sys.executable, "-m", "zmesh", "--help"], options.rounds),
        },
        "skipped": skipped,
    }
    return finish("footprint", given, data, options)


def _measure(side: Side, rounds: int) -> Data:
    """Seconds until the first answer, and the memory after some requests, by group of processes."""
    ready, sizes = [], {}
    for _ in range(rounds):
        started = time.monotonic()
        with serving(side) as server:
            ready.append(time.monotonic() - started)
            one_client(server.port, side.route, REQUESTS)
            sizes = {group: asdict(size) for group, size in memory(server.process.pid, side.group_of).items()}
    print(f"{side.name}: ready in {median(ready):.2f} s", flush=True)
    return {"ready": median(ready), "memory": sizes}


def _wall(command: list[str], rounds: int) -> float:
    """Median wall seconds of a command, after one run that fills the caches."""
    took = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - started)
    return median(took[1:])


def verdicts(data: Data) -> list[Verdict]:
    ours = data["sides"]["zmesh"]
    sizes = {group: size["rss"] / size["processes"] / 1e6 for group, size in ours["memory"].items()}
    return [
        at_most("RSS of gateway + broker", sizes["gateway + broker"], 80, " MB"),
        at_most("RSS of a worker, before the model", sizes["worker"], 30, " MB"),
        at_most("`zmesh run` of the echo app until its first answer", ours["ready"], 1.5, " s"),
    ]


def section(data: Data) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items()) or "no peer"
    head = f"An echo app with one worker, after {REQUESTS} requests; beside {versions}. Medians of {data['rounds']}."
    rows: list[tuple[object, ...]] = []
    for name, side in data["sides"].items():
        for group, size in side["memory"].items():
            rss, shared = f"{size['rss'] / 1e6:.1f}", f"{size['shared_once'] / 1e6:.1f}"
            rows.append((f"{name}: {group}", size["processes"], rss, shared))
    ready = [(f"{name}: until the first answer", f"{side['ready']:.2f} s") for name, side in data["sides"].items()]
    walls = [(f"`import` of {name}" if name != "zmesh --help" else "`zmesh --help`", f"{seconds * 1e3:.0f} ms")
             for name, seconds in data["imports"].items()]  # fmt: skip
    memory_table = table(("memory", "processes", "RSS MB", "PSS MB (shared pages counted once)"), rows)
    return "\n\n".join([head, memory_table, table(("time", "wall"), [*ready, *walls])])


if __name__ == "__main__":
    sys.exit(main())
