"""current_task: what code in `forward` learns about its items."""

import os
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest

import zmesh
from zmesh.alarms import ALARMS, Call
from zmesh.core.effects import Run
from zmesh.current import CurrentTask
from zmesh.messages import Columns, LeaseId, TaskId


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(ALARMS, "clock", lambda: now[0])
    yield now
    ALARMS.listen = lambda: None


def inside(ask: Callable[[], Any], cancelled: set[int] | None = None) -> Any:
    """What `ask` says in a `forward` that was given rows 0 and 2 of a lease of three."""
    contexts = [{"request_id": "one"}, {"request_id": "two"}, None]
    columns = Columns([TaskId(11), TaskId(12), TaskId(13)], [3] * 3, [1] * 3, [1, 1, 2], [0] * 3, [b""] * 3, contexts)
    lease = Run(LeaseId(7), columns, [101.0, 102.0, 103.5], frozenset())
    return ALARMS.run(Call(lease, [0, 2], set() if cancelled is None else cancelled), lambda data: ask(), None)


def test_the_index_is_that_of_what_forward_was_given():
    def ask() -> Any:
        first, second = zmesh.current_task(), zmesh.current_task(1)
        return [(task.id, task.request_id, task.attempt, task.remaining) for task in (first, second)]

    assert inside(ask) == [(11, "one", 1, 1.0), (13, None, 2, 3.5)]


def test_nothing_remains_after_the_deadline_and_nobody_waits(clock: list[float]):
    def ask() -> Any:
        clock[0] = 101.5
        return [(task.remaining, task.cancelled) for task in map(zmesh.current_task, (0, 1))]

    assert inside(ask) == [(0.0, True), (2.0, False)]


def test_cancelled_hears_what_the_broker_has_said_by_now():
    cancelled: set[int] = set()

    def ask() -> Any:
        task = zmesh.current_task(1)
        before = task.cancelled
        ALARMS.listen = lambda: cancelled.add(2)
        return before, task.cancelled, zmesh.current_task(0).cancelled

    assert inside(ask, cancelled) == (False, True, False)


def test_in_another_thread_it_is_what_was_heard_last():
    said = list[bool]()
    cancelled: set[int] = set()

    def ask() -> Any:
        ALARMS.listen = lambda: cancelled.add(0)
        task = zmesh.current_task(0)
        for look in (None, task):
            if look is not None:
                assert look.cancelled
            thread = Thread(target=lambda: said.append(zmesh.current_task(0).cancelled))
            thread.start()
            thread.join()

    inside(ask, cancelled)
    assert said == [False, True]


def test_in_a_process_that_forward_has_forked_it_is_what_was_heard_last():
    def ask() -> Any:
        ALARMS.listen = lambda: os._exit(3)
        task = zmesh.current_task(0)
        if not (child := os.fork()):
            os._exit(task.cancelled)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert [inside(ask, set()), inside(ask, {0})] == [0, 1]


def test_a_task_that_was_kept_says_of_its_own_batch_what_it_knew():
    heard = list[int]()
    task: CurrentTask = inside(lambda: zmesh.current_task(1), {2})
    ALARMS.listen = lambda: heard.append(1)
    assert inside(lambda: (task.id, task.cancelled)) == (13, True)
    assert not heard


def test_outside_of_forward_it_says_so():
    with pytest.raises(
        RuntimeError, match=r"^current_task works only while forward runs in a mesh; nothing is in hand"
    ):
        zmesh.current_task()


@pytest.mark.parametrize("i", [2, -1])
def test_an_item_that_is_not_there(i: int):
    with pytest.raises(IndexError, match=rf"^current_task\({i}\): forward was given 2 items, counted from 0$"):
        inside(lambda: zmesh.current_task(i))
