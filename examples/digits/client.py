"""Sends every sample to a running digits server, several at a time, and prints what came back.

    python examples/digits/client.py --url http://127.0.0.1:8000/digits --clients 8

Standard library only. Exits with 0 when every request got a 200 and at least 90 % of the answers are right.
"""

import argparse
import json
import queue
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

SAMPLES = Path(__file__).parent / "samples"
ENOUGH = 0.9
TIMEOUT = 10  # seconds, for a connection and for an answer


@dataclass
class Row:
    """One line of the table."""

    image: str
    expected: int
    answer: int | None = None
    probability: float = 0.0
    milliseconds: float = 0.0
    batch_size: int = 0
    problem: str = ""  # empty when the answer was a 200 we understood

    @property
    def right(self) -> bool:
        return not self.problem and self.answer == self.expected


def connect(url: SplitResult) -> HTTPConnection:
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    return kind(url.hostname or "", url.port, timeout=TIMEOUT)


def ask(connection: HTTPConnection, path: str, row: Row) -> None:
    """Sends one picture and fills in its row. A lost connection is a problem of this row only."""
    picture = (SAMPLES / row.image).read_bytes()
    start = time.perf_counter()
    try:
        # A server may refuse before it has read the picture; its answer is still there to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", path, picture, {"content-type": "image/png"})
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException) as error:
        connection.close()  # the next request opens a new one
        row.problem = f"no answer: {str(error) or type(error).__name__}"
        return
    finally:
        row.milliseconds = (time.perf_counter() - start) * 1000
    if response.status != 200:
        row.problem = f"{response.status} {body.decode(errors='replace').strip()}"
        return
    try:
        answer = json.loads(body)
        row.answer, row.probability = int(answer["digit"]), float(answer["probability"])
        row.batch_size = int(answer["batch_size"])
    except (ValueError, KeyError, TypeError):
        row.problem = "200, but not an answer of the digits example"


def ask_all(url: SplitResult, rows: list[Row], clients: int) -> None:
    """Each client is a thread with a connection of its own that takes the next picture until none is left."""
    waiting: queue.SimpleQueue[Row] = queue.SimpleQueue()
    for row in rows:
        waiting.put(row)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")

    def client() -> None:
        connection = connect(url)
        try:
            while True:
                ask(connection, path, waiting.get_nowait())
        except queue.Empty:
            pass
        finally:
            connection.close()

    threads = [threading.Thread(target=client, daemon=True) for _ in range(min(clients, len(rows)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def table(rows: list[Row]) -> str:
    width = max(len(row.image) for row in rows)
    lines = [f"{'image':<{width}}  expected  answer  probability  latency ms  batch"]
    for row in rows:
        start = f"{row.image:<{width}}  {row.expected:>8}"
        if row.problem:
            lines.append(f"{start}  {row.problem}")
        else:
            answer = f"{row.answer:>6}  {row.probability:>11.1%}"
            mark = "right" if row.right else "WRONG"
            lines.append(f"{start}  {answer}  {row.milliseconds:>10.1f}  {row.batch_size:>5}  {mark}")
    return "\n".join(lines)


def count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Send the sample digits to a server and check its answers.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/digits", help="default: %(default)s")
    parser.add_argument("--clients", type=count, default=8, help="at the same time; default: %(default)s")
    options = parser.parse_args()

    try:
        url = urlsplit(options.url)
        if url.scheme not in ("http", "https") or not url.hostname or url.port == 0:
            raise ValueError
    except ValueError:  # urlsplit's own, for a port that is not a number
        parser.error(f"--url must look like http://127.0.0.1:8000/digits, not {options.url!r}")
    try:
        probe = connect(url)
        probe.connect()
        probe.close()
    except OSError as error:
        reason = error.strerror or error
        print(f"Cannot reach {options.url}: {reason}. Is the server running?", file=sys.stderr)
        return 1

    labels: dict[str, int] = json.loads((SAMPLES / "labels.json").read_text())
    rows = [Row(image, digit) for image, digit in sorted(labels.items())]
    start = time.perf_counter()
    ask_all(url, rows, options.clients)
    seconds = time.perf_counter() - start

    right = sum(row.right for row in rows)
    failed = sum(bool(row.problem) for row in rows)
    print(table(rows))
    print(f"\n{right} of {len(rows)} right = {right / len(rows):.1%}, {failed} failed, {seconds:.2f} s")
    return 0 if not failed and right >= ENOUGH * len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
