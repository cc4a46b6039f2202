"""An echo through one stage, and one through two, for zmesh."""

import os
from typing import Any

from zmesh import Server, Worker

BATCH = int(os.environ.get("ECHO_BATCH", "64"))
WAIT = int(os.environ.get("ECHO_WAIT", "1"))


class Echo(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return data


if __name__ == "__main__":
    server = Server()
    for route, stages in {"/one": 1, "/two": 2}.items():
        for _ in range(stages):
            server.append_worker(Echo, max_batch_size=BATCH, max_wait_time=WAIT, route=route)
    server.run()
