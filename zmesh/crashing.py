"""Crashes on demand, for tests: `ZMESH_CRASH_AT=POINT[:N][@FILE]`, or several of these with commas between them.

The process that comes to POINT for the Nth time ends there by SIGKILL, as if from outside. With FILE it does so once:
the file is made just before, with the number of the process in it, and as long as it is there nobody ends at POINT. So
the successor lives, and a test that makes the file first strikes at a moment of its own by taking it away.

Most points lie right before a message is sent, right after, or right after it was heard and before anything was done
about it: `broker.sending.tasks`. docs/testing.md says of each what it lies between.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from functools import cache

from zmesh.errors import UsageError
from zmesh.messages import Message

__all__ = ["CRASHING", "POINTS", "VARIABLE", "check", "crash_at"]

log = logging.getLogger("zmesh.agent")

VARIABLE = "ZMESH_CRASH_AT"
CRASHING = bool(os.environ.get(VARIABLE))
"""Whether anything is set. Asked before each call on the way of a message, where a call in vain would cost."""

POINTS = frozenset(
    {
        "worker.heard.welcome",
        "worker.heard.tasks",
        "worker.forward",
        "worker.sending.results",
        "worker.between_results",
        "worker.sent.results",
        "worker.heard.ack",
        "worker.sending.goodbye",
        "broker.heard.hello",
        "broker.heard.submit",
        "broker.sending.tasks",
        "broker.sent.tasks",
        "broker.heard.results",
        "broker.next_step",
        "broker.sending.reply",
        "broker.sent.reply",
        "broker.heard.exited",
        "gateway.sent.submit",
        "gateway.heard.reply",
        "agent.spawned",
        "agent.sending.exited",
        "agent.sent.exited",
    }
)
SENT_SECONDS = 0.02  # for what was handed to libzmq to leave: it is sent by another thread of this process


@dataclass(slots=True)
class _Order:
    point: str
    times: int  # left until it strikes
    file: str

    def reach(self) -> None:
        self.times -= 1
        if self.times <= 0 and (not self.file or self._is_first()):
            if ".sent." in self.point:
                time.sleep(SENT_SECONDS)
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_first(self) -> bool:
        """Whether nobody was here before, in this process or another."""
        try:
            file = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return False
        os.write(file, b"%d\n" % os.getpid())
        os.close(file)
        return True


def check() -> None:
    """Raises UsageError when the variable cannot be read or names a point that there is not."""
    if _orders():
        log.warning("%s is set: processes end themselves at %s", VARIABLE, ", ".join(o.point for o in _orders()))


def crash_at(place: str, message: Message | None = None) -> None:
    """This process is at `place`, with `message` if it is a place where messages pass. May not return."""
    point = place if message is None else f"{place}.{type(message).__name__.lower()}"
    for order in _orders():
        if order.point == point:
            order.reach()


@cache
def _orders() -> tuple[_Order, ...]:
    return tuple(_order(text) for text in os.environ.get(VARIABLE, "").split(",") if text)


def _order(text: str) -> _Order:
    where, _, file = text.partition("@")
    point, _, times = where.partition(":")
    if point not in POINTS:
        raise UsageError(f"{VARIABLE} names a point that there is not: {point!r}; docs/testing.md lists them")
    if times and not (times.isascii() and times.isdigit() and len(times) < 10 and int(times)):
        raise UsageError(f"{VARIABLE}: what follows {point}: must be a number from 1, not {times!r}")
    if file and not os.path.isdir(os.path.dirname(file) or "."):
        raise UsageError(f"{VARIABLE}: there is no directory for the file {file}")
    return _Order(point, int(times or 1), file)
