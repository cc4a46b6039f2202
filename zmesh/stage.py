"""Stage (a worker class and its settings; `Runtime` for those who come from mosec) and the loop that runs one worker.

`python -m zmesh.stage` is a worker process. Its agent tells it by a pipe which app file, which stage and where the
broker is. It makes the worker, warms it up, and only then says HELLO. One thread owns the socket and runs `forward`;
the `Session` decides, the `BatchRunner` runs the user's code, and the loop here carries words between the two.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from zmesh import logs
from zmesh.addresses import unpickling_problem
from zmesh.alarms import ALARMS
from zmesh.config import Plan, Settings, StagePlan
from zmesh.core.effects import Leave, Reconnect, Report, Run, SessionEffect, Settled, Transmit
from zmesh.core.events import DrainAsked, Heard, LinkLost, SessionEvent, Started, Tick
from zmesh.core.session import Session
from zmesh.current import running_request
from zmesh.declaring import declaration, ipc_codec, worker_class
from zmesh.errors import DeclarationError
from zmesh.line import Line, line_class
from zmesh.loader import AppError, load_worker_class
from zmesh.messages import Cancel, Credit, Drain, Heartbeat, PeerId, Phase, Results, SessionId, WorkerState
from zmesh.metrics import Metrics, metrics_of
from zmesh.pipe import Pipe, Slate, child_pipe
from zmesh.rehearsal import make_worker, warm_up
from zmesh.runner import BatchRunner
from zmesh.storing import open_stores
from zmesh.tracebacks import one_line, users_traceback
from zmesh.transport import Context, Poller, raise_file_limit, stage_endpoint
from zmesh.worker import SSEWorker, Worker

__all__ = ["Stage", "WorkerLoop", "main"]

BATCHING = ("crowd", "fixed", "greedy")
START_METHODS = ("spawn", "fork")
MIME_TYPE = re.compile(r"[!-~]+/[!-~]+( *;[ -~]*)?")  # it becomes a header
DOCUMENT_SECONDS = 30.0
FAILURE_CHARACTERS_MAX = 64 * 1024
GOODBYE_MS = 500  # for the last words to leave after the loop
CARRIERS = Credit, Results  # of what user code has counted
AGENT_SECONDS = 0.02  # how long a word of the agent may wait while one batch follows another

log = logging.getLogger("zmesh.worker")


class Stage:
    """One stage of a route: which worker, how many, how it batches. Raises DeclarationError in one sentence.

    `max_wait_time` is in milliseconds (0: the server's `--wait`), `timeout` in seconds (0: none). `env` has one dict
    per worker. `start_method` is taken for mosec's sake: every worker is a fresh process. `batching` is "crowd" (waits
    only while it pays), "fixed" (always the whole window) or "greedy" (never). `spread` shares a small burst between
    idle workers. With `retry=False` no task is run twice, whatever happens to the worker that had it.
    """

    @declaration
    def __init__(
        self,
        worker: type[Worker],
        num: int = 1,
        max_batch_size: int = 1,
        max_wait_time: float = 0,
        timeout: float = 0.0,
        start_method: str = "spawn",
        env: Sequence[Mapping[str, str]] | None = None,
        *,
        batching: str = "crowd",
        spread: bool = False,
        retry: bool = True,
        name: str | None = None,
    ) -> None:
        self.worker = worker_class(worker)
        self._called = worker.__name__
        self._mime_type(worker.resp_mime_type)
        if worker.shared_memory_bytes is not None:
            self._count("shared_memory_bytes", worker.shared_memory_bytes)
        self.num = self._count("num", num)
        self.max_batch_size = self._count("max_batch_size", max_batch_size)
        self.max_wait_time = self._duration("max_wait_time", max_wait_time, "milliseconds")
        self.timeout = self._duration("timeout", timeout, "seconds")
        self.start_method = self._one_of("start_method", start_method, START_METHODS)
        self.env = self._environments(env)
        self.batching = self._one_of("batching", batching, BATCHING)
        self.spread, self.retry = self._flag("spread", spread), self._flag("retry", retry)
        self.name = self._text("name", name)

    def plan(self, name: str, wait_ms_default: float) -> StagePlan:
        """What travels to other processes; `name` counts if this stage has none of its own. Which module the class is
        in, and whether another process finds it there, is for the caller to say."""
        return StagePlan(
            name=self.name or name,
            worker=self.worker.__qualname__,
            num=self.num,
            max_batch_size=self.max_batch_size,
            max_wait_ms=float(self.max_wait_time or wait_ms_default),
            timeout_seconds=float(self.timeout),
            env=self.env,
            batching=self.batching,
            spread=self.spread,
            retry=self.retry,
            mime_type=self.worker.resp_mime_type,
            sse=issubclass(self.worker, SSEWorker),
            ipc_codec=ipc_codec(self.worker),
            unpickles=self.worker.unpickles,
            needs_redis=self.worker.needs_redis,
        )

    def _count(self, what: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise DeclarationError(f"{self._called}: {what} must be a whole number, not {value!r}")
        if value < 1:
            raise DeclarationError(f"{self._called}: {what} must be at least 1, not {value}")
        return value

    def _duration(self, what: str, value: object, unit: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise DeclarationError(f"{self._called}: {what} must be a number of {unit}, not {value!r}")
        if not 0 <= value < float("inf"):
            raise DeclarationError(f"{self._called}: {what} must be 0 or more {unit}, not {value}")
        return value

    def _text(self, what: str, value: object) -> str | None:
        if value is not None and (not isinstance(value, str) or not value):
            raise DeclarationError(f"{self._called}: {what} must be text, not {value!r}")
        return value

    def _mime_type(self, value: object) -> None:
        if not isinstance(value, str) or not MIME_TYPE.fullmatch(value):
            raise DeclarationError(f"{self._called}: resp_mime_type must be like application/json, not {value!r}")

    def _flag(self, what: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise DeclarationError(f"{self._called}: {what} must be True or False, not {value!r}")
        return value

    def _one_of(self, what: str, value: str, known: Sequence[str]) -> str:
        if value not in known:
            raise DeclarationError(f"{self._called}: {what} must be one of {', '.join(known)}, not {value!r}")
        return value

    def _environments(self, env: object) -> tuple[dict[str, str], ...]:
        if env is None:
            return ()
        if isinstance(env, str | Mapping) or not isinstance(env, Sequence):
            raise DeclarationError(f"{self._called}: env must be a list with one dict per worker, not {env!r}")
        if len(env) != self.num:
            raise DeclarationError(f"{self._called}: env must have one dict per worker, {self.num}, not {len(env)}")
        for variables in env:
            known = isinstance(variables, Mapping)
            if not known or not all(isinstance(text, str) for pair in variables.items() for text in pair):
                raise DeclarationError(f"{self._called}: env must map names to text, not {variables!r}")
        return tuple(dict(variables) for variables in env)


# ── one worker process ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Document:
    """What the agent's first line says."""

    app: str
    user_args: list[str]
    plan: Plan
    settings: Settings
    stage: StagePlan
    worker_id: int
    front: str
    peer: PeerId
    slate: int
    memory: str

    @staticmethod
    def read(line: dict[str, Any]) -> _Document:
        plan = Plan.from_json(line["plan"])
        return _Document(
            line["app"],
            list(line["user_args"]),
            plan,
            Settings.from_json(line["settings"]),
            plan.stage(line["stage"]),
            line["worker_id"],
            line["front"],
            PeerId(bytes.fromhex(line["peer"])),
            line["slate"],
            str(line.get("memory", "")),
        )

    @property
    def label(self) -> str:
        return f"{self.stage.name}/{self.worker_id}"

    @property
    def endpoint(self) -> str:
        return stage_endpoint(self.front, self.plan.stages.index(self.stage))

    def session(self, memory: str) -> Session:
        return Session(
            peer=self.peer,
            stage=self.stage.name,
            worker_id=self.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            fingerprint=self.plan.fingerprint,
            max_batch_size=self.stage.max_batch_size,
            prefetch=self.stage.prefetch,
            limits=self.settings.limits(),
            shape=self.plan.shape,
            memory=memory,
        )


