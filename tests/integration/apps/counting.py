"""Two stages that count what they do, in metrics of their own."""

import os
import time

from zmesh import Server, Worker


class First(Worker):
    def __init__(self) -> None:
        self.served = self.metrics.counter("served", "Items that forward was given", ["parity"])
        self.metrics.gauge("pid", "Number of the process").set(os.getpid())

    def forward(self, data: list[int]) -> list[int]:
        time.sleep(float(os.environ.get("MODEL_MS", "0")) / 1000)
        for item in data:
            self.served.labels("odd" if item % 2 else "even").inc()
        self.metrics.histogram("sizes", "Items in a batch", buckets=[1, 2, 4, 8]).observe(len(data))
        return data


class Last(First):
    pass


if __name__ == "__main__":
    server = Server()
    server.append_worker(First, num=2, max_batch_size=8, route="/count")
    server.append_worker(Last, num=2, max_batch_size=8, route="/count")
    server.run()
