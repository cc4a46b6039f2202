"""Clients that do everything wrong, thousands of them: `python -m tests.integration.bad_clients --help`.

Eight threads beside one another send good requests and bad ones to a mesh: with little patience, with bodies that are
none, with mistakes that users make, with lengths that are wrong, headers that contradict each other, lines that are no
requests; they send slowly, break off, and leave. With `--compression`, the mesh's and ours, there are bombs and broken
gzip and zstd among them. What each of them gets is held to what it may get. `SILENCE` is the
end of a connection without an answer. Afterwards the mesh has to be as if nobody had been there.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import json
import random
import secrets
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.harness import RunningMesh, running, wait_until
from zmesh.codings import Coding, Unpacking, known

__all__ = ["Storm", "judge"]

APP = Path(__file__).parent / "apps" / "mixed_luck.py"
THREADS = 8
SILENCE = 0  # in the place of a status
HANG_SECONDS = 20.0  # nobody waits for longer, on a busy machine
PATIENCE_SECONDS = 0.030  # the most that an impatient client has
WORK_MS = 5.0  # the most that a request takes
PAUSE_SECONDS = 0.010  # the longest between two pieces of a slow body
STOP_SECONDS = 5.0
HEADERS_MANY = 100  # of 1000 bytes: more than 64 KiB
BOMBS_BYTES = (10 * 1024 * 1024 + 1, 200 * 1024 * 1024)  # more than a body may have
ALL_IS_WELL = 0.35  # of the requests are good ones

Seen = tuple[int, bytes]


class Client:
    """One connection. What is sent may be refused before all of it was taken, so an error of sending is none."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), HANG_SECONDS)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            try:
                self.socket.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                return

    def answer(self) -> Seen:
        response = http.client.HTTPResponse(self.socket, method="POST")
        try:
            response.begin()
            return response.status, response.read()
        except (http.client.RemoteDisconnected, ConnectionResetError):
            return SILENCE, b""
        finally:
            response.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.socket.close()


def head(*headers: str, line: str = "POST /inference HTTP/1.1") -> bytes:
    return "\r\n".join([line, "host: here", *headers, "", ""]).encode()


def request(body: bytes, *headers: str) -> bytes:
    return head(*headers, f"content-length: {len(body)}") + body


@dataclass
class Asking:
    """What one client has at hand for one request."""

    port: int
    dice: random.Random
    nonce: int

    def body(self, **more: object) -> bytes:
        return json.dumps({"nonce": self.nonce, "ms": self.dice.uniform(0, WORK_MS), **more}).encode()

    def said(self, *pieces: bytes) -> Seen:
        """The answer to these bytes."""
        client = Client(self.port)
        try:
            client.send(*pieces)
            return client.answer()
        finally:
            client.close()


Way = Callable[[Asking], Seen]
Ways = dict[str, tuple[Way, set[int]]]  # by name: what is done, and which statuses it may get
WAYS: Ways = {}
PACKED_WAYS: Ways = {}  # of a mesh with --compression, besides


def way(*statuses: int, packed: bool = False) -> Callable[[Way], Way]:
    def keep(act: Way) -> Way:
        (PACKED_WAYS if packed else WAYS)[act.__name__.replace("_", " ")] = act, set(statuses)
        return act

    return keep


@way(200)
def a_good_request(asking: Asking) -> Seen:
    return asking.said(request(asking.body()))


@way(200)
def two_good_requests_on_one_connection(asking: Asking) -> Seen:
    client = Client(asking.port)
    try:
        for _ in range(2):
            client.send(request(asking.body()))
            seen = client.answer()
            if seen[0] != 200:
                break
        return seen
    finally:
        client.close()


@way(200)
def a_slow_body(asking: Asking) -> Seen:
    whole = request(asking.body())
    client = Client(asking.port)
    try:
        for start in range(0, len(whole), 40):
            client.send(whole[start : start + 40])
            threading.Event().wait(asking.dice.uniform(0, PAUSE_SECONDS))
        return client.answer()
    finally:
        client.close()


# ── those who do not wait ─────────────────────────────────────────────────────────────────────────────────────────


@way(200, SILENCE)
def a_client_with_little_patience(asking: Asking) -> Seen:
    client = Client(asking.port)
    try:
        client.send(request(asking.body()))
        client.socket.settimeout(asking.dice.uniform(0.0005, PATIENCE_SECONDS))
        return client.answer()
    except TimeoutError:
        return SILENCE, b""
    finally:
        client.close()


@way(200, 408)
def a_short_deadline(asking: Asking) -> Seen:
    seconds = asking.dice.uniform(0.0005, PATIENCE_SECONDS)
    return asking.said(request(asking.body(), f"x-request-timeout: {seconds:.4f}"))


@way(SILENCE)
def a_body_that_is_cut_off(asking: Asking) -> Seen:
    whole = request(asking.body())
    client = Client(asking.port)
    try:
        client.send(whole[: -asking.dice.randint(1, 15)])
        client.socket.shutdown(socket.SHUT_WR)
        return client.answer()
    finally:
        client.close()


