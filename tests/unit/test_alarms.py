"""Alarms: whom a signal may strike, and when. The clock is made up, and the signals are raised here."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from zmesh.alarms import ALARM, INTERRUPT, Alarms, Call
from zmesh.core.effects import Run
from zmesh.errors import ForwardCancelled, ForwardTimeout, MosecTimeoutError
from zmesh.messages import Columns, LeaseId, TaskId

LEASE = 7


class World:
    """The time, and what the agent has written on the slate."""

    def __init__(self) -> None:
        self.now, self.ordered = 100.0, 0


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """As they were, afterwards: pytest-timeout has its own use for the alarm."""
    handlers = {number: signal.getsignal(number) for number in (ALARM, INTERRUPT)}
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.fixture
def alarms(world: World) -> Alarms:
    made = Alarms(lambda: world.now)
    made.install(3.0, lambda: world.ordered)
    return made


def call(lease: int = LEASE, ends_at: float | None = 103.0) -> Call:
    columns = Columns([TaskId(1)], [3], [1000], [1], [0], [b""])
    return Call(Run(LeaseId(lease), columns, [200.0], frozenset()), [0], set(), ends_at)


def overrun(world: World) -> Callable[[Any], Any]:
    def forward(data: Any) -> Any:
        world.now = 103.0
        signal.raise_signal(signal.SIGALRM)
        return "it went on"

    return forward


def test_an_alarm_ends_a_forward_that_took_too_long(alarms: Alarms, world: World):
    with pytest.raises(ForwardTimeout, match="the stage took longer than 3 s") as caught:
        alarms.run(one := call(), overrun(world), None)
    assert caught.type is MosecTimeoutError, "by that name users of mosec catch it"
    assert not isinstance(caught.value, Exception)
    assert one.struck_by == ALARM


def test_an_alarm_of_an_earlier_call_is_told_by_the_clock_and_does_nothing(alarms: Alarms, world: World):
    def forward(data: Any) -> Any:
        world.now = 102.9
        signal.raise_signal(signal.SIGALRM)
        return data

    assert alarms.run(call(), forward, "mine") == "mine"


def test_an_alarm_of_somebody_else_does_nothing_to_a_call_without_an_end(alarms: Alarms, world: World):
    assert alarms.run(call(ends_at=None), overrun(world), None) == "it went on"


def test_a_call_is_struck_once_and_whoever_swallows_that_goes_on(alarms: Alarms, world: World):
    world.ordered = LEASE

    def forward(data: Any) -> Any:
        try:
            overrun(world)(data)
        except BaseException as error:
            caught = error
        signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGUSR1)
        return type(caught)

    assert alarms.run(call(), forward, None) is ForwardTimeout


@pytest.mark.parametrize(("ordered", "struck"), [(LEASE, True), (LEASE - 1, False), (0, False)])
def test_an_interrupt_ends_only_the_lease_that_the_agent_has_named(
    alarms: Alarms, world: World, ordered: int, struck: bool
):
    world.ordered = ordered

    def forward(data: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return "it went on"

    if struck:
        with pytest.raises(ForwardCancelled, match="nobody waits"):
            alarms.run(call(), forward, None)
    else:
        assert alarms.run(call(), forward, None) == "it went on"


def test_what_comes_between_two_calls_is_forgotten(alarms: Alarms, world: World):
    world.ordered = LEASE
    for number in (ALARM, INTERRUPT):
        world.now = 100.0
        assert alarms.run(call(), lambda data: data, 1) == 1
        world.now = 103.0
        signal.raise_signal(number)
        world.now = 100.0
        assert alarms.run(call(LEASE + 1), lambda data: data, 2) == 2


@pytest.mark.parametrize("number", [ALARM, INTERRUPT])
def test_what_comes_inside_the_library_strikes_on_the_way_back(alarms: Alarms, world: World, number: int):
    one, done = call(), list[str]()
    world.ordered = LEASE

    def listen() -> None:
        world.now = 103.0
        signal.raise_signal(number)
        done.append("the message is whole")

    def forward(data: Any) -> Any:
        alarms.ask(one)
        done.append("and never came back")

    alarms.listen = listen
    with pytest.raises(ForwardTimeout if number == ALARM else ForwardCancelled):
        alarms.run(one, forward, None)
    assert done == ["the message is whole"]


def test_the_library_is_not_entered_twice_at_a_time(alarms: Alarms):
    one, depth = call(), list[int]()

    def listen() -> None:  # as a finalizer might that the collector runs just then
        depth.append(1)
        alarms.ask(one)

    alarms.listen = listen
    alarms.run(one, lambda data: alarms.ask(one), None)
    assert depth == [1]


def test_only_the_main_thread_listens_and_only_during_the_call(alarms: Alarms):
    heard = list[str]()
    alarms.listen = lambda: heard.append(threading.current_thread().name)
    one = call()

    def forward(data: Any) -> None:
        other = threading.Thread(target=alarms.ask, args=[one])
        other.start()
        other.join()
        alarms.ask(one)

    alarms.run(one, forward, None)
    alarms.ask(one)
    alarms.run(call(), lambda data: alarms.ask(one), None)
    assert heard == ["MainThread"]


def test_a_call_whose_time_was_used_up_by_earlier_ones_does_not_begin(alarms: Alarms, world: World):
    world.now = 103.0
    with pytest.raises(ForwardTimeout):
        alarms.run(one := call(), lambda data: pytest.fail("it ran"), None)
    assert one.struck_by == ALARM and alarms.call is None


def refuse(data: Any) -> Any:
    raise ValueError("no")


@pytest.mark.parametrize("seconds", [3.0, 1e300])
def test_the_timer_runs_during_forward_only(alarms: Alarms, world: World, seconds: float):
    during: list[float] = []
    alarms.run(
        call(ends_at=world.now + seconds), lambda data: during.append(signal.getitimer(signal.ITIMER_REAL)[0]), None
    )
    assert 0 < during[0] <= seconds
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with pytest.raises(ValueError, match="no"):
        alarms.run(call(), refuse, None)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with pytest.raises(ForwardTimeout):
        alarms.run(call(), overrun(world), None)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert alarms.call is None


def test_without_a_timeout_the_alarm_stays_the_users_own(world: World):
    before = signal.getsignal(signal.SIGALRM)
    own = Alarms(lambda: world.now)
    own.install(0.0, lambda: 0)
    assert signal.getsignal(signal.SIGALRM) is before
    assert own.run(call(ends_at=None), lambda data: signal.getitimer(signal.ITIMER_REAL), None) == (0, 0)


# ── at every step ─────────────────────────────────────────────────────────────────────────────────────────────────


def strike_at(step: int, alarms: Alarms, code: Any, do: Callable[[], Any]) -> tuple[Any, bool]:
    """What `do` returned or raised with a signal before the `step`th instruction of `code`; whether there was one.

    In a thread of its own: Python itself looks for signals at fewer places, and an exception at one of the others may
    leave its mark on the thread.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_strike_at, step, alarms, code, do).result()


