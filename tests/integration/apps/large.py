"""Bodies of which a full batch does not fit into one message."""

import time

from zmesh import Server, Worker


class Size(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, int]]:
        time.sleep(0.02)  # so that more arrive than one message can carry
        return [{"size": len(item), "batch": len(data)} for item in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Size, max_batch_size=128, max_wait_time=20, route="/size")
    server.run()
