"""One encoder behind two routes: /search finds the answers nearest to a question, /embed gives the vector of a text.

Start it with  zmesh run examples/shared_stage/app.py
and try it     curl -d '{"question": "Can I send it back?"}' http://127.0.0.1:8000/search
               curl -d '{"text": "Can I send it back?"}' http://127.0.0.1:8000/embed
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from zmesh import Server, Stage, ValidationError, Worker

ANSWERS = (Path(__file__).parent / "answers.txt").read_text(encoding="utf-8").splitlines()
SIZE = 512  # numbers of a vector
BEST = 3


class Question(Worker):
    """The first stage of /search."""

    example = {"question": "Can I send it back?"}

    def forward(self, data: dict[str, Any]) -> dict[str, str]:
        return {"text": text_of(data, "question"), "route": "search"}


class Text(Worker):
    """The first stage of /embed."""

    example = {"text": "Can I send it back?"}

    def forward(self, data: dict[str, Any]) -> dict[str, str]:
        return {"text": text_of(data, "text"), "route": "embed"}


class Encode(Worker):
    """The second stage of both routes: one queue, one set of workers, one model in memory."""

    example = [{"text": "a text to warm up with", "route": "search"}] * 16

    def __init__(self) -> None:
        self.batches = self.metrics.counter("encoder_batches", "Batches by the routes of their items", ["routes"])

    def forward(self, items: list[dict[str, str]]) -> list[np.ndarray]:
        self.batches.labels("+".join(sorted({item["route"] for item in items}))).inc()
        return [encode(item["text"]) for item in items]


class Search(Worker):
    """The last stage of /search."""

    def __init__(self) -> None:
        self.vectors = np.stack([encode(answer) for answer in ANSWERS])

    def forward(self, vector: np.ndarray) -> dict[str, Any]:
        nearness = self.vectors @ vector
        return {"answers": [ANSWERS[index] for index in np.argsort(-nearness, kind="stable")[:BEST]]}


class Vector(Worker):
    """The last stage of /embed."""

    def forward(self, vector: np.ndarray) -> dict[str, Any]:
        return {"vector": [round(number, 4) for number in vector.tolist()]}


def text_of(data: Any, name: str) -> str:
    text = data.get(name) if isinstance(data, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValidationError(f'send {{"{name}": "…"}}')
    return text


def encode(text: str) -> np.ndarray:
    """Hashed pieces of three characters, as a vector of length 1: texts with the same words are near each other."""
    padded = f" {' '.join(text.casefold().split())} "
    pieces = [zlib.crc32(padded[start : start + 3].encode()) % SIZE for start in range(max(1, len(padded) - 2))]
    counts = np.bincount(pieces, minlength=SIZE).astype(np.float32)
    vector = np.sqrt(counts)  # a piece that comes often says not so much more
    return vector / np.linalg.norm(vector)


if __name__ == "__main__":
    encoder = Stage(Encode, max_batch_size=16, max_wait_time=20)
    server = Server()
    server.register_runtime(
        {
            "/search": [Stage(Question), encoder, Stage(Search)],
            "/embed": [Stage(Text), encoder, Stage(Vector)],
        }
    )
    server.run()
