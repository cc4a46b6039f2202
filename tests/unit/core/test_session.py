"""The worker's half: a lease at a time, results kept until acknowledged, and never more leases than asked for."""

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zmesh.config import Limits
from zmesh.core.contact import STEPS, Contact, ContactState, Step
from zmesh.core.effects import Leave, Reconnect, Report, Run, SessionEffect, Settled, Transmit
from zmesh.core.events import DrainAsked, Heard, LinkLost, RowsFinished, RowsStreamed, Started, Tick
from zmesh.core.session import KEPT_LEASES_MAX, Session
from zmesh.messages import (
    Ack,
    Cancel,
    Chunk,
    Columns,
    Credit,
    Drain,
    Goodbye,
    Heartbeat,
    Hello,
    LeaseId,
    PeerId,
    Refuse,
    RefuseCode,
    Results,
    Role,
    SessionId,
    Status,
    TaskId,
    Tasks,
    Welcome,
    WorkerState,
)

PEER, BROKER = PeerId(b"w" * 16), PeerId(b"b" * 16)
SESSION, OTHER = SessionId(77), SessionId(78)
EPOCH = 5
AGENT = (0, b"agent")

HELLO = Hello([1], Role.WORKER, PEER, 1, "here", 42, "abc", "model", 3, 8)
WELCOME = Welcome(
    version=1,
    broker=BROKER,
    epoch=EPOCH,
    session=SESSION,
    heartbeat_ms=1000,
    dead_ms=5000,
    frame_bytes_max=1_000_000,
    message_rows_max=4096,
    message_inline_bytes_max=200_000,
    stages=["model"],
    once_routes=[],
)
SAME_BROKER = replace(WELCOME, session=OTHER)
NEXT_BROKER = replace(WELCOME, session=OTHER, epoch=EPOCH + 1)
STRANGER = Heard(SessionId(0), Refuse(RefuseCode.UNKNOWN_PEER, "say HELLO again"))


def fresh_session(prefetch: int = 2) -> Session:
    return Session(PEER, "model", 3, "here", 42, "abc", 8, prefetch, Limits())


def joined_session(prefetch: int = 2, welcome: Welcome = WELCOME) -> Session:
    session = fresh_session(prefetch)
    session.handle(Started(), now=0.0)
    assert session.handle(Heard(welcome.session, welcome), now=0.0) == [credit(prefetch, welcome.session)]
    return session


def running_session(*leases: int, prefetch: int = 2, rows: int = 1) -> Session:
    """The first of these leases runs, the others wait."""
    session = joined_session(prefetch)
    session.handle(*(tasks(lease, rows) for lease in leases), now=0.0)
    return session


def rejoin(session: Session, welcome: Welcome, now: float) -> tuple[list[SessionEffect], list[SessionEffect]]:
    """Lose the connection, make it again, be welcomed; the effects of the HELLO and of the WELCOME."""
    session.handle(LinkLost(), now=now)
    return session.handle(Started(), now=now), session.handle(Heard(welcome.session, welcome), now=now)


def columns(lease: int, rows: int = 1) -> Columns:
    ids = [TaskId(100 * lease + row) for row in range(rows)]
    return Columns(ids, [3] * rows, [3000] * rows, [0] * rows, [0] * rows, [b"in"] * rows)


def tasks(lease: int, rows: int = 1, acks: tuple[int, ...] = (), session: SessionId = SESSION) -> Heard:
    return Heard(session, Tasks(LeaseId(lease), columns(lease, rows), [LeaseId(ack) for ack in acks]))


def ack(*leases: int, session: SessionId = SESSION) -> Heard:
    return Heard(session, Ack([LeaseId(lease) for lease in leases], []))


def finished(*rows: int, payload: bytes = b"out", compute_us: int = 9) -> RowsFinished:
    count = len(rows)
    return RowsFinished([*rows], [0] * count, [0] * count, [payload] * count, compute_us)


def run(lease: int, rows: int = 1, at: float = 0.0, skipped: tuple[int, ...] = ()) -> Run:
    return Run(LeaseId(lease), columns(lease, rows), [at + 3.0] * rows, frozenset(skipped))


def credit(total: int, session: SessionId = SESSION, state: WorkerState = WorkerState.READY) -> Transmit:
    return Transmit(session, Credit(total, state))


def results(lease: int, *rows: int, session: SessionId = SESSION, **more: object) -> Transmit:
    count = len(rows)
    message = Results(EPOCH, LeaseId(lease), [*rows], [0] * count, [0] * count, [b"out"] * count, 9)
    return Transmit(session, replace(message, **more))  # type: ignore[arg-type]


# ── the way to the broker ─────────────────────────────────────────────────────────────────────────────────────────


def test_every_state_but_the_last_knows_every_step():
    steps = {(step, state) for step, row in STEPS.items() for state in row}
    assert steps == {(step, state) for step in Step for state in ContactState if state is not ContactState.LEFT}


