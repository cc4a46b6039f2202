"""The echo for zmesh with two routes: one that batches, and one that does not."""

import os
from typing import Any

from zmesh import Server, Worker

BATCH = int(os.environ.get("ECHO_BATCH", "64"))
WAIT = int(os.environ.get("ECHO_WAIT", "1"))


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, max_batch_size=BATCH, max_wait_time=WAIT)
    server.append_worker(Echo, route="/single")
    server.run()
