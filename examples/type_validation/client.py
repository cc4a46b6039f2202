"""Asks for the name of a colour, and then in three wrong ways: prints the status and the text of each answer.

python examples/type_validation/client.py --url http://127.0.0.1:8000/colour

It exits with 0 when the answers are those that the README shows.
"""

import argparse
import sys
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import msgspec

CUT_SHORT = msgspec.msgpack.encode({"light": [250, 130, 10]})[:-1]

REQUESTS: dict[str, tuple[bytes, int]] = {
    "a colour": (msgspec.msgpack.encode({"light": [250, 130, 10]}), 200),
    "in German": (msgspec.msgpack.encode({"light": [20, 160, 60], "language": "de"}), 200),
    "too much light": (msgspec.msgpack.encode({"light": [250, 130, 256]}), 422),
    "another language": (msgspec.msgpack.encode({"light": [1, 2, 3], "language": "fr"}), 422),
    "cut short": (CUT_SHORT, 400),
}


def ask(url: str, body: bytes) -> tuple[int, Any]:
    """The status, and what was answered: a value with 200, else a text."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=10)
    try:
        connection.request("POST", address.path, body, {"content-type": "application/msgpack"})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    return response.status, msgspec.msgpack.decode(answer) if response.status == 200 else answer.decode()


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask a server for the names of colours.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/colour", help="default: %(default)s")
    url = parser.parse_args().url
    is_right = True
    for what, (body, expected) in REQUESTS.items():
        try:
            status, answer = ask(url, body)
        except OSError as error:
            print(f"Cannot reach {url}: {error.strerror or error}. Is the server running?", file=sys.stderr)
            return 1
        print(f"{what}: {status} {answer}")
        is_right &= status == expected
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
