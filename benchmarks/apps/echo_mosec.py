"""The echo for mosec; ECHO_SINGLE=1 adds a route that does not batch, as echo.py has."""

import os

from mosec import Server
from mosec_workers import Echo

BATCH = int(os.environ.get("ECHO_BATCH", "64"))
WAIT = int(os.environ.get("ECHO_WAIT", "1"))
NUM = int(os.environ.get("ECHO_NUM", "1"))

if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, num=NUM, max_batch_size=BATCH, max_wait_time=WAIT)
    if os.environ.get("ECHO_SINGLE"):
        server.append_worker(Echo, route="/single")
    server.run()
