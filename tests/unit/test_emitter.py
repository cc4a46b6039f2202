"""What an SSEWorker says while `forward` runs: by calls, as a generator, from other threads, and to whom not."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from zmesh import ValidationError, current_task
from zmesh.alarms import Alarms
from zmesh.core.effects import Run
from zmesh.core.events import RowsFinished, RowsStreamed
from zmesh.messages import EVENT_BYTES_MAX, Columns, LeaseId, State, Status, TaskId
from zmesh.pipe import Slate
from zmesh.rehearsal import warm_up
from zmesh.runner import BatchRunner
from zmesh.worker import SSEWorker

ONLY, FIRST = State.INGRESS | State.EGRESS, State.INGRESS
INTERNAL = (Status.INTERNAL, b"inference internal error")
DONE = (Status.OK, b"")


class Speaker(SSEWorker):
    """Does what the test says."""

    def __init__(self, forward: Callable[..., Any], max_batch_size: int = 4) -> None:
        self.max_batch_size, self._forward, self.calls = max_batch_size, forward, 0

    def forward(self, data: Any) -> Any:
        self.calls += 1
        return self._forward(self, data)


class Stage:
    """A lease run by a worker: what was said, and what became of each row."""

    def __init__(self, slate: Slate) -> None:
        self.slate = slate
        self.cancelled: set[int] = set()
        self.now = 100.0
        self.said: list[tuple[int, str]] = []
        self.heard = 0
        self.on_event: Callable[[], None] = lambda: None
        self.on_listen: Callable[[], None] = lambda: None
        self.runners: dict[Speaker, BatchRunner] = {}

    def run(
        self,
        worker: Speaker,
        *values: Any,
        states: list[int] | None = None,
        deadlines: list[float] | None = None,
        retry: bool = True,
        alarms: Alarms | None = None,
    ) -> list[tuple[Status, bytes]]:
        count = len(values)
        payloads: list[Any] = [json.dumps(value).encode() for value in values]
        ids = [TaskId(n) for n in range(count)]
        columns = Columns(ids, states or [int(ONLY)] * count, [9] * count, [1] * count, [0] * count, payloads)
        lease = Run(LeaseId(7), columns, deadlines or [200.0] * count, frozenset())
        if worker not in self.runners:
            made = alarms or Alarms(lambda: self.now)
            self.runners[worker] = BatchRunner(worker, self.slate, retry=retry, clock=made.clock, alarms=made)
        runner = self.runners[worker]
        found: dict[int, tuple[Status, bytes]] = {}
        for event in runner.run(lease, lambda: self.cancelled, self._listen, self._hear):
            assert isinstance(event, RowsFinished)
            for row, status, payload in zip(event.rows, event.statuses, event.payloads, strict=True):
                assert row not in found
                found[row] = Status(status), bytes(payload)
        return [found[row] for row in range(count)]

    def _listen(self) -> None:
        self.heard += 1
        self.on_listen()

    def _hear(self, event: RowsStreamed) -> None:
        assert len(event.rows) == len(event.payloads) > 0
        self.said += [(row, bytes(payload).decode()) for row, payload in zip(event.rows, event.payloads, strict=True)]
        self.on_event()


@pytest.fixture(name="stage")
def stage_fixture() -> Iterator[Stage]:
    slate = Slate.make()
    yield Stage(slate)
    slate.close()


# ── by calls ──────────────────────────────────────────────────────────────────────────────────────────────────────


def echo(worker: Speaker, data: list[Any]) -> list[Any]:
    for _ in range(2):
        for index, value in enumerate(data):
            worker.send_stream_event(f"{value}", index)
    return data


def test_each_item_hears_its_own_events_and_what_forward_returns_is_not_sent(stage: Stage):
    assert stage.run(Speaker(echo), "a", "b") == [DONE, DONE]
    assert stage.said == [(0, "a"), (1, "b"), (0, "a"), (1, "b")]


def test_without_batching_the_item_is_number_0(stage: Stage):
    def forward(worker: Speaker, data: str) -> None:
        worker.send_stream_event(data)

    assert stage.run(Speaker(forward, 1), "a") == [DONE]
    assert stage.said == [(0, "a")]


def test_a_batch_may_return_nothing_at_all(stage: Stage):
    assert stage.run(Speaker(lambda worker, data: None), "a", "b") == [DONE, DONE]


def test_what_it_returns_is_never_written(stage: Stage):
    assert stage.run(Speaker(lambda worker, data: [object()] * len(data)), "a") == [DONE]


def test_as_many_results_as_items_or_none(stage: Stage, caplog: pytest.LogCaptureFixture):
    assert stage.run(Speaker(lambda worker, data: ["x"]), "a", "b") == [INTERNAL, INTERNAL]
    assert "returned 1 results" in caplog.text


def test_a_result_that_is_an_exception_ends_the_stream_of_its_item(stage: Stage):
    def forward(worker: Speaker, data: list[Any]) -> list[Any]:
        worker.send_stream_event("a", 0)
        return [ValidationError("text is required"), None]

    refused = (Status.VALIDATION, b"request validation error: text is required")
    assert stage.run(Speaker(forward), "a", "b") == [refused, DONE]


def test_an_empty_text_is_no_event(stage: Stage):
    def forward(worker: Speaker, data: list[Any]) -> None:
        for text in ("", "x", ""):
            worker.send_stream_event(text)

    stage.run(Speaker(forward), "a")
    assert stage.said == [(0, "x")]


@pytest.mark.parametrize(
    ("text", "index", "error"),
    [
        (7, 0, "TypeError: an event is text, not int"),
        (b"x", 0, "TypeError: an event is text, not bytes"),
        (None, 0, "TypeError: an event is text, not NoneType"),
        ("x" * (EVENT_BYTES_MAX + 1), 0, "ValueError: an event may have 1048576 bytes"),
        ("x", 1, "IndexError: send_stream_event to item 1: forward was given 1 items"),
        ("x", -1, "IndexError"),
    ],
    ids=["int", "bytes", "None", "too long", "no such item", "negative"],
)
def test_what_is_no_event_is_told_to_who_says_it(
    stage: Stage, caplog: pytest.LogCaptureFixture, text: Any, index: int, error: str
):
    assert stage.run(Speaker(lambda worker, data: worker.send_stream_event(text, index)), "a") == [INTERNAL]
    assert error in caplog.text
    assert stage.said == []


def test_a_text_as_long_as_an_event_may_be_and_one_with_half_a_character_are_said(stage: Stage):
    def forward(worker: Speaker, data: list[Any]) -> None:
        worker.send_stream_event("x" * EVENT_BYTES_MAX)
        worker.send_stream_event("\ud83d")

    assert stage.run(Speaker(forward), "a") == [DONE]
    assert [len(text) for _, text in stage.said] == [EVENT_BYTES_MAX, 1]


def test_outside_of_forward_nobody_speaks(stage: Stage):
    worker = Speaker(echo)
    with pytest.raises(RuntimeError, match="no stream is open"):
        worker.send_stream_event("x")
    stage.run(worker, "a")
    with pytest.raises(RuntimeError, match="only while forward runs"):
        worker.send_stream_event("x")


# ── as a generator ────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_yield_is_an_event_for_every_item_that_has_one(stage: Stage):
    def forward(worker: Speaker, data: list[str]) -> Iterator[list[str | None]]:
        yield ["a0", "b0"]
        yield [None, "b1"]
        yield ("a2", "")

    assert stage.run(Speaker(forward), "a", "b") == [DONE, DONE]
    assert stage.said == [(0, "a0"), (1, "b0"), (1, "b1"), (0, "a2")]


def test_without_batching_a_generator_yields_texts(stage: Stage):
    def forward(worker: Speaker, data: str) -> Iterator[str | None]:
        yield from [data, None, data + "!"]

    assert stage.run(Speaker(forward, 1), "a") == [DONE]
    assert stage.said == [(0, "a"), (0, "a!")]


def test_an_iterator_that_is_returned_is_as_good_as_a_generator(stage: Stage):
    assert stage.run(Speaker(lambda worker, data: iter(["a", "b"]), 1), "x") == [DONE]
    assert stage.said == [(0, "a"), (0, "b")]


def test_async_code_is_told_what_to_do_instead(stage: Stage, caplog: pytest.LogCaptureFixture):
    async def coroutine(worker: Speaker, data: str) -> None:
        raise AssertionError("it never runs")

    async def generator(worker: Speaker, data: str) -> AsyncIterator[str]:
        yield "unheard"

    for forward in (coroutine, generator):
        assert stage.run(Speaker(forward, 1), "a") == [INTERNAL]
    assert caplog.text.count("forward must not be async") == 2


def test_an_exception_that_is_yielded_ends_the_stream_of_its_item_and_no_other(stage: Stage):
    def forward(worker: Speaker, data: list[str]) -> Iterator[list[Any]]:
        yield ["a0", ValidationError("no")]
        yield ["a1", "unheard"]

    no = (Status.VALIDATION, b"request validation error: no")
    assert stage.run(Speaker(forward), "a", "b") == [DONE, no]
    assert stage.said == [(0, "a0"), (0, "a1")]


def test_a_generator_whose_items_have_all_ended_is_closed(stage: Stage):
    closed, kept = [], []

    def events() -> Iterator[Any]:
        try:
            yield ValidationError("no")
            yield "unheard"
        finally:
            closed.append(True)

    def forward(worker: Speaker, data: str) -> Iterator[Any]:
        kept.append(events())  # so that it does not close itself for want of an owner
        return kept[0]

    assert stage.run(Speaker(forward, 1), "a") == [(Status.VALIDATION, b"request validation error: no")]
    assert (closed, stage.said) == ([True], [])


def test_what_a_generator_returns_may_be_exceptions_too(stage: Stage):
    def forward(worker: Speaker, data: list[str]) -> Iterator[list[str]]:
        yield ["a0", "b0"]
        return [None, ValidationError("no")]

    assert stage.run(Speaker(forward), "a", "b") == [DONE, (Status.VALIDATION, b"request validation error: no")]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["one"], "forward got 2 items and yielded 1 texts"),
        ("ab", "must yield a list with one text or None per item, not str"),
    ],
)
def test_a_yield_that_is_no_list_of_texts_is_the_workers_mistake(
    stage: Stage, caplog: pytest.LogCaptureFixture, wrong: Any, said: str
):
    def forward(worker: Speaker, data: list[str]) -> Iterator[Any]:
        yield wrong

    worker = Speaker(forward)
    assert stage.run(worker, "a", "b") == [INTERNAL, INTERNAL]
    assert said in caplog.text
    assert worker.calls == 1


def test_a_generator_that_returns_no_list_is_a_mistake_all_the_same(stage: Stage):
    def forward(worker: Speaker, data: list[str]) -> Iterator[Any]:
        yield ["a", ValidationError("no")]
        return 7

    assert stage.run(Speaker(forward), "a", "b") == [INTERNAL, INTERNAL]


# ── to whom not ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_left_hears_nothing_more_and_the_others_go_on(stage: Stage):
    seen = []

    def forward(worker: Speaker, data: list[str]) -> None:
        for step in range(3):
            for index in range(2):
                worker.send_stream_event(str(step), index)

    def leave() -> None:
        if stage.heard == 3:  # as if a CANCEL had just come
            stage.cancelled.add(0)
            seen.append(True)

    stage.on_listen = leave
    stage.run(Speaker(forward), "a", "b")
    assert seen == [True]
    assert stage.said == [(0, "0"), (1, "0"), (1, "1"), (1, "2")]


def test_a_generator_stops_when_nobody_is_left(stage: Stage):
    steps = []

    def forward(worker: Speaker, data: list[str]) -> Iterator[list[str]]:
        for step in range(9):
            steps.append(step)
            yield ["x", "x"]

    def leave() -> None:
        stage.cancelled.add(len(steps) - 1)

    stage.on_event = leave
    gone = (Status.CANCELLED, b"cancelled: nobody waits for this stream any more")
    assert stage.run(Speaker(forward), "a", "b") == [gone, gone]
    assert steps == [0, 1]


def test_after_its_deadline_an_item_hears_nothing_and_its_stream_is_a_timeout(stage: Stage):
    def forward(worker: Speaker, data: list[str]) -> Iterator[list[str]]:
        yield ["a0", "b0"]
        stage.now = 150.0
        yield ["a1", "b1"]
        yield ["a2", "b2"]

    late = (Status.TIMEOUT, b"request timeout: no answer before the deadline")
    assert stage.run(Speaker(forward), "a", "b", deadlines=[120.0, 200.0]) == [late, DONE]
    assert stage.said == [(0, "a0"), (1, "b0"), (1, "b1"), (1, "b2")]


@pytest.mark.parametrize("is_generator", [False, True])
def test_a_forward_that_gives_up_an_item_has_not_ended_it_well(stage: Stage, is_generator: bool):
    def forward(worker: Speaker, data: list[str]) -> None:
        worker.send_stream_event("so", 0)
        stage.cancelled.add(1)
        stage.now = 150.0

    def generator(worker: Speaker, data: list[str]) -> Iterator[list[str]]:
        yield ["so", None, None]
        stage.cancelled.add(1)
        stage.now = 150.0

    late = (Status.TIMEOUT, b"request timeout: no answer before the deadline")
    gone = (Status.CANCELLED, b"cancelled: nobody waits for this stream any more")
    worker = Speaker(generator if is_generator else forward)
    assert stage.run(worker, "a", "b", "c", deadlines=[120.0, 200.0, 200.0])[:2] == [late, gone]


def test_an_item_whose_route_goes_on_has_no_client_here(stage: Stage, caplog: pytest.LogCaptureFixture):
    def forward(worker: Speaker, data: list[str]) -> list[str]:
        worker.send_stream_event("x", 0)
        worker.send_stream_event("y", 1)
        worker.send_stream_event("z", 1)
        return ["to the next stage", "ends here"]

    first, second = stage.run(Speaker(forward), "a", "b", states=[int(FIRST), int(ONLY)])
    assert second == DONE
    assert b"to the next stage" in first[1]
    assert stage.said == [(1, "y"), (1, "z")]
    assert caplog.text.count("events of Speaker are dropped") == 1


def test_a_warm_up_speaks_to_nobody_and_does_not_hang():
    class Warm(Speaker):
        example = ["a", "b"]

    for forward in (echo, lambda worker, data: iter(()), lambda worker, data: (["x", None] for _ in data)):
        worker = Warm(forward)
        warm_up(worker)
        assert worker.calls == 1
    with pytest.raises(TypeError, match="an event is text"):
        warm_up(Warm(lambda worker, data: ([7, None] for _ in data)))


def test_a_generator_is_run_through_in_a_warm_up():
    ran = []

    class Warm(Speaker):
        example = "a"

    def forward(worker: Speaker, data: Any) -> Iterator[str]:
        yield data
        ran.append(current_task().remaining)

    warm_up(Warm(forward, 1))
    assert len(ran) == 1


# ── what was said cannot be taken back ────────────────────────────────────────────────────────────────────────────


def test_a_batch_that_raises_runs_only_those_again_that_said_nothing(stage: Stage):
    runs: list[list[str]] = []

    def forward(worker: Speaker, data: list[str]) -> None:
        runs.append(list(data))
        if data[0] == "a":
            worker.send_stream_event("x", 0)
        if "bad" in data:
            raise RuntimeError("out of cheese")
        worker.send_stream_event("fine")

    assert stage.run(Speaker(forward), "a", "b", "bad", "c") == [INTERNAL, DONE, INTERNAL, DONE]
    assert runs == [["a", "b", "bad", "c"], ["b", "bad", "c"], ["b", "bad"], ["b"], ["bad"], ["c"]]
    assert stage.said == [(0, "x"), (1, "fine"), (3, "fine")]


def test_if_all_have_spoken_nothing_is_run_again(stage: Stage):
    worker = Speaker(lambda worker, data: [*echo(worker, data), 1 / 0])
    assert stage.run(worker, "a", "b") == [INTERNAL, INTERNAL]
    assert worker.calls == 1


def test_what_one_lease_said_does_not_count_in_the_next(stage: Stage):
    worker = Speaker(echo)
    stage.run(worker, "a")
    runs = []

    def forward(worker: Speaker, data: list[str]) -> None:
        runs.append(len(data))
        if len(data) > 1:
            raise RuntimeError("once")

    worker._forward = forward
    assert stage.run(worker, "a", "b") == [DONE, DONE]
    assert runs == [2, 1, 1]


# ── other threads ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_other_threads_may_speak_until_forward_ends(stage: Stage):
    late: list[BaseException] = []
    over = threading.Event()

    def say(worker: Speaker) -> None:
        for number in range(100):
            worker.send_stream_event(str(number), 1)

    def say_late(worker: Speaker) -> None:
        over.wait(10)
        try:
            worker.send_stream_event("late")
        except RuntimeError as error:
            late.append(error)

    lingering: list[threading.Thread] = []

    def forward(worker: Speaker, data: list[str]) -> None:
        lingering.append(threading.Thread(target=say_late, args=(worker,)))
        lingering[0].start()
        other = threading.Thread(target=say, args=(worker,))
        other.start()
        for number in range(100):
            worker.send_stream_event(str(number), 0)
        other.join()

    assert stage.run(Speaker(forward), "a", "b") == [DONE, DONE]
    over.set()
    lingering[0].join(10)
    assert len(late) == 1
    for row in (0, 1):
        assert [text for of, text in stage.said if of == row] == [str(number) for number in range(100)]


def test_a_thread_that_comes_too_late_by_a_hair_says_nothing(stage: Stage):
    """It had asked whether a forward runs, and then had to wait for its turn."""
    calls: list[Any] = []
    alarms = Alarms(lambda: stage.now)
    worker = Speaker(lambda worker, data: calls.append(alarms.call))
    stage.run(worker, "a", alarms=alarms)
    emitter = stage.runners[worker]._emitter
    assert emitter is not None
    emitter._send_alone(calls[0], [(0, b"late")])
    assert stage.said == []


@pytest.mark.parametrize("is_generator", [False, True])
def test_an_alarm_waits_until_an_event_is_said_and_then_ends_them_all(stage: Stage, is_generator: bool):
    alarms = Alarms(lambda: stage.now)
    handler = signal.getsignal(signal.SIGALRM)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    alarms.install(3.0, lambda: 0)

    def time_is_over() -> None:
        stage.now = 103.0
        signal.raise_signal(signal.SIGALRM)
        order.append("said")

    order = []
    stage.on_event = time_is_over

    def forward(worker: Speaker, data: list[str]) -> None:
        worker.send_stream_event("a0", 0)
        order.append("it went on")

    def generator(worker: Speaker, data: list[str]) -> Iterator[list[str | None]]:
        yield ["a0", None]
        order.append("it went on")

    try:
        late = (Status.TIMEOUT, b"request timeout: the stage took longer than 3 s")
        assert stage.run(Speaker(generator if is_generator else forward), "a", "b", alarms=alarms) == [late, late]
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    assert (order, stage.said) == (["said"], [(0, "a0")])


def test_a_process_that_forward_has_forked_cannot_speak(stage: Stage):
    def forward(worker: Speaker, data: list[str]) -> None:
        child = os.fork()
        if child == 0:
            try:
                worker.send_stream_event("from the child")
            except RuntimeError:
                os._exit(7)
            os._exit(0)
        worker.send_stream_event(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))

    stage.run(Speaker(forward), "a")
    assert stage.said == [(0, "7")]


def test_forward_does_not_end_while_another_thread_is_in_the_middle_of_a_word(stage: Stage):
    began, order = threading.Event(), []
    others = []

    def slowly() -> None:
        began.set()
        for _ in range(50):
            threading.Event().wait(0.001)
        order.append("said")

    stage.on_event = slowly

    def forward(worker: Speaker, data: list[str]) -> None:
        others.append(threading.Thread(target=worker.send_stream_event, args=("x",)))
        others[0].start()
        assert began.wait(10)

    stage.run(Speaker(forward), "a")
    order.append("ended")
    others[0].join(10)
    assert order == ["said", "ended"]


def test_the_log_of_a_failure_names_no_event(stage: Stage, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)

    def forward(worker: Speaker, data: list[str]) -> None:
        worker.send_stream_event("secret")
        raise RuntimeError("out of cheese")

    stage.run(Speaker(forward), "a")
    assert "out of cheese" in caplog.text
    assert "secret" not in caplog.text.replace('send_stream_event("secret")', "")
