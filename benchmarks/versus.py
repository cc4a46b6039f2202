"""zmesh beside mosec with the same settings, rounds in turn: a sleeping model, and one client of an echo that batches.

    ./scripts/bench versus [--rounds 3] [--seconds 4]

Needs `pip install mosec` in the same environment, and wrk. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median

from benchmarks.load import one_client, wrk
from tests.harness import RunningMesh, running, wait_until

APPS = Path(__file__).parent / "apps"
CLIENTS = (8, 32, 128, 256)
ONE_CLIENT_ENV = {"MODEL_MS": "0", "MODEL_BATCH": "64", "MODEL_WAIT": "1"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="zmesh beside mosec")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("mosec") is None:
        print("mosec is not installed here: pip install mosec", file=sys.stderr)
        return 1
    rates: dict[tuple[str, int], list[float]] = {}
    alone: dict[str, list[float]] = {"zmesh": [], "mosec": []}
    for _ in range(options.rounds):
        for side in ("zmesh", "mosec"):
            with _serving(side, {}) as mesh:
                for clients in CLIENTS:
                    wrk(f"{mesh.url}/model", clients, 1)
                    rates.setdefault((side, clients), []).append(
                        wrk(f"{mesh.url}/model", clients, options.seconds).rate
                    )
            with _serving(side, ONE_CLIENT_ENV) as mesh:
                one_client(mesh.port, "/model", 100)
                alone[side].append(median(one_client(mesh.port, "/model", 1000)))
    print("sleep 10 ms, max batch 32, max wait 5 ms, one worker: requests per second")
    print(" clients    zmesh    mosec   ratio")
    for clients in CLIENTS:
        ours, theirs = median(rates["zmesh", clients]), median(rates["mosec", clients])
        print(f"{clients:>8} {ours:>8.0f} {theirs:>8.0f} {ours / theirs:>7.2f}")
    ours, theirs = median(alone["zmesh"]) * 1e3, median(alone["mosec"]) * 1e3
    print(f"one client, no work, max batch 64, max wait 1 ms: p50 zmesh {ours:.2f} ms, mosec {theirs:.2f} ms")
    return 0


def _serving(side: str, env: Mapping[str, str]) -> AbstractContextManager[RunningMesh]:
    """Either server with the same model on a free port, and up."""
    if side == "zmesh":
        return running(APPS / "model.py", "--timeout", "30000", env=env)
    return running("", "--timeout", "30000", command=[sys.executable, str(APPS / "model_mosec.py")], env=env, up=_is_up)


def _is_up(mesh: RunningMesh) -> None:
    def answers() -> bool:
        try:
            return mesh.get("/").status == 200
        except OSError:
            return False

    wait_until(answers, 30, "mosec to listen")


if __name__ == "__main__":
    sys.exit(main())
