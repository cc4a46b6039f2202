"""One worker class whose moods are set by the environment and by requests; for tests of the agent."""

import ctypes
import os
import subprocess
import sys
import time
from typing import Any

from zmesh import Server, Worker

if os.environ.get("MOOD") == "heavy":
    print("importing", flush=True)
    time.sleep(60)


class Moody(Worker):
    def __init__(self) -> None:
        if os.environ.get("MOOD") == "broken":
            raise RuntimeError("no model here")
        if os.environ.get("MOOD") == "dies":
            os._exit(9)
        if os.environ.get("MOOD") == "slow":
            time.sleep(60)

    def forward(self, data: Any) -> Any:
        time.sleep(data.get("seconds", 0))
        if "die" in data:
            os._exit(data["die"])
        while "until" in data and not os.path.exists(data["until"]):
            time.sleep(0.01)
        helper = subprocess.Popen(["sleep", "600"]).pid if data.get("helper") else 0
        for _ in range(data.get("orphans", 0)):
            subprocess.run(["sh", "-c", "sleep 0.05 &"], check=True)
        if data.get("stuck"):
            ctypes.PyDLL(None).sleep(600)  # in native code, and nobody else in this process may run meanwhile
        return {
            "pid": os.getpid(),
            "helper": helper,
            "worker_id": self.worker_id,
            "env": os.environ.get("CARD"),
            "argv": sys.argv[1:],
        }


class Other(Worker):
    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Moody, num=2, env=[{"CARD": "one"}, {"CARD": "two"}], route="/moody")
    server.append_worker(Other, route="/other")
    server.run()
