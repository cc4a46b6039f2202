"""AgentLink: what an agent says to a broker, and when."""

from dataclasses import replace

import pytest

from zmesh.config import Limits
from zmesh.core.agency import EXITS_MAX, AgentLink, Beat, End, Retire, WorkerGone
from zmesh.core.effects import Leave, Reconnect, Report, Transmit
from zmesh.core.events import Heard, LinkLost, Started, Tick
from zmesh.messages import (
    LONG_TEXT_BYTES_MAX,
    Ack,
    Drain,
    Exited,
    Heartbeat,
    Hello,
    Kill,
    LeaseId,
    PeerId,
    Phase,
    Refuse,
    RefuseCode,
    Role,
    SessionId,
    Welcome,
)

BROKER = PeerId(b"b" * 16)
NONE, FIRST, SECOND = SessionId(0), SessionId(11), SessionId(12)


def welcome(session: SessionId = FIRST, epoch: int = 5) -> Heard:
    return Heard(session, Welcome(1, BROKER, epoch, session, 1000, 5000, 1 << 26, 4096, 1 << 22, [], []))


def exited(number: int) -> Exited:
    return Exited(PeerId(number.to_bytes(16, "big")), "echo", 1, -9, LeaseId(3), Phase.FORWARD, 0, False, "SIGKILL")


def said(effects: list[object]) -> list[object]:
    return [effect.message for effect in effects if isinstance(effect, Transmit)]


@pytest.fixture
def fresh() -> AgentLink:
    return AgentLink(PeerId(b"a" * 16), "here", 42, "print", Limits())


@pytest.fixture
def link(fresh: AgentLink) -> AgentLink:
    """One that was welcomed at 0."""
    fresh.handle(Started(), now=0)
    fresh.handle(welcome(), now=0)
    return fresh


def test_before_there_is_a_socket_nothing_is_due(fresh: AgentLink):
    assert fresh.next_wakeup() is None
    assert fresh.handle(Tick(), now=100) == []


def test_an_agent_says_hello_until_it_is_welcome(fresh: AgentLink):
    hello = Transmit(NONE, Hello([1], Role.AGENT, PeerId(b"a" * 16), 1, "here", 42, "print"))
    assert fresh.handle(Started(), now=0) == [hello]
    assert fresh.next_wakeup() == 1
    assert fresh.handle(Tick(), now=0.9) == []
    assert fresh.handle(Tick(), now=1) == [hello]
    assert (fresh.joined, fresh.session, fresh.epoch) == (False, NONE, 0)
    assert fresh.handle(welcome(), now=1.1) == []
    assert (fresh.joined, fresh.session, fresh.epoch) == (True, FIRST, 5)
    assert fresh.handle(Tick(), now=2) == []


def test_then_it_says_every_heartbeat_how_its_workers_are(link: AgentLink):
    assert link.next_wakeup() == 1
    assert link.handle(Heard(FIRST, Heartbeat(5, 0, [])), now=1) == [Beat(FIRST)]
    assert link.heartbeat([]) == Heartbeat(5, 0, [])
    assert link.next_wakeup() == 2


def test_an_exit_is_said_at_once_and_with_every_heartbeat_until_it_is_acknowledged(link: AgentLink):
    gone = exited(1)
    assert link.handle(WorkerGone(gone), now=0.5) == [Transmit(FIRST, gone)]
    assert link.handle(Tick(), now=0.6) == []
    assert link.handle(Heard(FIRST, Heartbeat(5, 0, [])), now=1) == [Beat(FIRST), Transmit(FIRST, gone)]
    assert link.handle(Heard(FIRST, Ack([], [gone.peer, PeerId(b"?" * 16)])), now=2) == [Beat(FIRST)]


def test_an_acknowledgement_from_another_session_does_not_count(link: AgentLink):
    gone = exited(1)
    link.handle(WorkerGone(gone), Heard(SECOND, Ack([], [gone.peer])), now=0.5)
    assert said(link.handle(Tick(), now=1)) == [gone]


def test_exits_without_a_broker_are_said_to_the_next_one(fresh: AgentLink):
    assert fresh.handle(WorkerGone(exited(1)), WorkerGone(exited(2)), now=0) == []
    fresh.handle(Started(), now=0)
    assert said(fresh.handle(welcome(), now=0.1)) == [exited(1), exited(2)]


def test_exits_are_bounded_and_the_oldest_is_forgotten(fresh: AgentLink):
    fresh.handle(*(WorkerGone(exited(n)) for n in range(EXITS_MAX + 2)), now=0)
    assert len(fresh._unsaid) == EXITS_MAX
    fresh.handle(Started(), now=0)
    heard = said(fresh.handle(welcome(), now=0.1))
    assert len(heard) == EXITS_MAX and heard[0] == exited(2)


