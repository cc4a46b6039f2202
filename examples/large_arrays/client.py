"""Sends a picture that it has painted, a bright disc in the dark, and prints what came back.

python examples/large_arrays/client.py --url http://127.0.0.1:8000/segment

--side N     pixels of a side; 2048 makes 4 MiB
--compress   send the request with gzip and take the answer so: the server has to be started with --compression

It exits with 0 when the mask is the disc.
"""

import argparse
import gzip
import sys
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np

from zmesh.codec import dumps, loads

Array = np.ndarray[Any, Any]


def paint(side: int) -> tuple[Array, Array]:
    """A picture with some noise in it, and which points of it are the disc."""
    y, x = np.ogrid[:side, :side]
    disc = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (side / 4) ** 2
    noise = np.random.default_rng(7).integers(0, 40, (side, side), dtype=np.uint8)
    return np.where(disc, 180, 40).astype(np.uint8) + noise, disc


def ask(url: str, body: bytes, *, compressed: bool) -> tuple[HTTPResponse, bytes]:
    """The response and its body, still compressed if it was."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=30)
    headers = {"content-encoding": "gzip", "accept-encoding": "gzip"} if compressed else {}
    try:
        connection.request("POST", address.path, body, headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Send a large array to a server.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/segment", help="default: %(default)s")
    parser.add_argument("--side", type=int, default=2048, help="pixels; default: %(default)s")
    parser.add_argument("--compress", action="store_true", help="with gzip, both ways")
    options = parser.parse_args()
    image, disc = paint(options.side)
    body: bytes = msgpack.packb({"image": dumps(image)})
    sent = gzip.compress(body, 1) if options.compress else body
    try:
        response, received = ask(options.url, sent, compressed=options.compress)
    except OSError as error:
        print(f"Cannot reach {options.url}: {error.strerror or error}. Is the server running?", file=sys.stderr)
        return 1
    if response.status != 200:
        hint = "; was the server started with --compression?" if options.compress else ""
        print(f"{response.status} {received.decode()}{hint}", file=sys.stderr)
        return 1
    is_compressed = response.headers.get("content-encoding") == "gzip"
    answer = msgpack.unpackb(gzip.decompress(received) if is_compressed else received)
    mask = loads(answer["mask"])
    print(f"sent {image.shape} {image.dtype}, {len(sent)} bytes; received {len(received)} bytes")
    print(f"threshold {answer['threshold']}, {answer['share']:.1%} of it is bright: {mask.shape} {mask.dtype}")
    return 0 if (mask == disc).all() else 1


if __name__ == "__main__":
    sys.exit(main())