@way(SILENCE)
def a_reset(asking: Asking) -> Seen:
    whole = request(asking.body())
    client = Client(asking.port)
    client.send(whole[: asking.dice.randint(1, len(whole))])
    client.reset()
    return SILENCE, b""


# ── mistakes of users ─────────────────────────────────────────────────────────────────────────────────────────────


@way(400)
def a_body_that_is_not_json(asking: Asking) -> Seen:
    return asking.said(request(asking.dice.choice((b"{x}", b"\xff\xfe", b"[1,", b'{"nonce"', b"\0"))))


@way(400)
def an_empty_body(asking: Asking) -> Seen:
    return asking.said(request(b""))


@way(422)
def a_request_that_the_user_refuses(asking: Asking) -> Seen:
    return asking.said(request(asking.body(is_wrong=True)))


@way(500)
def a_request_that_raises(asking: Asking) -> Seen:
    return asking.said(request(asking.body(raises=True)))


@way(500)
def a_request_of_another_kind(asking: Asking) -> Seen:
    return asking.said(request(b"[1, 2]"))


# ── what is no HTTP, or no good one ───────────────────────────────────────────────────────────────────────────────


@way(SILENCE)
def a_length_that_is_too_large(asking: Asking) -> Seen:
    body = asking.body()
    client = Client(asking.port)
    try:
        client.send(head(f"content-length: {len(body) + asking.dice.randint(1, 1000)}") + body)
        client.socket.shutdown(socket.SHUT_WR)
        return client.answer()
    finally:
        client.close()


@way(400)
def a_length_that_is_too_small(asking: Asking) -> Seen:
    body = asking.body()
    return asking.said(head(f"content-length: {len(body) - asking.dice.randint(1, 5)}") + body)


@way(400)
def a_length_that_is_none(asking: Asking) -> Seen:
    wrong = asking.dice.choice(("two", "-1", "+5", "0x10", "1e3", "", "9" * 30))
    return asking.said(head(f"content-length: {wrong}") + b"{}")


@way(400)
def two_lengths(asking: Asking) -> Seen:
    body = asking.body()
    lengths = [f"content-length: {len(body)}", "content-length: 2"]
    asking.dice.shuffle(lengths)
    return asking.said(head(*lengths) + body)


@way(400)
def a_length_and_chunks(asking: Asking) -> Seen:
    both = ["content-length: 5", "transfer-encoding: chunked"]
    asking.dice.shuffle(both)
    return asking.said(head(*both) + b"2\r\n{}\r\n0\r\n\r\n")


@way(400)
def two_hosts(asking: Asking) -> Seen:
    return asking.said(request(asking.body(), "host: there"))


@way(400)
def chunks_that_are_none(asking: Asking) -> Seen:
    return asking.said(head("transfer-encoding: chunked") + b"chunk\r\n")


@way(400)
def a_line_that_is_no_request(asking: Asking) -> Seen:
    line = asking.dice.choice(
        (
            "POST",
            "POST /inference HTTP/9.x",
            "/inference HTTP/1.1",
            "P ST /inference HTTP/1.1",
            "\x16\x03\x01\x02",
            "{}",
        )
    )
    return asking.said(head(line=line))


@way(400)
def a_header_that_is_none(asking: Asking) -> Seen:
    return asking.said(request(asking.body(), asking.dice.choice(("no colon", "a name: x", ": x", "x: \0"))))


@way(431)
def huge_headers(asking: Asking) -> Seen:
    many = [f"x-{number}: {'h' * 1000}" for number in range(HEADERS_MANY)]
    return asking.said(request(asking.body(), *many))


# ── packed bodies ─────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def bomb(coding: Coding, size: int) -> bytes:
    return coding.pack(bytes(size))


def packed(body: bytes, coding: Coding) -> bytes:
    return request(body, f"content-encoding: {coding.name}")


@way(200, packed=True)
def a_packed_request(asking: Asking) -> Seen:
    coding = asking.dice.choice(known())
    return asking.said(packed(coding.pack(asking.body()), coding))


@way(200, packed=True)
def a_packed_answer(asking: Asking) -> Seen:
    coding = asking.dice.choice(known())
    status, body = asking.said(request(asking.body(), f"accept-encoding: {coding.name}, identity;q=0"))
    unpacking = Unpacking(coding)
    body = unpacking.some(body, 1 << 20)
    unpacking.end()
    return status, body


@way(413, packed=True)
def a_bomb(asking: Asking) -> Seen:
    coding = asking.dice.choice(known())
    return asking.said(packed(bomb(coding, asking.dice.choice(BOMBS_BYTES)), coding))


