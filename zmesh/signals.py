"""Signals that mean "stop", from the first moment of a program to its last.

While a program is still being imported there is nothing to finish, so `ending_early` lets it end at once, with 0. Once
its agent runs, `Signals` makes them something to read. In between none is lost: one that came while something swallowed
the early end is the first that `Signals` tells of.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

__all__ = ["STOPPING", "Signals", "end_early", "ending_early"]

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_former: dict[int, Any] = {}  # the handlers that `_end` stands in for
_came: list[int] = []  # before anybody could read them


@contextmanager
def ending_early() -> Iterator[None]:
    """Within this the signals end the process with 0, unless `Signals` has them or somebody else took them."""
    end_early(*STOPPING)
    try:
        yield
    finally:
        for number in [number for number in _former if signal.getsignal(number) is _end]:
            signal.signal(number, _former.pop(number))


def end_early(*numbers: signal.Signals) -> None:
    """From now on these signals end the process with 0. What nohup told it to ignore stays ignored."""
    for number in numbers:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            try:
                _former[number] = signal.signal(number, _end)
            except ValueError:
                return  # only in the main thread


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _came.append(number)
    raise SystemExit(0)


class Signals:
    """SIGINT, SIGTERM and SIGHUP as something to read from `fd`, while this is entered; with `children` SIGCHLD too.

    Only in the main thread.
    """

    def __init__(self, *, children: bool = False) -> None:
        self._numbers = (*STOPPING, signal.SIGCHLD) if children else STOPPING

    def __enter__(self) -> Signals:
        import socket  # which takes longer than all the rest of this module

        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self.fd = self._ours.fileno()
        self._wakeup_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, _noted)
            for number in self._numbers
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup
        }
        self._theirs.send(bytes(_came))
        _came.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            # Not the early one: what ends now has an exit code of its own.
            signal.signal(number, _former.pop(number, signal.SIG_DFL) if handler is _end else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._ours.close()
        self._theirs.close()

    def take(self) -> list[signal.Signals]:
        """Those that came since this was last asked, in order."""
        try:
            return [signal.Signals(number) for number in self._ours.recv(4096) if number in self._before]
        except BlockingIOError:
            return []


def _noted(number: int, frame: FrameType | None) -> None:
    pass  # the wake-up descriptor has it
