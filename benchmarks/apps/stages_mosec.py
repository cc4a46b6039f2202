"""An echo through one stage, and one through two, for mosec: the same as stages.py."""

import os

from mosec import Server
from mosec_workers import Echo

BATCH = int(os.environ.get("ECHO_BATCH", "64"))
WAIT = int(os.environ.get("ECHO_WAIT", "1"))

if __name__ == "__main__":
    server = Server()
    for route, stages in {"/one": 1, "/two": 2}.items():
        for _ in range(stages):
            server.append_worker(Echo, max_batch_size=BATCH, max_wait_time=WAIT, route=route)
    server.run()
