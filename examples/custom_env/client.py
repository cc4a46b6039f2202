"""Asks until every worker has answered, and shows which device each of them has.

Start the server first:  zmesh run examples/custom_env/app.py
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

ROUNDS_MAX = 20


def ask(url: str) -> tuple[int, str]:
    """The worker that answered, and its device."""
    with urllib.request.urlopen(url, b"{}", timeout=10) as answer:
        said = json.load(answer)
    return said["worker_id"], said["device"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Show which device each worker has.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/inference", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="to wait for; default: %(default)s")
    options = parser.parse_args()

    seen: dict[int, str] = {}
    try:
        with ThreadPoolExecutor(4 * options.workers) as clients:  # a single client would always get the same worker
            for _ in range(ROUNDS_MAX):
                seen |= dict(clients.map(ask, [options.url] * 4 * options.workers))
                if len(seen) >= options.workers:
                    break
    except urllib.error.URLError as error:
        print(f"Cannot use {options.url}: {error}. Is the server running?", file=sys.stderr)
        return 1
    for worker, device in sorted(seen.items()):
        print(f"worker {worker} has device {device}")
    return 0 if len(seen) == options.workers and len(set(seen.values())) == options.workers else 1


if __name__ == "__main__":
    sys.exit(main())
