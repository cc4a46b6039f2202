"""Items of one batch that fail in every way an item can fail, beside items that do not."""

import time

from zmesh import Server, ValidationError, Worker


class Mixed(Worker):
    """`{"nonce": n}` answers itself; `invalid`, `index` and `guilty` fail where their names say."""

    def deserialize(self, data: bytes) -> dict:
        item = super().deserialize(data)
        if item.get("how") == "invalid":
            raise ValidationError("nonce must be a number")
        return item

    def forward(self, data: list[dict]) -> list[object]:
        time.sleep(0.002)  # let others join the next batch
        if any(item.get("how") == "guilty" for item in data):
            raise RuntimeError("cannot compute this batch")
        return [
            RuntimeError("this one") if item.get("how") == "index" else {"nonce": item["nonce"], "size": len(data)}
            for item in data
        ]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Mixed, max_batch_size=16, max_wait_time=5, route="/mixed")
    server.run()
