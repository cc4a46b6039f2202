"""One worker's part in a dry run: a process as it would run, that is given its example or what the stage before made.

`python -m zmesh.tryout` is started by `dryrun`, which tells it by a pipe what to do next and hears how it went: how
long each step took, or what failed in which of them. Payloads lie in one file in memory that all of them share.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from zmesh import logs
from zmesh.alarms import ALARMS
from zmesh.config import Plan, Settings, StagePlan
from zmesh.core.effects import Run
from zmesh.core.events import RowsStreamed
from zmesh.current import running_request
from zmesh.emitter import WrongYield
from zmesh.errors import ZmeshError, describe
from zmesh.loader import AppError, load_worker_class
from zmesh.messages import Columns, LeaseId, Payload, Phase, Status, TaskId
from zmesh.pipe import Pipe, Slate, child_pipe, is_ready
from zmesh.rehearsal import examples_of, items_of, make_worker, warm_up
from zmesh.runner import BatchRunner
from zmesh.tracebacks import one_line, users_traceback
from zmesh.worker import Worker

__all__ = ["REQUEST_ID", "main", "pack", "unpack"]

DOCUMENT_SECONDS = 30.0
IDLE_SECONDS = 3600.0  # for other stages to be tried
TASK_SECONDS = 3600.0  # that each item has left, as `current_task` says it
FAILURE_CHARACTERS_MAX = 64 * 1024
READ_BYTES = 16 * 1024 * 1024
REQUEST_ID = "dry-run"
STEPS = {Phase.DECODE: "decode", Phase.FORWARD: "forward", Phase.ENCODE: "encode"}


# ── payloads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def pack(fd: int, payloads: Sequence[Payload]) -> list[int]:
    """Write them one after the other into the shared file; their sizes."""
    os.ftruncate(fd, 0)
    at = 0
    for payload in payloads:
        left = memoryview(payload)
        while left:
            written = os.pwrite(fd, left, at)
            at, left = at + written, left[written:]
    return [len(payload) for payload in payloads]


def unpack(fd: int, sizes: Sequence[int]) -> list[bytes]:
    """What `pack` wrote."""
    payloads, at = [], 0
    for size in sizes:
        parts, end = [], at + size
        while at < end:
            part = os.pread(fd, min(READ_BYTES, end - at), at)
            assert part, "the shared file is shorter than was said"
            parts.append(part)
            at += len(part)
        payloads.append(b"".join(parts))
    return payloads


# ── one batch ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Watch(Slate):
    """A slate that also measures how long each phase takes."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.reset()

    def reset(self) -> None:
        self.seconds = dict.fromkeys(STEPS.values(), 0.0)
        self.phase, self._since = Phase.IDLE, monotonic()

    def write(self, lease: int, phase: int, row: int = 0) -> None:
        now = monotonic()
        if self.phase in STEPS:
            self.seconds[STEPS[self.phase]] += now - self._since
        self.phase, self._since = Phase(phase), now
        super().write(lease, phase, row)


@dataclass(slots=True)
class _Failure:
    step: str
    error: BaseException


class _Runner(BatchRunner):
    """Keeps what went wrong first, to be told by who asked for the dry run."""

    def __init__(self, worker: Worker, watch: _Watch) -> None:
        super().__init__(worker, watch, retry=False)  # nothing is hidden by running it again
        self._watch = watch
        self.failure: _Failure | None = None

    def _fail(self, part: Any, rows: list[int], error: BaseException) -> None:
        if self.failure is None:
            self.failure = _Failure(STEPS.get(self._watch.phase, "forward"), error)
        super()._fail(part, rows, error)

    def _log(self, *args: Any) -> None: ...


