"""Requests that are checked by their types, and numpy arrays from stage to stage."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from zmesh import Server, Worker
from zmesh.mixin import NumBinIPCMixin, TypedMsgPackMixin


class Request(msgspec.Struct):
    name: str
    values: list[float]


class Response(msgspec.Struct):
    total: float
    shape: tuple[int, ...]


class Preprocess(NumBinIPCMixin, TypedMsgPackMixin):
    def forward(self, data: Request) -> Any:
        return np.asarray(data.values)


class Inference(TypedMsgPackMixin, NumBinIPCMixin, Worker):
    def forward(self, data: list[Any]) -> list[Response]:
        return [Response(float(array.sum()), array.shape) for array in data]


class Single(TypedMsgPackMixin, Worker):
    def forward(self, data: list[Request]) -> list[int]:
        return [len(request.values) for request in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Preprocess)
    server.append_worker(Inference, max_batch_size=4, max_wait_time=5)
    server.append_worker(Single, max_batch_size=4, route="/single")
    server.run()
