"""Who of several gateways takes a new connection: about as many each, and nobody waits for one that is stuck."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvloop
from uvicorn.server import ServerState

from zmesh import turns
from zmesh.addresses import listen
from zmesh.board import Board
from zmesh.turns import Turns


class Gateway:
    """As much of one as takes connections. All of them are on one loop here, and its turns are theirs."""

    def __init__(self, board: Board) -> None:
        self.board, self.state, self.taken = board, ServerState(), list[socket.socket]()
        self.turns = Turns(board, self._welcome, ())
        self.listener: socket.socket | None = None

    def _welcome(self, sock: socket.socket) -> None:
        self.taken.append(sock)
        self.state.connections.add(sock)  # type: ignore[arg-type]  # it only has to be counted

    def close(self) -> None:
        self.turns.close()
        for sock in self.taken:
            sock.close()


@contextmanager
def gateways(count: int, listener: Any, *, there: int = 0) -> Iterator[list[Gateway]]:
    """The first `there` (all, unless it is said) are open on this listener."""
    board = Board.make(count, 1)
    boards = [board, *(Board.open(os.dup(board.fd), count, 1, number) for number in range(1, count))]
    found = [Gateway(one) for one in boards]
    for one in found[: there or count]:
        one.listener = listener if there else listener.dup()  # a loop has one reader for a descriptor
        one.turns.open(one.listener, one.state)
    try:
        yield found
    finally:
        for one in found:
            one.close()
            one.board.close()
            if one.listener is not listener and one.listener is not None:
                one.listener.close()


@contextmanager
def crowd(listener: socket.socket, number: int) -> Iterator[list[socket.socket]]:
    """Clients who all wait at once."""
    found = [socket.create_connection(listener.getsockname()) for _ in range(number)]
    try:
        yield found
    finally:
        for one in found:
            one.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen("127.0.0.1", 0) as found:
        found.setblocking(False)
        yield found


def run(main: Coroutine[Any, Any, None]) -> None:
    """Whatever goes wrong in a callback of the loop goes wrong in the test."""
    wrong: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        await main

    uvloop.run(watched())
    assert wrong == []


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 there is no event for what is looked at here
            await asyncio.sleep(0.001)


def sizes(found: list[Gateway]) -> list[int]:
    return [len(one.taken) for one in found]


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("clients", [64, 256])
def test_a_crowd_is_shared_evenly(listener: socket.socket, count: int, clients: int):
    async def main() -> None:
        with crowd(listener, clients), gateways(count, listener) as found:
            await until(lambda: sum(sizes(found)) == clients)
            mean = clients / count
            assert max(sizes(found)) - min(sizes(found)) <= turns.LEAD + mean / turns.LEAD_PART + 1, sizes(found)
            assert [one.board.mine.connections for one in found] == sizes(found)

    run(main())


def test_clients_who_come_one_after_the_other_are_shared_evenly(listener: socket.socket):
    """Although the same gateway is the first to look each time."""

    async def main() -> None:
        with gateways(2, listener) as found:
            for number in range(1, 65):
                with crowd(listener, 1):
                    await until(lambda number=number: sum(sizes(found)) == number)
            assert min(sizes(found)) >= 32 - turns.LEAD - 32 // turns.LEAD_PART, sizes(found)

    run(main())


def test_who_has_fewer_catches_up(listener: socket.socket):
    async def main() -> None:
        with gateways(2, listener) as found:
            found[0].board.mine.connections = 100
            with crowd(listener, 80):
                await until(lambda: sum(sizes(found)) == 80)
            assert sizes(found) == [0, 80]

    run(main())


def test_one_alone_takes_all(listener: socket.socket):
    async def main() -> None:
        with crowd(listener, 200), gateways(2, listener, there=1) as found:
            started = time.monotonic()
            await until(lambda: sizes(found) == [200, 0])
            assert time.monotonic() - started < 1

    run(main())


def test_nobody_waits_long_for_one_that_does_not_move(listener: socket.socket):
    async def main() -> None:
        with crowd(listener, 200), gateways(2, listener, there=1) as found:
            found[1].board.mine.enter(1)  # it is there, and never looks
            started = time.monotonic()
            await until(lambda: sizes(found) == [200, 0])
            assert time.monotonic() - started < 2

    run(main())


class Full:
    """A listener whose process has no files left, as long as it is said; the first who waited there has left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener, self.asked, self.is_full = listener, 0, True
        self.fileno = listener.fileno

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.asked == 1:
            raise ConnectionAbortedError(errno.ECONNABORTED, "it has left")
        if self.is_full:
            raise OSError(errno.EMFILE, "too many open files")
        return self._listener.accept()


def test_without_files_it_tries_again_and_does_not_spin(listener: socket.socket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "RETRY_SECONDS", 0.01)

    async def main() -> None:
        full = Full(listener)
        with crowd(listener, 1), gateways(2, full, there=1) as found:
            asyncio.get_running_loop().call_later(0.05, setattr, full, "is_full", False)
            await until(lambda: sizes(found) == [1, 0])
            assert full.asked <= 10, "each time that it fails it waits"

    run(main())


def test_a_closed_one_takes_nobody_and_leaves_the_listener_open(listener: socket.socket):
    async def main() -> None:
        with gateways(2, listener) as found:
            found[0].turns.close()
            found[0].turns.close()
            found[0].board.mine.leave()
            with crowd(listener, 10):
                await until(lambda: sizes(found) == [0, 10])
            found[0].board.mine.enter(1)  # and takes nobody, so that the other one waits
            with crowd(listener, 1):
                await until(lambda: found[1].turns.is_waiting)
                found[1].turns.close()
                assert found[0].listener is not None
                found[0].turns.open(found[0].listener, found[0].state)
                await until(lambda: sizes(found) == [1, 10])
                over = time.monotonic() + 2 * turns.WAIT_SECONDS
                await until(lambda: time.monotonic() > over)

    run(main())


def test_an_open_connection_is_counted_until_it_ends(listener: socket.socket):
    async def main() -> None:
        with gateways(2, listener) as found, crowd(listener, 2):
            await until(lambda: sum(sizes(found)) == 2)
            (one,) = [one for one in found if one.taken][:1]
            before = one.board.mine.connections
            one.state.connections.discard(one.taken[0])  # type: ignore[arg-type]
            assert one.board.mine.connections == before - 1

    run(main())
