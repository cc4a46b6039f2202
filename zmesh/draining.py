"""`zmesh drain`: have a running mesh, or all that runs on one host of it, finish and go, and wait until it has.

The broker is asked, and passes it on to the agents concerned: to the one that started it, or to those of a host. They
do what a SIGTERM makes them do. How far they are is seen in the broker's snapshot, and in the end by its silence.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from time import monotonic
from typing import Any

from zmesh.addresses import broker_address
from zmesh.config import Limits
from zmesh.errors import DrainExpired, StartError, UsageError, WireError
from zmesh.messages import (
    PROTOCOL_VERSION,
    Drain,
    Goodbye,
    Hello,
    Message,
    PeerId,
    Refuse,
    RefuseCode,
    Role,
    SessionId,
    Stats,
    Welcome,
)
from zmesh.transport import Context, Poller, is_in_use
from zmesh.wire import decode, encode

__all__ = ["Errand", "drain", "errand"]

NOBODY_SECONDS = 3.0  # for a broker to answer at all
RETURN_SECONDS = 2.0  # for one that was lost before it had heard us to be there again
ASK_SECONDS = 0.1  # between two questions
WAIT_SECONDS = 60.0  # when those who drain take the time that they were started with
LEAVING_SECONDS = 10.0  # from the end of a drain to that of the last process
GOODBYE_MS = 500


@dataclass(frozen=True, slots=True)
class Errand:
    """`where` is how the user calls it. `seconds` 0: as long as they were started with."""

    endpoint: str
    where: str
    path: str
    host: str
    seconds: float

    @property
    def patience(self) -> float:
        return (self.seconds or WAIT_SECONDS) + LEAVING_SECONDS

    @property
    def whom(self) -> str:
        return f"host {self.host}" if self.host else f"the mesh at {self.where}"


def errand(connect: str, path: str, host: str, *, insecure: bool, seconds: float) -> Errand:
    """Raises UsageError for flags that do not go together, StartError when no run has that directory."""
    if connect and path:
        raise UsageError("--connect and --path contradict each other; leave one of them out")
    if connect:
        return Errand(broker_address("--connect", connect, 0, insecure=insecure), connect, "", host, seconds)
    if not path:
        raise UsageError("drain needs --connect tcp://HOST:PORT or --path DIR, what the head was told")
    if not is_in_use(path):
        raise StartError(f"no mesh has its sockets in {path}; give the --path that zmesh run was told")
    return Errand(f"ipc://{os.path.abspath(path)}/front.s", path, path, host, seconds)


class _Admin:
    """A way to a broker that asks it, again and again, how it is. `snapshot` is its latest answer."""

    def __init__(self, context: Context, endpoint: str) -> None:
        self._dealer, self._poller = context.dealer(endpoint), Poller()
        self._poller.watch(self._dealer)
        self._peer = PeerId(os.urandom(16))
        self._connection, self._ask_at = 1, 0.0
        self._session = SessionId(0)
        self.epoch = 0
        self.lost_at: float | None = None  # a broker that had answered
        self.snapshot: dict[str, Any] = {}  # empty before the first answer

    def say(self, message: Message) -> None:
        if not self._dealer.send(encode(message, self._session)):
            self._lose()

    def ask(self) -> None:
        """Once more, and hear what there is to hear. Raises StartError when we are refused."""
        now = monotonic()
        if now >= self._ask_at:
            self._ask_at = now + ASK_SECONDS
            self.say(Stats() if self._session else self._hello())
        self._poller.wait(max(0.0, self._ask_at - now))
        while (frames := self._dealer.receive()) is not None:
            try:
                self._hear(*decode(frames, Limits()))
            except (WireError, ValueError) as error:
                raise StartError(f"what answers is no broker of this version: {error}") from error

    def close(self) -> None:
        if self._session:
            self.say(Goodbye([]))
        self._dealer.close(GOODBYE_MS)

    def _hello(self) -> Hello:
        return Hello([PROTOCOL_VERSION], Role.ADMIN, self._peer, self._connection, socket.gethostname(), os.getpid())

    def _hear(self, session: SessionId, message: Message) -> None:
        match message:
            case Welcome():
                self._session, self.epoch, self.lost_at = message.session, message.epoch, None
            case Stats() if session == self._session:
                self.snapshot = dict(json.loads(message.snapshot))
            case Refuse(code=RefuseCode.UNKNOWN_PEER):
                self._lose()
            case Refuse():
                raise StartError(f"the broker refuses us: {message.text}")

    def _lose(self) -> None:
        if self._session:
            self._connection += 1
            self._session, self.lost_at = SessionId(0), monotonic()


def drain(errand: Errand) -> str:
    """What happened, in a line. Raises StartError when nobody is there, DrainExpired when they take too long."""
    context = Context()
    admin = _Admin(context, errand.endpoint)
    try:
        _find(admin, errand)
        _Watch(errand, admin.snapshot).until_gone(admin)
    finally:
        admin.close()
        context.close()
    return f"{errand.whom} has left"


def _find(admin: _Admin, errand: Errand) -> None:
    """Until there is whom to drain. Workers may have joined a moment before their agent."""
    until = monotonic() + NOBODY_SECONDS
    while not admin.snapshot or (errand.host and errand.host not in _hosts(admin)):
        if monotonic() >= until:
            if admin.snapshot:
                raise StartError(f"no host {errand.host} has joined; the hosts are: {', '.join(_hosts(admin))}")
            raise StartError(f"no broker answers at {errand.where}; is it what the head was told to --bind?")
        admin.ask()


def _hosts(admin: _Admin) -> list[str]:
    return sorted({str(agent["host"]) for agent in admin.snapshot["agents"]})


class _Watch:
    """Over those who are to go. `is_asked` once the broker has shown that it passed it on."""

    def __init__(self, errand: Errand, snapshot: dict[str, Any]) -> None:
        self._errand, self._epoch, self.is_asked = errand, 0, False
        self._agents = {(agent["host"], agent["pid"]) for agent in snapshot["agents"] if agent["host"] == errand.host}

    def until_gone(self, admin: _Admin) -> None:
        """Raises DrainExpired."""
        errand = self._errand
        until = monotonic() + errand.patience
        while not self._is_gone(admin):
            if monotonic() >= until:
                text = f"{errand.whom} has not left within {errand.patience:g} s; it goes on by itself"
                raise DrainExpired(text)
            if admin.lost_at is None and admin.epoch != self._epoch:
                self._epoch = admin.epoch
                admin.say(Drain(int(errand.seconds * 1000), "zmesh drain", errand.host))
            admin.ask()
            if errand.host:
                self.is_asked = self.is_asked or any(agent["draining"] for agent in self._there(admin))
            else:
                self.is_asked = self.is_asked or admin.snapshot["draining"]

    def _is_gone(self, admin: _Admin) -> bool:
        errand = self._errand
        if admin.lost_at is not None:
            is_broker_gone = self.is_asked or monotonic() - admin.lost_at > RETURN_SECONDS
            return is_broker_gone and not (errand.path and is_in_use(errand.path))
        if not errand.host:
            return self.is_asked and admin.epoch != self._epoch  # another one is in its place already
        return not any(agent["draining"] or not self.is_asked for agent in self._there(admin))

    def _there(self, admin: _Admin) -> list[dict[str, Any]]:
        """Of those who were there when we came."""
        return [agent for agent in admin.snapshot["agents"] if (agent["host"], agent["pid"]) in self._agents]
