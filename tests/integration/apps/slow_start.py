"""A worker that has loaded when somebody makes the file `GO`, so that requests arrive before it."""

import os
import time
from pathlib import Path

from zmesh import Server, Worker

LOADING_SECONDS_MAX = 30.0


class Slow(Worker):
    def __init__(self) -> None:
        end = time.monotonic() + LOADING_SECONDS_MAX
        while not Path(os.environ["GO"]).exists() and time.monotonic() < end:
            time.sleep(0.01)

    def forward(self, data: object) -> object:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Slow)
    server.run()
