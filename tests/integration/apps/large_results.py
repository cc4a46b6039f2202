"""Two stages that exchange large results, and an answer that shows that they arrived whole. `KB` says how large.

In /once the first stage must not run twice.
"""

import hashlib
import os

from zmesh import Server, Worker
from zmesh.mixins import ShmIPCMixin

BYTES = int(os.environ.get("KB", "100")) * 1024


def large(nonce: int, size: int) -> bytes:
    """`size` bytes that are of this nonce from the first to the last."""
    block = hashlib.sha256(str(nonce).encode()).digest()
    return block * (size // len(block))


class Widen(ShmIPCMixin, Worker):
    def forward(self, data: list[dict]) -> list[dict]:
        return [{"nonce": item["nonce"], "wide": large(item["nonce"], item.get("bytes", BYTES))} for item in data]


class WidenOnce(Widen):
    pass


class Measure(Worker):
    def forward(self, data: list[dict]) -> list[dict]:
        right = [item["wide"] == large(item["nonce"], len(item["wide"])) for item in data]
        return [
            {"nonce": item["nonce"], "bytes": len(item["wide"]), "right": one}
            for item, one in zip(data, right, strict=True)
        ]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Widen, num=2, max_batch_size=8, max_wait_time=2, route="/widen")
    server.append_worker(WidenOnce, max_batch_size=8, max_wait_time=2, retry=False, route="/once")
    server.append_worker(Measure, num=2, max_batch_size=8, max_wait_time=2, route=["/widen", "/once"])
    server.run()
