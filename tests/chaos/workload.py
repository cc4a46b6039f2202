"""The clients of `scripts/chaos`, in a process of their own: closed loops over raw HTTP/1.1 that note what they see.

`python -m tests.chaos.workload '{"port": …}'` sends until its stdin says `{"do": "stop"}` or ends. Each line on stdin
is a command: `burst` (clients, seconds), `poison`, `stop`. Each second a line on stdout says how it goes. Everything
that was sent and everything that came back goes to a file of JSON lines, see `history.py`; nothing is judged here. The
two lines that each request needs are written as text and not by `json`: the machine is shared with the mesh.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, cast

import uvloop

CLIENT_NONCES = 1_000_000  # per client; a client of the main loop is a number, a poisoner or a burst has its own
POISONER, BURST = 900_000, 1_000
GIVE_UP_SECONDS = 10.0  # after its deadline a request that has no answer is taken for lost
TICK_SECONDS = 0.05
REFUSED_SECONDS = 0.1  # a client that was told to come back later waits so long


@dataclass(frozen=True)
class Load:
    """What to send. `timeout` is the server's, in seconds; `hasty` requests in a hundred give `hasty_seconds` of their
    own, `fickle` ones leave before their answer. Clients of a burst are neither, unless it is a wild one."""

    port: int
    history: str
    clients: int = 64
    seed: int = 0
    routes: tuple[str, ...] = ("/double",)
    timeout: float = 30.0
    hasty: float = 0.0
    hasty_seconds: float = 0.5
    fickle: float = 0.0
    wild_bursts: bool = False  # clients of a burst are hasty and fickle too
    think: float = 0.0  # seconds between an answer and the next request


@dataclass
class Told:
    """What the last second's line says."""

    sent: int = 0
    answered: int = 0
    refused: int = 0  # answers that are not 200
    lost: int = 0
    longest: float = 0.0
    waits: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection with at most one request on it. Goes on until `swarm.stopping`, or `until`."""

    def __init__(self, swarm: Swarm, number: int, until: float = float("inf")) -> None:
        self.swarm, self.number, self.until = swarm, number, until
        self.dice = Random(f"{swarm.load.seed}/{number}")
        self.count = 0
        self.nonce: int | None = None
        self.sent = self.give_up_at = 0.0
        self.buffer = b""
        self.transport: asyncio.Transport | None = None
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = cast(asyncio.Transport, transport), b""
        self.next()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.nonce is not None:
            self.swarm.write(line("broken", monotonic(), n=self.nonce))
            self.swarm.told.lost += 1
            self.nonce = None
        if not self.is_over:
            self.swarm.later(TICK_SECONDS, self.connect)

    def connect(self) -> None:
        self.swarm.spawn(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.swarm.load.port)
        except OSError:
            if self.swarm.stopping or monotonic() > self.until:
                self.finish()
            else:
                self.swarm.later(TICK_SECONDS, self.connect)

    def finish(self) -> None:
        self.is_over = True
        self.swarm.clients.pop(self.number, None)
        if self.transport is not None:
            self.transport.close()

    def next(self) -> None:
        if self.transport is None or self.nonce is not None or self.transport.is_closing():
            return
        if self.swarm.stopping or monotonic() > self.until:
            self.finish()
            return
        load, draw = self.swarm.load, self.dice.random() * 100
        if self.number >= BURST and not load.wild_bursts:
            draw = 100.0
        route = load.routes[self.count % len(load.routes)]
        nonce = self.number * CLIENT_NONCES + self.count
        self.count += 1
        timeout = load.hasty_seconds if draw < load.hasty else 0.0
        self.send(nonce, route, b'{"nonce": %d}' % nonce, timeout)
        if load.hasty <= draw < load.hasty + load.fickle:
            self.swarm.later(self.dice.uniform(0.0, 0.05), lambda: self.leave(nonce))

    def send(self, nonce: int, route: str, body: bytes, timeout: float = 0.0, how: str = "") -> None:
        assert self.transport is not None, "it is connected"
        head = f"POST {route} HTTP/1.1\r\nhost: mesh\r\nx-request-id: {nonce}\r\ncontent-length: {len(body)}\r\n"
        if timeout:
            head += f"x-request-timeout: {timeout}\r\n"
        timeout = timeout or self.swarm.load.timeout
        self.nonce, self.sent = nonce, monotonic()
        self.give_up_at = self.sent + timeout + GIVE_UP_SECONDS
        self.swarm.told.sent += 1
        extra = f',"how":"{how}"' if how else ""
        said = f'"n":{nonce},"t":{self.sent:.6f},"r":"{route}","d":{timeout:g}{extra}'
        self.swarm.write(f'{{"e":"sent",{said}}}\n')
        self.transport.write(head.encode() + b"\r\n" + body)

    def leave(self, nonce: int) -> None:
        """Without waiting for the answer."""
        if self.nonce == nonce and self.transport is not None:
            self.swarm.write(line("left", monotonic(), n=nonce))
            self.nonce = None
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(_header(head, b"content-length") or b"0")
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            if _header(head, b"connection") == b"close" and self.transport is not None:
                self.transport.close()  # and connect again; what is sent on it now would be lost by right
            self.answered(int(head[9:12]), _header(head, b"x-request-id"), body)

    def answered(self, status: int, request_id: bytes, body: bytes) -> None:
        now, nonce, told = monotonic(), self.nonce, self.swarm.told
        self.nonce = None
        said = _fields(status, request_id, body)
        if nonce is None:  # nobody asked
            self.swarm.write(f'{{"e":"extra","t":{now:.6f},"s":{status}{said}}}\n')
            return
        self.swarm.write(f'{{"e":"answer","n":{nonce},"t":{now:.6f},"s":{status}{said}}}\n')
        told.answered += 1
        told.refused += status != 200
        told.waits.append(now - self.sent)
        told.longest = max(told.longest, now - self.sent)
        pause = max(self.swarm.load.think, REFUSED_SECONDS if status in (429, 503) else 0.0)
        if pause:
            self.swarm.later(pause, self.next)
        else:
            self.next()

    def look(self, now: float) -> None:
        if self.nonce is not None and now > self.give_up_at and self.transport is not None:
            self.swarm.write(line("lost", now, n=self.nonce))
            self.swarm.told.lost += 1
            self.nonce = None
            self.transport.abort()


class Poisoner(Client):
    """One request that says `poison`."""

    def next(self) -> None:
        nonce = self.number * CLIENT_NONCES
        if self.count:
            self.finish()
        else:
            self.count = 1
            self.send(nonce, self.swarm.load.routes[0], b'{"nonce": %d, "poison": true}' % nonce, how="poison")


def _end(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    loop.default_exception_handler(context)
    sys.stderr.flush()
    os._exit(1)


def line(e: str, t: float, **fields: object) -> str:
    return json.dumps({"e": e, "t": round(t, 6), **fields}) + "\n"


def _header(head: bytes, name: bytes) -> bytes:
    """Of an answer in lower case; empty when it is not there."""
    at = head.find(b"\r\n" + name + b":")
    if at < 0:
        return b""
    at += len(name) + 3
    end = head.find(b"\r\n", at)
    return head[at : end if end >= 0 else len(head)].strip()


def _fields(status: int, request_id: bytes, body: bytes) -> str:
    """What the answer says, for its line: the nonce and the answer in it, or its text, and whose request it names."""
    said = f',"i":{request_id.decode() if request_id.isdigit() else -1}'
    if status == 200:
        try:
            words = json.loads(body)
            return f'{said},"g":{int(words["nonce"])},"a":{int(words["answer"])}'
        except (ValueError, KeyError, TypeError):
            pass
    return f'{said},"x":{json.dumps(body[:200].decode(errors="replace"))}'


class Swarm:
    """All clients, their file and their clock."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.stopping = False
        self.told = Told()
        self.clients: dict[int, Client] = {}
        self._file = Path(load.history).open("w", buffering=1 << 18)  # noqa: SIM115
        self.write = self._file.write
        self._tasks: set[asyncio.Task[None]] = set()
        self._bursts = self._poisons = 0

    def later(self, seconds: float, call: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, call)

    def spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def join(self, client: Client) -> None:
        self.clients[client.number] = client
        client.connect()

    async def run(self) -> None:
        reader = asyncio.StreamReader()
        asyncio.get_running_loop().set_exception_handler(_end)  # a mistake of ours must not look like a quiet mesh
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        for number in range(self.load.clients):
            self.join(Client(self, number))
        ticking = asyncio.get_running_loop().create_task(self._tick())
        while not self.stopping:
            self.obey(json.loads(await reader.readline() or b'{"do": "stop"}'))
        end = monotonic() + self.load.timeout + 2 * GIVE_UP_SECONDS
        while self.clients and monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(TICK_SECONDS)
        ticking.cancel()
        self._file.close()
        self.tell(0.0)

    def obey(self, command: dict[str, Any]) -> None:
        match command:
            case {"do": "burst", "clients": int(clients), "seconds": float(seconds)}:
                self._bursts += 1
                until = monotonic() + seconds
                for number in range(clients):
                    self.join(Client(self, self._bursts * BURST + number, until))
            case {"do": "poison"}:
                self._poisons += 1
                self.join(Poisoner(self, POISONER + self._poisons))
            case {"do": "stop"}:
                self.stopping = True
                for client in list(self.clients.values()):
                    if client.nonce is None:
                        client.finish()

    async def _tick(self) -> None:
        """Notes how late this process itself is, which no mesh can help, and gives up what is lost."""
        worst, due = 0.0, monotonic() + 1.0
        while True:
            before = monotonic()
            await asyncio.sleep(TICK_SECONDS)
            now = monotonic()
            worst = max(worst, now - before - TICK_SECONDS)
            if now >= due:
                self.write(line("late", now, s=round(worst, 6)))
                self.tell(worst)
                worst, due = 0.0, now + 1.0
                for client in list(self.clients.values()):
                    client.look(now)

    def tell(self, late: float) -> None:
        told = self.told
        waits = sorted(told.waits)
        words = {
            "sent": told.sent,
            "answered": told.answered,
            "refused": told.refused,
            "lost": told.lost,
            "longest": round(told.longest, 3),
            "p50": waits[len(waits) // 2] if waits else 0.0,
            "late": round(late, 3),
            "open": len(self.clients),
        }
        told.longest, told.waits = 0.0, []
        print(json.dumps(words), flush=True)


def main() -> None:
    words = json.loads(sys.argv[1])
    load = Load(**{**words, "routes": tuple(words["routes"])})
    uvloop.run(Swarm(load).run())


if __name__ == "__main__":
    main()
