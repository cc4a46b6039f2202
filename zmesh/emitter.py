"""What an `SSEWorker` says to its clients while its `forward` runs.

`forward` speaks by `send_stream_event`, or is a generator, or returns an iterator: then each `yield` is an event, for
a batch a list with one text, or None for nothing, per item. An exception instance in the place of a text ends the
stream of that item with it. What `forward` returns in the end is not sent; None stands for nothing to return.

* An event for an item that nobody waits for any more goes nowhere, and so does an empty one. A generator is closed once
  nobody waits for any of its items.
* What was said cannot be taken back, so an item that has said something is not run again, as others are when a
  `forward` raises.
* Only the item whose route ends here has a client to speak to. For others, and in a warm-up, events are checked and
  dropped.
* Code of the user may speak from other threads until its `forward` ends. The way to the broker belongs to the main
  thread, so everybody takes turns by a lock; nobody ever waits for a reader.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator, Iterator, Sequence
from functools import partial
from typing import Any

from zmesh.alarms import ALARMS, Alarms, Call
from zmesh.core.events import RowsStreamed
from zmesh.errors import ForwardCancelled, ForwardTimeout
from zmesh.messages import EVENT_BYTES_MAX, Payload, State
from zmesh.worker import SSEWorker, Worker

__all__ = ["Emitter", "emitter_of"]

log = logging.getLogger("zmesh.worker")

_EGRESS = int(State.EGRESS)


class WrongYield(Exception):
    """A generator `forward` yields what is no event. A mistake in the worker's code."""


def emitter_of(worker: Worker, alarms: Alarms = ALARMS) -> Emitter | None:
    """The one by which this worker speaks from now on; None for a worker that has nothing to say."""
    return Emitter(worker, alarms) if isinstance(worker, SSEWorker) else None