@dataclass(slots=True)
class Tryout:
    """A worker that is ready, and the file with the payloads."""

    worker: Worker
    watch: _Watch
    file: int
    events: int = 0  # that its `forward` has sent to the client
    note: str = field(default="", init=False)  # why no body could be made of an item

    def example(self, number: int, state: int) -> dict[str, Any]:
        """Run its own example, as a client would send it if that can be found out."""
        items = items_of(self.worker, examples_of(self.worker)[number])
        bodies = [self._body(item) for item in items]
        known = [body for body in bodies if body is not None]
        if len(known) == len(items):
            return self.run(known, state)
        note = f"decode was not tried: no request could be made of its example ({self.note})"
        given = iter(items)
        self.worker.deserialize = lambda data: next(given)  # type: ignore[method-assign]
        try:
            return {**self.run([b""] * len(items), state), "note": note, "in_bytes": 0}
        finally:
            del self.worker.deserialize

    def _body(self, item: Any) -> bytes | None:
        """What a client may send to have `forward` given this item. An example says what `forward` takes."""
        bodies = [bytes(item)] if isinstance(item, bytes | bytearray) else []
        written, why = _tried(lambda: bytes(self.worker.serialize(item)))
        if not why:
            bodies.insert(0, written)
        readable = [(body, *_tried(partial(self.worker.deserialize, body))) for body in bodies]
        good = [(body, read) for body, read, why in readable if not why]
        same = [body for body, read in good if _is_same(read, item)]
        self.note = next((why for _, _, why in readable if why), why)
        return next(iter([*same, *(body for body, _ in good)]), None)

    def run(self, payloads: list[bytes], state: int) -> dict[str, Any]:
        """Give it these tasks as one batch. What it answers lies in the file."""
        count, self.events = len(payloads), 0
        columns = Columns(
            [TaskId(number) for number in range(1, count + 1)],
            [state] * count,
            [int(TASK_SECONDS * 1000)] * count,
            [1] * count,
            [0] * count,
            list(payloads),
            [{"request_id": REQUEST_ID}] * count,
        )
        self.watch.reset()
        runner = _Runner(self.worker, self.watch)
        lease = Run(LeaseId(1), columns, [monotonic() + TASK_SECONDS] * count, frozenset())
        answers: dict[int, Payload] = {}
        for event in runner.run(lease, set, say=self._count):
            good = [status == Status.OK for status in event.statuses]
            answers |= {row: payload for row, payload, ok in zip(event.rows, event.payloads, good, strict=True) if ok}
        if runner.failure is not None:
            return _failed(runner.failure.step, runner.failure.error)
        sizes = pack(self.file, [answers[row] for row in range(count)])
        sent = {"in_bytes": sum(map(len, payloads)), "sizes": sizes, "events": self.events}
        return {"say": "done", "seconds": self.watch.seconds, **sent}

    def _count(self, streamed: RowsStreamed) -> None:
        self.events += len(streamed.rows)


def _is_same(one: Any, other: Any) -> bool:
    is_equal, why = _tried(lambda: bool(one == other))  # arrays say neither yes nor no
    return type(one) is type(other) and not why and bool(is_equal)


def _tried(call: Callable[[], Any]) -> tuple[Any, str]:
    """What user code makes of what it was not written for, or why it makes nothing of it."""
    try:
        return call(), ""
    except Exception as error:
        return None, one_line(error)


def _failed(step: str, error: BaseException) -> dict[str, object]:
    """What to tell of it: a sentence, and the user's part of the traceback unless they meant it for a client."""
    if isinstance(error, AppError):
        told, line = error.detail, str(error)
    elif isinstance(error, ZmeshError):
        told, line = "", describe(error)[1]
    elif type(error).__module__ in (BatchRunner.__module__, WrongYield.__module__):  # what they found wrong
        told, line = "", str(error)
    else:
        told, line = users_traceback(error), one_line(error)
    return {"say": "failed", "step": step, "line": line, "text": told[-FAILURE_CHARACTERS_MAX:]}


# ── the process ───────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> int:
    """From the start of a worker to the end of the dry run; its exit code."""
    pipe = child_pipe()
    if pipe is None:
        sys.stderr.write("zmesh: a dry run is started with: zmesh check --run app.py\n")
        return 2
    document: dict[str, Any] = pipe.receive_first(DOCUMENT_SECONDS)
    plan, settings = Plan.from_json(document["plan"]), Settings.from_json(document["settings"])
    for fd in (document["slate"], document["file"]):
        os.set_inheritable(fd, False)
    stage, watch = plan.stage(document["stage"]), _Watch(document["slate"])
    os.dup2(2, 1)  # stdout is for who started it
    logs.setup(settings.log_level, f"worker {stage.name}/1", settings.log_format, running_request)
    logs.join_in()
    sys.argv = [document["app"], *document["user_args"]]
    worker = _start(document["app"], stage, pipe)
    if worker is None:
        return 1
    watch.write(0, Phase.IDLE)
    ALARMS.install(stage.timeout_seconds, watch.ordered)
    tryout = Tryout(worker, watch, document["file"])
    while is_ready(pipe.fd, monotonic() + IDLE_SECONDS) and (lines := pipe.receive()) is not None:
        for line in lines:
            pipe.send(**_obey(tryout, line))
    return 0


def _obey(tryout: Tryout, line: dict[str, Any]) -> dict[str, object]:
    if line["say"] == "example":
        return tryout.example(line["number"], line["state"])
    return tryout.run(unpack(tryout.file, line["sizes"]), line["state"])


def _start(app: str, stage: StagePlan, pipe: Pipe) -> Worker | None:
    step = "start"
    try:
        worker = make_worker(load_worker_class(app, stage.worker), stage.name, 1, stage.max_batch_size)
        logs.join_in()
        pipe.send(say="made", at=monotonic())
        step = "warm-up"
        warm_up(worker)
    except BaseException as error:  # a SystemExit in an app file is a failed start too
        pipe.send(**_failed(step, error))
        return None
    pipe.send(say="ready", at=monotonic(), examples=len(examples_of(worker)))
    return worker


if __name__ == "__main__":
    from zmesh.tryout import main as main_of_module  # by its own name, so that its classes exist once

    sys.exit(main_of_module())
