"""Workers are killed twice a second under load, and every request is answered, once and rightly."""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

from tests.harness import closed_loop, running

APP = Path(__file__).parent.parent / "integration" / "apps" / "two_stages.py"
SECONDS = 12.0
KILLS_PER_SECOND = 2.0


def test_workers_killed_twice_a_second_cost_no_request() -> None:
    def body(client: int, number: int) -> tuple[str, bytes]:
        return "/double", json.dumps({"nonce": client * 1_000_000 + number}).encode()

    dice, kills = random.Random(2), []
    with running(APP, "--timeout", "30000") as mesh:
        over = threading.Event()

        def nemesis() -> None:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                victim = dice.choice(mesh.worker_pids() or [0])
                if victim:
                    try:
                        os.kill(victim, signal.SIGKILL)
                        kills.append(victim)
                    except ProcessLookupError:
                        pass  # an earlier victim that the mesh had not yet been told of
                over.wait(1 / KILLS_PER_SECOND)
            over.set()

        killer = threading.Thread(target=nemesis, daemon=True)
        killer.start()
        answers = closed_loop(mesh.port, 64, body, over.is_set)
        killer.join(5)
        snapshot = mesh.mesh()
        log = mesh.log()

    for client, number, answer in answers:
        nonce = client * 1_000_000 + number
        assert answer.status == 200, f"{answer}\n{log[-3000:]}"
        assert answer.json() == {"nonce": nonce, "answer": 2 * nonce + 1}
    assert len(kills) > 12
    assert snapshot["tasks"] == 0, "nothing is left behind"
    longest = max(answer.seconds for _, _, answer in answers)
    print(f"{len(answers)} requests, {len(kills)} kills, all 200; longest wait {longest * 1000:.0f} ms")
