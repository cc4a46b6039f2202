"""A stage with a timeout of its own, one with more time than the server allows, and one that catches the alarm."""

import time

from zmesh import Server, Worker
from zmesh.errors import MosecTimeoutError


class Sleep(Worker):
    def forward(self, data: dict) -> dict:
        until = time.monotonic() + data["seconds"]
        while time.monotonic() < until:
            time.sleep(0.01)
        return {"slept": data["seconds"]}


class Careful(Sleep):
    def forward(self, data: dict) -> dict:
        try:
            return super().forward(data)
        except MosecTimeoutError:
            return {"slept": "until the alarm"}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Sleep, timeout=0.2, route="/short")
    server.append_worker(Sleep, timeout=30, route="/long")
    server.append_worker(Careful, timeout=0.2, route="/careful")
    server.run()
