"""Echo through the whole path beside mosec: 64 and 256 clients, one client alone, CPU per request.

    ./scripts/bench echo [--seconds 4] [--rounds 3] [--write]
    ./scripts/bench echo --profile FILE
    ./scripts/bench echo --against DIRECTORY

Each server in several configurations, and each is judged by the best of its own: what is best at 64 clients need not be
at 256. `--alone` leaves mosec out, and `--profile` then records the gateway process with py-spy (raw stacks) during a
run with 64 clients. `--against` takes turns with the zmesh of another checkout (`git worktree add DIRECTORY COMMIT`),
with the same Python and libraries, and shows both.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from benchmarks.load import need_wrk, one_client, wrk
from benchmarks.peers import Unavailable, installed_version
from benchmarks.report import Data, Verdict, add_options, at_least, at_most, finish, none_wrong, table
from benchmarks.sides import APPS, Sample, Side, loaded, middle, mosec, prepare, serving, skip, zmesh
from benchmarks.usage import cpu_seconds
from tests.harness import REPOSITORY, RunningMesh, running

APP = REPOSITORY / "examples" / "echo" / "app.py"
CLIENTS = (64, 256)
ALONE_ROUNDS = 9  # of one client: what is compared there is tenths of a millisecond
ALONE_REQUESTS = 500
ROUTE = "/inference"
ROUTES = {"batching": ROUTE, "none": "/single"}


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="bench echo", description=(__doc__ or "").splitlines()[0])
    add_options(parser, seconds=4.0, rounds=3)
    parser.add_argument("--batch", type=int, default=64, help="max_batch_size of the first configuration; default 64")
    parser.add_argument("--wait", type=int, default=1, help="max_wait_time, in ms; default 1")
    parser.add_argument("--alone", action="store_true", help="zmesh only")
    parser.add_argument("--profile", default="", metavar="FILE")
    parser.add_argument("--against", default="", metavar="DIRECTORY")
    options = parser.parse_args(given)
    need_wrk()
    env = {"ECHO_BATCH": str(options.batch), "ECHO_WAIT": str(options.wait)}
    if options.against:
        return _compare(Path(options.against).resolve(), env, options.seconds, options.rounds)
    ours, theirs = _sides(options.batch, options.wait)
    if options.alone or options.profile:
        ours, theirs = ours[:1], []
    sides, skipped = prepare([*ours, *theirs], not options.installed_only)
    data: Data = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "wait_ms": options.wait,
        "orjson": importlib.util.find_spec("orjson") is not None,
        "versions": {side.peer: installed_version(side.peer) for side in sides if side.peer},
        "throughput": _throughput(sides, options.seconds, options.rounds, skipped),
        "alone": _one_client(options.batch, options.wait, sides, skipped),
        "skipped": skipped,
    }
    if options.profile:
        with running(APP, "--timeout", "30000", env=env) as mesh:
            _profile(mesh, options.profile, options.seconds)
    return finish("echo", given, data, options)


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _sides(batch: int, wait: int) -> tuple[list[Side], list[Side]]:
    """Ours and theirs: the same settings first, then what gives each its best throughput on two cores."""
    same, large = {"ECHO_BATCH": batch, "ECHO_WAIT": wait}, {"ECHO_BATCH": 256, "ECHO_WAIT": wait}
    app = APPS / "echo_mosec.py"
    ours = [
        zmesh("zmesh", f"batch {batch}, 1 worker", APP, **same),
        zmesh("zmesh, large", "batch 256, 1 worker", APP, **large),
    ]
    theirs = [
        mosec("mosec", f"batch {batch}, 1 worker", app, **same),
        mosec("mosec, large", "batch 256, 2 workers", app, **large, ECHO_NUM=2),
        mosec("mosec, orjson", f"batch {batch}, 1 worker, orjson", app, **same, ECHO_JSON="orjson"),
        mosec("mosec, large, orjson", "batch 256, 2 workers, orjson", app, **large, ECHO_NUM=2, ECHO_JSON="orjson"),
    ]
    return ours, theirs


def _throughput(sides: Sequence[Side], seconds: float, rounds: int, skipped: dict[str, str]) -> Data:
    samples: dict[tuple[str, int], list[Sample]] = {}
    for number in range(rounds):
        for side in sides:
            if side.name in skipped:
                continue
            try:
                with serving(side) as server:
                    for clients in CLIENTS:
                        sample = loaded(side, server, clients, seconds)
                        samples.setdefault((side.name, clients), []).append(sample)
                        print(f"round {number + 1}: {side.name}, {clients} clients: {sample.rate:.0f}/s", flush=True)
            except Unavailable as why:
                skip(side, why, skipped)
    return {
        side.name: {
            "settings": side.settings,
            "cells": {str(clients): middle(samples[side.name, clients]) for clients in CLIENTS},
        }
        for side in sides
        if side.name not in skipped
    }


def _one_client(batch: int, wait: int, sides: Sequence[Side], skipped: dict[str, str]) -> Data:
    """Latencies in seconds, with batching and without: all servers up, in turn."""
    env = {"ECHO_BATCH": batch, "ECHO_WAIT": wait}
    wanted = [zmesh("zmesh", "", APPS / "echo.py", **env)]
    if any(side.peer for side in sides if side.name not in skipped):
        wanted.append(mosec("mosec", "", APPS / "echo_mosec.py", **env, ECHO_SINGLE=1))
    rounds: dict[tuple[str, str], list[list[float]]] = {}
    with ExitStack() as held:
        servers = {}
        for side in wanted:
            try:
                servers[side.name] = held.enter_context(serving(side))
            except Unavailable as why:
                skip(side, why, skipped)
        for _ in range(1 + ALONE_ROUNDS):
            for name, server in servers.items():
                for kind, route in ROUTES.items():
                    rounds.setdefault((kind, name), []).append(one_client(server.port, route, ALONE_REQUESTS))
    return {kind: {name: _latency(rounds[kind, name][1:]) for name in servers} for kind in ROUTES}


def _latency(rounds: Sequence[Sequence[float]]) -> Data:
    """The median of the medians of the rounds; p99 of all requests together."""
    medians = [median(latencies) for latencies in rounds]
    p99 = quantiles([latency for latencies in rounds for latency in latencies], n=100)[98]
    return {"p50": median(medians), "p99": p99, "rounds": medians}


# ── what it means ─────────────────────────────────────────────────────────────────────────────────────────────────


def best(data: Data, server: str, clients: int, orjson: bool = True) -> tuple[str, Data]:
    """The fastest configuration of a server, and its cell; KeyError when it was not measured."""
    found = {
        name: side["cells"][str(clients)]
        for name, side in data["throughput"].items()
        if name.partition(",")[0] == server and (orjson or not name.endswith("orjson"))
    }
    if not found:
        raise KeyError(server)
    name = max(found, key=lambda name: found[name]["rate"])
    return name, found[name]


def verdicts(data: Data) -> list[Verdict]:
    found = []
    if any(name.startswith("mosec") for name in data["throughput"]):
        for orjson, json_of in ((False, "its own JSON"), (True, "orjson if that is faster")):
            for clients, bar in ((64, 2.0), (256, 1.7)):
                ratio = best(data, "zmesh", clients)[1]["rate"] / best(data, "mosec", clients, orjson)[1]["rate"]
                what = f"throughput beside mosec's best with {json_of}, {clients} clients"
                found.append(at_least(what, ratio, bar, " x", stretch=2.5))
    for kind, what, bar, stretch in (
        ("batching", "latency of one client beside mosec's, batching", 0.25, None),
        ("none", "latency of one client beside mosec's, no batching", 1.3, 1.0),
    ):
        alone = data["alone"][kind]
        if "mosec" in alone:
            found.append(at_most(what, alone["zmesh"]["p50"] / alone["mosec"]["p50"], bar, " x", stretch))
    cpu = best(data, "zmesh", 64)[1]["cpu"]
    found.append(at_most("CPU of gateway + broker per request, 64 clients", cpu["gateway + broker"], 25, " us", 18))
    found.append(at_most("CPU of the worker per request, 64 clients", cpu["worker"], 12, " us"))
    ours = [side["cells"].values() for name, side in data["throughput"].items() if name.startswith("zmesh")]
    return [*found, none_wrong(cell for cells in ours for cell in cells)]


def section(data: Data) -> str:
    json_of = "orjson, which is installed" if data["orjson"] else "the standard library's"
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items()) or "no peer"
    head = (
        f"Beside {versions}. Max wait {data['wait_ms']} ms; JSON of zmesh's worker: {json_of}. wrk with one thread, a"
        f" new start for each side in each round, {data['rounds']} rounds of {data['seconds']:g} s in turn, medians."
    )
    columns = ("server and settings", "clients", "req/s", "p50 ms", "p99 ms", "CPU us per request", "of which", "wrong")
    rows = []
    for clients in CLIENTS:
        for name, side in data["throughput"].items():
            cell = side["cells"][str(clients)]
            parts = ", ".join(f"{group} {used:.1f}" for group, used in cell["cpu"].items())
            p50, p99 = f"{cell['p50'] * 1e3:.2f}", f"{cell['p99'] * 1e3:.2f}"
            what = f"{name.partition(',')[0]}: {side['settings']}"
            rows.append(
                (what, clients, f"{cell['rate']:.0f}", p50, p99, f"{cell['cpu_in_all']:.1f}", parts, cell["wrong"])
            )
    return "\n\n".join([head, table(columns, rows), _alone_text(data)])


def _alone_text(data: Data) -> str:
    words = {"batching": "a stage that batches", "none": "max_batch_size 1"}
    rows = [
        (name, words[kind], f"{one['p50'] * 1e3:.3f}", f"{one['p99'] * 1e3:.3f}")
        for kind, sides in data["alone"].items()
        for name, one in sides.items()
    ]
    head = f"One client on a raw socket, both servers up, {ALONE_ROUNDS} rounds of {ALONE_REQUESTS} requests in turn:"
    return f"{head}\n\n{table(('server', 'stage', 'p50 ms (median of rounds)', 'p99 ms'), rows)}"


# ── beside another checkout, and inside ───────────────────────────────────────────────────────────────────────────


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
