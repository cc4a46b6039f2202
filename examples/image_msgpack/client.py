"""Sends pictures to a running server, as msgpack, and prints what came back.

python examples/image_msgpack/client.py --url http://127.0.0.1:8000/digits [PICTURE ...]

Without a name it sends the samples of ../digits and two bodies that are refused. It exits with 0 when these got the
answers that the README shows and at least 90 % of the samples were read right. --seen FILE keeps what the network saw
of the last picture.
"""

import argparse
import json
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgpack

SAMPLES = Path(__file__).resolve().parent.parent / "digits" / "samples"
ENOUGH = 0.9
PNG = b"\x89PNG"


class Client:
    """One connection, for one request after the other."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.path = address.path
        self.connection = HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=10)

    def ask(self, body: bytes) -> tuple[int, Any]:
        """The status, and what was answered: a value with 200, else a text."""
        self.connection.request("POST", self.path, body, {"content-type": "application/msgpack"})
        response = self.connection.getresponse()
        answer = response.read()
        return response.status, msgpack.unpackb(answer) if response.status == 200 else answer.decode()


def send_samples(client: Client) -> bool:
    labels: dict[str, int] = json.loads((SAMPLES / "labels.json").read_text())
    right = 0
    for name, digit in labels.items():
        status, answer = client.ask(msgpack.packb({"image": (SAMPLES / name).read_bytes()}))
        right += status == 200 and answer["digit"] == digit and answer["seen"].startswith(PNG)
    print(f"{right} of {len(labels)} samples are read right")
    refused = [client.ask(msgpack.packb({"image": b"no picture"})), client.ask(b"\xc1")]
    for status, text in refused:
        print(status, text)
    return right >= ENOUGH * len(labels) and [status for status, _ in refused] == [422, 400]


def send(client: Client, files: list[Path], seen: Path | None) -> bool:
    is_right = True
    for file in files:
        status, answer = client.ask(msgpack.packb({"image": file.read_bytes()}))
        if status == 200:
            print(f"{file.name}: {answer['digit']} ({answer['probability']:.1%})")
            if seen is not None:
                seen.write_bytes(answer["seen"])
        else:
            print(f"{file.name}: {status} {answer}")
            is_right = False
    return is_right


def main() -> int:
    parser = argparse.ArgumentParser(description="Send pictures to a server as msgpack.")
    parser.add_argument("files", nargs="*", type=Path, metavar="PICTURE", help="PNG, JPEG or WebP")
    parser.add_argument("--url", default="http://127.0.0.1:8000/digits", help="default: %(default)s")
    parser.add_argument("--seen", type=Path, help="a file for what the network saw, a PNG")
    options = parser.parse_args()
    client = Client(options.url)
    try:
        client.connection.connect()
    except OSError as error:
        print(f"Cannot reach {options.url}: {error.strerror or error}. Is the server running?", file=sys.stderr)
        return 1
    is_right = send(client, options.files, options.seen) if options.files else send_samples(client)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
