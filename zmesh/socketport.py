"""How a gateway speaks with a broker in another process: a DEALER on an event loop, behind the same `Port` as a call.

Everything that is decided about loss is the link's. This end knows two things of it: the connection that its monitor
saw break, and a message that cannot be read; both are told as `lost`, and the link asks for a new socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from zmesh.config import Limits
from zmesh.core.events import Heard
from zmesh.line import Line
from zmesh.messages import Message, SessionId
from zmesh.transport import Context, Dealer, Monitor

__all__ = ["SocketPort"]


def _nobody(*args: object) -> None:
    pass


class SocketPort:
    """A `Port` to the broker at `endpoint`. Belongs to the thread of its loop."""

    def __init__(self, context: Context, endpoint: str, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._line = Line(context, endpoint, self, limits, "gateway")
        self._hear: Callable[[SessionId, Message], None] = _nobody
        self._lost: Callable[[], None] = _nobody
        self._dealer: Dealer | None = None
        self._monitor: Monitor | None = None
        self._scheduled = False
        self._flushing: asyncio.TimerHandle | None = None

    def open(self, hear: Callable[[SessionId, Message], None], lost: Callable[[], None]) -> None:
        self._hear, self._lost = hear, lost
        self._line.connect()

    def send(self, session: SessionId, message: Message) -> None:
        self._line.send(session, message)
        self._look_again()

    def breathe(self) -> None:
        """That broker needs nothing of our loop."""

    def close(self) -> None:
        self._line.disconnect()
        self._hear = self._lost = _nobody

    # What the line's socket needs of our loop.

    def watch(self, thing: Dealer, /) -> None:
        self._dealer, self._monitor = thing, thing.monitor()
        self._loop.add_reader(thing.fd, self._read)
        self._loop.add_reader(self._monitor.fd, self._notice)
        self._loop.call_soon(self._notice)

    def forget(self, thing: Dealer, /) -> None:
        self._loop.remove_reader(thing.fd)
        self._loop.remove_reader(thing.monitor().fd)
        self._dealer = self._monitor = None

    def _read(self) -> None:
        self._scheduled = False
        self._line.flush()
        for event in self._line.receive():
            if isinstance(event, Heard):
                self._hear(event.session, event.message)
            else:
                self._lost()
        self._look_again()

    def _notice(self) -> None:
        if self._monitor is not None and self._monitor.take():
            self._read()  # what arrived before the connection broke still counts
            self._lost()

    def _look_again(self) -> None:
        """Sending and receiving use the descriptor's signal up, so ask whether there is more; and what is parked waits
        for room, which only asking shows."""
        if not self._scheduled and self._dealer is not None and self._dealer.pending():
            self._scheduled = True
            self._loop.call_soon(self._read)
        if self._line.is_parking and self._flushing is None:
            self._flushing = self._loop.call_later(self._line.patience() or 0.0, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        if self._line.is_overfull:
            self._lost()
        elif self._dealer is not None:
            self._line.flush()
            self._look_again()
