"""Asks for the vectors of a few sentences, in both encodings, and prints which of them belong together.

    python examples/embedding/client.py --url http://127.0.0.1:8000

Standard library and numpy only. Exits with 0 when both encodings say the same and each sentence found its partner.
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from typing import Any

import numpy as np

SENTENCES = [
    "The kitten sleeps on the sofa.",
    "Shares fell after the bank raised interest rates.",
    "Bake the bread for forty minutes.",
    "A cat naps on the couch.",
    "The stock market lost three percent.",
    "The dough rises in the oven.",
]
PARTNERS = [3, 4, 5, 0, 1, 2]


def ask(url: str, **request: Any) -> dict[str, Any]:
    body = json.dumps({"model": "wordllama", **request}).encode()
    with urllib.request.urlopen(f"{url}/v1/embeddings", body, timeout=10) as answer:
        return dict(json.load(answer))


def main() -> int:
    parser = argparse.ArgumentParser(description="Show which sentences belong together.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    options = parser.parse_args()

    try:
        numbers = ask(options.url, input=SENTENCES)
        packed = ask(options.url, input=SENTENCES, encoding_format="base64")
    except urllib.error.URLError as error:
        print(f"Cannot use {options.url}: {error}. Is the server running?", file=sys.stderr)
        return 1
    vectors = np.array([item["embedding"] for item in numbers["data"]])
    unpacked = np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed["data"]])

    nearness = vectors @ vectors.T
    np.fill_diagonal(nearness, -1)
    found = nearness.argmax(axis=1).tolist()
    for sentence, partner in zip(SENTENCES, found, strict=True):
        print(f"{sentence:<50} {SENTENCES[partner]}")
    print(f"{numbers['usage']['total_tokens']} tokens, {vectors.shape[1]} numbers a sentence")
    return 0 if found == PARTNERS and np.allclose(vectors, unpacked, atol=1e-5) else 1


if __name__ == "__main__":
    sys.exit(main())
