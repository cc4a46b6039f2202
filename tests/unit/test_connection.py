"""One HTTP connection: how long it waits for headers, how many it takes, and what it answers when there are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from zmesh import connection
from zmesh.connection import Connection

GOOD = b"POST /x HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n{}"
PATIENCE = 5.0  # of a test, in seconds


class App:
    """Answers each request with its body, the first of them when `go` is set."""

    def __init__(self) -> None:
        self.go, self.began, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.broken = 0
        self.connections: list[Connection] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                self.broken += 1
                self.ended.set()
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.began.set()
        await self.go.wait()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connected(
    app: App, keep_alive: float = 60
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.timeout_keep_alive = keep_alive  # type: ignore[assignment]
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()

    def make() -> Connection:
        app.connections.append(Connection(config, state, {}))
        return app.connections[-1]

    server = await loop.create_server(make, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().lower().splitlines()[1:-1])
    return int(head.split()[1]), await reader.readexactly(int(fields["content-length"]))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 there is no event for what is looked at here
        await asyncio.sleep(0.001)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), PATIENCE)

    asyncio.run(limited())


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.05)


def test_headers_that_do_not_end_in_time_are_refused_and_nothing_is_heard_after_that(hasty: None):
    async def test() -> None:
        async with connected(App()) as (reader, writer):
            writer.write(GOOD[:20])
            assert await answer(reader) == (408, b"request timeout: the headers did not arrive within 0.05 s")
            writer.write(GOOD[20:])
            assert await reader.read() == b""

    run(test)


def test_headers_in_pieces_are_no_mistake_and_their_time_counts_no_more_when_they_are_complete():
    async def test() -> None:
        app = App()
        async with connected(app) as (reader, writer):
            writer.write(GOOD[:20])
            await until(lambda: app.connections and app.connections[0]._patience)
            writer.write(GOOD[20:])
            await app.began.wait()
            assert app.connections[0]._patience is None
            app.go.set()
            assert await answer(reader) == (200, b"{}")

    run(test)


@pytest.mark.parametrize("piece", [1000, 60_000, 200_000])
def test_headers_over_the_limit_are_refused_however_they_arrive(piece: int):
    async def test() -> None:
        async with connected(App()) as (reader, writer):
            data = GOOD.replace(b"\r\n\r\n", b"\r\nx-long: " + b"x" * connection.HEADER_BYTES_MAX + b"\r\n\r\n")
            for start in range(0, len(data), piece):
                writer.write(data[start : start + piece])
                await writer.drain()
            assert await answer(reader) == (431, b"headers are too large: at most 65536 bytes")
            assert await reader.read() == b""

    run(test)


def test_a_large_body_in_the_same_piece_is_no_header():
    async def test() -> None:
        app, body = App(), b"x" * 2 * connection.HEADER_BYTES_MAX
        app.go.set()
        async with connected(app) as (reader, writer):
            writer.write(GOOD[:18] + b"host: here\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            assert await answer(reader) == (200, body)

    run(test)


def test_a_request_before_the_broken_one_gets_its_answer_and_the_broken_one_none(hasty: None):
    async def test() -> None:
        app = App()
        async with connected(app) as (reader, writer):
            writer.write(GOOD + GOOD[:20])
            await app.began.wait()
            await until(lambda: app.connections[0]._is_refused)
            app.go.set()
            assert await answer(reader) == (200, b"{}")
            assert await reader.read() == b""

    run(test)


class Waiter(App):
    """Waits until it hears that its client is gone."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] == "http.request":
            self.began.set()
        self.ended.set()


def test_when_a_connection_ends_the_first_that_waits_on_it_hears_of_it():
    """Not just the last, or the task of the first would go on, and its answer be written to nobody."""

    async def test() -> None:
        app = Waiter()
        async with connected(app) as (reader, writer):
            writer.write(GOOD + GOOD + GOOD)
            await app.began.wait()
            app.connections[0].transport.abort()
            await app.ended.wait()
            assert await reader.read() == b""

    run(test)


def test_a_broken_body_is_refused_and_the_app_hears_of_it_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "LINGER_SECONDS", 10 * PATIENCE)  # or it would hear of the end of the connection

    async def test() -> None:
        app = App()
        async with connected(app) as (reader, writer):
            writer.write(b"POST /x HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\nno chunk\r\n")
            assert await answer(reader) == (400, b"Invalid HTTP request received.")
            await app.ended.wait()
            assert app.broken == 1

    run(test)


def test_a_connection_on_which_nothing_comes_ends_after_the_keep_alive_time():
    async def test() -> None:
        async with connected(App(), keep_alive=0.05) as (reader, _):
            assert await reader.read() == b""

    run(test)


# What follows an answer


class Refuser(App):
    """Answers before it has read anything."""

    def __init__(self, body: bytes = b"no") -> None:
        super().__init__()
        self.body, self.asked = body, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        headers = [(b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def test_a_body_that_comes_after_its_answer_is_dropped_and_the_connection_goes_on():
    async def test() -> None:
        app = Refuser()
        async with connected(app) as (reader, writer):
            for size in (2, 100_000):
                head = b"POST /x HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % size
                writer.write(head)
                assert await answer(reader) == (429, b"no")
                writer.write(bytes(size))
                writer.write(head + bytes(size))
                assert await answer(reader) == (429, b"no")
            assert app.asked == 4

    run(test)


@pytest.mark.parametrize("rest", [b"{", b"{}"])
def test_the_rest_of_an_answered_body_has_the_time_of_an_idle_connection(rest: bytes):
    async def test() -> None:
        async with connected(Refuser(), keep_alive=0.05) as (reader, writer):
            writer.write(GOOD[:-2])
            assert await answer(reader) == (429, b"no")
            writer.write(rest)
            assert await reader.read() == b""

    run(test)


@pytest.mark.parametrize("header", [b"", b"connection: close\r\n"])
def test_who_takes_nothing_of_an_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch, header: bytes):
    monkeypatch.setattr(connection, "READER_SECONDS", 0.02)

    async def test() -> None:
        app = Refuser(bytes(30_000_000))
        async with connected(app) as (reader, writer):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(GOOD.replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n"))
            await until(lambda: app.asked)
            await until(lambda: not app.connections[0].connections)  # uvicorn's set of those that live

    run(test)


def test_who_takes_an_answer_slowly_is_not_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "READER_SECONDS", 60.0)

    async def test() -> None:
        app = Refuser(bytes(30_000_000))
        async with connected(app) as (reader, writer):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(GOOD)
            await until(lambda: app.connections and app.connections[0]._reader)
            (one,) = app.connections
            await until(one.transport.get_write_buffer_size)
            one._look_at_reader(one.transport.get_write_buffer_size() + 1)  # it took a byte since the last look
            assert one._reader is not None
            reader._transport.resume_reading()  # type: ignore[attr-defined]
            assert await answer(reader) == (429, bytes(30_000_000))
            one._look_at_reader(1)
            assert one._reader is None, "all of it was taken"

    run(test)
