"""`zmesh bench` beside others on one server: throughput beside wrk, latency beside MLPerf LoadGen; 5 % apart at most.

    ./scripts/bench crosscheck [--rounds 3] [--seconds 6] [--clients 64] [--rate 300] [--python PYTHON]

The server is a model that sleeps 10 ms per batch of up to 32, so that it is the limit and not a client. Tools take
turns, each round with the other first; shown are medians of the rounds, and the difference of them. A round in which
`zmesh bench` says that it was late is done again, for both. LoadGen comes with `pip install mlcommons-loadgen`, into
this environment or into that of another Python, which --python names; without it that half is left out, and said so.
Echo has no model and is shown without a bar: what wrk and Python take from the server there is not the same.

With --together `zmesh bench` and LoadGen send at the same time, each at half of the rate, and rounds count in which it
was late: whatever else the machine has to do happens to both, so that a busy one can tell something too.

Exit 1 when a figure is more than --apart percent apart, or nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import wrk
from tests.harness import REPOSITORY, ZMESH, running

MODEL = Path(__file__).parent / "apps" / "model.py"
ECHO = REPOSITORY / "examples" / "echo" / "app.py"
LOADGEN = Path(__file__).parent / "loadgen.py"
BODY = '{"x": "abcdefghijklmnopqrstu"}'
WARMUP = 1.0
TRIES = 3  # of a round in which the generator was late

Round = dict[str, float]


class Late(Exception):
    """A run of `zmesh bench` that it calls not valid."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rate", type=float, default=300.0, help="of the open loops, requests per second")
    parser.add_argument("--apart", type=float, default=5.0, help="percent, at most")
    parser.add_argument("--python", default=sys.executable, help="a Python that has mlcommons-loadgen")
    parser.add_argument("--together", action="store_true", help="zmesh bench and LoadGen at the same time")
    parser.add_argument("--only", choices=["wrk", "loadgen"], help="one of the two halves")
    options = parser.parse_args(arguments)
    apart: list[float] = []
    with running(MODEL, "--timeout", "30000") as mesh:
        if options.only != "loadgen":
            apart += _beside_wrk(f"{mesh.url}/model", options)
        if options.only != "wrk":
            apart += _beside_loadgen(f"{mesh.url}/model", options)
    if options.only != "loadgen":
        with running(ECHO, "--timeout", "30000", env={"ECHO_BATCH": "64"}) as mesh:
            print("for information, without a model:")
            _beside_wrk(f"{mesh.url}/inference", options)
    if not apart:
        print("nothing was compared", file=sys.stderr)
        return 1
    print(f"at most {max(apart):.1f} % apart, {options.apart:g} % allowed")
    return int(max(apart) > options.apart)


def _beside_wrk(url: str, options: argparse.Namespace) -> list[float]:
    """How far apart requests per second are, in percent."""
    if shutil.which("wrk") is None:
        print("throughput is not compared: wrk is not installed (apt-get install wrk)")
        return []

    def theirs(seed: int) -> Round:
        wrk(url, options.clients, WARMUP, BODY)
        run = wrk(url, options.clients, options.seconds, BODY)
        assert not run.wrong and not run.broken, run
        return {"req/s": run.rate}

    def ours(seed: int) -> Round:
        result = _bench(url, "--clients", str(options.clients), "--seconds", f"{options.seconds:.0f}")
        return {"req/s": result["goodput_per_second"]}

    print(f"closed loop, {options.clients} clients, {options.rounds} rounds of {options.seconds:g} s each:")
    return _compared("wrk", _rounds(options.rounds, ours, theirs), judged=("req/s",))