def test_a_new_session_waits_for_nothing_but_its_start():
    session = fresh_session()
    assert session.next_wakeup() is None
    assert session.handle(Tick(), now=1.0) == []
    assert (session.held, session.cancelled_running) == (0, set())


def test_hello_is_said_at_the_start_and_every_heartbeat_until_welcome():
    session = fresh_session()
    assert session.handle(Started(), now=10.0) == [Transmit(SessionId(0), HELLO)]
    assert session.next_wakeup() == 11.0
    assert session.handle(Tick(), now=10.9) == []
    assert session.handle(Tick(), now=11.0) == [Transmit(SessionId(0), HELLO)]
    assert session.handle(Heard(SESSION, WELCOME), now=11.5) == [credit(2)]


def test_an_unknown_peer_connects_again_at_once_and_says_so_only_once():
    session = joined_session()
    assert session.handle(STRANGER, STRANGER, LinkLost(), now=1.0) == [Reconnect(0.0)]
    assert session.next_wakeup() is None
    assert session.handle(Started(), now=1.0) == [Transmit(SessionId(0), replace(HELLO, connection=2, epoch=EPOCH))]
    assert (fresh_session().epoch, session.epoch) == (0, EPOCH)
    assert (session.joined, joined_session().joined) == (False, True)


def test_a_welcome_to_a_closed_socket_is_not_heard_and_one_said_twice_changes_nothing():
    session = joined_session()
    assert session.handle(Heard(SESSION, WELCOME), now=0.5) == []
    session.handle(LinkLost(), now=0.5)
    assert session.handle(Heard(OTHER, SAME_BROKER), now=0.5) == []


@pytest.mark.parametrize("code", [RefuseCode.STAGE, RefuseCode.FINGERPRINT, RefuseCode.VERSION, RefuseCode.KEY])
def test_a_refusal_that_cannot_heal_ends_the_worker(code):
    session = fresh_session()
    session.handle(Started(), now=0.0)
    assert session.handle(Heard(SessionId(0), Refuse(code, "another app")), now=0.1) == [Leave("another app", 1)]
    assert session.next_wakeup() is None
    assert session.handle(Started(), tasks(1), finished(0), now=0.2) == []


@pytest.mark.parametrize(("retry_after_ms", "seconds"), [(250, 0.25), (0, 1.0)])
def test_any_other_refusal_is_reported_and_tried_again_when_the_broker_says(retry_after_ms, seconds):
    session = fresh_session()
    session.handle(Started(), now=0.0)
    assert session.handle(Heard(SessionId(0), Refuse(RefuseCode.ERROR, "full", retry_after_ms)), now=0.1) == [
        Report("error", "the broker refuses this worker: full"),
        Reconnect(seconds),
    ]


def test_a_lost_link_is_made_anew_at_once_and_without_a_session_after_a_heartbeat():
    session = joined_session()
    assert session.handle(LinkLost(), now=1.0) == [Reconnect(0.0)]
    session.handle(Started(), now=1.0)
    assert session.handle(LinkLost(), now=1.0) == [Reconnect(1.0)]


# ── silence ───────────────────────────────────────────────────────────────────────────────────────────────────────


def idle_until(session: Session, start: float, end: float) -> list[SessionEffect]:
    effects = []
    while (wake := session.next_wakeup()) is not None and wake <= end:
        assert wake > start
        effects += session.handle(Tick(), now=(start := wake))
    return effects


def test_an_idle_worker_repeats_its_credit_and_gives_a_silent_broker_up():
    session = joined_session()
    assert idle_until(session, 0.0, 4.9) == [credit(2)] * 4
    assert session.handle(Tick(), now=5.0) == [
        Report("warning", "no word from the broker for 5 s"),
        Reconnect(0.0),
    ]


def test_any_word_of_the_broker_is_a_sign_of_life():
    session = joined_session()
    idle_until(session, 0.0, 4.5)
    assert session.handle(Heard(SESSION, Heartbeat(EPOCH, 0, [])), now=4.5) == []
    assert idle_until(session, 4.5, 9.4) == [credit(2)] * 5


def test_silence_does_not_count_while_the_worker_runs_and_starts_anew_after():
    session = running_session(1, rows=2)
    assert session.next_wakeup() is None
    assert session.handle(finished(0), now=1.5) == [results(1, 0)]
    assert session.handle(Tick(), now=3.0) == []
    assert session.handle(Tick(), now=4.5) == []
    assert session.handle(Tick(), now=6.0) == []
    assert session.handle(finished(1), now=7.0) == [results(1, 1), credit(3)]
    assert [e for e in idle_until(session, 7.0, 12.0) if isinstance(e, Reconnect)] == [Reconnect(0.0)]
    assert session.next_wakeup() is None


