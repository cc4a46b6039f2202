"""The echo for LitServe: one API server, one worker; ECHO_BATCH=64 batches, with ECHO_WAIT in milliseconds."""

import argparse
import os
from typing import Any

import litserve

BATCH = int(os.environ.get("ECHO_BATCH", "1"))
WAIT = float(os.environ.get("ECHO_WAIT", "1")) / 1000


class Echo(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: Any) -> Any:
        return x

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    api = Echo(max_batch_size=BATCH, batch_timeout=WAIT if BATCH > 1 else 0.0, api_path="/inference")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="error", generate_client_file=False,
               access_log=False)  # fmt: skip