class WorkerLoop:
    """Carries words between a broker, a `Session` and a `BatchRunner` until the session leaves."""

    def __init__(
        self, session: Session, runner: BatchRunner, line: Line, pipe: Pipe, poller: Poller, metrics: Metrics
    ) -> None:
        self._session, self._runner, self._line, self._pipe, self._poller = session, runner, line, pipe, poller
        self._metrics = metrics
        self._poller.watch(pipe.fd)
        self._connect_at: float | None = monotonic()
        self._next: Run | None = None
        self._unheard: list[Heard | LinkLost] = []  # came while `forward` ran, and waits for its end
        self._ask_agent_at = 0.0  # at once when the poller says that the pipe is readable
        self._left: Leave | None = None
        self._owes_ready, self._is_ready = False, False

    def run(self) -> Leave:
        while self._left is None:
            if self._next is None and not self._unheard:
                ready = self._poller.wait(self._line.patience(self._session.next_wakeup(), self._connect_at))
                if self._pipe.fd in ready:
                    self._ask_agent_at = 0.0
            self._listen()
            if self._next is not None and self._left is None:
                self._run()
        self._pipe.send(say="left", held=self._session.held)
        self._line.flush()
        self._line.disconnect(linger_ms=GOODBYE_MS)
        return self._left

    def _listen(self) -> None:
        """Everything that was said to us, before anything is run: so a CANCEL overtakes the TASKS it is about."""
        events: list[SessionEvent] = []
        if self._connect_at is not None and monotonic() >= self._connect_at:
            self._connect_at = None
            self._line.connect()
            events.append(Started())
        events += self._commands()
        events += self._unheard + self._line.receive()
        self._unheard.clear()
        if self._line.is_parking:
            self._line.flush()
            if self._line.is_overfull:
                events.append(LinkLost())
        if events or self._next is None:
            self._handle(*(events or [Tick()]))

    def _overhear(self) -> None:
        """For user code that asks, while `forward` runs, whether it is still wanted: only a CANCEL counts at once. It
        is kept all the same, because the TASKS that it is about may be among what waits."""
        for event in self._line.receive():
            kind = type(event.message) if isinstance(event, Heard) else None
            if kind is not Heartbeat:  # a sign of life is of no use later
                self._unheard.append(event)
            if kind is Cancel:
                self._handle(event)

    def _commands(self) -> list[SessionEvent]:
        if (now := monotonic()) < self._ask_agent_at:
            return []
        self._ask_agent_at = now + AGENT_SECONDS
        lines = self._pipe.receive()
        if lines is None:
            os._exit(1)  # our agent is gone, and we with it
        commands: list[SessionEvent] = []
        for line in lines:
            seconds = line.get("seconds")
            if line.get("say") == "drain" and isinstance(seconds, int | float):
                deadline_ms = max(1, int(seconds * 1000))
                commands.append(DrainAsked((0, b""), SessionId(0), Drain(deadline_ms, "the agent stops")))
            elif line.get("say") == "epoch" and self._is_of_another(line.get("epoch")):
                commands.append(LinkLost())  # our broker is another one now
        return commands

    def _is_of_another(self, epoch: object) -> bool:
        """Whether we still speak with the former broker."""
        return self._session.joined and self._session.epoch != epoch

    def _run(self) -> None:
        lease, self._next = self._next, None
        assert lease is not None, "run was called without a lease"
        left = len(lease.columns.ids)
        for finished in self._runner.run(lease, lambda: self._session.cancelled_running, self._overhear, self._handle):
            self._handle(finished)
            left -= len(finished.rows)
            if left:
                self._listen()  # somebody may have cancelled the rest

    def _handle(self, *events: SessionEvent) -> None:
        for effect in self._session.handle(*events, now=monotonic()):
            self._perform(effect)
        if self._owes_ready and not self._line.is_parking:
            self._owes_ready, self._is_ready = False, True
            self._pipe.send(say="ready")

    def _perform(self, effect: SessionEffect) -> None:
        match effect:
            case Transmit(session, message):
                if isinstance(message, CARRIERS) and (report := self._metrics.report(session)):
                    message = replace(message, metrics=report)
                self._line.send(session, message)
                if type(message) is Credit and message.state is WorkerState.READY:
                    self._owes_ready = not self._is_ready
            case Run():
                self._next = effect
            case Settled():
                self._runner.release(effect)
            case Reconnect(after_seconds):
                self._line.disconnect()
                self._connect_at = monotonic() + after_seconds
            case Report(level, text):
                logs.say(log, level, text)
            case Leave():
                self._left = effect


