"""An environment for each worker: with CUDA_VISIBLE_DEVICES in it, every worker has a GPU of its own.

Start it with  zmesh run examples/custom_env/app.py
and try it     curl -d '{}' http://127.0.0.1:8000/inference
"""

import os
import time
from typing import Any

from zmesh import Server, Worker, get_logger

logger = get_logger()


class Infer(Worker):
    def __init__(self) -> None:
        # The variable has been there since this process began, so torch or jax, imported here, see this one GPU.
        self.device = os.environ["CUDA_VISIBLE_DEVICES"]
        logger.info("worker %d has device %s", self.worker_id, self.device)

    def forward(self, data: Any) -> dict[str, Any]:
        time.sleep(0.05)  # where a model would run on it
        return {"worker_id": self.worker_id, "device": self.device}


if __name__ == "__main__":
    devices = os.environ.get("DEVICES", "0,1").split(",")
    server = Server()
    server.append_worker(Infer, num=len(devices), env=[{"CUDA_VISIBLE_DEVICES": device} for device in devices])
    server.run()
