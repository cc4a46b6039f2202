"""Asks which of a few documents answer a query, and prints them, the nearest first.

    python examples/rerank/client.py --url http://127.0.0.1:8000

Standard library only.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request

QUERY = "What does a starter eat?"
DOCUMENTS = [
    "The stock market fell on Friday.",
    "Feed the starter with flour and water every day.",
    "A kitten sleeps up to twenty hours.",
    "Sourdough bread needs flour, water, salt and time.",
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Sort documents by how near they are to a query.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument("--query", default=QUERY, help="default: %(default)s")
    parser.add_argument("--document", action="append", metavar="TEXT", help="instead of ours; may be given many times")
    options = parser.parse_args()

    body = {"query": options.query, "documents": options.document or DOCUMENTS, "return_documents": True}
    try:
        with urllib.request.urlopen(f"{options.url}/v1/rerank", json.dumps(body).encode(), timeout=10) as answer:
            results = json.load(answer)["results"]
    except urllib.error.HTTPError as error:
        print(f"{error.code} {error.read().decode()}", file=sys.stderr)
        return 1
    except urllib.error.URLError as error:
        print(f"Cannot use {options.url}: {error}. Is the server running?", file=sys.stderr)
        return 1
    for result in results:
        print(f"{result['relevance_score']:6.3f}  {result['document']['text']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