def _beside_loadgen(url: str, options: argparse.Namespace) -> list[float]:
    """How far apart p50, p90 and p99 are, in percent."""
    rate = options.rate / 2 if options.together else options.rate
    command = [options.python, str(LOADGEN), url, "--rate", f"{rate:g}", "--seconds", f"{options.seconds:g}"]
    command += ["--warmup", f"{WARMUP:g}", "--body", BODY]
    probe = subprocess.run([options.python, "-c", "import mlperf_loadgen"], capture_output=True, check=False)
    if probe.returncode:
        how = "pip install mlcommons-loadgen, or name a Python that has it with --python"
        print(f"latency is not compared: {options.python} has no MLPerf LoadGen ({how})")
        return []

    def theirs(seed: int) -> Round:
        done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True, check=True, timeout=300)
        said = json.loads(done.stdout.splitlines()[-1])
        assert not said["wrong"], said
        return {"req/s": said["rate"], **{f"{name} ms": said[name] * 1e3 for name in ("p50", "p90", "p99")}}

    def ours(seed: int) -> Round:
        arguments = ["--rate", f"{rate:g}", "--seconds", f"{options.seconds:g}", "--seed", str(seed)]
        result = _bench(url, *arguments, may_be_late=options.together)
        latency = result["latency"]
        return {
            "req/s": result["offered_per_second"],
            **{f"{name} ms": latency[f"{name}_ms"] for name in ("p50", "p90", "p99")},
            "late p99 ms": result["lateness"]["p99_ms"],
        }

    how = "at the same time" if options.together else "in turn"
    print(f"open loop, {rate:g} req/s each, Poisson, {options.rounds} rounds of {options.seconds:g} s {how}:")
    found = _rounds(options.rounds, ours, theirs, together=options.together)
    return _compared("LoadGen", found, judged=("p50 ms", "p90 ms", "p99 ms"))


def _bench(url: str, *arguments: str, may_be_late: bool = False) -> dict[str, Any]:
    """The result of a run. Raises Late, unless it may be."""
    line = [*ZMESH, "bench", url, "--data", BODY, "--warmup", f"{WARMUP:g}", *arguments, "--json", "-"]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    if not result["valid"] and not may_be_late:
        raise Late("; ".join(fault["text"] for fault in result["faults"]))
    assert result["good"] == result["due"], result
    return result


def _rounds(
    count: int, ours: Callable[[int], Round], theirs: Callable[[int], Round], *, together: bool = False
) -> list[tuple[Round, Round]]:
    found = []
    for number in range(count):
        for _ in range(TRIES):
            try:
                found.append(_one(number, ours, theirs, together))
                break
            except Late as late:
                print(f"  round {number + 1} is done again: {late}", flush=True)
    return found


def _one(
    number: int, ours: Callable[[int], Round], theirs: Callable[[int], Round], together: bool
) -> tuple[Round, Round]:
    if together:
        with ThreadPoolExecutor(1) as beside:
            waiting = beside.submit(theirs, number)
            return ours(number), waiting.result()
    if number % 2:
        return ours(number), theirs(number)
    other = theirs(number)
    return ours(number), other


def _compared(name: str, rounds: Sequence[tuple[Round, Round]], judged: Sequence[str]) -> list[float]:
    """Prints medians; gives the differences of those that are judged, in percent."""
    if not rounds:
        print("  no round was valid: this machine is too busy")
        return []
    apart = []
    print(f"  {'':12} {'zmesh bench':>12} {name:>12} {'apart':>8}   rounds of zmesh bench | {name}")
    for key in rounds[0][0]:
        mine, other = ([pair[side].get(key, 0.0) for pair in rounds] for side in (0, 1))
        shown = " ".join(f"{value:.4g}" for value in mine)
        if not any(other):
            print(f"  {key:12} {median(mine):>12.2f} {'':>12} {'':>8}   {shown}")
            continue
        difference = (median(mine) / median(other) - 1) * 100
        print(
            f"  {key:12} {median(mine):>12.2f} {median(other):>12.2f} {difference:>+7.1f}%   {shown} |"
            f" {' '.join(f'{value:.4g}' for value in other)}",
            flush=True,
        )
        if key in judged:
            apart.append(abs(difference))
    return apart


if __name__ == "__main__":
    sys.exit(main())
