"""A process beside the server that it cannot do without: when it ends, the server ends too."""

import subprocess
import sys

from zmesh import Server, Worker

DAEMON = "import time; time.sleep(600)"


class Echo(Worker):
    def forward(self, data: dict) -> dict:
        return data


if __name__ == "__main__":
    with subprocess.Popen([sys.executable, "-c", DAEMON]) as process:
        print("DAEMON", process.pid, flush=True)
        server = Server()
        server.register_daemon("sleeper", process)
        server.append_worker(Echo)
        server.run()
        process.terminate()