def test_a_broker_that_forgot_us_is_greeted_anew(link: AgentLink):
    link.handle(WorkerGone(exited(1)), now=0.1)
    refused = Heard(NONE, Refuse(RefuseCode.UNKNOWN_PEER, "who?"))
    assert link.handle(refused, now=0.2) == [Reconnect(0.0)]
    assert link.handle(welcome(), now=0.2) == [], "that socket was given up"
    (hello,) = said(link.handle(Started(), now=0.3))
    assert isinstance(hello, Hello) and hello.connection == 2
    assert said(link.handle(welcome(SECOND, epoch=6), now=0.4)) == [exited(1)]
    assert link.heartbeat([]).epoch == 6


def test_any_other_refusal_is_reported_and_tried_again_later(link: AgentLink):
    report = Report("error", "the broker refuses this agent: other app")
    refused = Heard(NONE, Refuse(RefuseCode.FINGERPRINT, "other app"))
    assert link.handle(refused, now=0.1) == [report, Reconnect(1.0)]
    link.handle(Started(), now=1.1)
    patient = Heard(NONE, Refuse(RefuseCode.ERROR, "other app", 700))
    assert link.handle(patient, now=1.2) == [report, Reconnect(0.7)]


def test_a_broker_that_is_silent_for_too_long_is_given_up(link: AgentLink):
    for now in range(1, 5):
        assert link.handle(Tick(), now=now) == [Beat(FIRST)]
    assert link.handle(Tick(), now=5) == [Reconnect(0.0)]
    assert link.handle(Tick(), now=6) == []


def test_our_own_sleep_is_not_the_brokers_silence(link: AgentLink):
    assert link.handle(Tick(), now=1000) == [Beat(FIRST)]


def test_a_lost_link_asks_for_another(link: AgentLink):
    assert link.handle(LinkLost(), LinkLost(), now=0.1) == [Reconnect(0.0)]


def test_an_order_to_kill_is_passed_on_if_it_comes_from_our_broker(link: AgentLink):
    kill = Kill(PeerId(b"w" * 16), LeaseId(9), "too slow")
    assert link.handle(Heard(FIRST, kill), now=0.1) == [End(kill)]
    assert link.handle(Heard(SECOND, kill), now=0.1) == []


def test_a_welcome_that_repeats_the_last_one_changes_nothing(link: AgentLink):
    link.handle(WorkerGone(exited(1)), now=0.1)
    assert link.handle(welcome(), now=0.2) == []


def test_of_a_reason_that_is_too_long_the_end_is_said(link: AgentLink):
    long = replace(exited(1), reason="x" * LONG_TEXT_BYTES_MAX + "ValueError: no weights")
    (gone,) = said(link.handle(WorkerGone(long), now=0.1))
    assert len(gone.reason) == LONG_TEXT_BYTES_MAX and gone.reason.endswith("ValueError: no weights")


@pytest.mark.parametrize("code", [RefuseCode.VERSION, RefuseCode.ROLE, RefuseCode.FINGERPRINT, RefuseCode.KEY])
def test_an_agent_that_no_broker_ever_welcomed_ends_when_it_is_refused_for_good(fresh: AgentLink, code: RefuseCode):
    fresh.handle(Started(), now=0)
    no = Heard(NONE, Refuse(code, "start these workers with the same app file"))
    assert fresh.handle(no, no, now=0.1) == [Leave("start these workers with the same app file", 1)]
    assert fresh.handle(Started(), LinkLost(), welcome(), WorkerGone(exited(1)), now=0.2) == []
    assert fresh.next_wakeup() is None and fresh.handle(Tick(), now=100) == []


def test_an_agent_that_was_refused_for_a_while_tries_again_though_it_was_never_welcome(fresh: AgentLink):
    fresh.handle(Started(), now=0)
    report = Report("error", "the broker refuses this agent: full")
    assert fresh.handle(Heard(NONE, Refuse(RefuseCode.ERROR, "full")), now=0.1) == [report, Reconnect(1.0)]


def test_an_agent_that_was_welcome_before_tries_again_ever_more_rarely(link: AgentLink):
    no, waits = Heard(NONE, Refuse(RefuseCode.FINGERPRINT, "another app")), []
    for now in range(1, 4):
        link.handle(Started(), now=now)
        waits.append(link.handle(no, now=now)[-1])
    assert waits == [Reconnect(1.0), Reconnect(2.0), Reconnect(4.0)]


def test_it_drains_when_its_broker_says_so_and_nobody_else_s(link: AgentLink):
    drain = Drain(5000, "zmesh drain")
    assert link.handle(Heard(FIRST, drain), now=0.1) == [Retire(drain)]
    assert link.handle(Heard(SECOND, drain), now=0.1) == []
