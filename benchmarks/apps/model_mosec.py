"""The sleeping model of model.py, for mosec: the same settings, the same client."""

import os
import time

from mosec import Server
from mosec_workers import Echo

SECONDS = float(os.environ.get("MODEL_MS", "10")) / 1000
BATCH = int(os.environ.get("MODEL_BATCH", "32"))
WAIT = int(os.environ.get("MODEL_WAIT", "5"))
NUM = int(os.environ.get("MODEL_NUM", "1"))


class Model(Echo):
    def forward(self, data: list[object]) -> list[object]:
        time.sleep(SECONDS)
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=NUM, max_batch_size=BATCH, max_wait_time=WAIT, route="/model")
    server.run()
