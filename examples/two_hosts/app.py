"""Reads handwritten digits on two hosts: one unpacks the pictures, the other runs the network.

README.md has the commands. The network and the pictures are those of ../digits.
"""

import socket
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zmesh import DecodingError, Server, ValidationError, Worker

DIGITS = Path(__file__).resolve().parent.parent / "digits"
GRID = 8  # the network looks at 8 x 8 points
LONGEST_SIDE = 2048  # pixels; a small file may unfold into gigabytes
HOST = socket.gethostname()


class Parse(Worker):
    """PNG bytes -> an 8 x 8 picture, 0 = paper and 1 = ink, and where it was unpacked. Wants a processor."""

    example = (DIGITS / "samples" / "00_is_2.png").read_bytes()

    def deserialize(self, data: bytes) -> bytes:
        return bytes(data)  # not JSON: the body is the picture itself

    def forward(self, png: bytes) -> dict[str, Any]:
        try:
            image = Image.open(BytesIO(png), formats=["PNG"])  # reads the header, no pixels yet
            if not GRID <= min(image.size) <= max(image.size) <= LONGEST_SIDE:
                raise ValidationError(f"{image.size} pixels: each side must be {GRID} to {LONGEST_SIDE}")
            small = image.convert("L").resize((GRID, GRID), Image.Resampling.BOX)
        except ValidationError:
            raise
        except Exception as error:  # Pillow has many ways to say that a file is broken
            raise DecodingError("the body is not a PNG picture; send the file as it is") from error
        return {"ink": 1 - np.asarray(small, dtype=np.float32) / 255, "parsed_on": HOST}


class Classify(Worker):
    """Pictures -> digits, all that wait in one matrix product. Would want a GPU, were the network not so small."""

    example = [{"ink": np.eye(GRID, dtype=np.float32), "parsed_on": HOST}] * 32  # the warm-up is a batch

    def __init__(self) -> None:
        with np.load(DIGITS / "weights.npz", allow_pickle=False) as file:
            self.w1, self.b1, self.w2, self.b2 = (file[name] for name in ("w1", "b1", "w2", "b2"))

    def forward(self, pictures: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ink = np.stack([picture["ink"] for picture in pictures]).reshape(-1, GRID * GRID)
        scores = np.maximum(ink @ self.w1 + self.b1, 0) @ self.w2 + self.b2
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        return [
            {
                "digit": int(row.argmax()),
                "probability": round(float(row.max()), 4),
                "parsed_on": picture["parsed_on"],
                "classified_on": HOST,
                "batch_size": len(pictures),
            }
            for picture, row in zip(pictures, chances, strict=True)
        ]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Parse, num=2, route="/digits")
    server.append_worker(Classify, max_batch_size=32, max_wait_time=5, route="/digits")
    server.run()
