"""A dry run: one worker's part without its process, and what is shown of all of them."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest

from zmesh.alarms import ALARMS
from zmesh.config import StagePlan
from zmesh.current import current_task
from zmesh.dryrun import DryRunFailed, StageStart, Step, Trial, _as_json, _Process, _shown, report
from zmesh.errors import DecodingError, ValidationError
from zmesh.messages import State
from zmesh.pipe import Slate
from zmesh.processes import Child
from zmesh.rehearsal import examples_of, items_of, warm_up
from zmesh.tryout import REQUEST_ID, Tryout, _Watch, pack, unpack
from zmesh.worker import SSEWorker, Worker

FIRST, LAST, ONLY = int(State.INGRESS), int(State.EGRESS), int(State.INGRESS | State.EGRESS)
Try = Callable[[Worker], Tryout]


class Same(Worker):
    def __init__(self, example: Any = None, *, batch: int = 1) -> None:
        self.example, self.max_batch_size = example, batch

    def forward(self, data: Any) -> Any:
        return data


@pytest.fixture
def try_out() -> Iterator[Try]:
    slate, file = Slate.make(), os.memfd_create("payloads")
    watch = _Watch(os.dup(slate.fd))
    yield lambda worker: Tryout(worker, watch, file)
    watch.close()
    slate.close()
    os.close(file)


def answers(tryout: Tryout, said: dict[str, Any]) -> list[bytes]:
    assert said["say"] == "done", said
    return unpack(tryout.file, said["sizes"])


# ── examples ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Several(Same):
    multi_examples = (1, 2)
    example = 3


def test_several_examples_come_before_one_and_an_instance_may_have_its_own() -> None:
    assert examples_of(Several(4)) == [1, 2]
    assert examples_of(Same(4)) == [4] and examples_of(Same()) == []
    one = Same(4)
    one.multi_examples = [5, 6]
    assert examples_of(one) == [5, 6]


@pytest.mark.parametrize(
    ("batch", "example", "items"), [(1, [1, 2], [[1, 2]]), (4, [1, 2], [1, 2]), (4, 1, [1]), (4, (1, 2), [(1, 2)])]
)
def test_an_item_is_wrapped_where_forward_takes_a_list(batch: int, example: object, items: list[object]) -> None:
    seen = []

    class Seeing(Same):
        def forward(self, data: Any) -> Any:
            seen.append((data, current_task(len(items) - 1).remaining))
            return data

    worker = Seeing(example, batch=batch)
    warm_up(worker)
    assert items_of(worker, example) == items
    assert seen == [(items if batch > 1 else example, inf)]


# ── one stage ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_example_goes_by_the_serializers_that_requests_go_by(try_out: Try) -> None:
    tryout = try_out(Same({"text": "größe", "pair": (1, 2)}))
    said = tryout.example(0, ONLY)
    assert answers(tryout, said) == [b'{"text":"gr\xc3\xb6\xc3\x9fe","pair":[1,2]}']
    assert said["in_bytes"] == len(answers(tryout, said)[0])
    assert set(said["seconds"]) == {"decode", "forward", "encode"}
    assert all(0 < seconds < 5 for seconds in said["seconds"].values())


def test_what_a_stage_hands_on_is_what_the_next_one_reads(try_out: Try) -> None:
    first, second = try_out(Same([{1, 2}, {3}], batch=8)), try_out(Same(batch=2))
    handed_on = answers(first, first.example(0, FIRST))
    assert len(handed_on) == 2 and second.worker.deserialize_ipc(handed_on[0]) == {1, 2}
    second.worker.serialize = lambda data: repr(data).encode()  # type: ignore[method-assign]
    assert answers(second, second.run(handed_on, LAST)) == [b"{1, 2}", b"{3}"]


class Reader(Same):
    """Reads what it does not write, as with images."""

    def deserialize(self, data: bytes) -> Any:
        if not data.startswith(b"P"):
            raise DecodingError("not a picture")
        return data[1:]


def test_a_body_that_cannot_be_made_is_left_out_and_said(try_out: Try) -> None:
    tryout = try_out(Reader({"pixels": 3}))
    said = tryout.example(0, ONLY)
    assert answers(tryout, said) == [b'{"pixels":3}']
    assert (said["in_bytes"], "decode was not tried" in said["note"]) == (0, True)
    assert tryout.worker.deserialize(b"Pabc") == b"abc", "it is the worker's own again"


def test_bytes_that_can_be_read_are_a_body(try_out: Try) -> None:
    tryout = try_out(Reader(b"P12"))
    tryout.worker.serialize = lambda data: data.decode().encode()  # type: ignore[method-assign]
    assert answers(tryout, tryout.example(0, ONLY)) == [b"12"]


def test_a_body_that_is_read_as_the_example_goes_before_one_that_can_be_read(try_out: Try) -> None:
    class Raw(Same):
        def deserialize(self, data: bytes) -> bytes:
            return data

        def serialize(self, data: Any) -> bytes:
            return repr(data).encode()

    tryout = try_out(Raw(b"abc"))
    assert tryout.example(0, ONLY)["in_bytes"] == 3


def test_arrays_can_be_examples(try_out: Try) -> None:
    numpy = pytest.importorskip("numpy")

    class Sum(Same):
        def deserialize(self, data: bytes) -> Any:
            return numpy.frombuffer(data, "u1")

        def serialize(self, data: Any) -> bytes:
            return bytes(data.tobytes())

    tryout = try_out(Sum(numpy.arange(4, dtype="u1")))
    assert answers(tryout, tryout.example(0, ONLY)) == [b"\0\1\2\3"]


def test_current_task_has_an_answer(try_out: Try) -> None:
    class Asking(Same):
        def forward(self, data: Any) -> Any:
            task = current_task()
            return [task.request_id, task.attempt, task.cancelled, task.remaining > 60]

    tryout = try_out(Asking(1))
    assert json.loads(answers(tryout, tryout.example(0, ONLY))[0]) == [REQUEST_ID, 1, False, True]


def test_events_of_a_stream_are_counted(try_out: Try) -> None:
    class Stream(SSEWorker):
        example = 3

        def forward(self, data: Any) -> Any:
            for number in range(data):
                self.send_stream_event(str(number))
            return None

    assert try_out(Stream()).example(0, ONLY)["events"] == 3


class Failing(Same):
    step = "forward"

    def fail(self, step: str) -> None:
        if self.step == step:
            raise KeyError(step)

    def deserialize_ipc(self, data: bytes) -> Any:
        self.fail("decode")
        return super().deserialize_ipc(data)

    def forward(self, data: Any) -> Any:
        self.fail("forward")
        return data

    def serialize(self, data: Any) -> bytes:
        self.fail("encode")
        return super().serialize(data)


@pytest.mark.parametrize("step", ["decode", "forward", "encode"])
def test_what_fails_is_told_with_its_step_and_the_users_traceback(
    try_out: Try, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Failing()
    worker.step = step
    said = try_out(worker).run([worker.serialize_ipc(1)], LAST)
    assert (said["say"], said["step"], said["line"]) == ("failed", step, f"KeyError: '{step}'")
    assert "in fail" in str(said["text"]) and "runner.py" not in str(said["text"])
    assert not caplog.records, "who asked says it"


def test_what_is_meant_for_a_client_is_told_as_a_client_reads_it(try_out: Try) -> None:
    class Strict(Same):
        def forward(self, data: Any) -> Any:
            return [ValidationError("text is required")] * len(data)

    said = try_out(Strict([1, 2], batch=2)).example(0, ONLY)
    assert (said["line"], said["text"]) == ("request validation error: text is required", "")


def test_results_of_the_wrong_number_are_told_in_a_sentence(try_out: Try) -> None:
    class Short(Same):
        def forward(self, data: Any) -> Any:
            return data[1:]

    said = try_out(Short([1, 2], batch=2)).example(0, ONLY)
    expected = "forward got 2 items and returned 1 results; it must be as many"
    assert (said["step"], said["line"], said["text"]) == ("forward", expected, "")


def test_a_batch_that_raises_is_not_run_again_in_halves(try_out: Try) -> None:
    calls = []

    class Raising(Same):
        def forward(self, data: Any) -> Any:
            calls.append(data)
            raise KeyError("once")

    assert try_out(Raising([1, 2], batch=2)).example(0, ONLY)["line"] == "KeyError: 'once'"
    assert calls == [[1, 2]]


def test_a_timeout_of_the_stage_holds(try_out: Try) -> None:
    class Slow(Same):
        def forward(self, data: Any) -> Any:
            while True:
                pass

    tryout = try_out(Slow(1))
    timeout = ALARMS.timeout
    ALARMS.install(0.02, tryout.watch.ordered)
    try:
        said = tryout.example(0, ONLY)
    finally:
        ALARMS.timeout = timeout
    assert (said["step"], said["line"]) == ("forward", "ForwardTimeout: the stage took longer than 0.02 s")


def test_large_payloads_pass_through_the_file() -> None:
    file = os.memfd_create("payloads")
    payloads = [b"", b"x" * 20_000_000, b"end"]
    assert pack(file, payloads) == [0, 20_000_000, 3]
    assert unpack(file, [0, 20_000_000, 3]) == payloads
    assert pack(file, [b"1"]) == [1] and unpack(file, [1]) == [b"1"]
    assert os.fstat(file).st_size == 1, "the memory of what was there is given back"
    os.close(file)


# ── a process that does not answer ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def process() -> Iterator[Callable[[str], _Process]]:
    """A stage whose process runs this code."""
    begun: list[_Process] = []

    def begin(code: str) -> _Process:
        child = Child("Slow/1", [sys.executable, "-S", "-c", code], {}, slate=Slate.make())
        begun.append(_Process(StagePlan(name="slow", worker="__zmesh_app__:Slow"), child))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()
        with pytest.raises(ProcessLookupError):
            os.kill(one.child.pid, 0)


def test_a_stage_that_does_not_come_back_is_not_waited_for(process: Callable[[str], _Process]) -> None:
    with pytest.raises(DryRunFailed) as failed:
        process("import signal; signal.pause()").ask("/x", 0.05, say="run")
    said = "stage slow (Slow) did not come back from its forward within 0.05 s with the example of /x"
    assert (str(failed.value), failed.value.step, failed.value.exit_code) == (said, "forward", 1)


def test_a_stage_whose_process_ends_is_told_with_how(process: Callable[[str], _Process]) -> None:
    holds_the_pipe = "import os, signal; os._exit(9) if os.fork() else signal.pause()"
    died = "import os; os.kill(os.getpid(), 11)"
    for code, how in (("raise SystemExit(9)", "exit code 9"), (died, "SIGSEGV"), (holds_the_pipe, "exit code 9")):
        with pytest.raises(DryRunFailed, match=f"ended in its forward with the example of /x: {how}$"):
            process(code).ask("/x", 20, say="run")


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────────

STARTS = [StageStart("Parse", 0.5, 0.25, 2), StageStart("Count", 12.0, None, 0)]
SECONDS = {"decode": 0.001, "forward": 1.25, "encode": 0.0005}
STEPS = [Step("Parse", SECONDS, 14, 4), Step("Count", SECONDS, 4, 11, note="decode was not tried")]


def test_an_example_is_a_table_with_a_line_for_each_stage() -> None:
    trials = [
        Trial("/words", "application/json", 1, 2, STEPS, '{"words":2}'),
        Trial("/none", "application/json", missing="stage Bad has no example; give its class one"),
        Trial("/stream", "text/event-stream", 1, 1, [Step("Parse", SECONDS, 1, 2, events=3)], "null"),
    ]
    assert report(STARTS, trials).splitlines() == [
        "/words, example 1 of 2:",
        "STAGE  START      WARM-UP    DECODE   FORWARD  ENCODE   BYTES IN  BYTES OUT",
        "Parse  500.00 ms  250.00 ms  1.00 ms  1.25 s   0.50 ms        14          4",
        "Count  12.00 s    -          -        1.25 s   0.50 ms         4         11",
        'answered in 2.50 s with 11 bytes of application/json: {"words":2}',
        "note on Count: decode was not tried",
        "",
        "/none: not tried, because stage Bad has no example; give its class one",
        "",
        "/stream:",
        "STAGE  START      WARM-UP    DECODE   FORWARD  ENCODE   BYTES IN  BYTES OUT",
        "Parse  500.00 ms  250.00 ms  1.00 ms  1.25 s   0.50 ms         1          2",
        "answered in 1.25 s with 3 events",
    ]


def test_programs_get_the_same_as_json() -> None:
    trial = Trial("/words", "application/json", 1, 1, STEPS)
    said = json.loads(_as_json(STARTS, [trial], None))
    assert said["ok"] and said["stages"][1]["warm_up_seconds"] is None
    assert said["trials"][0]["steps"][0]["seconds"] == SECONDS
    said = json.loads(_as_json([], [], DryRunFailed("Parse", "start", "it failed", "Traceback …")))
    assert not said["ok"]
    assert said["failure"] == {"stage": "Parse", "step": "start", "text": "it failed", "traceback": "Traceback …"}


@pytest.mark.parametrize(
    ("answer", "shown"),
    [(b"{}", "{}"), (b"\xff", ""), (b"a\x1b[2J", ""), (b"x" * 61, ""), ("ß".encode() * 60, "ß" * 60)],
)
def test_an_answer_is_shown_if_it_reads_well(answer: bytes, shown: str) -> None:
    assert _shown(answer) == shown
