"""Reads handwritten digits in pictures that travel as msgpack, and sends back what the network saw, as a picture too.

Start it with  zmesh run examples/image_msgpack/app.py
and try it     python examples/image_msgpack/client.py

The network is that of ../digits.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from zmesh import Server, ValidationError, Worker
from zmesh.mixins import MsgpackMixin

DIGITS = Path(__file__).resolve().parent.parent / "digits"
GRID = 8  # the network looks at 8 x 8 points
LONGEST_SIDE = 2048  # pixels; a small file may unfold into gigabytes
FORMATS = ["PNG", "JPEG", "WEBP"]

Seen = np.ndarray[Any, np.dtype[np.float32]]


class Decode(MsgpackMixin, Worker):
    """{"image": the bytes of a picture} -> an 8 x 8 array, 0 = paper and 1 = ink. Two of them share the work."""

    example = {"image": (DIGITS / "samples" / "00_is_2.png").read_bytes()}

    def forward(self, request: Any) -> Seen:
        body = request.get("image") if isinstance(request, dict) else None
        if not isinstance(body, bytes):
            raise ValidationError('send {"image": the bytes of a picture}')
        try:
            image = Image.open(BytesIO(body), formats=FORMATS)  # reads the header, no pixels yet
            if not GRID <= min(image.size) <= max(image.size) <= LONGEST_SIDE:
                raise ValidationError(f"{image.size} pixels: each side must be {GRID} to {LONGEST_SIDE}")
            small = image.convert("L").resize((GRID, GRID), Image.Resampling.BOX)
        except UnidentifiedImageError as error:
            raise ValidationError(f"the image is none of {', '.join(FORMATS)}") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValidationError("the image is damaged or cut short") from error
        ink: Seen = 1 - np.asarray(small, dtype=np.float32) / 255
        if np.ptp(ink) < 0.1:
            raise ValidationError("nothing is drawn in this image")
        return ink


class Classify(Worker):
    """Up to 16 arrays at once -> ten chances for each. Where a GPU would be."""

    example = [np.eye(GRID, dtype=np.float32)] * 16  # the warm-up is a batch, which is what forward takes

    def __init__(self) -> None:
        with np.load(DIGITS / "weights.npz", allow_pickle=False) as file:
            self.w1, self.b1, self.w2, self.b2 = (file[name] for name in ("w1", "b1", "w2", "b2"))

    def forward(self, pictures: list[Seen]) -> list[dict[str, Any]]:
        ink = np.stack(pictures)
        scores = np.maximum(ink.reshape(-1, GRID * GRID) @ self.w1 + self.b1, 0) @ self.w2 + self.b2
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        return [{"ink": picture, "chances": row} for picture, row in zip(ink, chances, strict=True)]


class Answer(MsgpackMixin, Worker):
    """The digit, and the 8 x 8 points as a PNG: bytes in an answer, which JSON has not."""

    def forward(self, guess: dict[str, Any]) -> dict[str, Any]:
        digit = int(guess["chances"].argmax())
        seen = BytesIO()
        Image.fromarray(np.rint(255 * (1 - guess["ink"])).astype(np.uint8)).save(seen, "PNG")
        return {"digit": digit, "probability": float(guess["chances"][digit]), "seen": seen.getvalue()}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=2, route="/digits")
    server.append_worker(Classify, max_batch_size=16, max_wait_time=5, route="/digits")
    server.append_worker(Answer, route="/digits")
    server.run()
