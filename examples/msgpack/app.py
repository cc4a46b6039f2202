"""Squares numbers. Requests and answers are msgpack instead of JSON: {"x": 3} -> {"y": 9}.

Start it with zmesh run examples/msgpack/app.py
"""

from typing import Any

from zmesh import Server, ValidationError, Worker
from zmesh.mixins import MsgpackMixin

LIMIT = 2**32  # msgpack's integers end at 64 bits, and so must the square


class Square(MsgpackMixin, Worker):  # the mixin stands first, so that its (de)serialize wins
    example = {"x": 3}

    def forward(self, batch: list[Any]) -> list[dict[str, int | float] | ValidationError]:
        return [square(request) for request in batch]


def square(request: Any) -> dict[str, int | float] | ValidationError:
    """One answer. An error is returned, not raised, so that it is the answer of this request only."""
    x: Any = request.get("x") if isinstance(request, dict) else None
    # Not isinstance, which takes a bool for an int. Not >=, which lets a NaN through.
    if type(x) not in (int, float) or not abs(x) < LIMIT:
        return ValidationError('send {"x": a number below 2**32}')
    return {"y": x * x}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Square, max_batch_size=16, max_wait_time=1, route="/square")
    server.run()
