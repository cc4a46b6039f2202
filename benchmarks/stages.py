"""Two stages beside one: echoes through one stage and through two, with zmesh and with mosec.

./scripts/bench stages [--seconds 4] [--rounds 3] [--clients 64] [--write]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.load import need_wrk
from benchmarks.peers import Unavailable, installed_version
from benchmarks.report import Data, Verdict, add_options, at_least, at_most, finish, none_wrong, table
from benchmarks.sides import APPS, Sample, Side, loaded, middle, mosec, prepare, serving, skip, zmesh

ROUTES = {"one": "/one", "two": "/two"}
COST, KEPT = 1.35, 0.74  # of one stage: what two may cost, and the throughput that leaves


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="bench stages", description=(__doc__ or "").splitlines()[0])
    add_options(parser, seconds=4.0, rounds=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args(given)
    need_wrk()
    sides, skipped = prepare(_sides(options.batch), not options.installed_only)
    data: Data = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "clients": options.clients,
        "batch": options.batch,
        "versions": {side.peer: installed_version(side.peer) for side in sides if side.peer},
        "sides": _measure(sides, options, skipped),
        "skipped": skipped,
    }
    return finish("stages", given, data, options)


def _sides(batch: int) -> list[Side]:
    env, app = {"ECHO_BATCH": batch, "ECHO_WAIT": 1}, APPS / "stages_mosec.py"
    wanted = [
        zmesh("zmesh", "", APPS / "stages.py", **env),
        mosec("mosec", "", app, **env),
        mosec("mosec, orjson", "", app, **env, ECHO_JSON="orjson"),
    ]
    return [side.at(ROUTES["one"]) for side in wanted]


def _measure(sides: Sequence[Side], options: argparse.Namespace, skipped: dict[str, str]) -> Data:
    """Rounds in turn; the medians by server and by number of stages."""
    samples: dict[str, dict[str, list[Sample]]] = {side.name: {kind: [] for kind in ROUTES} for side in sides}
    for number in range(options.rounds):
        for side in sides:
            if side.name in skipped:
                continue
            try:
                with serving(side) as server:
                    for kind, route in ROUTES.items():
                        sample = loaded(side, server, options.clients, options.seconds, route)
                        samples[side.name][kind].append(sample)
                        print(f"round {number + 1}: {side.name}, {kind}: {sample.rate:.0f}/s", flush=True)
            except Unavailable as why:
                skip(side, why, skipped)
    return {
        name: {kind: middle(runs) for kind, runs in kinds.items()}
        for name, kinds in samples.items()
        if name not in skipped
    }


def verdicts(data: Data) -> list[Verdict]:
    ours = data["sides"]["zmesh"]
    found = [
        at_least("throughput of two stages beside one", ours["two"]["rate"] / ours["one"]["rate"], KEPT, " x"),
        at_most("CPU of two stages beside one", ours["two"]["cpu_in_all"] / ours["one"]["cpu_in_all"], COST, " x"),
    ]
    for name, kinds in data["sides"].items():
        if name != "zmesh":
            ratio = ours["two"]["rate"] / kinds["two"]["rate"]
            found.append(at_least(f"two stages beside those of {name}", ratio, 2.0, " x"))
    return [*found, none_wrong(ours.values())]


def section(data: Data) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items()) or "no peer"
    head = (
        f"Echo, {data['clients']} clients, max batch {data['batch']}, max wait 1 ms, one worker a stage; beside"
        f" {versions}. {data['rounds']} rounds of {data['seconds']:g} s in turn, medians."
    )
    columns = ("server", "stages", "req/s", "of one stage", "p50 ms", "p99 ms", "CPU us per request", "wrong")
    rows = [
        (
            name,
            kind,
            f"{cell['rate']:.0f}",
            f"{cell['rate'] / kinds['one']['rate']:.2f} x",
            f"{cell['p50'] * 1e3:.2f}",
            f"{cell['p99'] * 1e3:.2f}",
            f"{cell['cpu_in_all']:.1f}",
            cell["wrong"],
        )
        for name, kinds in data["sides"].items()
        for kind, cell in kinds.items()
    ]
    return f"{head}\n\n{table(columns, rows)}"


if __name__ == "__main__":
    sys.exit(main())
