"""How much of a model's time is used: a model that sleeps 10 ms per batch of up to 32, against the ideal.

    ./scripts/bench model [--seconds 6] [--clients 8,32,128,256]

The ideal is min(clients, batch) / (mean forward time + unloaded round trip of a batch of that size); both are measured
in the same run, on the same server. Exit 1 when a cell misses its bar.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from pathlib import Path

from benchmarks.load import burst_round_trip, one_client, wrk
from tests.harness import running

APP = Path(__file__).parent / "apps" / "model.py"
BATCH = 32
HEADER = " clients    req/s    ideal   ratio   bar   p50 ms   p99 ms  forward ms  mean batch"
BARS = {8: 0.85, 32: 0.85, 128: 0.97, 256: 0.97}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--clients", default="8,32,128,256")
    options = parser.parse_args(arguments)
    failed = False
    with tempfile.NamedTemporaryFile() as stats:
        stats.write(bytes(16))
        stats.flush()
        with running(APP, "--timeout", "30000", env={"MODEL_STATS": stats.name}) as mesh:
            one_client(mesh.port, "/model", 20)
            trips = {size: burst_round_trip(mesh.port, f"/nothing{size}", size) for size in (8, 32)}
            print(f"round trip of a batch of 8: {trips[8] * 1e3:.2f} ms, of 32: {trips[32] * 1e3:.2f} ms")
            print(HEADER)
            for clients in map(int, options.clients.split(",")):
                wrk(f"{mesh.url}/model", clients, 1.5)  # the rule learns from traffic; the first second is its lesson
                before = _stats(stats.name)
                run = wrk(f"{mesh.url}/model", clients, options.seconds)
                after = _stats(stats.name)
                batches, seconds = after[0] - before[0], after[1] - before[1]
                size = min(clients, BATCH)
                forward = seconds / batches
                ideal = size / (forward + trips[size])
                ratio, bar = run.rate / ideal, BARS.get(clients, 0.0)
                failed |= ratio < bar or run.wrong > 0 or run.broken > 0
                mean = run.rate * options.seconds / batches
                print(
                    f"{clients:>8} {run.rate:>8.0f} {ideal:>8.0f} {ratio:>7.3f} {bar:>5.2f} {run.p50 * 1e3:>8.1f}"
                    f" {run.p99 * 1e3:>8.1f} {forward * 1e3:>11.2f} {mean:>11.1f}"
                    + (f"  {run.wrong} wrong, {run.broken} broken" if run.wrong or run.broken else "")
                )
    print("missed a bar" if failed else "every bar met")
    return int(failed)


def _stats(path: str) -> tuple[int, float]:
    batches, seconds = struct.unpack("<Qd", Path(path).read_bytes()[:16])
    return batches, seconds


if __name__ == "__main__":
    sys.exit(main())
