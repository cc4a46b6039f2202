"""A worker that takes a second to load, so that requests arrive before it."""

import time

from zmesh import Server, Worker


class Slow(Worker):
    def __init__(self) -> None:
        time.sleep(1.0)

    def forward(self, data: object) -> object:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Slow)
    server.run()
