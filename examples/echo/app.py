"""Answers with the JSON it was sent. Does nothing else, so what it costs is what zmesh costs.

Start it with  zmesh run examples/echo/app.py
and try it     curl -d '{"hello": "mesh"}' http://127.0.0.1:8000/inference
"""

import os
from typing import Any

from zmesh import Server, Worker


class Echo(Worker):
    def forward(self, data: Any) -> Any:  # a list of requests; with ECHO_BATCH=1 a single one
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Echo,
        num=int(os.environ.get("ECHO_NUM", "1")),
        max_batch_size=int(os.environ.get("ECHO_BATCH", "64")),
        max_wait_time=int(os.environ.get("ECHO_WAIT", "1")),
    )
    server.run()
