"""Two stages, of which the first hands on through Redis, and an answer that proves which request it belongs to."""

import os

import numpy

from zmesh import Server, Worker
from zmesh.mixins import RedisShmIPCMixin

ITEMS = int(os.environ.get("ITEMS", "1000"))
CRASH = int(os.environ.get("CRASH", "0"))  # a worker's batch of that number is its last


class Make(RedisShmIPCMixin, Worker):
    redis_seconds_max = float(os.environ.get("SECONDS_MAX", "inf"))

    def forward(self, data: list[dict]) -> list[dict]:
        return [{"nonce": item["nonce"], "array": numpy.full(ITEMS, item["nonce"])} for item in data]


class Take(Worker):  # who reads needs no mixin
    def forward(self, data: list[dict]) -> list[dict]:
        return [{"nonce": item["nonce"], "answer": int(item["array"][0] + item["array"][-1]) + 1} for item in data]


def crash(point: str) -> list[dict[str, str]] | None:
    return [{"ZMESH_CRASH_AT": f"{point}:{CRASH}"}] * 2 if CRASH else None


if __name__ == "__main__":
    if url := os.environ.get("APP_REDIS_URL"):
        RedisShmIPCMixin.set_redis_url(url)
    server = Server()
    # After the arrays are in Redis and before anybody knows; after the answers left and before that is known.
    for worker, point in ((Make, "worker.sending.results"), (Take, "worker.sent.results")):
        server.append_worker(worker, num=2, max_batch_size=4, max_wait_time=1, route="/double", env=crash(point))
    server.run()
