"""Streams that tell what their worker knows, and workers that die before their first event or after it."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from zmesh import Server, SSEWorker, current_task

STEP_SECONDS = 0.02


class Paced(SSEWorker):
    """`steps` events per item, each with the number of its step, the attempt, whom this worker knows to have left, and
    `size` letters. Items run together."""

    example = [{"steps": 1}]

    def forward(self, data: list[dict[str, Any]]) -> list[str]:
        for step in range(max(item["steps"] for item in data)):
            left = [index for index in range(len(data)) if current_task(index).cancelled]
            for index, item in enumerate(data):
                if step < item["steps"]:
                    seen = {"step": step, "attempt": current_task(index).attempt, "left": left, "batch": len(data)}
                    self.send_stream_event(json.dumps(seen) + "\n" + "x" * item.get("size", 0), index)
            time.sleep(STEP_SECONDS)
        return ["never sent"] * len(data)


class Alone(SSEWorker):
    """Says four events. Before the event `dies_before` it dies, once, when the file `heard` is there: `mark` is a file
    that says that it has. If it is `endless`, it says the first and then waits for its client to leave."""

    def forward(self, data: dict[str, Any]) -> None:
        for step in range(4):
            if step == data.get("dies_before") and not os.path.exists(data["mark"]):
                while not os.path.exists(data["heard"]):
                    time.sleep(STEP_SECONDS)
                Path(data["mark"]).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            self.send_stream_event(f"{step} of attempt {current_task().attempt}")
            while data.get("endless") and not current_task().cancelled:
                time.sleep(STEP_SECONDS)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Paced, max_batch_size=4, max_wait_time=3000, route="/paced", batching="fixed")
    server.append_worker(Alone, route="/alone")
    server.run()