def test_silence_while_the_worker_itself_stood_still_proves_nothing():
    session = joined_session()
    assert session.handle(Tick(), now=60.0) == [credit(2)]


# ── leases ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_lease_runs_and_the_next_waits_until_it_is_done():
    session = joined_session()
    assert session.handle(tasks(1, 2), tasks(2), now=1.0) == [credit(2), run(1, 2, at=1.0)]
    assert session.held == 2
    assert session.handle(finished(1), now=1.1) == [results(1, 1)]
    assert session.handle(finished(0), now=1.2) == [results(1, 0), run(2, at=1.0)]
    assert session.handle(finished(0), now=1.3) == [results(2, 0)]
    assert session.held == 0


def test_credit_is_repeated_between_two_leases_when_it_is_due():
    session = running_session(1, 2)
    assert session.handle(finished(0), now=1.5) == [results(1, 0), credit(3), run(2)]


def test_a_known_lease_is_not_taken_twice():
    session = running_session(1, 2)
    assert session.handle(tasks(1), tasks(2), now=0.1) == []
    session.handle(finished(0), now=0.2)
    assert session.handle(tasks(1), now=0.3) == []
    assert session.held == 1
    assert session.handle(finished(0), now=1.0) == [results(2, 0), credit(4)]


def test_tasks_of_another_session_or_before_welcome_are_not_taken():
    session = joined_session()
    assert session.handle(tasks(1, session=OTHER), now=0.1) == []
    session.handle(LinkLost(), Started(), now=0.2)
    assert session.handle(tasks(1), tasks(2, session=SessionId(0)), now=0.3) == []
    assert session.held == 0


def test_leases_far_beyond_the_credit_and_empty_ones_are_not_taken():
    session = running_session(1, prefetch=1)
    session.handle(tasks(2), tasks(3), now=0.1)
    text = "lease {} is not taken: it is empty, or far beyond the credit given"
    assert session.handle(tasks(4), tasks(5, 0), now=0.1) == [
        Report("error", text.format(4)),
        Report("error", text.format(5)),
    ]
    assert session.held == 3
    assert session.handle(finished(0), now=1.0) == [results(1, 0), credit(5), run(2, at=0.1)]


def test_finished_rows_must_belong_to_the_running_lease():
    with pytest.raises(AssertionError, match="while no lease runs"):
        joined_session().handle(finished(0), now=0.1)
    for rows in ([], [2], [0, 0]):
        session = running_session(1, rows=2)
        session.handle(finished(0), now=0.1)
        with pytest.raises(AssertionError, match="not there, or finished before"):
            session.handle(finished(*rows), now=0.1)


def test_a_worker_must_ask_for_something():
    with pytest.raises(AssertionError, match="asks for nothing"):
        fresh_session(prefetch=0)


# ── cancelled rows ────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancelled_rows_of_a_waiting_lease_are_skipped_and_those_of_the_running_one_are_shown():
    session = running_session(1, 2, rows=3)
    cancel = Heard(SESSION, Cancel([TaskId(101), TaskId(200), TaskId(202), TaskId(999)], "gone"))
    assert session.handle(cancel, cancel, now=0.1) == []
    assert session.cancelled_running == {1}
    effects = session.handle(finished(0, 1, 2), now=0.2)
    assert effects == [results(1, 0, 1, 2), run(2, 3, skipped=(0, 2))]
    assert session.cancelled_running == {0, 2}


def test_a_cancel_that_came_with_its_tasks_is_in_time():
    session = joined_session()
    assert session.handle(tasks(1, 2), Heard(SESSION, Cancel([TaskId(100)], "gone")), now=0.0) == [
        run(1, 2, skipped=(0,))
    ]


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_results_are_said_again_in_order_in_every_session_until_acknowledged():
    session = running_session(1, 2, rows=2)
    session.handle(finished(0), now=0.1)
    session.handle(finished(1), now=0.2)
    session.handle(finished(1), now=0.2)
    hello, welcome = rejoin(session, SAME_BROKER, 0.3)
    (greeting,) = hello
    assert (greeting.message.running, greeting.message.waiting, greeting.message.answered) == ([2], [], [1])
    assert greeting.message.epoch == EPOCH
    assert welcome == [
        results(1, 0, session=OTHER),
        results(1, 1, session=OTHER),
        results(2, 1, session=OTHER),
        credit(2, OTHER),
    ]
    session.handle(ack(1, session=OTHER), now=0.4)
    assert rejoin(session, WELCOME, 0.5)[1] == [results(2, 1), credit(2)]


def test_an_ack_inside_tasks_counts_and_one_of_another_session_does_not():
    session = running_session(1, 2)
    session.handle(finished(0), now=0.1)
    session.handle(finished(0), ack(1, session=OTHER), tasks(3, acks=(2,), session=OTHER), now=0.1)
    (hello,), _ = rejoin(session, SAME_BROKER, 0.2)
    assert hello.message.answered == [1, 2]
    session.handle(tasks(3, acks=(1,), session=OTHER), now=0.3)
    (hello,), _ = rejoin(session, WELCOME, 0.4)
    assert (hello.message.running, hello.message.answered) == ([3], [2])


