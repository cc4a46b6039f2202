"""Runs one batch through a worker's own code: decode, `forward`, encode, and one status per item.

`BatchRunner.run` is a generator of `RowsFinished`, so that a part of a batch can be sent the moment it is known, and so
that all of it can be tested without a socket. Its rules:

* A row's own error (decode, encode, an exception in the place of a result) is that row's answer and nobody else's.
* A batch whose `forward` raises is run again in halves, each decoded afresh because `forward` may have written into its
  items, until the guilty are alone. A once-only stage runs nothing twice: everybody gets the error.
* A row whose client was told something by a stream is not run again: it ends with what `forward` raised.
* A row that is past its deadline or was cancelled is not run, nor run again.
* A `forward` that is broken off, by the `timeout` of its stage or by its agent, is not run in halves, whatever it made
  of that. All calls of `forward` for one batch share one `timeout`, until rows of it have been finished: so long, and a
  little longer, does the broker wait before it has the process killed.
* What tells the client nothing (500) is logged with the user's part of its traceback; what user code chose to say (4xx)
  is not.
* Another BaseException than those two is meant to end the process, and does.
* What waits in a store is got there before a batch is decoded, and what is large is put there after it was encoded: see
  `payloads`. A row whose payload is lost is answered AGAIN, so that its task begins anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from zmesh.alarms import ALARM, ALARMS, INTERRUPT, Alarms, Call
from zmesh.config import Limits
from zmesh.core.effects import Run, Settled
from zmesh.core.events import RowsFinished, RowsStreamed
from zmesh.crashing import CRASHING, crash_at
from zmesh.emitter import WrongYield, emitter_of
from zmesh.errors import ForwardCancelled, ForwardTimeout, PayloadLost, ServerError, describe
from zmesh.messages import HTTP_STATUS, Columns, Kind, Payload, Phase, State, Status
from zmesh.payloads import LINGER_SECONDS, Stores
from zmesh.pipe import Slate
from zmesh.tracebacks import one_line, users_traceback
from zmesh.worker import Worker

__all__ = ["HEAVY_BYTES", "BatchRunner", "status_of"]

log = logging.getLogger("zmesh.worker")

# Plain ints: comparing and masking with members of an enum is several times slower, and happens per row.
_OK, _INLINE, _INGRESS, _EGRESS = int(Status.OK), int(Kind.INLINE), int(State.INGRESS), int(State.EGRESS)
_DECODE, _FORWARD, _ENCODE = int(Phase.DECODE), int(Phase.FORWARD), int(Phase.ENCODE)
_STATUS_OF_HTTP = {http: status for status, http in reversed(list(HTTP_STATUS.items()))}  # INTERNAL, not POISONED
HEAVY_BYTES = 1024 * 1024  # from one stage to the next, as in mosec
ERROR_CHARACTERS_MAX = 16 * 1024  # of the text that answers a failed item

# What has a length and can be iterated, and is still not a list of results in order.
_NOT_A_LIST = (Mapping, Set, str, bytes, bytearray, memoryview)


def status_of(http_status: int) -> Status:
    """The status that stands for an HTTP status; the general one of its class where there is none of its own."""
    return _STATUS_OF_HTTP.get(http_status, Status.BAD_REQUEST if http_status < 500 else Status.INTERNAL)


class _WrongResult(Exception):
    """`forward` or a serializer returned something that cannot be an answer. A mistake in the worker's code."""


@dataclass(slots=True)
class _Part:
    """Rows of a lease that are run together, and what became of them."""

    lease: Run
    rows: list[int]
    ends_at: float | None = None  # when `forward` has taken too long; None as long as it was not called
    is_abandoned: bool = False  # nobody wants anything of the lease any more
    finished: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    payloads: list[Payload] = field(default_factory=list)
    kinds: list[int] | None = None  # with `sizes`, when any went into a store
    sizes: list[int] | None = None

    def close(self, row: int, status: int, payload: Payload) -> None:
        self.finished.append(row)
        self.statuses.append(status)
        self.payloads.append(payload)

    def event(self, seconds: float) -> RowsFinished:
        kinds = self.kinds or [_INLINE] * len(self.finished)
        return RowsFinished(self.finished, self.statuses, kinds, self.payloads, int(seconds * 1e6), self.sizes)


