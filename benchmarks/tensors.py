"""Arrays of 10 MB between two stages on one host: zmesh's ways and mosec's, beside copying memory.

./scripts/bench tensors [--seconds 2] [--rounds 5] [--megabytes 10] [--large 100] [--write]

One client in a closed loop. The request and the answer are small: the first stage makes the array, the second adds it
up. So a round trip is one array that was handed on and read as a whole.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median, quantiles

import numpy
import psutil

from benchmarks.load import one_client
from benchmarks.peers import Unavailable, installed_version
from benchmarks.report import Data, Verdict, add_options, at_least, finish, table
from benchmarks.sides import APPS, Side, mosec, prepare, serving, skip, zmesh
from benchmarks.usage import cpu_seconds, spent
from tests.harness import RunningMesh
from tests.redises import RunningRedis, redis_server
from zmesh.embedded import find_server

PEER = "mosec-ipc"
MEGABYTE = 1_000_000
IN_A_ROW = 10  # requests on one connection
COPYING_SECONDS = 0.3
LARGE_ONES = 3
NO = "no"  # it does not arrive
REDIS = "redis"  # in the name of a side that needs one


@dataclass
class Loop:
    """What one client saw in one round. CPU in seconds, of all processes of the server and of its Redis."""

    rate: float
    p50: float
    p99: float
    cpu_ms: float  # for each request
    copies: float  # GB/s that memory is copied with, in the same round


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="bench tensors", description=(__doc__ or "").splitlines()[0])
    add_options(parser, seconds=2.0, rounds=5)
    parser.add_argument("--megabytes", type=int, default=10, help="of the array; default 10")
    parser.add_argument("--large", type=int, default=100, help="of one that only has to arrive; default 100")
    options = parser.parse_args(given)
    with _redis() as redis:
        sides, skipped = prepare(_sides(redis, options.megabytes * MEGABYTE), not options.installed_only)
        if redis is None:
            skipped |= {"Redis": "no redis-server is installed: apt-get install redis-server"}
        found = _measure(sides, redis, options, skipped)
    data: Data = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "megabytes": options.megabytes,
        "large": options.large,
        "versions": {"mosec": installed_version(PEER, "mosec")} if any(side.peer for side in sides) else {},
        "sides": found,
        "skipped": skipped,
    }
    return finish("tensors", given, data, options)


@contextmanager
def _redis() -> Iterator[RunningRedis | None]:
    """One for all who need it."""
    program = find_server()
    if not program:
        yield None
        return
    with redis_server(program) as running:
        yield running


def _sides(redis: RunningRedis | None, size: int) -> list[Side]:
    ours, theirs = APPS / "tensors.py", APPS / "tensors_mosec.py"
    wanted = [
        zmesh("zmesh", "as it comes: shared memory", ours),
        zmesh("zmesh, by the broker", "--no-shared-memory", ours, ZMESH_NO_SHARED_MEMORY=1),
        replace(mosec("mosec", "as it comes: pickle over its socket", theirs), peer=PEER),
    ]
    if redis is not None:
        env = {"TENSOR_MIXIN": "redis", "ZMESH_REDIS_URL": redis.url}
        wanted += [
            zmesh(f"zmesh, {REDIS}", "RedisShmIPCMixin", ours, **env),
            replace(mosec(f"mosec, {REDIS}", "RedisShmIPCMixin", theirs, **env), peer=PEER),
        ]
    return [replace(side, body=_body(size)) for side in wanted]


def _body(size: int) -> str:
    return f'{{"bytes": {size}}}'


# ── one side, one round ───────────────────────────────────────────────────────────────────────────────────────────


def _measure(
    sides: Sequence[Side], redis: RunningRedis | None, options: argparse.Namespace, skipped: dict[str, str]
) -> dict[str, Data]:
    loops: dict[str, list[Loop]] = {side.name: [] for side in sides}
    large: dict[str, str] = {}
    for number in range(options.rounds):
        for side in sides:
            if side.name in skipped:
                continue
            try:
                with serving(side) as server:
                    its_redis = redis if REDIS in side.name else None
                    loop = _loop(side, server, its_redis, options.megabytes * MEGABYTE, options.seconds)
                    loops[side.name].append(loop)
                    if number == options.rounds - 1:
                        large[side.name] = _large(side, server, options.large * MEGABYTE)
            except Unavailable as why:
                skip(side, why, skipped)
            else:
                print(f"round {number + 1}: {side.name}: {loop.rate:.0f}/s", flush=True)
    return {side.name: _middle(side, loops[side.name], large[side.name]) for side in sides if side.name in large}


def _loop(side: Side, server: RunningMesh, redis: RunningRedis | None, size: int, seconds: float) -> Loop:
    _check(side, server, size)
    body = side.body.encode()
    one_client(server.port, side.route, 2 * IN_A_ROW, body)
    copies = _copies(size)
    before, redis_before = cpu_seconds(server.process.pid, side.group_of), _cpu_of(redis)
    latencies, began = list[float](), time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        latencies += one_client(server.port, side.route, IN_A_ROW, body)
    used = sum(spent(before, cpu_seconds(server.process.pid, side.group_of)).values()) + _cpu_of(redis) - redis_before
    high = quantiles(latencies, n=100)[98]
    return Loop(len(latencies) / took, median(latencies), high, used / len(latencies) * 1e3, copies)


def _check(side: Side, server: RunningMesh, size: int) -> float:
    """That an array of so many bytes arrives as it was made; the seconds that took. Raises Unavailable."""
    try:
        answer = server.post(side.route, _body(size).encode(), timeout=60)
    except OSError as error:
        raise Unavailable(f"{side.name} did not answer: {error}") from error
    if answer.status != 200:
        raise Unavailable(f"{side.name}: {answer.status} {answer.body.decode(errors='replace')[:200]}")
    if answer.json() != {"bytes": size, "sum": size / 4}:
        raise Unavailable(f"{side.name} added up something else: {answer.json()}")
    return answer.seconds


def _large(side: Side, server: RunningMesh, size: int) -> str:
    try:
        return f"{median(_check(side, server, size) for _ in range(LARGE_ONES)):.2f} s"
    except Unavailable as why:
        print(f"{size // MEGABYTE} MB: {why}", flush=True)
        return NO


def _copies(size: int) -> float:
    """GB/s from one array to another, both in memory that was touched before."""
    one, other = numpy.ones(size // 4, dtype="f4"), numpy.zeros(size // 4, dtype="f4")
    took, until = list[float](), time.perf_counter() + COPYING_SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        numpy.copyto(other, one)
        took.append(time.perf_counter() - began)
    return size / median(took) / 1e9


def _cpu_of(redis: RunningRedis | None) -> float:
    if redis is None:
        return 0.0
    times = psutil.Process(redis.pid).cpu_times()
    return float(times.user + times.system)


def _middle(side: Side, loops: Sequence[Loop], large: str) -> Data:
    figures = {
        name: median(getattr(loop, name) for loop in loops) for name in ("rate", "p50", "p99", "cpu_ms", "copies")
    }
    return {"settings": side.settings, **figures, "large": large}


# ── what is said of it ────────────────────────────────────────────────────────────────────────────────────────────


def _speed(cell: Data, data: Data) -> float:
    return float(cell["rate"] * data["megabytes"] / 1e3)


def verdicts(data: Data) -> list[Verdict]:
    ours = data["sides"]["zmesh"]
    found = [
        at_least(f"beside {name}", ours["rate"] / cell["rate"], 1.0, " x")
        for name, cell in data["sides"].items()
        if name.startswith("mosec")
    ]
    return [*found, at_least(f"{data['large']} MB arrive", float(ours["large"] != NO), 1)]


def section(data: Data) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items()) or "no peer"
    copies = median(cell["copies"] for cell in data["sides"].values())
    head = (
        f"A float32 array of {data['megabytes']} MB between two stages of one worker each, one client in a closed loop;"
        f" beside {versions}. {data['rounds']} rounds of {data['seconds']:g} s in turn, medians. Copying memory goes at"
        f" {copies:.1f} GB/s in the same run, and `of a copy` is the share of that. CPU is that of all processes, Redis"
        f" included. The last column is one array of {data['large']} MB."
    )
    columns = ("server", "way", "req/s", "p50 ms", "p99 ms", "GB/s", "of a copy", "CPU ms", f"{data['large']} MB")
    rows = [
        (
            name,
            cell["settings"],
            f"{cell['rate']:.0f}",
            f"{cell['p50'] * 1e3:.1f}",
            f"{cell['p99'] * 1e3:.1f}",
            f"{_speed(cell, data):.2f}",
            f"{_speed(cell, data) / cell['copies']:.0%}",
            f"{cell['cpu_ms']:.1f}",
            cell["large"],
        )
        for name, cell in data["sides"].items()
    ]
    return f"{head}\n\n{table(columns, rows)}"


if __name__ == "__main__":
    sys.exit(main())
