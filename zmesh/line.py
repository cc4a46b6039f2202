"""A program's way to its broker: one DEALER that is made anew on demand and never waits.

What cannot be sent at once is parked and goes out first, in order. The owner tries again by `flush` every few
milliseconds while something is parked, since a socket tells of room only when it is asked. A worker says more events of
streams than can be parked only while its broker is away, and then they are lost. How its owner waits, in a
poller or in an event loop, is the owner's business: a `Watcher` is told of each socket that comes and goes.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from time import monotonic
from typing import Protocol

from zmesh.config import Limits
from zmesh.conversation import Conversation
from zmesh.core.events import Heard, LinkLost
from zmesh.crashing import CRASHING, crash_at
from zmesh.errors import WireError
from zmesh.messages import Chunk, Hello, Message, SessionId, Welcome
from zmesh.transport import Context, Dealer, Frames
from zmesh.wire import decode, encode

__all__ = ["PARKED_MAX", "Line", "Watcher", "line_class"]

PARKED_MAX = 4096  # messages; with a broker that reads it is a handful
PARKED_EVENTS_BYTES_MAX = 64 * 1024 * 1024  # of what is parked; beyond, events of streams are not
RETRY_SECONDS = 0.005  # at first; with each try in vain twice as long
RETRY_SECONDS_MAX = 0.05

log = logging.getLogger("zmesh.line")


class Watcher(Protocol):
    """Waits for a socket to become readable, from `watch` to `forget`."""

    def watch(self, thing: Dealer, /) -> None: ...

    def forget(self, thing: Dealer, /) -> None: ...


class Line:
    """`connect` before anything else. Belongs to one thread. `owner` is the role of who speaks by it."""

    def __init__(self, context: Context, endpoint: str, watcher: Watcher, limits: Limits, owner: str = "") -> None:
        self._context, self._endpoint, self._watcher, self._limits = context, endpoint, watcher, limits
        self._owner = owner
        self._dealer: Dealer | None = None
        self._parked: deque[Frames] = deque()
        self._parked_bytes = 0
        self._retry_seconds = RETRY_SECONDS

    @property
    def is_parking(self) -> bool:
        return bool(self._parked)

    def patience(self, *moments: float | None) -> float | None:
        """How many seconds its owner may wait for the first of these moments; None for as long as nothing happens."""
        due = [moment for moment in moments if moment is not None]
        seconds = max(0.0, min(due) - monotonic()) if due else None
        if self._parked:
            return self._retry_seconds if seconds is None else min(seconds, self._retry_seconds)
        return seconds

    @property
    def is_overfull(self) -> bool:
        """The broker has not read for so long that the connection is worth nothing."""
        return len(self._parked) >= PARKED_MAX

    def connect(self) -> None:
        """A fresh socket; whatever was parked for the former one is forgotten."""
        self.disconnect()
        self._dealer = self._context.dealer(self._endpoint)
        self._watcher.watch(self._dealer)

    def disconnect(self, linger_ms: int = 0) -> None:
        """With `linger_ms`, what was handed to the socket may still leave in that time."""
        self._forget()
        if self._dealer is not None:
            self._watcher.forget(self._dealer)
            self._dealer.close(linger_ms)
            self._dealer = None

    def send(self, session: SessionId, message: Message) -> None:
        if self._dealer is None:
            return
        if type(message) is Hello:
            self._forget()  # nothing else can be there before a session, and one greeting is enough
        if CRASHING:
            crash_at(f"{self._owner}.sending", message)
        if self._parked and type(message) is Chunk:
            self.flush()  # there may be many more before its owner comes back to that
            if self.is_overfull or self._parked_bytes > PARKED_EVENTS_BYTES_MAX:
                return
        frames = encode(message, session)
        if self._parked or not self._dealer.send(frames):
            self._parked.append(frames)
            self._parked_bytes += sum(map(len, frames))
        elif CRASHING:
            crash_at(f"{self._owner}.sent", message)

    def flush(self) -> None:
        """Send what is parked, as far as there is room."""
        tried, count = bool(self._parked), len(self._parked)
        while self._parked and self._dealer is not None and self._dealer.send(self._parked[0]):
            self._parked_bytes -= sum(map(len, self._parked.popleft()))
        in_vain = tried and len(self._parked) == count
        self._retry_seconds = min(2 * self._retry_seconds, RETRY_SECONDS_MAX) if in_vain else RETRY_SECONDS

    def _forget(self) -> None:
        self._parked.clear()
        self._parked_bytes = 0

    def receive(self) -> list[Heard | LinkLost]:
        """Everything there is now. After a message that cannot be read nothing can be relied on: the link is lost."""
        heard: list[Heard | LinkLost] = []
        while self._dealer is not None and (frames := self._dealer.receive()) is not None:
            try:
                session, message = decode(frames, self._limits)
                if type(message) is Welcome:  # the broker may have been told of larger requests than we were
                    self._limits = replace(self._limits, frame_bytes_max=message.frame_bytes_max)
                if CRASHING:
                    crash_at(f"{self._owner}.heard", message)
                heard.append(Heard(session, message))
            except WireError as error:
                log.error("a message from the broker cannot be read; connecting anew: %s", error)
                heard.append(LinkLost())
        return heard


class TalkingLine(Line):
    """The same, for somebody who debugs."""

    _talk = Conversation(log)  # one to a process

    def connect(self) -> None:
        super().connect()
        self._talk.became(f"looking for the broker at {self._endpoint}")

    def send(self, session: SessionId, message: Message) -> None:
        if self._dealer is not None:
            self._talk.said("broker", message)
        super().send(session, message)

    def receive(self) -> list[Heard | LinkLost]:
        events = super().receive()
        for event in events:
            if isinstance(event, Heard):
                self._talk.heard("broker", event.message)
                if type(event.message) is Welcome:
                    self._talk.became("joined the broker")
            else:
                self._talk.became("lost the broker")
        return events


def line_class(log_level: str) -> type[Line]:
    return TalkingLine if log_level == "debug" else Line