def test_results_without_a_session_wait_for_the_next_and_go_once():
    session = running_session(1, rows=2)
    session.handle(LinkLost(), now=0.1)
    assert session.handle(finished(0), now=0.2) == []
    assert session.handle(Started(), finished(1), now=0.3) == [
        Transmit(SessionId(0), replace(HELLO, connection=2, epoch=EPOCH, running=[LeaseId(1)]))
    ]
    assert session.handle(Heard(OTHER, SAME_BROKER), now=0.4) == [
        results(1, 0, session=OTHER),
        results(1, 1, session=OTHER),
        credit(3, OTHER),
    ]


def test_many_results_are_split_like_any_message_and_count_their_time_once():
    session = joined_session(welcome=replace(WELCOME, message_rows_max=2))
    session.handle(tasks(1, 5), now=0.0)
    assert session.handle(finished(4, 3, 2, 1, 0), now=0.1) == [
        results(1, 4, 3),
        results(1, 2, 1, compute_us=0),
        results(1, 0, compute_us=0),
    ]


def test_a_message_is_split_at_its_most_inline_bytes_and_large_payloads_do_not_count():
    contact = Contact(Limits(message_inline_bytes_max=200_000))
    sizes = [60_000, 60_000, 65_536, 900_000, 60_000, 60_000]
    assert contact.parts([b"x" * size for size in sizes]) == [slice(0, 5), slice(5, 6)]
    assert contact.parts([b"x" * size for size in sizes[:3]]) == [slice(0, 3)]
    assert Contact(Limits(message_inline_bytes_max=10)).parts([b"x" * 50] * 2) == [slice(0, 1), slice(1, 2)]


def test_a_result_above_the_frame_limit_becomes_an_error_of_its_row():
    session = running_session(1, rows=2)
    large = RowsFinished([0, 1], [0, 0], [0, 1], [b"out", bytes(1_000_001)], 9)
    payloads = [b"out", b"the result is larger than a message may be"]
    assert session.handle(large, now=0.1) == [
        results(1, 0, 1, statuses=[Status.OK, Status.TOO_LARGE], payloads=payloads)
    ]


def test_results_that_nobody_acknowledges_are_bounded():
    session = joined_session()
    for lease in range(1, KEPT_LEASES_MAX + 1):
        session.handle(tasks(lease), now=0.0)
        session.handle(finished(0), now=0.0)
    session.handle(tasks(KEPT_LEASES_MAX + 1), now=0.0)
    report, *_ = session.handle(finished(0), now=0.0)
    assert report == Report("error", "results of lease 1 were never acknowledged and are not kept any longer")
    (hello,), _ = rejoin(session, SAME_BROKER, 0.1)
    assert hello.message.answered == list(range(2, KEPT_LEASES_MAX + 2))


# ── another session, another broker ───────────────────────────────────────────────────────────────────────────────


def test_leases_carried_over_count_as_used_and_go_on():
    session = running_session(1, 2, prefetch=3)
    hello, welcome = rejoin(session, SAME_BROKER, 0.1)
    assert hello == [
        Transmit(SessionId(0), replace(HELLO, connection=2, epoch=EPOCH, running=[LeaseId(1)], waiting=[LeaseId(2)]))
    ]
    assert welcome == [credit(3, OTHER)]  # two used, one more wanted
    # The broker may have forgotten lease 1 and grant nothing for it, so credit follows its results.
    assert session.handle(finished(0), now=0.2) == [results(1, 0, session=OTHER), credit(4, OTHER), run(2)]
    assert session.handle(finished(0), tasks(3, session=OTHER), now=0.3) == [
        results(2, 0, session=OTHER),
        credit(5, OTHER),
        run(3, at=0.3),
    ]
    assert session.handle(finished(0), now=0.4) == [results(3, 0, session=OTHER)]


def test_no_lease_starts_while_there_is_no_session_and_an_answered_one_costs_no_credit_in_the_next():
    session = running_session(1, 2)
    assert session.handle(LinkLost(), finished(0), now=0.1) == [Reconnect(0.0)]
    assert session.held == 1
    session.handle(Started(), now=0.1)
    effects = session.handle(Heard(OTHER, SAME_BROKER), now=0.2)
    assert effects == [results(1, 0, session=OTHER), credit(2, OTHER), run(2)]


