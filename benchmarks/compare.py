"""zmesh beside mosec, LitServe, BentoML, Ray Serve and FastAPI: an echo, in closed loops and in an open one.

    ./scripts/bench compare [--seconds 3] [--rounds 3] [--only zmesh,mosec,…] [--rate R] [--write]

Each in an environment of its own, in the configuration that is best for it here; `benchmarks/peers/README.md` says
which and why. One that cannot be installed or started is skipped by name.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from benchmarks.load import BODY, Open, has_open_loop, need_wrk, open_loop
from benchmarks.peers import Unavailable, installed_version
from benchmarks.plot import Bar, bars
from benchmarks.report import Data, Verdict, add_options, finish, table
from benchmarks.sides import APPS, Sample, Side, loaded, middle, mosec, prepare, serving, skip, zmesh
from benchmarks.usage import memory, one_group
from tests.harness import REPOSITORY, RunningMesh

CLIENTS = (1, 64)
NO_OPEN_LOOP = "this zmesh has no bench command"


@dataclass
class Found:
    """All runs of one side."""

    closed: dict[int, list[Sample]] = field(default_factory=lambda: {clients: [] for clients in CLIENTS})
    opened: list[Open] = field(default_factory=list)
    memory: Data = field(default_factory=dict)


def sides() -> list[Side]:
    ours = zmesh("zmesh", "batch 64, wait 1 ms, 1 worker", REPOSITORY / "examples" / "echo" / "app.py", ECHO_BATCH=64)
    same = "batch 64, wait 1 ms, 1 worker"
    ray = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    bento = ["{bin}/bentoml", "serve", "echo_bentoml:Echo", "--working-dir", str(APPS)]
    return [
        ours,
        mosec("mosec", same, APPS / "echo_mosec.py"),
        mosec("mosec, orjson", f"{same}, orjson", APPS / "echo_mosec.py", ECHO_JSON="orjson"),
        _script("FastAPI", "one process, orjson; neither batches nor has workers", "fastapi", {}),
        _script("LitServe", "no batching, 1 worker, 1 API server", "litserve", {}),
        Side("BentoML", "async API, no batching, 1 worker", bento, "bentoml", group_of=one_group),
        _script("Ray Serve", "no batching, 1 replica, HAProxy, throughput optimized", "ray", ray),
    ]


def _script(name: str, settings: str, peer: str, env: dict[str, str]) -> Side:
    return Side(name, settings, ["{python}", str(APPS / f"echo_{peer}.py")], peer, env=env, group_of=one_group)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="bench compare", description=(__doc__ or "").splitlines()[0])
    add_options(parser, seconds=3.0, rounds=3)
    parser.add_argument("--only", default="", metavar="NAMES", help="of these servers, with commas between them")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="of the open loop; default half of what the slowest does"
    )
    options = parser.parse_args(given)
    need_wrk()
    names = {word.strip().lower() for word in options.only.split(",") if word.strip()}
    wanted = [side for side in sides() if not names or side.name.partition(",")[0].lower() in names]
    if not wanted:
        parser.error(f"--only knows {', '.join(side.name for side in sides())}")
    ready, skipped = prepare(wanted, not options.installed_only)
    if not has_open_loop():
        skipped["open loop"] = NO_OPEN_LOOP
        print(f"skipped: open loop ({NO_OPEN_LOOP})", flush=True)
    found, rate = _measure(ready, options, skipped)
    data: Data = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "rate": rate,
        "orjson": importlib.util.find_spec("orjson") is not None,
        "versions": {side.peer: installed_version(side.peer) for side in ready if side.peer},
        "sides": {side.name: _summary(side, found[side.name]) for side in ready if side.name not in skipped},
        "skipped": skipped,
    }
    return finish("compare", given, data, options)


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _measure(
    ready: Sequence[Side], options: argparse.Namespace, skipped: dict[str, str]
) -> tuple[dict[str, Found], float]:
    """Rounds in turn. The rate of the open loop comes from the first, so that one has it a round later."""
    found = {side.name: Found() for side in ready}
    rate, opens = options.rate, "open loop" not in skipped
    for number in range(options.rounds + (1 if opens else 0)):
        for side in ready:
            if side.name in skipped:
                continue
            try:
                with serving(side) as server:
                    if number < options.rounds:
                        _closed(side, server, options.seconds, found[side.name])
                    if number and opens:
                        _open(side, server, rate, options.seconds, found[side.name])
            except Unavailable as why:
                skip(side, why, skipped)
        if opens and not number and not rate:
            rate = _rate(found, skipped)
            print(f"open loop: {rate:.0f} requests a second, about half of what the slowest does", flush=True)
    return found, rate


def _rate(found: dict[str, Found], skipped: dict[str, str]) -> float:
    """About half of what the slowest does with all its clients: a round number."""
    slowest = min((one.closed[CLIENTS[-1]][0].rate for name, one in found.items() if name not in skipped), default=2.0)
    return max(1.0, float(f"{slowest / 2:.1g}"))


def _closed(side: Side, server: RunningMesh, seconds: float, found: Found) -> None:
    for clients in CLIENTS:
        sample = loaded(side, server, clients, seconds)
        found.closed[clients].append(sample)
        print(f"{side.name}, {clients} clients: {sample.rate:.0f}/s, p50 {sample.p50 * 1e3:.2f} ms", flush=True)
    sizes = memory(server.process.pid, one_group)["all"]
    found.memory = asdict(sizes)


def _open(side: Side, server: RunningMesh, rate: float, seconds: float, found: Found) -> None:
    run = open_loop(server.url + side.route, rate, seconds, side.body)
    found.opened.append(run)
    valid = "" if run.is_valid else ", not valid: the generator was late"
    print(
        f"{side.name}, {rate:.0f}/s offered: p50 {run.p50 * 1e3:.2f} ms, p99 {run.p99 * 1e3:.2f} ms{valid}", flush=True
    )


def _summary(side: Side, found: Found) -> Data:
    def of_opened(value: Callable[[Open], float]) -> float:
        return median(map(value, found.opened))

    opened = found.opened and {
        "rate": of_opened(lambda run: run.rate),
        "p50": of_opened(lambda run: run.p50),
        "p99": of_opened(lambda run: run.p99),
        "wrong": sum(run.wrong for run in found.opened),
        "runs": len(found.opened),
        "valid": sum(run.is_valid for run in found.opened),
    }
    return {
        "settings": side.settings,
        "closed": {str(clients): middle(found.closed[clients]) for clients in CLIENTS},
        "open": opened or None,
        "memory": found.memory,
    }


# ── what it means ─────────────────────────────────────────────────────────────────────────────────────────────────


def verdicts(data: Data) -> list[Verdict]:
    return []


def section(data: Data) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items()) or "no peer"
    head = (
        f"Beside {versions}; how each is configured, and why: [peers/README.md](peers/README.md). Closed loops: wrk"
        f" with one thread. {data['rounds']} rounds of {data['seconds']:g} s in turn, a new start each time, medians."
        " CPU, processes and memory are those of everything the server started."
    )
    columns = ("server", "settings", "req/s, 1 client", "p50 ms", "req/s, 64 clients", "p50 ms", "p99 ms",
               "CPU us per request", "processes", "RSS MB", "PSS MB", "wrong")  # fmt: skip
    rows = [_row(name, side) for name, side in data["sides"].items()]
    return "\n\n".join([head, table(columns, rows), _open_text(data)])


def _row(name: str, side: Data) -> tuple[object, ...]:
    alone, crowd, size = side["closed"]["1"], side["closed"]["64"], side["memory"]
    return (
        name, side["settings"], f"{alone['rate']:.0f}", f"{alone['p50'] * 1e3:.2f}", f"{crowd['rate']:.0f}",
        f"{crowd['p50'] * 1e3:.2f}", f"{crowd['p99'] * 1e3:.2f}", f"{crowd['cpu_in_all']:.0f}", size["processes"],
        f"{size['rss'] / 1e6:.0f}", f"{size['shared_once'] / 1e6:.0f}", alone["wrong"] + crowd["wrong"],
    )  # fmt: skip


def _open_text(data: Data) -> str:
    opened = {name: side["open"] for name, side in data["sides"].items() if side["open"]}
    if not opened:
        return f"Open loop: not measured ({data['skipped'].get('open loop', 'nobody was there')})."
    head = (
        f"Open loop: {data['rate']:g} requests a second at random times (Poisson) whether or not the earlier ones were"
        f" answered, {data['seconds']:g} s, latency from when each was due (`zmesh bench --rate {data['rate']:g}"
        " --arrivals poisson`):"
    )
    rows = [
        (
            name,
            f"{one['rate']:.0f}",
            f"{one['p50'] * 1e3:.2f}",
            f"{one['p99'] * 1e3:.2f}",
            one["wrong"],
            f"{one['valid']} of {one['runs']}",
        )
        for name, one in opened.items()
    ]
    return f"{head}\n\n{table(('server', 'answered a second', 'p50 ms', 'p99 ms', 'wrong', 'valid runs'), rows)}"


def plot(data: Data) -> str:
    """Three panels: throughput, the latency of one client, and CPU."""

    def panel(value: Callable[[Data], float], form: str) -> list[Bar]:
        return [
            Bar(name, value(side["closed"]), format(value(side["closed"]), form), is_ours=name == "zmesh")
            for name, side in data["sides"].items()
        ]

    panels = {
        "echoes a second, 64 clients": panel(lambda closed: float(closed["64"]["rate"]), ".0f"),
        "ms, one client (p50)": panel(lambda closed: float(closed["1"]["p50"]) * 1e3, ".2f"),
        "CPU us per request, 64 clients": panel(lambda closed: float(closed["64"]["cpu_in_all"]), ".0f"),
    }
    return bars(f"An echo of {len(BODY)} bytes on {data['machine'].partition(',')[0]}", panels)


if __name__ == "__main__":
    sys.exit(main())
