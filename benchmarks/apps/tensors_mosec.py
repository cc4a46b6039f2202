"""An array from one stage to the next, for mosec: the same as tensors.py.

TENSOR_MIXIN=redis hands it on through Redis, at ZMESH_REDIS_URL; without it by mosec's own pickle and socket.
"""

import os
from typing import Any

import numpy
from mosec import Server, Worker
from mosec.mixin import RedisShmIPCMixin

Base: Any = RedisShmIPCMixin if os.environ.get("TENSOR_MIXIN") == "redis" else Worker


class Make(Base):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, numpy.ndarray] = {}

    def forward(self, data: dict[str, int]) -> numpy.ndarray:
        size = data["bytes"]
        if size not in self.kept:
            self.kept = {size: numpy.ones(size // 4, dtype="f4")}
        return self.kept[size]


class Take(Base):
    def forward(self, data: numpy.ndarray) -> dict[str, float]:
        return {"bytes": data.nbytes, "sum": float(data.sum())}


if __name__ == "__main__":
    if Base is RedisShmIPCMixin:
        RedisShmIPCMixin.set_redis_url(os.environ["ZMESH_REDIS_URL"])
    server = Server()
    server.append_worker(Make)
    server.append_worker(Take)
    server.run()