def test_another_broker_gets_results_with_task_ids_once_and_what_waited_is_dropped():
    session = running_session(1, 2, 3, rows=2)
    session.handle(finished(0, 1), now=0.1)
    session.handle(finished(1), now=0.2)
    _, welcome = rejoin(session, NEXT_BROKER, 0.3)
    assert welcome == [
        Report("warning", "the broker lost its memory; waiting lease 3 is dropped"),
        results(1, 0, 1, session=OTHER, ids=[TaskId(100), TaskId(101)]),
        results(2, 1, session=OTHER, ids=[TaskId(201)]),
        credit(1, OTHER),
    ]
    # Lease 2 of the new broker is another one.
    assert session.handle(tasks(2, 2, session=OTHER), now=0.4) == []
    assert session.handle(finished(0), now=0.5) == [
        results(2, 0, session=OTHER, ids=[TaskId(200)]),
        credit(2, OTHER),
        run(2, 2, at=0.4),
    ]
    (hello,), welcome = rejoin(session, replace(NEXT_BROKER, session=SESSION), 0.6)
    assert hello.message == replace(HELLO, connection=2 + 1, epoch=EPOCH + 1, running=[LeaseId(2)])
    assert welcome == [credit(2)]


def test_a_lease_of_a_lost_broker_is_not_listed_to_the_next_running_or_answered():
    session = running_session(1)
    rejoin(session, NEXT_BROKER, 0.1)
    (hello,), welcome = rejoin(session, replace(NEXT_BROKER, session=SESSION), 0.2)
    assert hello.message == replace(HELLO, connection=3, epoch=EPOCH + 1)
    assert welcome == [credit(1)]
    session.handle(LinkLost(), finished(0), now=0.3)
    (hello,) = session.handle(Started(), now=0.3)
    assert hello.message == replace(HELLO, connection=4, epoch=EPOCH + 1)


# ── drain ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def drain(deadline_ms: int = 0) -> DrainAsked:
    return DrainAsked(AGENT, SESSION, Drain(deadline_ms, "stop"))


def draining(total: int) -> Transmit:
    return credit(total, state=WorkerState.DRAINING)


def test_an_idle_worker_that_drains_leaves_at_once():
    session = joined_session()
    assert session.handle(drain(), now=0.1) == [draining(0), Transmit(SESSION, Goodbye([])), Leave("drained")]
    assert session.next_wakeup() is None
    assert session.handle(Tick(), now=9.0) == []


def test_a_worker_that_never_joined_leaves_without_a_word():
    session = fresh_session()
    assert session.handle(drain(), now=0.1) == [Leave("drained")]


def test_a_draining_worker_finishes_what_it_holds_and_waits_for_its_acks():
    session = running_session(1, 2)
    assert session.handle(Heard(SESSION, Drain(60_000, "stop")), now=0.1) == [draining(2)]
    assert session.handle(finished(0), now=0.2) == [results(1, 0), run(2)]
    assert session.handle(finished(0), ack(1), now=0.3) == [results(2, 0)]
    assert session.handle(Tick(), now=1.1) == [draining(2)]
    assert session.handle(ack(2), now=1.2) == [Transmit(SESSION, Goodbye([])), Leave("drained")]


def test_tasks_that_were_on_their_way_when_the_drain_began_are_run():
    session = running_session(1)
    session.handle(drain(), now=0.1)
    session.handle(tasks(2), now=0.2)
    assert session.handle(finished(0), now=0.3) == [results(1, 0), run(2, at=0.2)]


def test_a_drain_that_takes_too_long_gives_back_what_is_left():
    session = running_session(1, 2)
    session.handle(drain(60_000), drain(500), drain(5000), now=0.0)
    assert session.next_wakeup() == 0.5
    assert session.handle(Tick(), now=0.5) == [
        Transmit(SESSION, Goodbye([LeaseId(1), LeaseId(2)])),
        Leave("drain expired: 2 leases unfinished, 0 not acknowledged"),
    ]


def test_a_drain_without_a_broker_waits_for_acks_until_its_time_is_over():
    session = running_session(1)
    session.handle(drain(3000), now=0.0)
    session.handle(LinkLost(), finished(0), now=0.1)
    session.handle(Started(), now=0.1)
    assert session.next_wakeup() == 1.1
    session.handle(LinkLost(), now=1.0)
    assert session.next_wakeup() == 3.0
    assert session.handle(Tick(), now=3.0) == [Leave("drain expired: 0 leases unfinished, 1 not acknowledged")]


# ── always ────────────────────────────────────────────────────────────────────────────────────────────────────────


THEN = st.sampled_from(["all moves", "all moves", "the broker reads", "the worker reads", "nothing moves"])
ACTIONS = ["give", "give", "give", "finish", "finish", "finish", "time", "link lost", "link lost for long", "restart"]


