"""Reads handwritten digits: a PNG goes in, the digit and how sure we are come out.

Start it with    zmesh run examples/digits/app.py
and send it one  curl --data-binary @examples/digits/samples/00_is_2.png http://127.0.0.1:8000/digits
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zmesh import DecodingError, Server, ValidationError, Worker

HERE = Path(__file__).parent
GRID = 8  # the network looks at 8 x 8 points
LONGEST_SIDE = 2048  # pixels; a small file may unfold into gigabytes


class Decode(Worker):
    """PNG bytes -> an 8 x 8 picture, 0 = paper and 1 = ink."""

    example = (HERE / "samples" / "00_is_2.png").read_bytes()

    def deserialize(self, data: bytes) -> bytes:
        return bytes(data)  # not JSON: the body is the picture itself

    def forward(self, png: bytes) -> np.ndarray:
        try:
            image = Image.open(BytesIO(png), formats=["PNG"])  # reads the header, no pixels yet
        except Image.DecompressionBombError as error:
            raise ValidationError("the picture is far too large") from error
        except Exception as error:  # Pillow has many ways to say that a file is broken
            raise DecodingError("the body is not a PNG picture; send the file as it is") from error
        if not GRID <= min(image.size) <= max(image.size) <= LONGEST_SIDE:
            raise ValidationError(f"{image.size} pixels: each side must be {GRID} to {LONGEST_SIDE}")
        try:
            eight_bit = image.point(lambda value: value / 256) if image.mode == "I;16" else image
            picture = eight_bit.convert("RGBA")
        except Exception as error:
            raise DecodingError("the PNG picture is damaged or cut short") from error
        paper = Image.new("RGBA", image.size, "white")  # shows where the picture is transparent
        small = Image.alpha_composite(paper, picture).convert("L").resize((GRID, GRID), Image.Resampling.BOX)
        ink = 1 - np.asarray(small, dtype=np.float32) / 255  # a point is the mean of its block
        if np.ptp(ink) < 0.1:
            raise ValidationError("nothing is drawn in this picture")
        return 1 - ink if ink.mean() > 0.5 else ink  # white on black is fine too


class Classify(Worker):
    """Pictures -> ten chances each. However many requests are waiting, it is one matrix product."""

    example = [np.eye(GRID, dtype=np.float32)] * 32  # the warm-up is a batch, which is what forward takes

    def __init__(self) -> None:
        with np.load(HERE / "weights.npz", allow_pickle=False) as file:
            self.w1, self.b1, self.w2, self.b2 = (file[name] for name in ("w1", "b1", "w2", "b2"))

    def forward(self, pictures: list[np.ndarray]) -> list[dict[str, Any]]:
        hidden = np.maximum(np.stack(pictures).reshape(-1, GRID * GRID) @ self.w1 + self.b1, 0)
        scores = hidden @ self.w2 + self.b2
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        return [{"chances": row, "batch_size": len(pictures)} for row in chances.tolist()]


class Label(Worker):
    def forward(self, guess: dict[str, Any]) -> dict[str, Any]:
        ranking = sorted(enumerate(guess["chances"]), key=lambda pair: -pair[1])
        top3 = [{"digit": digit, "probability": round(chance, 4)} for digit, chance in ranking[:3]]
        return {**top3[0], "top3": top3, "batch_size": guess["batch_size"]}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, route="/digits")
    server.append_worker(Classify, max_batch_size=32, max_wait_time=5, route="/digits")
    server.append_worker(Label, route="/digits")
    server.run()
