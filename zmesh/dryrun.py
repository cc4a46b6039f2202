"""A dry run: every stage made, warmed up and tried with the example of its route, before anybody depends on it.

`zmesh check --run app.py`, or `--dry-run`. One worker of each stage is started, in a process and an environment as it
would have (`tryout` is its part). Then each example of the first stage of a route goes through all its stages, by the
serializers that requests go by. What is shown is how long each step takes and how many bytes it makes; what fails is
one sentence that names the stage and the step. However it ends, no process is left.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from time import monotonic
from types import FrameType
from typing import Any, NoReturn

from zmesh.config import Plan, RoutePlan, Settings, StagePlan
from zmesh.errors import StartError
from zmesh.hosting import stage_called
from zmesh.messages import Phase, State
from zmesh.pipe import Slate, is_ready
from zmesh.processes import Child, signal_name
from zmesh.signals import STOPPING
from zmesh.status import table
from zmesh.tryout import unpack

__all__ = ["DryRunFailed", "Trial", "dry_run", "report"]

START_SECONDS = 600.0  # for a model to be loaded, and for a first call to compile
STEP_SECONDS = 60.0  # for one stage to do its part, beyond what a request may take
KILL_SECONDS = 5.0
SHOWN_CHARACTERS_MAX = 60  # of an answer
HEAD = ("STAGE", "START", "WARM-UP", "DECODE", "FORWARD", "ENCODE", "BYTES IN", "BYTES OUT")
DOING = {Phase.DECODE: "decode", Phase.FORWARD: "forward", Phase.ENCODE: "encode"}


class DryRunFailed(StartError):
    """Which stage failed in which step. `detail` is the user's part of the traceback, or empty."""

    def __init__(self, stage: str, step: str, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.stage, self.step, self.detail = stage, step, detail


# ── what was found out ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class StageStart:
    """In seconds: from the start of its process until it was made, and its warm-up; None without an example."""

    stage: str
    start_seconds: float
    warm_up_seconds: float | None
    examples: int


@dataclass(slots=True)
class Step:
    """One stage's part in an example: seconds of each of its steps, and bytes."""

    stage: str
    seconds: Mapping[str, float]
    in_bytes: int
    out_bytes: int
    events: int = 0
    note: str = ""


@dataclass(slots=True)
class Trial:
    """What became of one example on one route; without steps there was none to try."""

    route: str
    mime_type: str
    number: int = 0  # from 1 on, of so many
    count: int = 0
    steps: list[Step] = field(default_factory=list)
    answer: str = ""  # the first of its answers, if it can be shown
    missing: str = ""  # what to add


# ── one stage ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Process:
    """A stage that is tried."""

    def __init__(self, stage: StagePlan, child: Child) -> None:
        self.plan, self.child, self.called = stage, child, stage_called(stage)
        self.made_at = 0.0
        self.start: StageStart | None = None  # once it is ready

    def hear_start(self) -> None:
        """Take what it says of its start. Raises DryRunFailed."""
        for line in self._lines("start" if not self.made_at else "warm-up", ""):
            if line["say"] == "made":
                self.made_at = line["at"]
            elif line["say"] == "ready":
                seconds = line["at"] - self.made_at if line["examples"] else None
                began = self.made_at - self.child.started_at
                self.start = StageStart(self.plan.name, began, seconds, line["examples"])
            else:
                self._fail(line, "")

    def ask(self, route: str, seconds: float, **words: object) -> dict[str, Any]:
        """Have it do its part; what it says of that. Raises DryRunFailed."""
        assert self.child.slate is not None, "it was given one"
        self.child.pipe.send(**words)
        until = monotonic() + seconds
        lines: list[dict[str, Any]] = []
        while not lines:
            is_in_time = _is_awake([self.child], until)
            step = DOING.get(self.child.slate.read().phase, "forward")
            if not is_in_time:
                self._raise(step, f"{self.called} did not come back from its {step} within {seconds:g} s{_of(route)}")
            lines = self._lines(step, route)
        if lines[0]["say"] == "failed":
            self._fail(lines[0], route)
        return lines[0]

    def _lines(self, step: str, route: str) -> list[dict[str, Any]]:
        lines = self.child.pipe.receive()
        if lines is None or (not lines and is_ready(self.child.pidfd, 0.0)):
            how = signal_name(self._code())
            self._raise(step, f"{self.called} ended in its {step}{_of(route)}: {how}")
        return lines

    def _code(self) -> int:
        if not is_ready(self.child.pidfd, monotonic() + KILL_SECONDS):
            return 0
        ended = os.waitid(os.P_PIDFD, self.child.pidfd, os.WEXITED | os.WNOWAIT)
        assert ended is not None, "it is waited for without WNOHANG"
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _fail(self, line: Mapping[str, Any], route: str) -> NoReturn:
        step, why = str(line["step"]), str(line["line"])
        what = {
            "start": "failed to start",
            "warm-up": "failed in the warm-up with its example",
            "decode": "failed to decode",
            "forward": "failed in forward",
            "encode": "failed to encode its result",
        }[step]
        self._raise(step, f"{self.called} {what}{_of(route)}: {why}", str(line["text"]))

    def _raise(self, step: str, text: str, detail: str = "") -> NoReturn:
        raise DryRunFailed(self.plan.name, step, text, detail)

    def end(self) -> None:
        self.child.kill()
        if is_ready(self.child.pidfd, monotonic() + KILL_SECONDS):
            self.child.reap()
        self.child.close()


def _of(route: str) -> str:
    return f" with the example of {route}" if route else ""


def _is_awake(children: Sequence[Child], until: float) -> bool:
    """Whether one of them has said something, or ended, before that time."""
    poll = select.poll()
    for child in children:
        poll.register(child.pipe.fd, select.POLLIN)
        poll.register(child.pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, until - monotonic()) * 1000))