def _strike_at(step: int, alarms: Alarms, code: Any, do: Callable[[], Any]) -> tuple[Any, bool]:
    left = step

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == -1:
                alarms._heed(ALARM, None)
        return trace

    sys.settrace(trace)
    try:
        return do(), left < 0
    except (ForwardTimeout, ValueError) as error:
        return type(error), left < 0
    finally:
        sys.settrace(None)


@pytest.mark.parametrize(("forward", "otherwise"), [(lambda data: data, "result"), (refuse, ValueError)])
def test_a_signal_at_any_instruction_around_forward_leaves_everything_as_it_should_be(
    alarms: Alarms, world: World, forward: Callable[[Any], Any], otherwise: Any
):
    seen, step, came = set[Any](), 0, True
    while came:
        one = call()

        def late(data: Any) -> Any:
            world.now = 103.0
            return forward(data)

        world.now = 100.0
        outcome, came = strike_at(
            step, alarms, Alarms.run.__code__, lambda one=one, late=late: alarms.run(one, late, "result")
        )
        seen.add(outcome)
        assert (outcome is ForwardTimeout) == bool(one.struck_by), f"step {step}"
        assert alarms.call is None, f"step {step}: the call is still open"
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0), f"step {step}: the timer still runs"
        world.now = 100.0
        assert alarms.run(call(), lambda data: data, "next") == "next", f"step {step}: the next one was struck"
        step += 1
    assert step > 20
    assert seen == {ForwardTimeout, otherwise}


def test_a_signal_at_any_instruction_around_listening_strikes_once(
    alarms: Alarms, world: World, monkeypatch: pytest.MonkeyPatch
):
    step, came = 0, True
    alarms.listen = lambda: None
    while came:
        one = call()

        def forward(data: Any, one: Call = one) -> Any:
            monkeypatch.setattr("zmesh.alarms._MAIN", threading.get_ident())
            world.now = 103.0
            alarms.ask(one)
            return "result"

        world.now = 100.0
        outcome, came = strike_at(
            step, alarms, Alarms.ask.__code__, lambda one=one, forward=forward: alarms.run(one, forward, None)
        )
        assert outcome is ForwardTimeout if came else outcome == "result", f"step {step}"
        step += 1
    assert step > 20
