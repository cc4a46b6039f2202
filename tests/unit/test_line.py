"""A line whose broker does not read: what is parked, in which order it goes out, and what is not parked any more."""

from __future__ import annotations

from typing import Any

import pytest

from zmesh import line
from zmesh.config import Limits
from zmesh.line import Line
from zmesh.messages import Chunk, Credit, LeaseId, SessionId, TaskId, WorkerState
from zmesh.wire import decode

SESSION = SessionId(7)


class Socket:
    """Takes so many messages."""

    def __init__(self) -> None:
        self.room = 0
        self.taken: list[Any] = []

    def send(self, frames: Any) -> bool:
        if len(self.taken) >= self.room:
            return False
        self.taken.append(decode(frames, Limits())[1])
        return True

    def close(self, linger_ms: int) -> None: ...


class Around:
    """The context that makes sockets, and the poller that watches them."""

    def __init__(self) -> None:
        self.sockets: list[Socket] = []

    def dealer(self, endpoint: str) -> Socket:
        self.sockets.append(Socket())
        return self.sockets[-1]

    def watch(self, thing: object) -> None: ...

    def forget(self, thing: object) -> None: ...


@pytest.fixture(name="around")
def around_fixture() -> Around:
    return Around()


@pytest.fixture(name="connected")
def connected_fixture(around: Around) -> Line:
    made = Line(around, "ipc://nowhere", around, Limits(), "worker")  # type: ignore[arg-type]
    made.connect()
    return made


def event(number: int, size: int = 1) -> Chunk:
    return Chunk(1, LeaseId(1), [TaskId(1)], [number], [b"x" * size])


CREDIT = Credit(1, WorkerState.READY)


def test_what_is_parked_goes_out_first_as_soon_as_an_event_finds_room(around: Around, connected: Line):
    for message in (event(0), CREDIT, event(1)):
        connected.send(SESSION, message)
    assert connected.is_parking
    around.sockets[0].room = 9
    connected.send(SESSION, event(2))
    assert around.sockets[0].taken == [event(0), CREDIT, event(1), event(2)]
    assert not connected.is_parking


def test_events_beyond_so_many_bytes_are_lost_and_nothing_else_is(
    around: Around, connected: Line, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(line, "PARKED_EVENTS_BYTES_MAX", 1000)
    for number in range(4):
        connected.send(SESSION, event(number, 600))
    connected.send(SESSION, CREDIT)
    around.sockets[0].room = 9
    connected.flush()
    assert around.sockets[0].taken == [event(0, 600), event(1, 600), CREDIT]
    assert connected._parked_bytes == 0
    connected.send(SESSION, event(4, 600))
    assert around.sockets[0].taken[-1] == event(4, 600)


def test_events_beyond_so_many_messages_are_lost_too(around: Around, connected: Line, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(line, "PARKED_MAX", 3)
    for number in range(9):
        connected.send(SESSION, event(number))
    around.sockets[0].room = 9
    connected.flush()
    assert around.sockets[0].taken == [event(0), event(1), event(2)]


def test_a_fresh_socket_has_room_for_events_again(around: Around, connected: Line, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(line, "PARKED_EVENTS_BYTES_MAX", 100)
    for number in range(3):
        connected.send(SESSION, event(number, 200))
    connected.connect()
    connected.send(SESSION, event(3, 200))
    around.sockets[1].room = 9
    connected.flush()
    assert around.sockets[1].taken == [event(3, 200)]
