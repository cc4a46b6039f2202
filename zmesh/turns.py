"""Who of several gateways takes a new connection: the one that has the fewest.

They listen on one socket, and the kernel tells all of them that somebody waits there; the first to look would take a
whole crowd, and of single ones who come one after the other the same gateway might be the first each time. So one that
has more connections than another leaves them to it. It looks again a moment later, and if the others have not moved
(they are busy, or stuck), it takes a few, and more each time: a client waits for some milliseconds at most.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sized
from typing import Any

from uvicorn.server import ServerState

from zmesh.board import Board, Row

__all__ = ["Connections", "Turns"]

ALONE = 64  # connections taken in one turn of the loop where there is no other gateway
LEAD = 4  # connections that one may have more than another; and an eighth of what each has
LEAD_PART = 8
WAIT_SECONDS = 0.01  # for the others to move
RETRY_SECONDS = 0.1  # when there are no files left


class Connections(set[Any]):
    """All that are open; their number is on the board."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self._row = row

    def add(self, one: object) -> None:
        super().add(one)
        self._row.connections = len(self)

    def discard(self, one: object) -> None:
        super().discard(one)
        self._row.connections = len(self)


class Turns:
    """`welcome` is called with each connection that is ours; `arriving` are those of them that are not open yet."""

    def __init__(self, board: Board, welcome: Callable[[socket.socket], None], arriving: Sized) -> None:
        self._board, self._welcome, self._arriving = board, welcome, arriving
        self._listener: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._vain = 0  # waits in a row in which the others did not move

    @property
    def is_waiting(self) -> bool:
        """For others to take who is there, or for files."""
        return self._timer is not None

    def open(self, listener: socket.socket, state: ServerState) -> None:
        """Take who waits there, from now on; `state` knows the open ones."""
        self._listener, state.connections = listener, Connections(self._board.mine)
        self._board.mine.enter(os.getpid())
        self._watch()

    def close(self) -> None:
        """The listener stays open."""
        if self._timer is not None:
            self._timer.cancel()
        elif self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener = self._timer = None

    def _watch(self) -> None:
        self._timer = None
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._look)

    def _room(self) -> int:
        """How many we may take before we are too far ahead of another gateway."""
        others = self._board.others()
        if not others:
            return ALONE
        own = self._board.mine.connections + len(self._arriving)
        return min(others) + LEAD + (own + sum(others)) // (LEAD_PART * (1 + len(others))) - own

    def _look(self) -> None:
        """Somebody waits."""
        if (room := self._room()) > 0:
            self._vain = 0
            self._take(room)
        else:
            self._pause(WAIT_SECONDS, self._look_again, self._board.others())

    def _look_again(self, before: list[int]) -> None:
        """After a wait. Who waited in vain takes one connection more than the time before."""
        self._watch()
        if self._room() > 0 or self._board.others() != before:
            self._vain = 0
            return
        self._vain = min(self._vain + 1, ALONE)
        if self._take(self._vain) < self._vain:
            self._vain = 0

    def _take(self, most: int) -> int:
        """How many there were, of so many at most."""
        assert self._listener is not None, "it is open as long as anybody looks"
        for number in range(most):
            try:
                sock = self._listener.accept()[0]
            except BlockingIOError:
                return number
            except ConnectionError:
                continue  # the client has left already
            except OSError:  # no files left, or no memory
                self._pause(RETRY_SECONDS, self._watch)
                return number
            self._welcome(sock)
        return most

    def _pause(self, seconds: float, then: Callable[..., None], *arguments: object) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None, "it is open as long as anybody looks"
        loop.remove_reader(self._listener.fileno())
        self._timer = loop.call_later(seconds, then, *arguments)