class WorkerAndBroker(RuleBasedStateMachine):
    """A Session against a broker that counts credit as the docstring says, over wires that deliver late or break.

    One rule, with weights, and messages that move or not after each step: so most steps find work in progress.
    """

    @initialize(prefetch=st.integers(1, 3))
    def start(self, prefetch: int) -> None:
        self.now = 0.0
        self.prefetch = prefetch
        self.session = fresh_session(prefetch)
        self.has_socket = True
        self.up: deque[Transmit] = deque()  # what the worker said and the broker did not read
        self.down: deque[Heard] = deque()
        self.running: tuple[int, int] | None = None  # epoch and lease
        self.left: list[int] = []  # rows of it without a status
        self.finished: dict[tuple[int, int], set[int]] = {}  # rows with a status, as the worker knows
        # The broker: sessions, and the leases of this epoch with the number of their rows.
        self.epoch, self.number, self.rows = EPOCH, 100, dict[int, int]()
        self.hello: Hello | None = None  # of the open session
        self.open: set[int] = set()  # leases that it waits for
        self.counted: set[int] = set()  # leases brought into this session or given in it
        self.total = self.used = 0
        self.arrived: dict[tuple[int, int], set[int]] = {}
        self.do(Started())
        self.move("all moves")

    def do(self, *events) -> list[SessionEffect]:
        effects = self.session.handle(*events, now=self.now)
        for effect in effects:
            match effect:
                case Transmit():
                    self.up.append(effect)
                case Run():
                    assert self.running is None, "one lease at a time"
                    self.running = effect.columns.attempts[0], effect.lease
                    self.left = list(range(len(effect.columns.ids)))
                case Reconnect():
                    self.cut()
                case Report(level=level):
                    assert level != "error"
        return effects

    def cut(self) -> None:
        """Whatever was on its way is lost."""
        self.has_socket, self.hello = False, None
        self.up.clear()
        self.down.clear()

    def move(self, then: str) -> None:
        if then in ("all moves", "the broker reads"):
            self.broker_reads()
        if then in ("all moves", "the worker reads") and self.running is None:
            self.do(*[self.down.popleft() for _ in range(len(self.down))])
        if then == "all moves":
            self.broker_reads()

    @rule(action=st.sampled_from(ACTIONS), count=st.integers(1, 3), seconds=st.floats(0.001, 3), then=THEN)
    def step(self, action: str, count: int, seconds: float, then: str) -> None:
        if not self.has_socket:
            self.has_socket = True
            self.do(Started())
        match action:
            case "give":
                for rows in range(count, 0, -1):
                    self.give(rows)
            case "finish":
                self.finish(count)
            case "time":
                self.pass_time(seconds)
            case _:
                self.disaster(action)
        self.move(then)

    def disaster(self, what: str) -> None:
        if what == "restart":
            self.epoch += 1  # lease ids start over, so those of two epochs meet
            self.rows = {}
        if what != "link lost":
            self.open = set()
        self.cut()
        self.do(LinkLost())

    def broker_reads(self) -> None:
        while self.up:
            match self.up.popleft().message:
                case Hello() as hello:
                    self.greet(hello)
                case Credit() as message:
                    self.total = max(self.total, message.total)
                case Results() as message:
                    self.take(message)

    def greet(self, hello: Hello) -> None:
        if self.hello is None:
            self.hello, self.number = hello, self.number + 1
            listed = {*hello.running, *hello.waiting} if hello.epoch == self.epoch else set()
            self.counted, self.total, self.used = listed, len(listed), len(listed)
            self.open &= listed | {*hello.answered}
        welcome = replace(WELCOME, epoch=self.epoch, session=SessionId(self.number))
        self.down.append(Heard(welcome.session, welcome))

    def take(self, message: Results) -> None:
        key = message.epoch, message.lease
        self.arrived.setdefault(key, set()).update(message.rows)
        if message.epoch != self.epoch:
            assert message.ids == [TaskId(100 * message.lease + row) for row in message.rows]
            return
        assert message.ids is None
        if len(self.arrived[key]) == self.rows[message.lease]:
            self.total += message.lease in self.open & self.counted
            self.open.discard(message.lease)
            self.down.append(ack(message.lease, session=SessionId(self.number)))

    def give(self, rows: int) -> None:
        if self.hello is None or self.total <= self.used:
            return
        lease = len(self.rows) + 1
        self.rows[lease] = rows
        self.open.add(lease)
        self.counted.add(lease)
        self.used += 1
        given = replace(columns(lease, rows), attempts=[self.epoch] * rows)  # so that Run shows the epoch
        self.down.append(Heard(SessionId(self.number), Tasks(LeaseId(lease), given, [])))

    def finish(self, count: int) -> None:
        if self.running is not None:
            rows, self.left = self.left[:count], self.left[count:]
            self.finished.setdefault(self.running, set()).update(rows)
            self.running = self.running if self.left else None
            self.do(finished(*rows))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (wake := self.session.next_wakeup()) is not None and wake <= end:
            assert wake >= self.now
            self.now = wake
            self.do(Tick())
            following = self.session.next_wakeup()
            assert following is None or following > wake, "a wakeup that is not over spins"
        self.now = end

    @invariant()
    def never_more_leases_are_held_than_asked_for(self) -> None:
        assert self.session.held <= self.prefetch

    @invariant()
    def credit_and_leases_at_the_broker_are_never_more_than_asked_for(self) -> None:
        if self.hello is not None:
            arrived = {
                lease for lease in self.counted if len(self.arrived.get((self.epoch, lease), ())) == self.rows[lease]
            }
            assert self.total - len(arrived) <= self.prefetch

    @invariant()
    def an_acknowledged_lease_is_forgotten(self) -> None:
        if self.hello is not None and not self.up and not self.down and self.running is None:
            assert not self.session._kept

    def settle(self) -> None:
        """The network behaves: everything is delivered, and everything run."""
        for _ in range(2 * self.prefetch + 4):
            self.step("finish", 3, 0.0, "all moves")

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        self.settle()
        assert self.session.held == 0 and not self.open, "every lease that arrived is answered in full"
        for (epoch, lease), rows in self.finished.items():
            assert epoch != self.epoch or self.arrived[epoch, lease] == rows, "results are repeated until acknowledged"
        self.pass_time(1.0)
        self.settle()
        assert self.total - self.used == self.prefetch, "no credit is lost or made"
        assert self.do(drain())[-1] == Leave("drained"), "with everything acknowledged a worker may leave"