# ── all of them ───────────────────────────────────────────────────────────────────────────────────────────────────


def dry_run(plan: Plan, settings: Settings, app: str, output: str) -> None:
    """Try `app` and show what was found out, as text or JSON. Raises DryRunFailed; exits when it is interrupted."""
    starts: list[StageStart] = []
    trials: list[Trial] = []
    failure: DryRunFailed | None = None
    try:
        with _interruptible(), ExitStack() as held:
            file = os.memfd_create("zmesh-payloads", os.MFD_CLOEXEC)
            held.callback(os.close, file)
            processes = {stage.name: _begin(stage, plan, settings, app, file, held) for stage in plan.stages}
            _await_starts(list(processes.values()))
            starts += [process.start for process in processes.values() if process.start]
            for route in plan.routes:
                trials += _try_route(route, processes, settings, file)
    except DryRunFailed as error:
        failure = error
    if output == "json":
        sys.stdout.write(f"{_as_json(starts, trials, failure)}\n")
    elif trials or not failure:
        sys.stdout.write(f"{report(starts, trials)}\n")
    if failure:
        raise failure


def _begin(stage: StagePlan, plan: Plan, settings: Settings, app: str, file: int, held: ExitStack) -> _Process:
    document = {
        "plan": plan.to_json(),
        "settings": settings.to_json(),
        "stage": stage.name,
        "app": os.path.abspath(app),
        "user_args": list(settings.user_args),
        "file": file,
    }
    command, env = [sys.executable, "-m", "zmesh.tryout"], stage.env[0] if stage.env else None
    try:
        child = Child(f"{stage.name}/1", command, document, env=env, slate=Slate.make(), keep=[file])
    except OSError as error:
        raise DryRunFailed(stage.name, "start", f"stage {stage.name} cannot be started: {error}") from error
    process = _Process(stage, child)
    held.callback(process.end)
    return process


def _await_starts(processes: Sequence[_Process]) -> None:
    """Until every stage is ready, or one has failed."""
    until = monotonic() + START_SECONDS
    while waiting := [process for process in processes if process.start is None]:
        if not _is_awake([process.child for process in waiting], until):
            slow = waiting[0]
            step = "warm-up" if slow.made_at else "start"
            raise DryRunFailed(slow.plan.name, step, f"{slow.called} was not ready after {START_SECONDS:g} s")
        for process in waiting:
            process.hear_start()


