"""One alarm clock of the kernel on an event loop: some 0.05 ms late, where a timer of the loop goes in steps of 1 ms.

Linux only, as the rest of zmesh. `os.timerfd_create` comes with Python 3.13; until that is the oldest, by ctypes.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

__all__ = ["Timer"]

TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME = os.O_NONBLOCK, os.O_CLOEXEC, 1  # <sys/timerfd.h>


class _Times(ctypes.Structure):
    """struct itimerspec: the interval, which stays 0, and the moment."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Timer:
    """Calls `ring` when `time.monotonic()` reaches what it was set to. Made and closed on the loop."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._times = _Times()
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._rung)

    def set(self, moment: float) -> None:
        """Ring at `moment`, or at once if it is over; what it was set to before is forgotten."""
        nanoseconds = max(1, int(moment * 1e9))  # 0 would stop it
        self._times.seconds, self._times.nanoseconds = divmod(nanoseconds, 1_000_000_000)
        if self._libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(self._times), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _rung(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # it was set again meanwhile
        self._ring()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