TestWorkerAndBroker = WorkerAndBroker.TestCase


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────


def chunks(effects: list[SessionEffect]) -> list[Chunk]:
    return [one.message for one in effects if isinstance(one, Transmit) and isinstance(one.message, Chunk)]


def results_in(effects: list[SessionEffect]) -> list[Results]:
    return [one.message for one in effects if isinstance(one, Transmit) and isinstance(one.message, Results)]


def test_events_are_numbered_by_row_and_results_say_how_many_there_were():
    session = running_session(7, rows=3)
    both = session.handle(RowsStreamed([0, 2], [b"a", b"c"]), now=0.1)
    assert both == [Transmit(SESSION, Chunk(EPOCH, LeaseId(7), [TaskId(700), TaskId(702)], [0, 0], [b"a", b"c"]))]
    (chunk,) = chunks(session.handle(RowsStreamed([2], [b"d"]), now=0.2))
    assert (chunk.ids, chunk.seqs) == ([702], [1])
    done = session.handle(RowsFinished([2, 1, 0], [0, 0, 0], [0, 0, 0], [b"", b"", b""], 5), now=0.3)
    assert [message.chunks for message in results_in(done)] == [[2, 0, 1]]


def test_results_without_a_stream_say_nothing_of_it():
    session = running_session(7)
    (message,) = results_in(session.handle(RowsFinished([0], [0], [0], [b"out"], 5), now=0.1))
    assert message.chunks is None


def test_results_in_several_messages_bring_the_counts_of_their_own_rows():
    session = running_session(7, rows=3)
    session.handle(RowsStreamed([1], [b"a"]), now=0.1)
    large = b"x" * 60_000
    rows = list(range(3))
    welcome = replace(WELCOME, message_inline_bytes_max=70_000, session=OTHER)
    session.handle(LinkLost(), Started(), Heard(OTHER, welcome), now=0.2)
    done = session.handle(RowsFinished(rows, [0] * 3, [0] * 3, [large] * 3, 5), now=0.3)
    assert [(message.rows, message.chunks) for message in results_in(done)] == [([0], [0]), ([1], [1]), ([2], [0])]


def test_events_that_are_too_long_for_one_message_are_said_in_several():
    session = running_session(7, rows=3)
    large = b"x" * 60_000
    welcome = replace(WELCOME, message_inline_bytes_max=70_000, session=OTHER)
    session.handle(LinkLost(), Started(), Heard(OTHER, welcome), now=0.2)
    said = chunks(session.handle(RowsStreamed([0, 1, 2], [large] * 3), now=0.3))
    assert [(chunk.ids, chunk.seqs) for chunk in said] == [([700], [0]), ([701], [0]), ([702], [0])]


def test_events_go_on_in_a_new_session_of_the_same_broker():
    session = running_session(7)
    session.handle(RowsStreamed([0], [b"a"]), now=0.1)
    rejoin(session, SAME_BROKER, now=0.2)
    assert session.handle(RowsStreamed([0], [b"b"]), now=0.3) == [
        Transmit(OTHER, Chunk(EPOCH, LeaseId(7), [TaskId(700)], [1], [b"b"]))
    ]


def test_events_that_can_be_said_to_nobody_are_counted_and_lost():
    session = running_session(7)
    session.handle(LinkLost(), now=0.1)
    assert session.handle(RowsStreamed([0], [b"a"]), now=0.2) == []
    session.handle(Started(), Heard(OTHER, NEXT_BROKER), now=0.3)
    assert session.handle(RowsStreamed([0], [b"b"]), now=0.4) == []
    (message,) = results_in(session.handle(RowsFinished([0], [0], [0], [b"out"], 5), now=0.5))
    assert (message.chunks, message.ids) == ([2], [700])


