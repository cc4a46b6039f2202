"""A model that sleeps, in six stages that differ only in when their batches leave: crowd, and five fixed windows."""

import os
import time

from zmesh import Server, Worker

SECONDS = float(os.environ["LIVE_MS"]) / 1000
WORKERS = int(os.environ["LIVE_WORKERS"])
BATCH = int(os.environ["LIVE_BATCH"])
WAIT = float(os.environ["LIVE_WAIT"])
WINDOWS = os.environ["LIVE_WINDOWS"].split(",")


class Model(Worker):
    def forward(self, data: list[object]) -> list[object]:
        time.sleep(SECONDS)
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT, route="/crowd")
    for window in WINDOWS:
        server.append_worker(
            Model,
            num=WORKERS,
            max_batch_size=BATCH,
            max_wait_time=float(window),
            batching="fixed" if float(window) else "greedy",
            route=f"/fixed{window}",
        )
    server.run()
