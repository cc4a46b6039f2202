"""Sends to both routes at once and shows by the metrics of the mesh which of them met in a batch of the encoder.

Start the server first:  zmesh run examples/shared_stage/app.py
"""

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

BATCHES = re.compile(r'^zmesh_encoder_batches_total\{.*routes="([^"]+)".*\} (\S+)$', re.MULTILINE)
ITEMS = re.compile(r'^zmesh_batch_size_sum\{.*stage="Encode".*\} (\S+)$', re.MULTILINE)


def ask(url: str, number: int) -> bool:
    """One request, to each route in turn; whether its answer has what it should."""
    path, key, wanted = (("/search", "question", "answers"), ("/embed", "text", "vector"))[number % 2]
    body = json.dumps({key: f"What about parcel number {number}?"}).encode()
    with urllib.request.urlopen(f"{url}{path}", body, timeout=10) as answer:
        return wanted in json.load(answer)


def main() -> int:
    parser = argparse.ArgumentParser(description="Send to both routes at once, and show which batches they shared.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=16, help="at the same time; default: %(default)s")
    options = parser.parse_args()

    try:
        with ThreadPoolExecutor(options.clients) as clients:
            good = sum(clients.map(lambda number: ask(options.url, number), range(options.requests)))
        with urllib.request.urlopen(f"{options.url}/metrics", timeout=10) as page:
            metrics = page.read().decode()
    except urllib.error.URLError as error:
        print(f"Cannot use {options.url}: {error}. Is the server running?", file=sys.stderr)
        return 1
    batches = {routes: int(float(count)) for routes, count in BATCHES.findall(metrics)}
    print(f"{good} of {options.requests} answered")
    for routes, count in sorted(batches.items()):
        print(f"{count} batches of {routes}")
    print(f"{sum(float(items) for items in ITEMS.findall(metrics)):.0f} texts in all of them")
    return 0 if good == options.requests and "embed+search" in batches else 1


if __name__ == "__main__":
    sys.exit(main())
