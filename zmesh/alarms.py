"""Breaking `forward` off: the timer of a stage's `timeout`, the agent's interrupt, and when either may strike.

A signal comes at any moment, and Python runs its handler between any two steps of the main thread. An exception raised
there could tear a message in two, or meet a batch that it was never meant for. So:

* Each call of `forward` has a `Call`, which is `Alarms.call` from its first step to its last. Without one nothing
  strikes, and what a signal meant for an earlier call cannot be left over in a new one.
* A handler does not trust its signal. The alarm asks the clock whether *this* call is over its time; the interrupt asks
  the slate whether the agent meant *this* lease.
* User code that calls into the library closes its `Call` for as long as that takes. What came meanwhile strikes on the
  way back.
* One call is struck once. Code that swallows the exception and goes on is left to the broker, who has it killed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any

from zmesh.core.effects import Run
from zmesh.errors import ForwardCancelled, ForwardTimeout

__all__ = ["ALARM", "ALARMS", "INTERRUPT", "Alarms", "Call"]

ALARM, INTERRUPT = int(signal.SIGALRM), int(signal.SIGUSR1)
TIMER_SECONDS_MAX = 1e8  # three years; the system refuses absurd ones
_MAIN = threading.main_thread().ident


def _nothing() -> None:
    pass


def _nobody() -> int:
    return 0


class Call:
    """One call of `forward`. Item i of what it was given is row `rows[i]` of `lease`; `cancelled` are rows that nobody
    wants any more, and may grow; `ends_at` is when it has taken too long, None for never."""

    __slots__ = ("cancelled", "ends_at", "is_open", "late", "lease", "rows", "struck_by")

    def __init__(self, lease: Run, rows: list[int], cancelled: Collection[int], ends_at: float | None = None) -> None:
        self.lease, self.rows, self.cancelled, self.ends_at = lease, rows, cancelled, ends_at
        self.is_open = True  # user code runs, and none of ours that it called
        self.late = 0  # the signal that came while it was closed
        self.struck_by = 0  # the signal that broke it off


class Alarms:
    """What may break off the `forward` of this process. Only the main thread is ever struck, so there is one: ALARMS.

    `timeout` is how long `forward` may take, in seconds (0: for ever); `listen` takes what the broker has said.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.clock, self.timeout = clock, 0.0
        self.call: Call | None = None
        self.listen: Callable[[], None] = _nothing
        self._ordered: Callable[[], int] = _nobody

    def install(self, timeout: float, ordered: Callable[[], int]) -> None:
        """Take the signals over; `ordered` tells the lease that the agent wants broken off. Only in the main thread.

        SIGALRM stays the user's own if there is no `timeout`.
        """
        self.timeout, self._ordered = timeout, ordered
        signal.signal(INTERRUPT, self._heed)
        if timeout:
            signal.signal(ALARM, self._heed)

    def run(self, call: Call, forward: Callable[[Any], Any], data: Any) -> Any:
        """`forward(data)`. Raises what it raises, and ForwardTimeout or ForwardCancelled, which may come from its very
        last step, but never after this has returned."""
        if call.ends_at is not None:
            self._start_timer(call)
        try:
            try:
                self.call = call
                return forward(data)
            finally:
                self.call = None  # the last place where it can be struck; then the line is not reached
        finally:
            self.call = None
            if call.ends_at is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def ask(self, call: Call) -> None:
        """Hear what the broker has said, for user code in `call`; in other threads, or too late, nothing happens."""
        if call is self.call and call.is_open and threading.get_ident() == _MAIN:
            self.aside(call, self.listen)

    def aside(self, call: Call, act: Callable[[], None]) -> None:
        """`act` for user code in `call`, which is not struck before that is done. In other threads nobody ever is."""
        if not call.is_open or threading.get_ident() != _MAIN:
            act()
            return
        call.is_open = False
        try:
            act()
        finally:
            call.is_open = True
            if call.late and not call.struck_by:
                self._strike(call, call.late)

    def error(self, number: int) -> ForwardTimeout | ForwardCancelled:
        """What a signal means to a `forward`."""
        if number == ALARM:
            return ForwardTimeout(f"the stage took longer than {self.timeout:g} s")
        return ForwardCancelled("nobody waits for this result any more")

    def _start_timer(self, call: Call) -> None:
        assert call.ends_at is not None, "a timer without an end"
        left = call.ends_at - self.clock()
        if left <= 0:  # earlier calls for the same batch have used it up
            self._strike(call, ALARM)
        signal.setitimer(signal.ITIMER_REAL, min(left, TIMER_SECONDS_MAX))

    def _heed(self, number: int, frame: object) -> None:
        call = self.call
        if call is None or call.struck_by or not self._concerns(number, call):
            return
        if call.is_open:
            self._strike(call, number)
        call.late = number

    def _concerns(self, number: int, call: Call) -> bool:
        if number == ALARM:
            return call.ends_at is not None and self.clock() >= call.ends_at
        return self._ordered() == call.lease.lease

    def _strike(self, call: Call, number: int) -> None:
        call.struck_by = number
        raise self.error(number)


ALARMS = Alarms()


def _forget_broker() -> None:
    """A child that user code has forked has our memory but not our connection: libzmq would wait for ever there."""
    ALARMS.listen = _nothing


os.register_at_fork(after_in_child=_forget_broker)