class Emitter:
    """One per worker. Nothing is sent before `open`."""

    def __init__(self, worker: SSEWorker, alarms: Alarms) -> None:
        self._worker, self._alarms = worker, alarms
        self._is_batch, self._process = worker.max_batch_size > 1, os.getpid()
        self._lock = threading.RLock()  # a handler of logs or signals may speak too
        self._say: Callable[[RowsStreamed], None] | None = None
        self._listen: Callable[[], None] = _nothing
        self._said: set[int] = set()
        self._was_warned = False
        worker._emit = self.emit  # a part of SSEWorker that is not for users

    def open(self, say: Callable[[RowsStreamed], None], listen: Callable[[], None]) -> Callable[[], None]:
        """A lease begins, whose events go to `say`. `listen`, as it may be called from now on."""
        self._say, self._listen = say, listen
        self._said.clear()
        return self._listen_alone

    def end_call(self) -> None:
        """After `forward`: no other thread is in the middle of saying something."""
        with self._lock:
            pass

    def has_said(self, rows: Collection[int]) -> list[int]:
        """Those of these rows of the lease whose clients were told something."""
        return [row for row in rows if row in self._said]

    def emit(self, text: str, index: int) -> None:
        """What `send_stream_event` does."""
        if os.getpid() != self._process:
            raise RuntimeError("send_stream_event works in the process of the worker, not in one that it has forked")
        call = self._alarms.call
        if call is None:
            raise RuntimeError("send_stream_event works only while forward runs, and nothing runs here")
        if not 0 <= index < len(call.rows):
            raise IndexError(f"send_stream_event to item {index}: forward was given {len(call.rows)} items, from 0")
        self._send(call, [(index, _bytes_of(text))])

    # ── forward ───────────────────────────────────────────────────────────────────────────────────────────────────

    def forward(self, data: Any) -> Any:
        """The worker's `forward`, whatever kind it is, as one that returns."""
        call = self._alarms.call
        assert call is not None, "a forward runs in a call"
        ended: dict[int, BaseException] = {}
        results = self._worker.forward(data)
        if isinstance(results, Iterator):
            results = self._drain(call, results, ended)
        elif isinstance(results, AsyncGenerator | Coroutine):
            if isinstance(results, Coroutine):
                results.close()  # or Python would say that nobody has awaited it
            raise WrongYield("forward must not be async: yield from an ordinary generator, or call send_stream_event")
        self._note_unwanted(call, ended)  # one that was left by `forward` must not look as if it had ended well
        if not self._is_batch:
            return ended.get(0, results)
        results = [None] * len(call.rows) if results is None else results
        if not ended or not isinstance(results, Collection):
            return results
        return [ended.get(index, result) for index, result in enumerate(results)]

    def _drain(self, call: Call, events: Iterator[Any], ended: dict[int, BaseException]) -> Any:
        """What a generator returns, or None if nobody is left to listen; who has ended before is in `ended`."""
        try:
            while len(ended) < len(call.rows):
                try:
                    said = next(events)
                except StopIteration as end:
                    return end.value
                self._send_all(call, self._texts_of(said, len(call.rows)), ended)
                self._note_unwanted(call, ended)
        finally:
            if isinstance(events, Generator):
                events.close()
        return None

    def _send_all(self, call: Call, texts: Sequence[Any], ended: dict[int, BaseException]) -> None:
        """One event for each item that has one; an error in the place of an event is noted in `ended`."""
        events = []
        for index, text in enumerate(texts):
            if index in ended or text is None:
                continue
            if isinstance(text, BaseException):
                ended[index] = text
            else:
                events.append((index, _bytes_of(text)))
        self._send(call, events)

    def _note_unwanted(self, call: Call, ended: dict[int, BaseException]) -> None:
        for index, row in enumerate(call.rows):
            if index not in ended and (error := self._why_unwanted(call, row)) is not None:
                ended[index] = error

    def _texts_of(self, said: Any, count: int) -> Sequence[Any]:
        if not self._is_batch:
            return [said]
        if not isinstance(said, list | tuple):
            raise WrongYield(f"forward must yield a list with one text or None per item, not {type(said).__name__}")
        if len(said) != count:
            raise WrongYield(f"forward got {count} items and yielded {len(said)} texts; it must be as many")
        return said

    # ── sending ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, call: Call, events: list[tuple[int, bytes]]) -> None:
        self._alarms.aside(call, partial(self._send_alone, call, events))

    def _send_alone(self, call: Call, events: list[tuple[int, bytes]]) -> None:
        with self._lock:
            if self._say is None or self._alarms.call is not call:
                return  # a warm-up; or the call ended while another thread was on its way here
            self._listen()
            rows: list[int] = []
            payloads: list[Payload] = []
            for index, payload in events:
                row = call.rows[index]
                if payload and self._has_client(call, row) and self._why_unwanted(call, row) is None:
                    rows.append(row)
                    payloads.append(payload)
            if rows:
                self._said.update(rows)
                self._say(RowsStreamed(rows, payloads))

    def _listen_alone(self) -> None:
        with self._lock:
            self._listen()

    def _why_unwanted(self, call: Call, row: int) -> BaseException | None:
        if row in call.cancelled:
            return ForwardCancelled("nobody waits for this stream any more")
        if call.lease.deadlines[row] <= self._alarms.clock():
            return ForwardTimeout("no answer before the deadline")
        return None

    def _has_client(self, call: Call, row: int) -> bool:
        if call.lease.columns.states[row] & _EGRESS:
            return True
        if not self._was_warned:
            self._was_warned = True
            text = "events of %s are dropped: it is not the last stage of every route that it serves"
            log.warning(text, self._worker.stage or type(self._worker).__name__)
        return False


def _nothing() -> None:
    pass


def _bytes_of(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"an event is text, not {type(text).__name__}; json.dumps makes text of anything")
    payload = text.encode(errors="replace")
    if len(payload) > EVENT_BYTES_MAX:
        raise ValueError(f"an event may have {EVENT_BYTES_MAX} bytes, this one has {len(payload)}: send it in parts")
    return payload