def _try_route(route: RoutePlan, processes: Mapping[str, _Process], settings: Settings, file: int) -> Iterator[Trial]:
    """Each example of its first stage, through all of them."""
    first = processes[route.stages[0]]
    assert first.start is not None, "all are ready"
    count = first.start.examples
    if not count:
        way_out = "give its class one, as in: example = …, what forward takes"
        yield Trial(route.path, route.mime_type, missing=f"{first.called} has no example; {way_out}")
    for number in range(count):
        trial, sizes = Trial(route.path, route.mime_type, number + 1, count), list[int]()
        for index, name in enumerate(route.stages):
            process = processes[name]
            state = int(State.INGRESS) * (index == 0) | int(State.EGRESS) * (index == len(route.stages) - 1)
            words: dict[str, object] = {"say": "run", "sizes": sizes} if index else {"say": "example", "number": number}
            seconds = STEP_SECONDS + settings.timeout / 1000 + process.plan.timeout_seconds
            said = process.ask(route.path, seconds, state=state, **words)
            sizes = said["sizes"]
            step = Step(name, said["seconds"], said["in_bytes"], sum(sizes), said["events"], said.get("note", ""))
            trial.steps.append(step)
        trial.answer = _shown(unpack(file, sizes[:1])[0] if sizes else b"")
        yield trial


def _shown(answer: bytes) -> str:
    text = answer[: 4 * SHOWN_CHARACTERS_MAX].decode("utf-8", "ignore")
    is_text = text.encode() == answer and text.isprintable() and len(text) <= SHOWN_CHARACTERS_MAX
    return text if is_text else ""


@contextmanager
def _interruptible() -> Iterator[None]:
    """A signal to stop ends the dry run, by an exit code that says so, once its processes are gone."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    former = {number: signal.getsignal(number) for number in STOPPING}
    for number in STOPPING:
        if former[number] is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# ── how it is shown ───────────────────────────────────────────────────────────────────────────────────────────────


def report(starts: Sequence[StageStart], trials: Sequence[Trial]) -> str:
    """A table for each example: a line per stage."""
    known = {start.stage: start for start in starts}
    return "\n\n".join("\n".join(_told(trial, known)) for trial in trials)


def _told(trial: Trial, known: Mapping[str, StageStart]) -> Iterator[str]:
    if trial.missing:
        yield f"{trial.route}: not tried, because {trial.missing}"
        return
    yield f"{trial.route}, example {trial.number} of {trial.count}:" if trial.count > 1 else f"{trial.route}:"
    rows = []
    for step in trial.steps:
        start, times = known[step.stage], [_time(step.seconds[name]) for name in ("decode", "forward", "encode")]
        if step.note:
            times[0] = "-"
        begun = (_time(start.start_seconds), _time(start.warm_up_seconds))
        rows.append((step.stage, *begun, *times, step.in_bytes, step.out_bytes))
    yield table(HEAD, rows)
    total = sum(sum(step.seconds.values()) for step in trial.steps)
    size, events = trial.steps[-1].out_bytes, trial.steps[-1].events
    what = f"{events} events" if events else f"{size} bytes of {trial.mime_type}"
    yield f"answered in {_time(total)} with {what}{f': {trial.answer}' if trial.answer and not events else ''}"
    for step in trial.steps:
        if step.note:
            yield f"note on {step.stage}: {step.note}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.2f} ms"


def _as_json(starts: Sequence[StageStart], trials: Sequence[Trial], failure: DryRunFailed | None) -> str:
    said: dict[str, object] = {"ok": failure is None, "stages": [asdict(start) for start in starts]}
    said["trials"] = [asdict(trial) for trial in trials]
    if failure:
        told = {"stage": failure.stage, "step": failure.step, "text": str(failure), "traceback": failure.detail}
        said["failure"] = told
    return json.dumps(said)
