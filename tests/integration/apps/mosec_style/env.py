"""An environment for each worker, as for one GPU each, and the number of the worker."""

import os
import time

from zmesh import Server, Worker


class Device(Worker):
    def __init__(self):
        super().__init__()
        self.device = os.environ["DEVICE"]  # set before anything of this process was imported

    def forward(self, data: dict) -> dict:
        time.sleep(data.get("seconds", 0))
        return {"device": self.device, "worker_id": self.worker_id}


class After(Worker):
    def forward(self, data: dict) -> dict:
        return {**data, "after": os.environ.get("DEVICE")}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Device, num=2, env=[{"DEVICE": "cuda:0"}, {"DEVICE": "cuda:1"}])
    server.append_worker(After)
    server.run()
