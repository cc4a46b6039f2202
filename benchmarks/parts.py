"""What each part of the gateway costs: microseconds of CPU per request, hot, without the kernel.

    ./scripts/bench parts [--rounds 300] [--clients 64] [--headers curl|wrk]

Bytes go into the connections of a gateway by call, a broker of two lines answers, and what is written goes nowhere.
Every round is one request of each client; of the times of all rounds the median is shown, and the best.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from statistics import median

import uvicorn
import uvloop
from uvicorn.server import ServerState

from zmesh.calls import Calls
from zmesh.config import Plan, RoutePlan, Settings, StagePlan
from zmesh.lane import Lane
from zmesh.linkage import BrokerLink
from zmesh.messages import Message, PeerId, Reply, SessionId, Submit, Welcome
from zmesh.telemetry import GatewayCounts

PLAN = Plan(stages=(StagePlan(name="Echo", worker="Echo"),), routes=(RoutePlan(path="/inference", stages=("Echo",)),))
BODY = b'{"x": "abcdefghijklmnopqrstu"}'
HEADERS = {
    "wrk": b"Host: 127.0.0.1:8000\r\nContent-Type: application/json\r\n",
    "python": b"Host: 127.0.0.1:8000\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"User-Agent: python-httpx/0.28.1\r\nContent-Type: application/json\r\n",
}
SESSION = SessionId(7)


class Sink(asyncio.Transport):
    """Takes what is written, as a socket would."""

    written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += 1

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Echo:
    """A port: what is submitted is answered when it is asked for."""

    def __init__(self) -> None:
        self.submits: list[Submit] = []
        self.replies = 0

    def open(self, hear: Callable[[SessionId, Message], None], lost: Callable[[], None]) -> None:
        self.hear = hear
        welcome = Welcome(1, PeerId(b"b" * 16), 1, SESSION, 1000, 5000, 1 << 26, 4096, 1 << 22, [], [])
        asyncio.get_running_loop().call_soon(hear, SESSION, welcome)

    def send(self, session: SessionId, message: Message) -> None:
        if isinstance(message, Submit):
            self.submits.append(message)

    def breathe(self) -> None: ...

    def close(self) -> None: ...

    def answer(self) -> None:
        submits, self.submits = self.submits, []
        for submit in submits:
            columns = submit.columns
            zeros = [0] * len(columns.ids)
            self.replies += 1
            self.hear(SESSION, Reply(self.replies, columns.ids, zeros, zeros, columns.payloads, zeros, zeros, zeros))


async def measure(rounds: int, clients: int, headers: bytes) -> dict[str, list[float]]:
    port, settings = Echo(), Settings()
    link = BrokerLink(PLAN, settings.limits(), port)
    calls = Calls(PLAN, settings, link, GatewayCounts())
    config = uvicorn.Config(None, lifespan="off", access_log=False)  # type: ignore[arg-type]
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Sat, 21 Nov 2026 12:00:00 GMT")]
    lane = Lane(calls, {b"/inference": "/inference"}, rest_seconds=75)
    connections = [lane.connection(config, state, {}) for _ in range(clients)]
    sinks = [Sink() for _ in connections]
    for connection, sink in zip(connections, sinks, strict=True):
        connection.connection_made(sink)
    link.start()
    await asyncio.sleep(0)
    assert link.joined, "the broker welcomes at once"
    request = b"POST /inference HTTP/1.1\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    spent: dict[str, list[float]] = {"read, parse, take": [], "submit (link)": [], "answer (link, write)": []}
    for _ in range(rounds):
        at = [time.thread_time()]
        for connection in connections:
            connection.data_received(request)
        at.append(time.thread_time())
        link._turn()  # what `call_soon` would do at the end of this turn
        at.append(time.thread_time())
        port.answer()
        at.append(time.thread_time())
        for name, start, end in zip(spent, at[:-1], at[1:], strict=True):
            spent[name].append((end - start) / clients * 1e6)
        await asyncio.sleep(0)
    assert all(sink.written == rounds for sink in sinks), "every request was answered once"
    return spent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--headers", choices=HEADERS, default="wrk")
    options = parser.parse_args(arguments)
    spent = uvloop.run(measure(options.rounds, options.clients, HEADERS[options.headers]))
    for name, times in spent.items():
        print(f"{name:<24} {median(times):6.2f} us   best {min(times):6.2f} us")
    print(f"{'together':<24} {sum(map(median, spent.values())):6.2f} us   best {sum(map(min, spent.values())):6.2f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
