"""BatchRunner: one status per item, whatever the user's code does."""

import json
import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.test_payloads import Shelf
from zmesh.alarms import INTERRUPT, Alarms
from zmesh.core.effects import Run, Settled
from zmesh.core.events import RowsFinished
from zmesh.errors import DecodingError, ForwardTimeout, ServerError, ValidationError, ZmeshError
from zmesh.messages import Columns, LeaseId, Phase, State, Status, TaskId
from zmesh.payloads import LINGER_SECONDS, Stores
from zmesh.pipe import Slate
from zmesh.runner import BatchRunner, status_of
from zmesh.worker import Worker

FIRST, LAST, ONLY = State.INGRESS, State.EGRESS, State.INGRESS | State.EGRESS


class Squares(Worker):
    """Squares integers; what else it does, the test says by `hook`, called with every batch before it is squared."""

    def __init__(self, hook: Callable[[list[Any]], None] = lambda items: None, max_batch_size: int = 8) -> None:
        self.max_batch_size, self.hook, self.calls = max_batch_size, hook, list[Any]()

    def forward(self, data: Any) -> Any:
        self.calls.append(list(data) if isinstance(data, list) else data)
        items = data if isinstance(data, list) else [data]
        self.hook(items)
        squares = [item * item for item in items]
        return squares if isinstance(data, list) else squares[0]


@pytest.fixture
def slate() -> Iterator[Slate]:
    made = Slate.make()
    yield made
    made.close()


@pytest.fixture
def run(slate: Slate) -> Callable[..., list[RowsFinished]]:
    def run(
        worker: Worker,
        payloads: list[Any],
        *,
        states: int | list[int] = ONLY,
        retry: bool = True,
        deadlines: list[float] | None = None,
        skipped: frozenset[int] = frozenset(),
        cancelled: Callable[[], set[int]] = set,
        clock: Callable[[], float] = lambda: 100.0,
        contexts: list[Any] | None = None,
        alarms: Alarms | None = None,
        tell: Callable[..., None] | None = None,
        kinds: list[int] | None = None,
        is_near: bool = False,
        **stores: Any,
    ) -> list[RowsFinished]:
        count = len(payloads)
        columns = Columns(
            [TaskId(n) for n in range(count)],
            states if isinstance(states, list) else [int(states)] * count,
            [1000] * count,
            [0] * count,
            kinds or [0] * count,
            payloads,
            contexts,
        )
        lease = Run(LeaseId(7), columns, deadlines or [200.0] * count, skipped, is_near)
        alarms = alarms or Alarms(clock)
        runner = BatchRunner(worker, slate, retry=retry, clock=clock, alarms=alarms, tell=tell, **stores)
        return list(runner.run(lease, cancelled))

    return run


def outcome(events: list[RowsFinished], count: int) -> list[tuple[Status, bytes]]:
    """Status and payload by row; every row exactly once."""
    found = {}
    for event in events:
        assert len(event.rows) == len(event.statuses) == len(event.kinds) == len(event.payloads) > 0
        for row, status, payload in zip(event.rows, event.statuses, event.payloads, strict=True):
            assert row not in found, f"row {row} was finished twice"
            assert type(payload) is bytes
            found[row] = (Status(status), payload)
    assert sorted(found) == list(range(count))
    return [found[row] for row in range(count)]


