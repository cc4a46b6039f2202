"""`current_task`: what the code in `forward` can ask about the items in its hands."""

from __future__ import annotations

import logging

from zmesh.alarms import ALARMS, Call
from zmesh.logs import get_logger

__all__ = ["CurrentTask", "current_task", "running_request"]


class CurrentTask:
    """One item of a batch. It may be kept, and read in any thread, also when its `forward` has ended."""

    __slots__ = ("_call", "_row")

    def __init__(self, call: Call, row: int) -> None:
        self._call, self._row = call, row

    @property
    def id(self) -> int:
        """Its number in the mesh, the same at every stage."""
        return self._call.lease.columns.ids[self._row]

    @property
    def request_id(self) -> str | None:
        """`x-request-id` of the request, as in the log and in the answer; None if it came without one."""
        return _request_id(self._call, self._row)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """`get_logger()`, with what is said marked by the id of this item's request."""
        return logging.LoggerAdapter(get_logger(), {"request_id": self.request_id})

    @property
    def attempt(self) -> int:
        """1 when it runs at this stage for the first time; one more each time a worker was lost with it."""
        return self._call.lease.columns.attempts[self._row]

    @property
    def remaining(self) -> float:
        """Seconds until its deadline, after which nobody waits for the answer; 0 from then on."""
        return max(0.0, self._call.lease.deadlines[self._row] - ALARMS.clock())

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for its answer any more: the client left, or the deadline is over.

        In the main thread, where `forward` runs, this hears what the broker has said by now, which takes a few
        microseconds. In other threads it is what was heard last.
        """
        ALARMS.ask(self._call)
        return self._row in self._call.cancelled or self.remaining <= 0


def current_task(i: int = 0) -> CurrentTask:
    """Item `i` of what `forward` was given. Raises RuntimeError outside of `forward`, IndexError if there is no such
    item.

        def forward(self, batch: list[str]) -> list[str | None]:
            return [None if zmesh.current_task(i).cancelled else self.model(text) for i, text in enumerate(batch)]
    """
    call = ALARMS.call
    if call is None:
        raise RuntimeError("current_task works only while forward runs in a mesh; nothing is in hand here")
    if not 0 <= i < len(call.rows):
        raise IndexError(f"current_task({i}): forward was given {len(call.rows)} items, counted from 0")
    return CurrentTask(call, call.rows[i])


def running_request() -> str | None:
    """`x-request-id` of what `forward` was given, if that is a single item: then whatever it logs is about this."""
    call = ALARMS.call
    return _request_id(call, call.rows[0]) if call is not None and len(call.rows) == 1 else None


def _request_id(call: Call, row: int) -> str | None:
    contexts = call.lease.columns.contexts
    context = contexts[row] if contexts else None
    return context.get("request_id") if context else None