def test_events_of_what_does_not_run_are_a_mistake_of_ours():
    for rows in ([1], [0, 0]):
        session = running_session(7)
        with pytest.raises(AssertionError):
            session.handle(RowsStreamed(rows, [b"a"] * len(rows)), now=0.1)
    with pytest.raises(AssertionError):
        joined_session().handle(RowsStreamed([0], [b"a"]), now=0.1)


# ── references ────────────────────────────────────────────────────────────────────────────────────────────────────


def references(lease: int, rows: int, acks: tuple[int, ...] = (), session: SessionId = SESSION) -> Heard:
    """A lease whose rows are references, but for the first."""
    given = replace(columns(lease, rows), kinds=[0] + [2] * (rows - 1))
    given = replace(given, payloads=[b"ref %d" % (10 * lease + row) for row in range(rows)])
    return Heard(session, Tasks(LeaseId(lease), given, [LeaseId(ack) for ack in acks]))


def settled(effects: list[SessionEffect]) -> list[bytes]:
    return [reference for effect in effects if isinstance(effect, Settled) for reference in effect.references]


def test_references_are_settled_when_their_lease_is_acknowledged_and_not_before():
    session = joined_session()
    session.handle(references(7, 3), now=0.0)
    for rows in ((0, 2), (1,)):
        assert settled(session.handle(finished(*rows), now=0.1)) == []
    assert session.handle(ack(7), now=0.2) == [Settled([2, 2], [b"ref 72", b"ref 71"])]
    assert session.handle(ack(7), now=0.3) == []


def test_references_are_settled_when_the_next_batch_brings_the_acknowledgement():
    session = joined_session()
    session.handle(references(7, 2), now=0.0)
    session.handle(finished(0, 1), now=0.1)
    assert settled(session.handle(references(8, 2, acks=(7,)), now=0.2)) == [b"ref 71"]


def test_what_may_be_run_again_keeps_its_reference():
    session = joined_session()
    session.handle(references(7, 5), now=0.0)
    statuses = [Status.OK, Status.TIMEOUT, Status.INTERNAL, Status.AGAIN, Status.CANCELLED]
    event = replace(finished(*range(5)), statuses=[int(status) for status in statuses])
    session.handle(event, now=0.1)
    assert settled(session.handle(ack(7), now=0.2)) == [b"ref 72", b"ref 74"]


def test_in_another_epoch_nothing_is_settled():
    session = joined_session()
    session.handle(references(7, 2), now=0.0)
    session.handle(finished(0, 1), now=0.1)
    rejoin(session, NEXT_BROKER, 0.2)
    assert settled(session.handle(ack(7, session=OTHER), now=0.3)) == []
    assert settled(session.handle(ack(7, session=OTHER), now=0.4)) == [], "nor ever"


def test_references_of_results_that_are_not_kept_any_longer_are_forgotten_with_them():
    session = joined_session()
    for lease in range(1, KEPT_LEASES_MAX + 2):
        session.handle(references(lease, 2), now=0.0)
        session.handle(finished(0, 1), now=0.0)
    assert settled(session.handle(ack(1), now=0.1)) == []
    assert settled(session.handle(ack(2), now=0.1)) == [b"ref 21"]


def test_results_say_what_their_references_stand_for():
    session = running_session(7, rows=2)
    event = RowsFinished([0, 1], [0, 0], [0, 2], [b"out", b"ref"], 5, [3, 70_000_000])
    (message,) = results_in(session.handle(event, now=0.1))
    assert (message.kinds, message.sizes) == ([0, 2], [3, 70_000_000])


def test_results_in_several_messages_bring_the_sizes_of_their_own_rows():
    session = joined_session(welcome=replace(WELCOME, message_rows_max=1))
    session.handle(tasks(7, 2), now=0.0)
    event = RowsFinished([0, 1], [0, 0], [2, 2], [b"one", b"two"], 5, [1, 2])
    assert [message.sizes for message in results_in(session.handle(event, now=0.1))] == [[1], [2]]


def test_a_batch_says_whether_who_is_next_is_near():
    session = joined_session()
    (effect,) = session.handle(Heard(SESSION, Tasks(LeaseId(7), columns(7), [], True)), now=0.0)
    assert effect == replace(run(7), is_near=True)


def test_hello_names_the_memory_that_the_worker_can_open():
    session = Session(PEER, "model", 3, "here", 42, "abc", 8, 2, Limits(), memory="of this host")
    (hello,) = session.handle(Started(), now=0.0)
    assert hello == Transmit(SessionId(0), replace(HELLO, memory="of this host"))