def _start(document: _Document, pipe: Pipe) -> Worker | None:
    """The worker, warmed up; None when it could not be made: then the agent knows why."""
    sys.argv = [document.app, *document.user_args]
    doing = ""
    try:
        cls = load_worker_class(document.app, document.stage.worker)
        if cls.unpickles and (why := unpickling_problem(document.stage.name, document.endpoint)):
            raise AppError(why)  # its agent refuses that too, and this is the process that would suffer
        worker = make_worker(cls, document.stage.name, document.worker_id, document.stage.max_batch_size)
        logs.join_in()  # they may have configured logging meanwhile
        doing = "the warm-up with its example raised "
        warm_up(worker)
    except AppError as error:
        told, line = error.detail, str(error)
    except BaseException as error:  # a SystemExit in an app file is a failed start too
        told, line = users_traceback(error), doing + one_line(error)
    else:
        return worker
    pipe.send(say="failed", text=told[-FAILURE_CHARACTERS_MAX:], line=line)
    return None


def main() -> int:
    """The whole life of a worker process; its exit code."""
    pipe = child_pipe()
    if pipe is None:
        sys.stderr.write("zmesh: a worker is started by its agent; start both with: zmesh run app.py\n")
        return 2
    document = _Document.read(pipe.receive_first(DOCUMENT_SECONDS))
    settings = document.settings
    logs.setup(settings.log_level, f"worker {document.label}", settings.log_format, running_request)
    logs.join_in()
    slate = Slate.open(document.slate)
    raise_file_limit()
    worker = _start(document, pipe)
    if worker is None:
        return 1
    gc.collect()
    gc.freeze()  # what is there now stays; no collection need look at it again
    slate.write(0, Phase.IDLE)
    ALARMS.install(document.stage.timeout_seconds, slate.ordered)
    limits, hands_on = settings.limits(), document.plan.hands_on(document.stage.name)
    stores, memory = open_stores(worker, document.memory, document.plan, settings, hands_on=hands_on)
    tell, most = pipe.send if hands_on else None, limits.frame_bytes_max
    runner = BatchRunner(worker, slate, retry=document.stage.retry, tell=tell, stores=stores, frame_bytes_max=most)
    context, poller = Context(), Poller()
    line = line_class(settings.log_level)(context, document.endpoint, poller, limits, "worker")
    left = WorkerLoop(document.session(memory), runner, line, pipe, poller, metrics_of(worker)).run()
    log.log(logging.ERROR if left.exit_code else logging.DEBUG, "left: %s", left.reason)
    context.close()
    return left.exit_code


if __name__ == "__main__":
    from zmesh.stage import main as main_of_module  # by its own name, so that its classes exist once

    sys.exit(main_of_module())
