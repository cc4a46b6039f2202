"""Two stages that do what a request asks for: answer, take a while, or fail in one of the ways users fail."""

import time

from zmesh import Server, ValidationError, Worker


class Check(Worker):
    def forward(self, data):
        if data.get("is_wrong"):
            raise ValidationError("this one is wrong")
        return data


class Infer(Worker):
    def forward(self, data):
        if any(item.get("raises") for item in data):
            raise RuntimeError("out of cheese")
        time.sleep(max(item.get("ms", 0) for item in data) / 1000)
        return [{"nonce": item["nonce"]} for item in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Check, num=2)
    server.append_worker(Infer, num=2, max_batch_size=8, max_wait_time=2)
    server.run()
