"""The echo for Ray Serve: one replica that answers by itself; ECHO_BATCH=64 batches, with ECHO_WAIT in milliseconds."""

import argparse
import os
import signal
import tempfile
import threading
from typing import Any

import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

BATCH = int(os.environ.get("ECHO_BATCH", "1"))
WAIT = float(os.environ.get("ECHO_WAIT", "1")) / 1000


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, logging_config={"enable_access_log": False})
class Echo:
    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT)
    async def forward(self, data: list[Any]) -> list[Any]:
        return data

    async def __call__(self, request: Request) -> Response:
        data = orjson.loads(await request.body())
        if BATCH > 1:
            data = await self.forward(data)
        return Response(orjson.dumps(data), media_type="application/json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    port, stop = parser.parse_args().port, threading.Event()
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: it holds sockets
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", _temp_dir=folder)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(Echo.bind(), route_prefix="/inference")
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: stop.set())
        stop.wait()
        ray.shutdown()


if __name__ == "__main__":
    main()
