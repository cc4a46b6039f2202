"""Asks both routes at the same time, over and over, until a batch has held requests of both.

Start the server first:  zmesh run examples/multi_route/app.py
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack

ROUNDS_MAX = 100


def as_text(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/inference", b"how long is this", timeout=10) as answer:
        return json.load(answer)


def as_msgpack(url: str) -> dict[str, Any]:
    body = msgpack.packb({"text": "how long is this"})
    with urllib.request.urlopen(f"{url}/v1/inference", body, timeout=10) as answer:
        return msgpack.unpackb(answer.read())


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask both routes at once.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    options = parser.parse_args()

    try:
        with ThreadPoolExecutor(2) as clients:
            for _ in range(ROUNDS_MAX):  # two requests of one moment may miss each other
                both = [clients.submit(ask, options.url) for ask in (as_text, as_msgpack)]
                answers = [one.result() for one in both]
                if all(answer["batch"] == 2 for answer in answers):
                    break
    except urllib.error.URLError as error:
        print(f"Cannot use {options.url}: {error}. Is the server running?", file=sys.stderr)
        return 1
    for route, answer in zip(("/inference", "/v1/inference"), answers, strict=True):
        print(f"{route}: {answer['words']} words, in a batch of {answer['batch']}")
    return 0 if answers[0] == answers[1] and answers[0]["batch"] == 2 else 1


if __name__ == "__main__":
    sys.exit(main())