class BatchRunner:
    """One per worker process. `clock` is that of the deadlines, `alarms` may break `forward` off. With `tell`,
    the agent is told once when a batch hands more than `HEAVY_BYTES` on to the next stage by the broker. A payload of
    more than `frame_bytes_max` has to go past it."""

    def __init__(
        self,
        worker: Worker,
        slate: Slate,
        *,
        retry: bool,
        clock: Callable[[], float] = monotonic,
        alarms: Alarms = ALARMS,
        tell: Callable[..., None] | None = None,
        stores: Stores | None = None,
        frame_bytes_max: int = Limits().frame_bytes_max,
    ) -> None:
        self._tell, self._stores, self._frame_bytes_max = tell, stores or Stores(), frame_bytes_max
        self._least_bytes = self._stores.least_bytes  # that any of them takes
        self._worker, self._slate, self._retry, self._clock, self._alarms = worker, slate, retry, clock, alarms
        self._max_batch_size = worker.max_batch_size
        self._emitter = emitter_of(worker, alarms)
        # Only the codec of zmesh itself is known to read a memoryview; user code is promised bytes.
        self._ipc_takes_views = type(worker).deserialize_ipc is Worker.deserialize_ipc

    def run(
        self,
        lease: Run,
        cancelled: Callable[[], Collection[int]],
        listen: Callable[[], None] = lambda: None,
        say: Callable[[RowsStreamed], None] = lambda event: None,
    ) -> Iterator[RowsFinished]:
        """Events that cover each row of `lease` once. `cancelled` says which rows nobody wants any more, by now;
        `listen` brings that up to date; `say` is for what clients are told meanwhile."""
        self._alarms.listen = listen if self._emitter is None else self._emitter.open(say, listen)
        rows, most = range(len(lease.columns.ids)), self._max_batch_size  # the broker's app may say a larger one
        todo = [_Part(lease, list(rows[start : start + most])) for start in rows[::most]][::-1]
        while todo:
            part = todo.pop()
            started = self._clock()
            halves = self._run_part(part, started, cancelled())
            if part.is_abandoned:
                for other in todo:
                    self._fail(part, other.rows, self._alarms.error(INTERRUPT))
                todo.clear()
            if part.finished:
                if self._tell is not None:
                    self._weigh(part, self._tell)
                yield part.event(self._clock() - started)
                for other in todo:
                    other.ends_at = None
            todo += halves
            if todo and part.finished:
                crash_at("worker.between_results")
        self._slate.finish()

    def _run_part(self, part: _Part, now: float, cancelled: Collection[int]) -> list[_Part]:
        """Fills in `part`; returns the halves to run instead, if `forward` raised for several rows."""
        rows, items = self._decode(part, now, cancelled)
        if not rows:
            return []
        self._slate.write(part.lease.lease, _FORWARD)
        if CRASHING:
            crash_at("worker.forward")
        if part.ends_at is None and self._alarms.timeout:
            part.ends_at = self._clock() + self._alarms.timeout
        call = Call(part.lease, rows, cancelled, part.ends_at)
        try:
            results = self._forward(call, items)
        except (Exception, ForwardTimeout, ForwardCancelled) as error:
            return self._halves(part, rows, call, error)
        finally:
            if self._emitter is not None:
                self._emitter.end_call()
        self._encode(part, rows, results)
        return []

    def _halves(self, part: _Part, rows: list[int], call: Call, error: BaseException) -> list[_Part]:
        """What to run again of `rows`, for which `forward` raised; what not is answered in `part`."""
        is_late = part.ends_at is not None and self._clock() >= part.ends_at
        if broken_off_by := call.struck_by or (is_late and ALARM):
            self._break_off(part, rows, broken_off_by, error)
            return []
        again = self._retry and not isinstance(error, _WrongResult | WrongYield | ForwardTimeout | ForwardCancelled)
        if again and self._emitter is not None and (told := self._emitter.has_said(rows)):
            self._fail(part, told, error)
            rest = [row for row in rows if row not in told]
            return [_Part(part.lease, rest)] if rest else []
        if len(rows) == 1 or not again:
            self._fail(part, rows, error)
            return []
        log.warning("forward failed for %d items, which run again in halves: %r", len(rows), error)
        middle = (len(rows) + 1) // 2
        return [_Part(part.lease, half, part.ends_at) for half in (rows[middle:], rows[:middle])]

    def _break_off(self, part: _Part, rows: list[int], number: int, error: BaseException) -> None:
        """`error` is what came out of a `forward` that a signal has broken off, or that took too long."""
        part.is_abandoned = number == INTERRUPT
        self._log(part.lease.columns, rows, error, logging.DEBUG if part.is_abandoned else logging.WARNING)
        self._fail(part, rows, self._alarms.error(number))

    # ── decode ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _decode(self, part: _Part, now: float, cancelled: Collection[int]) -> tuple[list[int], list[Any]]:
        lease, columns, wanted = part.lease, part.lease.columns, self._wanted(part, now, cancelled)
        if not wanted:
            return [], []
        states = columns.states
        payloads: Sequence[Payload | Exception] = columns.payloads
        if any(columns.kinds):
            payloads = self._stores.fetch(columns.kinds, columns.payloads, wanted)
        self._slate.write(lease.lease, _DECODE, wanted[0])
        slate_row, read_first, read_next = self._slate.row, self._worker.deserialize, self._worker.deserialize_ipc
        rows, items = [], []
        for row in wanted:
            slate_row[0] = row
            payload = payloads[row]
            is_first = states[row] & _INGRESS
            if type(payload) is not bytes:
                if isinstance(payload, Exception):
                    self._miss(part, row, payload)
                    continue
                if is_first or not self._ipc_takes_views:
                    payload = bytes(payload)
            try:
                items.append(read_first(payload) if is_first else read_next(payload))  # type: ignore[arg-type]
            except (Exception, ForwardTimeout) as error:
                self._fail(part, [row], error)
            else:
                rows.append(row)
        return rows, items

    def _wanted(self, part: _Part, now: float, cancelled: Collection[int]) -> list[int]:
        """Its rows without those for which nobody waits any more, which are answered."""
        deadlines, skipped = part.lease.deadlines, part.lease.skipped
        if not cancelled and not skipped and min(deadlines) > now:
            return part.rows
        wanted = []
        for row in part.rows:
            if deadlines[row] <= now:
                part.close(row, int(Status.TIMEOUT), b"request timeout: its time was over before it could run")
            elif row in cancelled or row in skipped:
                part.close(row, int(Status.CANCELLED), b"cancelled")
            else:
                wanted.append(row)
        return wanted

    def _miss(self, part: _Part, row: int, error: Exception) -> None:
        """What its payload stands for cannot be had."""
        if isinstance(error, PayloadLost):
            self._log(part.lease.columns, [row], error, logging.WARNING)
            part.close(row, int(Status.AGAIN), str(error).encode(errors="replace"))
        else:
            self._fail(part, [row], error)

    # ── forward ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _forward(self, call: Call, items: list[Any]) -> list[Any]:
        forward = self._worker.forward if self._emitter is None else self._emitter.forward
        if self._max_batch_size == 1:
            return [self._alarms.run(call, forward, items[0])]
        count = len(items)  # now, because `forward` may do with its list what it likes
        results = self._alarms.run(call, forward, items)
        if type(results) is not list:
            results = _as_list(results)
        if len(results) != count:
            raise _WrongResult(f"forward got {count} items and returned {len(results)} results; it must be as many")
        return results

    # ── encode ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _encode(self, part: _Part, rows: list[int], results: list[Any]) -> None:
        states = part.lease.columns.states
        self._slate.write(part.lease.lease, _ENCODE, rows[0])
        slate_row, write_next = self._slate.row, self._worker.serialize_ipc
        write_last = self._worker.serialize if self._emitter is None else _write_nothing
        finished, statuses, payloads = part.finished.append, part.statuses.append, part.payloads.append
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, BaseException):
                self._fail(part, [row], result)
                continue
            slate_row[0] = row
            try:
                payload = write_last(result) if states[row] & _EGRESS else write_next(result)
                if type(payload) is not bytes:
                    payload = _as_bytes(payload)
            except (Exception, ForwardTimeout) as error:
                self._fail(part, [row], error)
                continue
            finished(row)
            statuses(_OK)
            payloads(payload)
        if self._least_bytes is not None and max(map(len, part.payloads), default=0) >= self._least_bytes:
            self._put_apart(part)

    def _put_apart(self, part: _Part) -> None:
        """The large results of a batch go past the broker, as far as that is possible."""
        states, deadlines, now = part.lease.columns.states, part.lease.deadlines, self._clock()
        rows = enumerate(zip(part.finished, part.statuses, strict=True))
        may_go = [index for index, (row, status) in rows if status == _OK and not states[row] & _EGRESS]
        seconds = [deadlines[part.finished[index]] - now + LINGER_SECONDS for index in may_go]
        apart = self._stores.put(part.payloads, may_go, seconds, is_near=part.lease.is_near)
        if apart is None:
            return
        part.payloads, part.kinds, part.sizes = apart.payloads, apart.kinds, apart.sizes
        for index, reason in apart.failures.items():
            if (size := len(part.payloads[index])) > self._frame_bytes_max:
                error = ServerError(f"a result of {size} bytes is too large for a message, and {reason}")
                self._log(part.lease.columns, [part.finished[index]], error)
                part.statuses[index], part.payloads[index] = int(Status.INTERNAL), describe(error)[1].encode()

    def release(self, settled: Settled) -> None:
        """Nobody needs what these references stand for any more."""
        self._stores.release(settled.kinds, settled.references)

    def _weigh(self, part: _Part, tell: Callable[..., None]) -> None:
        if sum(map(len, part.payloads)) <= HEAVY_BYTES:
            return
        states, finished = part.lease.columns.states, zip(part.finished, part.payloads, strict=True)
        sizes = [len(payload) for row, payload in finished if not states[row] & _EGRESS]
        if sum(sizes) > HEAVY_BYTES:
            tell(say="heavy", bytes=sum(sizes), rows=len(sizes))
            self._tell = None  # once is enough, and weighing costs something

    # ── failure ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _fail(self, part: _Part, rows: list[int], error: BaseException) -> None:
        """`error` is the answer of all `rows`."""
        http_status, text = describe(error)
        if http_status >= 500:
            self._log(part.lease.columns, rows, error)
        status, payload = int(status_of(http_status)), text[:ERROR_CHARACTERS_MAX].encode(errors="replace")
        for row in rows:
            part.close(row, status, payload)

    def _log(self, columns: Columns, rows: list[int], error: BaseException, level: int = logging.ERROR) -> None:
        contexts = (columns.contexts[row] if columns.contexts else None for row in rows)
        known = [context.get("request_id", "-") if context else "-" for context in contexts]
        requests, about = " ".join(known), {"request_id": [one for one in known if one != "-"]}
        if isinstance(error, _WrongResult | WrongYield):
            log.log(level, "request %s: %s", requests, error, extra=about)
        else:
            told = users_traceback(error).rstrip()
            log.log(level, "request %s failed: %s%s", requests, one_line(error), told and f"\n{told}", extra=about)


def _write_nothing(result: Any) -> bytes:
    """What a stream returns at its end is for nobody."""
    return b""


def _as_list(results: Any) -> list[Any]:
    """What `forward` returned, if it is a sequence of results: an array or a tuple will do. Else raises."""
    if isinstance(results, _NOT_A_LIST) or not hasattr(results, "__len__"):
        raise _WrongResult(f"forward must return a list with one result per item, not {type(results).__name__}")
    return list(results)


def _as_bytes(payload: Any) -> bytes:
    try:
        view = memoryview(payload)
    except TypeError:
        raise _WrongResult(f"a serializer must return bytes, not {type(payload).__name__}") from None
    return view.tobytes()
