"""Connections that rest are closed in the order in which they began, by one timer."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from tests.unit.test_gateway import until
from zmesh.resting import Rest, Resting


class Connection:
    def __init__(self, resting: Resting, ended: list[Connection]) -> None:
        self.rest, self._ended, self.ended_at = Rest(resting, self), ended, 0.0

    def timeout_keep_alive_handler(self) -> None:
        self._ended.append(self)
        self.ended_at = asyncio.get_running_loop().time()


def test_who_rests_too_long_is_ended_and_nobody_else():
    async def main() -> None:
        loop, ended = asyncio.get_running_loop(), list[Connection]()
        resting = Resting(0.05)
        one, two, busy = (Connection(resting, ended) for _ in range(3))
        began = loop.time()
        one.rest.begin()
        busy.rest.begin()
        two.rest.begin()
        busy.rest.cancel()
        await until(lambda: len(ended) == 2)
        assert ended == [one, two] and min(one.ended_at, two.ended_at) >= began + 0.05
        assert not resting.rests
        one.rest.begin()
        two.rest.begin()
        one.rest.begin()  # again: it is now the younger
        two.rest.cancel()
        two.rest.cancel()  # which is nothing
        await until(lambda: len(ended) == 3)
        assert ended[2] is one and not resting.rests

    uvloop.run(asyncio.wait_for(main(), 20))


def test_a_connection_that_is_gone_is_forgotten_at_once():
    async def main() -> None:
        ended: list[Connection] = []
        resting = Resting(0.05)
        gone, other = Connection(resting, ended), Connection(resting, ended)
        gone.rest.begin()
        other.rest.begin()
        gone.rest.forget()
        gone.rest.forget()  # which is nothing
        assert list(resting.rests) == [other.rest]
        await until(lambda: bool(ended))
        assert ended == [other]

    uvloop.run(asyncio.wait_for(main(), 20))


def test_thousands_of_rests_are_one_timer(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        made: list[float] = []
        loop = asyncio.get_running_loop()

        class Counting:
            def call_later(self, seconds: float, callback: object) -> object:
                made.append(seconds)
                return loop.call_later(seconds, lambda: None)

            def time(self) -> float:
                return loop.time()

        resting = Resting(60)
        connection = Connection(resting, [])
        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "get_running_loop", Counting)
            for _ in range(1000):
                connection.rest.begin()
                connection.rest.cancel()
        assert made == [60]

    uvloop.run(main())
