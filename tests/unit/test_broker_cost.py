"""A task costs the dispatcher the same with few workers and many, with an empty queue and a long one.

Counted in bytecode instructions of the core, which are the same on every machine: time is for `./scripts/bench broker`.
What is done once per second for each peer is not in it.
"""

import sys
from types import FrameType

import pytest

from benchmarks.broker import Core
from zmesh.core.stages import Choice, StageRecord

BATCH, STEPS = 8, 40
FLAT = 1.02


def instructions(workers: int, queued: int) -> float:
    """Of the core, for each task."""
    core = Core(workers, BATCH, queued)
    core.run(BATCH * workers)  # every worker has answered once, and has said all that it says once in a while
    seen = 0

    def count(frame: FrameType, event: str, arg: object) -> object:
        nonlocal seen
        seen += event == "opcode"
        return count

    def enter(frame: FrameType, event: str, arg: object) -> object:
        if "/zmesh/core/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return count

    former = sys.gettrace()
    sys.settrace(enter)
    try:
        core.run(BATCH * STEPS)
    finally:
        sys.settrace(former)
    return seen / (BATCH * STEPS)


@pytest.mark.parametrize(("workers", "queued", "least"), [(200, 0, 0), (5, 4000, 2 * BATCH), (50, 1000, 2 * BATCH)])
def test_a_task_costs_the_same_whatever_else_is_there(workers: int, queued: int, least: int):
    """Compared with 5 workers, and with a short queue if there is one: that somebody waits costs a little."""
    few, many = instructions(5, least), instructions(workers, queued)
    assert many <= FLAT * few, f"{many:.0f} instructions for a task instead of {few:.0f}"


def test_a_look_at_every_worker_for_each_batch_is_noticed(monkeypatch: pytest.MonkeyPatch):
    choose = StageRecord.choose

    def curious(stage: StageRecord, now: float) -> Choice | None:
        stage.crew.ready()
        return choose(stage, now)

    monkeypatch.setattr(StageRecord, "choose", curious)
    assert instructions(600, 0) > 1.5 * instructions(5, 0)
