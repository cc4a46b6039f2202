"""The sleeping model of live.py for mosec, with the settings of its crowd stage."""

import os
import time

from mosec import Server, Worker

SECONDS = float(os.environ["LIVE_MS"]) / 1000
WORKERS = int(os.environ["LIVE_WORKERS"])
BATCH = int(os.environ["LIVE_BATCH"])
WAIT = int(os.environ["LIVE_WAIT"])


class Model(Worker):
    def forward(self, data: list[object]) -> list[object]:
        time.sleep(SECONDS)
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT, route="/crowd")
    server.run()