@way(413, packed=True)
def a_bomb_in_chunks(asking: Asking) -> Seen:
    coding = asking.dice.choice(known())
    whole = bomb(coding, BOMBS_BYTES[-1])
    start = head("transfer-encoding: chunked", f"content-encoding: {coding.name}")
    pieces = [whole[at : at + 1000] for at in range(0, len(whole), 1000)]
    return asking.said(start, *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n")


@way(400, packed=True)
def a_packed_body_that_ends_too_early(asking: Asking) -> Seen:
    coding = asking.dice.choice(known())
    whole = coding.pack(asking.body())
    return asking.said(packed(whole[: asking.dice.randint(1, len(whole) - 1)], coding))


@way(400, packed=True)
def a_packed_body_that_is_broken(asking: Asking) -> Seen:
    coding = asking.dice.choice(known())
    whole = coding.pack(asking.body())
    broken = asking.dice.choice((b"\xff" + whole[1:], asking.body(), whole + b"and something else"))
    return asking.said(packed(broken, coding))


@way(415, packed=True)
def an_encoding_that_nobody_knows(asking: Asking) -> Seen:
    return asking.said(request(asking.body(), f"content-encoding: {asking.dice.choice(('br', 'gzip, gzip', 'x'))}"))


@way(406, packed=True)
def a_client_that_takes_nothing(asking: Asking) -> Seen:
    return asking.said(request(asking.body(), "accept-encoding: *;q=0"))


@dataclass
class Storm:
    """`count` requests from `THREADS` clients at once. After `rage` `wrong` says what must not have been."""

    port: int
    count: int
    seed: int
    ways: Ways
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def rage(self) -> None:
        numbers, lock = iter(range(self.count)), threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                name, what = self._one(number)
                with lock:
                    self.seen[f"{name}: {what}"] += 1

        threads = [threading.Thread(target=client, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.count / 20 + 2 * HANG_SECONDS)
            assert not thread.is_alive(), "a client hangs"

    def _one(self, number: int) -> tuple[str, object]:
        """Which way it went and what came of it. The same number is the same request, whichever thread sends it."""
        dice = random.Random(f"{self.seed} {number}")
        name = "a good request" if dice.random() < ALL_IS_WELL else dice.choice(list(self.ways))
        act, statuses = self.ways[name]
        try:
            status, body = act(Asking(self.port, dice, number))
        except OSError as error:
            self.wrong.append(f"{number}, {name}: {error!r}")
            return name, type(error).__name__
        if status not in statuses:
            self.wrong.append(f"{number}, {name}: {status} {body[:200]!r}")
        elif status == 200 and json.loads(body) != {"nonce": number}:
            self.wrong.append(f"{number}, {name}: the answer of another: {body[:200]!r}")
        elif status >= 400 and not body:
            self.wrong.append(f"{number}, {name}: {status} without a word")
        return name, status or "silence"


def gauges(mesh: RunningMesh) -> dict[str, float]:
    """Of what is in the mesh at this moment."""
    names = {
        f"zmesh_{name}" for name in ("remaining_task", "queue_depth", "queue_bytes", "leased_tasks", "broker_tasks")
    }
    families = {family.name: family for family in text_string_to_metric_families(mesh.get("/metrics").body.decode())}
    assert names <= set(families), sorted(families)
    return {f"{name} {sample.labels}": sample.value for name in names for sample in families[name].samples}


def judge(mesh: RunningMesh, storm: Storm) -> None:
    """AssertionError unless the mesh is as if nobody had been there. It is stopped."""
    assert storm.wrong == [], f"seed {storm.seed}: {len(storm.wrong)} of {storm.count}:\n" + "\n".join(storm.wrong[:20])
    assert mesh.post("/inference", b'{"nonce": -1}').json() == {"nonce": -1}
    wait_until(lambda: not any(gauges(mesh).values()), 10, "the gauges to be zero again")
    now = mesh.mesh()
    assert (now["tasks"], now["gateway"]["requests"]) == (0, 0), now
    assert [stage["counters"]["deaths"] for stage in now["stages"]] == [0, 0], "no worker died of it"
    started = time.monotonic()
    assert mesh.stop(signal.SIGTERM, STOP_SECONDS) == 0, mesh.log()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", mesh.port)) != 0, "the port is open"
    print(f"stopped {time.monotonic() - started:.2f} s after SIGTERM")


def run(count: int, seed: int, lane: str, *, compression: bool = False) -> Storm:
    """In a mesh of its own."""
    with running(APP, "--timeout", "20000", "--lane", lane, *(["--compression"] if compression else [])) as mesh:
        storm = Storm(mesh.port, count, seed, WAYS | PACKED_WAYS if compression else WAYS)
        started = time.monotonic()
        storm.rage()
        print(f"lane {lane}, seed {seed}: {count} requests in {time.monotonic() - started:.1f} s")
        judge(mesh, storm)
    return storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.bad_clients", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="how many requests in each lane")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--compression", action="store_true", help="start the mesh so, and send packed bodies too")
    given = parser.parse_args()
    for lane in ("fast", "asgi"):
        storm = run(given.count, given.seed, lane, compression=given.compression)
        for what, count in sorted(storm.seen.items()):
            print(f"  {count:6} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
