"""Cuts what is bright out of a large picture: a numpy array goes in, a mask as large comes out, inside msgpack.

Start it with  zmesh run examples/large_arrays/app.py --max-request-size 67108864
and try it     python examples/large_arrays/client.py
"""

from typing import Any

import numpy as np

from zmesh import DecodingError, Server, ValidationError, Worker
from zmesh.codec import dumps, loads
from zmesh.mixins import MsgpackMixin, NumBinIPCMixin

LEVELS = 256

Array = np.ndarray[Any, Any]


class Read(MsgpackMixin, NumBinIPCMixin, Worker):
    """{"image": an array in bytes} -> the array, and how often each of its levels occurs."""

    example = {"image": dumps(np.tri(64, dtype=np.uint8))}

    def forward(self, request: Any) -> dict[str, Array]:
        body = request.get("image") if isinstance(request, dict) else None
        if not isinstance(body, bytes):
            raise ValidationError('send {"image": zmesh.codec.dumps(array)}')
        try:
            image = loads(body)  # whatever the bytes are, they become a value or a DecodingError
        except DecodingError as error:
            raise ValidationError(f"the image is no array: {error}") from error
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2 or not image.size:
            raise ValidationError("the image must be an array of two dimensions, dtype uint8")
        return {"image": image, "counts": np.bincount(image.ravel(), minlength=LEVELS)}


class Segment(MsgpackMixin, NumBinIPCMixin, Worker):
    """The level that parts dark from bright best (Otsu's), and which points are brighter."""

    def forward(self, read: dict[str, Array]) -> dict[str, Any]:
        level = threshold(read["counts"])
        mask = read["image"] > level
        return {"mask": dumps(mask), "threshold": level, "share": float(mask.mean())}


def threshold(counts: Array) -> int:
    """Where the variance between the two sides is largest."""
    total, weights = counts.sum(), counts * np.arange(LEVELS)
    below, sums = counts.cumsum(), weights.cumsum()
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.nan_to_num(apart).argmax())


if __name__ == "__main__":
    server = Server()
    server.append_worker(Read, route="/segment")
    server.append_worker(Segment, route="/segment")
    server.run()
