"""Bodies go in and out as they are, or come out as long as the body says."""

import os
import time

from zmesh import Server, Worker


class Echo(Worker):
    """Text comes back after a while."""

    resp_mime_type = "application/octet-stream"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        time.sleep(float(os.environ.get("ECHO_MS", "50")) / 1000)
        return data


class Long(Echo):
    """`{number}` comes back as so many bytes."""

    def forward(self, data: list[bytes]) -> list[bytes]:
        time.sleep(0.05)  # so that the others of a group join the next batch
        return [b"x" * int(item) if item.isdigit() else b"%d" % len(data) for item in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, num=2, max_batch_size=16, max_wait_time=5, route="/echo")
    server.append_worker(Long, max_batch_size=8, max_wait_time=1000, route="/long", batching="fixed")
    server.run()
