"""Stage: what it takes, what it refuses, what it says of itself; and making a worker."""

from typing import Any

import pytest

from zmesh.current import current_task
from zmesh.errors import DeclarationError
from zmesh.rehearsal import make_worker, warm_up
from zmesh.stage import Stage
from zmesh.worker import SSEWorker, Worker


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Events(SSEWorker):
    def forward(self, data: Any) -> Any:
        return data


class Spelled(Echo):
    resp_mime_type = "text/plain"

    def serialize_ipc(self, data: Any) -> bytes:
        return b""


class Unfinished(Worker):
    pass


def test_a_stage_takes_what_mosec_takes_in_the_same_order():
    stage = Stage(Echo, 2, 8, 5, 1.5, "fork", [{"A": "1"}, {"A": "2"}])
    plan = stage.plan("echo", 10)
    assert (plan.name, plan.worker) == ("echo", "Echo")
    assert (plan.num, plan.max_batch_size, plan.max_wait_ms, plan.timeout_seconds) == (2, 8, 5.0, 1.5)
    assert plan.env == ({"A": "1"}, {"A": "2"})
    assert (plan.batching, plan.spread, plan.retry, plan.ipc_codec) == ("crowd", False, True, "zmesh")


def test_a_stage_that_says_nothing_about_waiting_waits_as_the_server_says():
    assert Stage(Echo).plan("echo", 10).max_wait_ms == 10.0
    assert Stage(Echo, max_wait_time=0.5).plan("echo", 10).max_wait_ms == 0.5


def test_a_stage_keeps_the_name_it_was_given():
    assert Stage(Echo, name="mine").plan("echo", 10).name == "mine"


def test_a_stage_says_what_its_worker_answers_with():
    assert Stage(Events).plan("events", 10).sse
    assert Stage(Events).plan("events", 10).mime_type == "text/event-stream"
    assert Stage(Spelled).plan("spelled", 10).mime_type == "text/plain"


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "64 KiB"])
def test_a_bound_for_shared_memory_is_a_number_of_bytes_or_none(size: object):
    with pytest.raises(DeclarationError, match="shared_memory_bytes must be"):
        Stage(type("Odd", (Echo,), {"shared_memory_bytes": size}))
    Stage(type("Never", (Echo,), {"shared_memory_bytes": None}))


def test_another_codec_between_stages_has_another_name():
    codec = Stage(Spelled).plan("spelled", 10).ipc_codec
    assert codec == "Spelled.serialize_ipc+Worker.deserialize_ipc"


