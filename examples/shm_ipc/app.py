"""Large arrays from one stage to the next, past the broker: by shared memory, and by Redis.

Start it with zmesh run examples/shm_ipc/app.py
"""

import numpy as np

from zmesh import Server, ValidationError, Worker
from zmesh.mixins import RedisShmIPCMixin, ShmIPCMixin

SIDE_MAX = 4096


class Draw(Worker):
    """How many points a side has -> a picture of that size, darkest in one corner and lightest in the other."""

    example = {"side": 256}

    def forward(self, data: dict[str, int]) -> np.ndarray:
        side = data.get("side") if isinstance(data, dict) else None
        if type(side) is not int or not 2 <= side <= SIDE_MAX:
            raise ValidationError(f'send {{"side": a whole number from 2 to {SIDE_MAX}}}')
        line = np.linspace(0, 0.5, side, dtype=np.float32)
        return np.add.outer(line, line)


class DrawIntoMemory(ShmIPCMixin, Draw):  # from 64 KiB on, on one host; without the mixin from 1 MiB on
    pass


class DrawIntoRedis(RedisShmIPCMixin, Draw):  # on one host or between hosts
    redis_least_bytes = 64 * 1024


class Measure(Worker):
    """One stage of both routes: who reads needs no mixin, whatever way an array has come."""

    example = np.eye(8, dtype=np.float32)

    def forward(self, picture: np.ndarray) -> dict[str, float]:
        return {"bytes": picture.nbytes, "mean": round(float(picture.mean()), 3)}


if __name__ == "__main__":
    server = Server()
    server.append_worker(DrawIntoMemory, route="/memory")
    server.append_worker(DrawIntoRedis, route="/redis")
    server.append_worker(Measure, num=2, route=["/memory", "/redis"])
    server.run()
