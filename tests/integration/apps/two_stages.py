"""Two stages that sleep, and an answer that proves which request it belongs to."""

import os
import time

from zmesh import Server, Worker


class First(Worker):
    def forward(self, data: list[dict]) -> list[dict]:
        time.sleep(float(os.environ.get("FIRST_MS", "2")) / 1000)
        if len(data) > 1 and any(item.get("alone") for item in data):
            raise ValueError("one of these can only be run alone")
        return [{"nonce": item["nonce"], "doubled": 2 * item["nonce"]} for item in data]


class Second(Worker):
    def forward(self, data: list[dict]) -> list[dict]:
        time.sleep(float(os.environ.get("SECOND_MS", "5")) / 1000)
        return [{"nonce": item["nonce"], "answer": item["doubled"] + 1} for item in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(First, num=2, max_batch_size=16, max_wait_time=5, route="/double")
    server.append_worker(Second, num=2, max_batch_size=16, max_wait_time=5, route="/double")
    server.run()
