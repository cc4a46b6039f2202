"""Reads a text aloud, one word at a time: server-sent events from the last of two stages, for four readers at once.

Start it with  zmesh run examples/sse/app.py
and try it     curl -N -d '{"text": "Once upon a time"}' http://127.0.0.1:8000/inference
"""

import os
import time
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from zmesh import Server, SSEWorker, ValidationError, Worker

PACE_SECONDS = float(os.environ.get("SSE_PACE", "0.2"))


class Split(Worker):
    example = {"text": "Once upon a time"}

    def forward(self, data: dict[str, Any]) -> list[str]:
        if not data.get("text"):
            raise ValidationError("text is required")
        return str(data["text"]).split()


class Speak(SSEWorker):
    def forward(self, texts: list[list[str]]) -> Iterator[list[str | None]]:
        """Each `yield` is the next word of every text; None where there is none left."""
        for words in zip_longest(*texts):
            yield list(words)
            time.sleep(PACE_SECONDS)  # where a model would think of the next one


if __name__ == "__main__":
    server = Server()
    server.append_worker(Split)
    server.append_worker(Speak, max_batch_size=4, max_wait_time=50)
    server.run()
