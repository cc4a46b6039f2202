"""A model that sleeps, whatever the size of its batch; and stages that do nothing, for the round trip."""

import os
import struct
import time
from mmap import mmap

from zmesh import Server, Worker

SECONDS = float(os.environ.get("MODEL_MS", "10")) / 1000
BATCH = int(os.environ.get("MODEL_BATCH", "32"))
WAIT = float(os.environ.get("MODEL_WAIT", "5"))
STATS = os.environ.get("MODEL_STATS", "")


class Model(Worker):
    """Writes how many batches it ran and how long they took in all to the file named by MODEL_STATS."""

    def __init__(self) -> None:
        self.batches, self.seconds, self.page = 0, 0.0, None
        if STATS:
            with open(STATS, "r+b") as file:
                self.page = mmap(file.fileno(), 16)

    def forward(self, data: list[object]) -> list[object]:
        started = time.perf_counter()
        time.sleep(SECONDS)
        self.batches += 1
        self.seconds += time.perf_counter() - started
        if self.page is not None:
            struct.pack_into("<Qd", self.page, 0, self.batches, self.seconds)
        return data


class Nothing(Worker):
    def forward(self, data: object) -> object:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, max_batch_size=BATCH, max_wait_time=WAIT, route="/model")
    for size in (8, 32):
        server.append_worker(
            Nothing, max_batch_size=size, max_wait_time=1000, batching="fixed", route=f"/nothing{size}"
        )
    server.run()