def bodies(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def oks(*values: Any) -> list[tuple[Status, bytes]]:
    return [(Status.OK, json.dumps(value).encode()) for value in values]


INTERNAL = (Status.INTERNAL, b"inference internal error")


# ── what goes right ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_one_call_and_one_event(run):
    worker = Squares()
    events = run(worker, bodies(1, 2, 3))
    assert len(events) == 1
    assert outcome(events, 3) == oks(1, 4, 9)
    assert worker.calls == [[1, 2, 3]]


def test_a_batch_of_one_is_still_a_list(run):
    worker = Squares()
    assert outcome(run(worker, bodies(5)), 1) == oks(25)
    assert worker.calls == [[5]]


def test_a_stage_without_batching_gets_the_item_itself(run):
    worker = Squares(max_batch_size=1)
    assert outcome(run(worker, bodies(5)), 1) == oks(25)
    assert worker.calls == [5]


@pytest.mark.parametrize(("most", "calls"), [(2, [[1, 2], [3, 4], [5]]), (1, [1, 2, 3, 4, 5])])
def test_a_batch_larger_than_this_worker_takes_is_run_in_parts(run, most, calls):
    """Batch settings may differ while a new version of the app is rolled out over several hosts."""
    worker = Squares(max_batch_size=most)
    assert outcome(run(worker, bodies(1, 2, 3, 4, 5)), 5) == oks(1, 4, 9, 16, 25)
    assert worker.calls == calls


def test_codecs_follow_the_place_on_the_route(run):
    class Spelled(Squares):
        deserialize = staticmethod(int)
        serialize = staticmethod(lambda result: b"client %d" % result)
        deserialize_ipc = staticmethod(lambda data: int(data) * 10)
        serialize_ipc = staticmethod(lambda result: b"next %d" % result)

    states = [int(ONLY), int(FIRST), int(LAST), 0]
    events = run(Spelled(), [b"1", b"2", b"3", b"4"], states=states)
    assert [payload for _, payload in outcome(events, 4)] == [b"client 1", b"next 4", b"client 900", b"next 1600"]


def test_forward_may_return_a_tuple_or_an_array(run):
    numpy = pytest.importorskip("numpy")

    class Odd(Squares):
        def forward(self, data: Any) -> Any:
            return numpy.array(data).tolist() if data[0] == 0 else tuple(data)

    assert outcome(run(Odd(), bodies(0, 1)), 2) == oks(0, 1)
    assert outcome(run(Odd(), bodies(1, 2)), 2) == oks(1, 2)


def test_forward_may_empty_the_list_it_was_given(run):
    class Popping(Squares):
        def forward(self, data: Any) -> Any:
            return [data.pop(0) for _ in range(len(data))]

    assert outcome(run(Popping(), bodies(1, 2)), 2) == oks(1, 2)


def test_a_serializer_may_return_any_bytes(run):
    class Views(Squares):
        def serialize(self, data: Any) -> Any:
            return [bytes, bytearray, memoryview][data % 3](b"%d" % data)

    assert outcome(run(Views(), bodies(0, 1, 2)), 3) == [(Status.OK, b"%d" % n) for n in (0, 1, 4)]


def test_user_code_is_given_bytes_even_for_a_large_payload(run):
    class Typed(Worker):
        max_batch_size = 1

        def deserialize(self, data: bytes) -> Any:
            return type(data).__name__

        def forward(self, data: Any) -> Any:
            return data

        def deserialize_ipc(self, data: bytes) -> Any:
            return type(data).__name__

    large = memoryview(b"x" * 100_000)
    assert outcome(run(Typed(), [large], states=ONLY), 1) == oks("bytes")
    assert outcome(run(Typed(), [large], states=LAST), 1) == oks("bytes")


def test_our_own_codec_reads_a_large_payload_where_it_lies(run):
    class Plain(Worker):
        max_batch_size = 1

        def forward(self, data: Any) -> Any:
            return len(data)

    payload = memoryview(Plain().serialize_ipc(b"x" * 100_000))
    assert outcome(run(Plain(), [payload], states=LAST), 1) == oks(100_000)


def test_compute_time_is_that_of_the_part(run):
    times = iter([10.0, 10.25])
    (event,) = run(Squares(), bodies(1), clock=lambda: next(times))
    assert event.compute_us == 250_000


# ── an item's own error ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_item_that_cannot_be_read_leaves_its_neighbours_alone(run):
    worker = Squares()
    got = outcome(run(worker, [b"1", b"{", b"3"]), 3)
    assert got[0::2] == oks(1, 9)
    assert got[1][0] is Status.BAD_REQUEST and got[1][1].startswith(b"decoding error: ")
    assert worker.calls == [[1, 3]]


def test_a_bug_in_deserialize_is_an_internal_error_and_logged(run, caplog):
    class Broken(Squares):
        def deserialize(self, data: bytes) -> Any:
            return {"1": 1}[data.decode()]

    assert outcome(run(Broken(), [b"1", b"2"], contexts=[None, {"request_id": "abc"}]), 2) == [*oks(1), INTERNAL]
    assert "request abc failed" in caplog.text and "KeyError: '2'" in caplog.text


def test_forward_is_not_called_for_nobody(run):
    worker = Squares()
    assert [status for status, _ in outcome(run(worker, [b"{", b"["]), 2)] == [Status.BAD_REQUEST] * 2
    assert worker.calls == []


def test_an_exception_in_the_place_of_a_result_is_that_items_answer(run, caplog):
    class Picky(Squares):
        def forward(self, data: Any) -> Any:
            return [item or ValidationError("nothing there") for item in data]

    assert outcome(run(Picky(), bodies(1, 0, 3)), 3) == [
        *oks(1),
        (Status.VALIDATION, b"request validation error: nothing there"),
        *oks(3),
    ]
    assert not caplog.records, "what user code chose to say is not logged"


def test_an_item_that_cannot_be_written_leaves_its_neighbours_alone(run, caplog):
    class Leaky(Squares):
        def forward(self, data: Any) -> Any:
            return [item or object() for item in data]

    got = outcome(run(Leaky(), bodies(1, 0)), 2)
    assert got[0] == oks(1)[0]
    assert got[1][0] is Status.INTERNAL and b"encoding error" in got[1][1]
    assert "EncodingError" in caplog.text


def test_a_serializer_that_returns_text_is_told_so_in_the_log(run, caplog):
    class Text(Squares):
        def serialize(self, data: Any) -> Any:
            return str(data)

    assert outcome(run(Text(), bodies(1)), 1) == [INTERNAL]
    assert "a serializer must return bytes, not str" in caplog.text


@pytest.mark.parametrize(
    ("http_status", "status"),
    [(400, Status.BAD_REQUEST), (404, Status.BAD_REQUEST), (408, Status.TIMEOUT), (413, Status.TOO_LARGE),
     (422, Status.VALIDATION), (429, Status.SHED), (499, Status.CANCELLED), (500, Status.INTERNAL),
     (503, Status.UNAVAILABLE), (507, Status.INTERNAL)],
)  # fmt: skip
def test_every_http_status_has_the_nearest_status(http_status: int, status: Status):
    assert status_of(http_status) is status


def test_the_text_of_an_error_is_bounded(run):
    class Chatty(Squares):
        def forward(self, data: Any) -> Any:
            return [ValidationError("é" * 10_000_000) for _ in data]

    ((status, payload),) = outcome(run(Chatty(), bodies(1)), 1)
    assert status is Status.VALIDATION and len(payload) < 100_000


# ── a batch that fails ────────────────────────────────────────────────────────────────────────────────────────────


def refuse(*guilty: Any, error: Exception | None = None) -> Callable[[list[Any]], None]:
    def hook(items: list[Any]) -> None:
        if set(items) & set(guilty):
            raise error or RuntimeError("does not fit")

    return hook


def test_a_batch_that_raises_runs_again_in_halves_until_the_guilty_is_alone(run, caplog):
    worker = Squares(refuse(5))
    events = run(worker, bodies(*range(8)))
    assert outcome(events, 8) == [*oks(0, 1, 4, 9, 16), INTERNAL, *oks(36, 49)]
    assert [sorted(event.rows) for event in events] == [[0, 1, 2, 3], [4], [5], [6, 7]]
    assert worker.calls == [list(range(8)), [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [6, 7]]
    assert caplog.text.count("Traceback") == 1, "one traceback: that of the guilty"


def test_a_chosen_error_raised_for_a_batch_is_bisected_too(run):
    worker = Squares(refuse(2, error=ValidationError("not two")))
    assert outcome(run(worker, bodies(1, 2, 3)), 3) == [
        *oks(1),
        (Status.VALIDATION, b"request validation error: not two"),
        *oks(9),
    ]


def test_halves_are_read_afresh_since_forward_may_have_written_into_its_items(run):
    class Scaling(Worker):
        max_batch_size = 4

        def forward(self, data: Any) -> Any:
            for item in data:
                item["x"] *= 10
            if any(item["x"] == 20 for item in data):
                raise RuntimeError("twenty")
            return [item["x"] for item in data]

    assert outcome(run(Scaling(), bodies({"x": 1}, {"x": 2}, {"x": 3})), 3) == [*oks(10), INTERNAL, *oks(30)]


def test_a_once_only_stage_runs_nothing_twice(run):
    worker = Squares(refuse(2, error=ServerError("the card was charged")))
    got = outcome(run(worker, bodies(1, 2, 3), retry=False), 3)
    assert got == [(Status.INTERNAL, b"internal error: the card was charged")] * 3
    assert len(worker.calls) == 1


def test_one_item_that_raises_is_not_run_again(run):
    worker = Squares(refuse(2))
    assert outcome(run(worker, bodies(2)), 1) == [INTERNAL]
    assert worker.calls == [[2]]


def test_items_that_could_not_be_read_are_answered_before_the_halves_run(run):
    events = run(Squares(refuse(3)), [b"1", b"{", b"3"])
    assert events[0].rows == [1]
    assert [status for status, _ in outcome(events, 3)] == [Status.OK, Status.BAD_REQUEST, Status.INTERNAL]


@pytest.mark.parametrize("error", [ForwardTimeout, MemoryError, RecursionError])
def test_errors_that_are_not_of_our_tree(run, error):
    def hook(items: list[Any]) -> None:
        raise error

    status = Status.TIMEOUT if error is ForwardTimeout else Status.INTERNAL
    assert [got for got, _ in outcome(run(Squares(hook), bodies(1, 2)), 2)] == [status] * 2


def test_a_batch_that_ran_out_of_time_is_not_bisected(run):
    def hook(items: list[Any]) -> None:
        raise ForwardTimeout("3 s")

    worker = Squares(hook)
    assert outcome(run(worker, bodies(1, 2)), 2) == [(Status.TIMEOUT, b"request timeout: 3 s")] * 2
    assert len(worker.calls) == 1


@pytest.mark.parametrize(
    ("results", "complaint"),
    [
        ([1], "got 2 items and returned 1 results"),
        ([1, 2, 3], "got 2 items and returned 3 results"),
        (None, "must return a list with one result per item, not NoneType"),
        (iter([1, 2]), "not list_iterator"),
        ("ab", "not str"),
        ({"a": 1, "b": 2}, "not dict"),
        ({1, 2}, "not set"),
    ],
)
def test_a_wrong_number_of_results_answers_nobody_and_is_not_run_again(run, caplog, results, complaint):
    class Wrong(Squares):
        def forward(self, data: Any) -> Any:
            self.calls.append(data)
            return results

    worker = Wrong()
    assert outcome(run(worker, bodies(1, 2)), 2) == [INTERNAL] * 2
    assert len(worker.calls) == 1
    assert complaint in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize("death", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["deserialize", "forward", "serialize"])
def test_what_is_meant_to_end_the_process_ends_it(run, death, where):
    class Dying(Squares):
        pass

    def die(self: Any, data: Any) -> Any:
        raise death

    setattr(Dying, where, die)
    with pytest.raises(death):
        run(Dying(), bodies(1, 2))


# ── time and cancellation ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_item_past_its_deadline_is_not_run(run):
    worker = Squares()
    got = outcome(run(worker, bodies(1, 2, 3), deadlines=[200.0, 100.0, 99.0]), 3)
    assert [status for status, _ in got] == [Status.OK, Status.TIMEOUT, Status.TIMEOUT]
    assert worker.calls == [[1]]


def test_an_item_that_was_cancelled_is_not_run(run):
    worker = Squares()
    got = outcome(run(worker, bodies(1, 2, 3), skipped=frozenset({0}), cancelled=lambda: {2}), 3)
    assert [status for status, _ in got] == [Status.CANCELLED, Status.OK, Status.CANCELLED]
    assert worker.calls == [[2]]


def test_halves_stop_at_the_deadline(run):
    now = 100.0

    def hook(items: list[Any]) -> None:
        nonlocal now
        now += 60
        raise RuntimeError

    worker = Squares(hook)
    got = outcome(run(worker, bodies(1, 2, 3, 4), deadlines=[200, 200, 200, 999], clock=lambda: now), 4)
    assert [status for status, _ in got] == [Status.TIMEOUT, Status.TIMEOUT, Status.TIMEOUT, Status.INTERNAL]
    assert worker.calls == [[1, 2, 3, 4], [1, 2], [4]]


def test_halves_leave_out_what_was_cancelled_meanwhile(run):
    gone: set[int] = set()

    def hook(items: list[Any]) -> None:
        gone.update({1, 2})
        raise RuntimeError

    worker = Squares(hook)
    got = outcome(run(worker, bodies(1, 2, 3, 4), cancelled=lambda: gone), 4)
    assert [status for status, _ in got] == [Status.INTERNAL, Status.CANCELLED, Status.CANCELLED, Status.INTERNAL]


# ── broken off ────────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alarms(clock: Clock) -> Iterator[Alarms]:
    """With a `timeout` of 3 s; the test strikes. The timer that is set for real belongs to pytest-timeout."""
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    made = Alarms(clock)
    made.timeout = 3.0
    yield made
    signal.setitimer(signal.ITIMER_REAL, *timer)


OVERRUN = (Status.TIMEOUT, b"request timeout: the stage took longer than 3 s")
UNWANTED = (Status.CANCELLED, b"cancelled: nobody waits for this result any more")


def test_a_batch_over_its_timeout_is_not_bisected_and_the_log_says_where_it_was(run, alarms, clock, caplog):
    def hook(items: list[Any]) -> None:
        clock.now = 103.0
        alarms._heed(signal.SIGALRM, None)

    worker = Squares(hook)
    contexts = [{"request_id": "one"}, None]
    assert outcome(run(worker, bodies(1, 2), clock=clock, alarms=alarms, contexts=contexts), 2) == [OVERRUN] * 2
    assert len(worker.calls) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "request one - failed: ForwardTimeout" in caplog.text and "in hook" in caplog.text


@pytest.mark.parametrize("is_struck", [True, False])
def test_whatever_forward_makes_of_its_timeout_the_batch_is_not_bisected(run, alarms, clock, is_struck):
    """Also when the exception comes from native code, before any signal could strike."""

    def hook(items: list[Any]) -> None:
        clock.now = 103.0
        try:
            if is_struck:
                alarms._heed(signal.SIGALRM, None)
        finally:
            raise ValueError("cleaning up failed")

    worker = Squares(hook)
    assert outcome(run(worker, bodies(1, 2), clock=clock, alarms=alarms), 2) == [OVERRUN] * 2
    assert len(worker.calls) == 1


def test_results_in_spite_of_a_timeout_are_results(run, alarms, clock):
    def hook(items: list[Any]) -> None:
        clock.now = 103.0
        with pytest.raises(ForwardTimeout):
            alarms._heed(signal.SIGALRM, None)

    assert outcome(run(Squares(hook), bodies(1, 2), clock=clock, alarms=alarms), 2) == oks(1, 4)


def test_halves_share_the_timeout_of_their_batch_until_one_of_them_is_answered(run, alarms, clock):
    """All fail after 2 s, two work in 0.5 s, the others have 3 s anew and fail after 2 s, and so on."""
    ends: list[float] = []

    def hook(items: list[Any]) -> None:
        assert alarms.call is not None and alarms.call.ends_at is not None
        ends.append(alarms.call.ends_at)
        clock.now += 2 if 3 in items and len(items) > 1 else 0.5
        if 3 in items and len(items) > 1:
            raise RuntimeError("not with 3")

    got = outcome(run(Squares(hook), bodies(0, 1, 2, 3), clock=clock, alarms=alarms, deadlines=[999.0] * 4), 4)
    assert got == oks(0, 1, 4, 9)
    assert ends == [103.0, 103.0, 105.5, 105.5, 108.0]


def test_a_half_that_has_no_time_left_is_not_run(run, alarms, clock):
    class Slow(Squares):
        def deserialize(self, data: bytes) -> Any:
            clock.now += 1
            return int(data)

    worker = Slow(refuse(2))
    got = outcome(run(worker, [b"1", b"2", b"3"], clock=clock, alarms=alarms, deadlines=[999.0] * 3), 3)
    assert worker.calls == [[1, 2, 3], [1, 2], [2], [3]], "the time of the second half counts from its first answer"
    assert got == [OVERRUN, INTERNAL, *oks(9)]


def test_an_interrupted_lease_is_cancelled_to_its_last_row(run, alarms, clock, slate, caplog):
    """It has more rows than the worker takes at once, and none of the rest is run."""
    slate.order(7)
    alarms._ordered = slate.ordered
    worker = Squares(lambda items: alarms._heed(INTERRUPT, None), max_batch_size=2)
    events = run(worker, bodies(1, 2, 3), clock=clock, alarms=alarms)
    assert outcome(events, 3) == [UNWANTED] * 3
    assert len(events) == 1 and worker.calls == [[1, 2]]
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_a_signal_in_decode_or_encode_does_nothing(run, alarms, clock, slate):
    slate.order(7)
    alarms._ordered = slate.ordered

    class Signals(Squares):
        def deserialize(self, data: bytes) -> Any:
            return self.heed(super().deserialize(data))

        def serialize(self, data: Any) -> bytes:
            return super().serialize(self.heed(data))

        def heed(self, data: Any) -> Any:
            clock.now += 5
            alarms._heed(signal.SIGALRM, None)
            alarms._heed(INTERRUPT, None)
            return data

    assert outcome(run(Signals(), bodies(1, 2), clock=clock, alarms=alarms), 2) == oks(1, 4)


# ── the slate ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_slate_says_what_is_done_with_which_row(run, slate: Slate):
    seen = []

    class Watched(Squares):
        def deserialize(self, data: bytes) -> Any:
            seen.append(slate.read()[:3])
            return super().deserialize(data)

        def forward(self, data: Any) -> Any:
            seen.append(slate.read()[:3])
            return data

        def serialize(self, data: Any) -> bytes:
            seen.append(slate.read()[:3])
            return super().serialize(data)

    run(Watched(), bodies(1, 2))
    assert seen == [
        (7, Phase.DECODE, 0),
        (7, Phase.DECODE, 1),
        (7, Phase.FORWARD, 0),
        (7, Phase.ENCODE, 0),
        (7, Phase.ENCODE, 1),
    ]
    assert slate.read() == (0, Phase.IDLE, 0, 1)


def test_the_slate_is_idle_only_when_the_last_results_were_taken(slate: Slate):
    lease = Run(LeaseId(7), Columns([TaskId(1)], [3], [1], [0], [0], [b"1"]), [200.0], frozenset())
    events = BatchRunner(Squares(), slate, retry=True, clock=lambda: 1.0).run(lease, set)
    next(events)
    assert slate.read().lease == 7
    assert next(events, None) is None
    assert slate.read().lease == 0


# ── large batches ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("states", "rows", "told"),
    [
        (FIRST, 16, []),
        (FIRST, 17, [{"say": "heavy", "bytes": 17 * 65536, "rows": 17}]),
        (FIRST, 40, [{"say": "heavy", "bytes": 20 * 65536, "rows": 20}]),  # of two batches, once
        (ONLY, 17, []),
        ([FIRST, ONLY] * 10, 20, []),
    ],
)
def test_a_large_batch_for_the_next_stage_is_told_once(run, states: int | list[int], rows: int, told: list[object]):
    class Wide(Squares):
        def serialize_ipc(self, data: Any) -> bytes:
            return b"x" * 65536

        def serialize(self, data: Any) -> bytes:
            return b"x" * 65536

    said: list[object] = []
    count = len(states) if isinstance(states, list) else rows
    run(Wide(max_batch_size=20), bodies(*range(count)), states=states, tell=lambda **words: said.append(words))
    assert said == told


def test_what_went_past_the_broker_is_not_heavy(run):
    class Wide(Squares):
        def serialize_ipc(self, data: Any) -> bytes:
            return b"x" * 300_000

    said: list[object] = []
    for is_near in (True, False):
        stores = Stores([Shelf()])
        tell = lambda **words: said.append(words)  # noqa: E731
        run(Wide(), bodies(*range(8)), states=FIRST, tell=tell, stores=stores, is_near=is_near)
    assert said == [{"say": "heavy", "bytes": 8 * 300_000, "rows": 8}]


# ── payloads in a store ───────────────────────────────────────────────────────────────────────────────────────────


class Sized(Squares):
    """Hands on as many bytes as it was told, and answers how many it was handed."""

    def forward(self, data: Any) -> Any:
        self.calls.append(list(data))
        self.hook(data)
        return data

    def deserialize_ipc(self, data: bytes) -> Any:
        assert type(data) is bytes
        return len(data)

    def serialize_ipc(self, data: Any) -> bytes:
        return b"x" * data


def test_large_results_leave_references_and_what_they_stand_for(run):
    shelf = Shelf()
    (event,) = run(
        Sized(), bodies(3, 10, 1234567, 2), states=[FIRST, FIRST, ONLY, FIRST], stores=Stores([shelf]), is_near=True
    )
    assert (event.kinds, event.sizes) == ([0, 2, 0, 0], [3, 10, 7, 2])
    assert event.payloads == [b"xxx", b"@x", b"1234567", b"xx"]
    assert shelf.calls == [("put", [b"x" * 10])]
    assert shelf.seconds == [200.0 - 100.0 + LINGER_SECONDS], "until its deadline, and a while beyond"


def test_without_large_results_nothing_is_said_of_stores(run):
    (event,) = run(Sized(), bodies(3, 4), states=FIRST, stores=Stores([Shelf()]), is_near=True)
    assert (event.kinds, event.sizes) == ([0, 0], None)


def test_the_text_of_an_error_is_not_put_into_a_store(run):
    shelf = Shelf()
    worker = Sized(refuse(9, error=ValidationError("long enough to be stored")))
    assert (
        outcome(run(worker, bodies(9), states=FIRST, stores=Stores([shelf]), is_near=True), 1)[0][0]
        == Status.VALIDATION
    )
    assert not shelf.calls


def test_references_are_decoded_as_what_they_stand_for_in_one_call(run):
    shelf = Shelf()
    worker = Sized()
    events = run(worker, [b"@a", b"four", b"@b"], states=LAST, kinds=[2, 0, 2], stores=Stores([], [shelf]))
    assert outcome(events, 3) == oks(9, 4, 9) and worker.calls == [[9, 4, 9]]
    assert shelf.calls == [("get", [b"@a", b"@b"])]


def test_a_lost_payload_is_answered_again_and_its_neighbours_go_on(run, caplog):
    events = run(Sized(), [b"@gone", b"@b"], states=LAST, kinds=[2, 2], stores=Stores([], [Shelf()]))
    assert outcome(events, 2) == [(Status.AGAIN, b"gone"), *oks(9)]
    assert "failed: " in caplog.text


def test_a_payload_whose_store_cannot_be_asked_is_an_error_of_that_row(run):
    events = run(Sized(), [b"@a", b"@b"], states=LAST, kinds=[1, 2], stores=Stores([], [Shelf()]))
    told = b"internal error: this worker cannot read where the stage before left it"
    assert outcome(events, 2) == [(Status.INTERNAL, told), *oks(9)]


def test_what_nobody_wants_is_not_got(run):
    shelf = Shelf()
    rows = {"skipped": frozenset({0}), "cancelled": lambda: {1}, "deadlines": [200.0, 200.0, 50.0, 200.0]}
    run(Sized(), [b"@a", b"@b", b"@c", b"@d"], states=LAST, kinds=[2] * 4, stores=Stores([], [shelf]), **rows)
    assert shelf.calls == [("get", [b"@d"])]


def test_halves_get_their_payloads_again(run):
    shelf = Shelf()

    def together(items: list[Any]) -> None:
        if len(items) > 1:
            raise RuntimeError

    worker = Sized(together)
    events = run(worker, [b"@a", b"@b"], states=LAST, kinds=[2, 2], stores=Stores([], [shelf]))
    assert outcome(events, 2) == oks(9, 9)
    assert shelf.calls == [("get", [b"@a", b"@b"]), ("get", [b"@a"]), ("get", [b"@b"])]


def test_what_fits_nowhere_is_a_readable_error(run, caplog):
    stores = Stores([Shelf(refuses=[b"x" * 10, b"x" * 9])])
    events = run(Sized(), bodies(10, 9), states=FIRST, stores=stores, is_near=True, frame_bytes_max=9)
    told = b"internal error: a result of 10 bytes is too large for a message, and it is full"
    assert outcome(events, 2) == [(Status.INTERNAL, told), (Status.OK, b"x" * 9)]


def test_a_view_of_a_store_is_bytes_for_who_wants_bytes_and_nothing_is_copied_for_our_codec(run):
    class Plain(Squares):
        def forward(self, data: Any) -> Any:
            return [len(item) for item in data]

    payload = memoryview(Plain().serialize_ipc(b"z" * 100))
    shelf = Shelf()
    shelf.get = lambda references: [payload for _ in references]  # type: ignore[method-assign]
    assert outcome(run(Plain(), [b"@a"], states=LAST, kinds=[2], stores=Stores([], [shelf])), 1) == oks(100)


def test_what_was_settled_is_released(slate: Slate):
    shelf = Shelf()
    runner = BatchRunner(Sized(), slate, retry=True, stores=Stores([], [shelf]))
    runner.release(Settled([2], [b"@a"]))
    assert shelf.calls == [("release", [b"@a"])]


# ── the log ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_traceback_names_the_requests_it_is_about(run, caplog):
    contexts = [{"request_id": "one"}, None, {"traceparent": "00"}]
    run(Squares(refuse(1)), bodies(1, 1, 1), retry=False, contexts=contexts)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "request one - - failed" in record.getMessage()
    assert record.__dict__["request_id"] == ["one"], "so that a machine finds it"


def test_an_error_that_cannot_be_shown_still_answers(run):
    class Mute(ZmeshError):
        def __str__(self) -> str:
            raise RuntimeError

    assert outcome(run(Squares(refuse(1, error=Mute())), bodies(1)), 1) == [
        (Status.INTERNAL, b"zmesh error: zmesh error")
    ]


def test_a_client_error_of_deserialize_keeps_its_words(run):
    class Strict(Squares):
        def deserialize(self, data: bytes) -> Any:
            raise DecodingError("not\nlike this")

    assert outcome(run(Strict(), [b"1"]), 1) == [(Status.BAD_REQUEST, b"decoding error: not - like this")]