def test_a_stage_with_settings_of_its_own():
    plan = Stage(Echo, batching="greedy", spread=True, retry=False).plan("echo", 10)
    assert (plan.batching, plan.spread, plan.retry) == ("greedy", True, False)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"num": 0}, ValueError, "Echo: num must be at least 1, not 0"),
        ({"num": 1.0}, TypeError, "Echo: num must be a whole number, not 1.0"),
        ({"num": True}, TypeError, "Echo: num must be a whole number, not True"),
        ({"max_batch_size": 0}, ValueError, "Echo: max_batch_size must be at least 1, not 0"),
        ({"max_batch_size": "8"}, TypeError, "Echo: max_batch_size must be a whole number, not '8'"),
        ({"max_wait_time": -1}, ValueError, "Echo: max_wait_time must be 0 or more milliseconds, not -1"),
        ({"max_wait_time": True}, TypeError, "Echo: max_wait_time must be a number of milliseconds, not True"),
        ({"max_wait_time": float("nan")}, ValueError, "Echo: max_wait_time must be 0 or more"),
        ({"max_wait_time": float("inf")}, ValueError, "Echo: max_wait_time must be 0 or more"),
        ({"timeout": -0.1}, ValueError, "Echo: timeout must be 0 or more seconds, not -0.1"),
        ({"timeout": None}, TypeError, "Echo: timeout must be a number of seconds, not None"),
        ({"start_method": "forkserver"}, ValueError, "Echo: start_method must be one of spawn, fork, not 'forkserver'"),
        ({"batching": "lazy"}, ValueError, "Echo: batching must be one of crowd, fixed, greedy, not 'lazy'"),
        ({"spread": 1}, TypeError, "Echo: spread must be True or False, not 1"),
        ({"retry": None}, TypeError, "Echo: retry must be True or False, not None"),
        ({"name": ""}, TypeError, "Echo: name must be text, not ''"),
        ({"name": 1}, TypeError, "Echo: name must be text, not 1"),
        ({"env": {"A": "1"}}, TypeError, "Echo: env must be a list with one dict per worker, not {'A': '1'}"),
        ({"env": [{}, {}]}, ValueError, "Echo: env must have one dict per worker, 1, not 2"),
        ({"env": [{"A": 1}]}, TypeError, "Echo: env must map names to text, not {'A': 1}"),
        ({"env": ["A=1"]}, TypeError, "Echo: env must map names to text, not 'A=1'"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(settings: dict[str, Any], error: type[Exception], words: str):
    with pytest.raises(error) as caught:
        Stage(Echo, **settings)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("worker", "words"),
    [
        (Echo(), "a stage takes the class itself: write Echo, not Echo()"),
        ("Echo", "a stage needs a subclass of zmesh.Worker, not 'Echo'"),
        (int, "int is not a worker; make it a subclass of zmesh.Worker"),
        (Unfinished, "Unfinished cannot be run: it does not define forward"),
    ],
)
def test_what_is_no_worker_class_is_refused(worker: Any, words: str):
    with pytest.raises(TypeError) as caught:
        Stage(worker)
    assert str(caught.value).startswith(words)


# ── making a worker ───────────────────────────────────────────────────────────────────────────────────────────────


class Remembering(Worker):
    def __init__(self) -> None:
        self.born = (self.stage, self.worker_id, self.max_batch_size)
        self.seen: list[Any] = []

    def forward(self, data: Any) -> Any:
        self.seen.append(data)
        return data


def test_a_worker_knows_its_place_in_its_init():
    worker = make_worker(Remembering, "echo", 3, 8)
    assert worker.born == ("echo", 3, 8)
    assert worker.seen == []


def warm(worker_class: type[Remembering], max_batch_size: int) -> list[Any]:
    worker = make_worker(worker_class, "echo", 1, max_batch_size)
    assert worker.seen == []
    warm_up(worker)
    return worker.seen


@pytest.mark.parametrize(
    ("example", "max_batch_size", "seen"),
    [("x", 1, ["x"]), ("x", 8, [["x"]]), (["x", "y"], 8, [["x", "y"]]), (["x"], 1, [["x"]]), (0, 1, [0])],
)
def test_a_worker_is_warmed_up_by_its_example(example: Any, max_batch_size: int, seen: list[Any]):
    class Warm(Remembering):
        pass

    Warm.example = example
    assert warm(Warm, max_batch_size) == seen


def test_many_examples_go_before_one():
    class Warm(Remembering):
        example = "no"
        multi_examples = ("a", ["b"])

    assert warm(Warm, 4) == [["a"], ["b"]]


def test_an_example_made_in_init_counts():
    class Warm(Remembering):
        def __init__(self) -> None:
            super().__init__()
            self.example = self.max_batch_size * "x"

    assert warm(Warm, 1) == ["x"]


def test_a_warm_up_that_fails_is_a_start_that_fails():
    class Cold(Remembering):
        example = 1

        def forward(self, data: Any) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        warm(Cold, 1)


def test_a_warm_up_may_ask_for_the_current_task():
    class Asking(Remembering):
        def forward(self, data: Any) -> Any:
            self.seen += [
                (task.cancelled, task.remaining, task.attempt) for task in map(current_task, range(len(data)))
            ]
            return data

    assert warm(type("Three", (Asking,), {"example": [1, 2, 3]}), 8) == [(False, float("inf"), 1)] * 3
