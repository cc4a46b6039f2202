"""The gateway's half: a request is submitted, answered once, and submitted again when its broker or the way is lost."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zmesh.config import Limits
from zmesh.core.effects import Answer, Leave, LinkEffect, Reconnect, Report, Transmit
from zmesh.core.events import Heard, LinkLost, RequestsAbandoned, RequestsAccepted, Started, Tick
from zmesh.core.link import Link, Request
from zmesh.core.replies import ROW_BYTES
from zmesh.messages import (
    Ack,
    Cancel,
    Columns,
    Drain,
    Heartbeat,
    Hello,
    Payload,
    PeerId,
    Refuse,
    RefuseCode,
    Reply,
    Role,
    SessionId,
    Status,
    Submit,
    TaskId,
    Welcome,
)

PEER, BROKER = PeerId(b"g" * 16), PeerId(b"b" * 16)
PREFIX = 0xABCD_0002
FIRST_ID = PREFIX << 32
ROUTES = {"/inference": 1, "/caption": 2, "/once": 1}
SESSION = SessionId(77)
OTHER = SessionId(78)
EPOCH, NEXT_EPOCH = 5, 6

HELLO = Hello([1], Role.GATEWAY, PEER, 1, "here", 42, "abc")
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
    stages=["only", "second"],
    once_routes=["/once"],
)


def fresh_link(limits: Limits | None = None) -> Link:
    return Link(PEER, PREFIX, "here", 42, "abc", limits or Limits(), Random(1), ROUTES)


def joined_link(welcome: Welcome = WELCOME) -> Link:
    link = fresh_link()
    link.handle(Started(), now=0.0)
    assert link.handle(Heard(welcome.session, welcome), now=0.0) == []
    return link


def rejoin(link: Link, welcome: Welcome, now: float) -> list[LinkEffect]:
    """Lose the connection, make it again, be welcomed; the effects of the last."""
    link.handle(LinkLost(), now=now)
    link.handle(Started(), now=now)
    return link.handle(Heard(welcome.session, welcome), now=now)


def next_broker(number: int) -> Welcome:
    """The `number`th broker after the first."""
    return replace(WELCOME, epoch=EPOCH + number, session=SessionId(SESSION + number))


def ask(
    link: Link, route: str = "/inference", payload: Payload = b"body", deadline: float = 3.0, **more: object
) -> Request:
    return link.request(route, payload, more.get("context"), deadline, "ticket")  # type: ignore[arg-type]


def columns(*requests: Request, remaining_ms: int = 3000, state: int = 3, contexts: list | None = None) -> Columns:
    count = len(requests)
    ids, payloads = [request.id for request in requests], [request.payload for request in requests]
    return Columns(ids, [state] * count, [remaining_ms] * count, [0] * count, [0] * count, payloads, contexts)


def reply(number: int, *outcomes: tuple[Request, Status, bytes], session: SessionId = SESSION) -> Heard:
    requests, statuses, payloads = [list(column) for column in zip(*outcomes, strict=True)]
    none = [0] * len(requests)
    return Heard(
        session, Reply(number, [r.id for r in requests], [*map(int, statuses)], none, payloads, none, none, none)
    )


def answers(effects: list[LinkEffect]) -> list[tuple[Request, Status, Payload]]:
    return [
        (request, Status(status), payload)
        for effect in effects
        if isinstance(effect, Answer)
        for request, status, payload in zip(effect.requests, effect.statuses, effect.payloads, strict=True)
    ]


def said(effects: list[LinkEffect]) -> list[object]:
    return [effect.message for effect in effects if isinstance(effect, Transmit)]


def submitted(effects: list[LinkEffect]) -> list[TaskId]:
    return [id for message in said(effects) if isinstance(message, Submit) for id in message.columns.ids]


# ── greeting ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_link_waits_for_nothing_but_its_start():
    link = fresh_link()
    assert link.next_wakeup() is None
    assert link.handle(Tick(), now=1.0) == []
    assert (link.pending, link.joined, link.session) == (0, False, 0)


def test_hello_is_said_at_the_start_and_every_heartbeat_until_welcome():
    link = fresh_link()
    assert link.handle(Started(), now=10.0) == [Transmit(SessionId(0), HELLO)]
    assert link.next_wakeup() == 11.0
    assert link.handle(Tick(), now=10.9) == []
    assert link.handle(Tick(), now=11.0) == [Transmit(SessionId(0), HELLO)]
    assert link.handle(Heard(SESSION, WELCOME), now=11.5) == []
    assert (link.joined, link.session) == (True, SESSION)
    assert link.handle(Tick(), now=12.0) == []


def test_each_connection_has_a_higher_number():
    link = joined_link()
    link.handle(LinkLost(), now=1.0)
    assert said(link.handle(Started(), now=1.0)) == [replace(HELLO, connection=2)]


def test_a_start_while_joined_greets_anew():
    link = joined_link()
    assert link.handle(Started(), now=1.0) == [Transmit(SessionId(0), replace(HELLO, connection=2))]
    assert not link.joined


def test_an_unknown_peer_connects_again_at_once_and_says_so_only_once():
    link = joined_link()
    stranger = Heard(SessionId(0), Refuse(RefuseCode.UNKNOWN_PEER, "say HELLO again"))
    assert link.handle(stranger, stranger, now=1.0) == [Reconnect(0.0)]
    assert link.handle(stranger, LinkLost(), now=1.1) == []
    assert link.next_wakeup() is None


@pytest.mark.parametrize(("retry_after_ms", "seconds"), [(250, 0.25), (0, 1.0)])
def test_a_refusal_is_reported_and_tried_again_when_the_broker_says(retry_after_ms, seconds):
    link = fresh_link()
    link.handle(Started(), now=0.0)
    refuse = Refuse(RefuseCode.ERROR, "too many", retry_after_ms)
    assert link.handle(Heard(SessionId(0), refuse), now=0.1) == [
        Report("error", "the broker refuses this gateway: too many"),
        Reconnect(seconds),
    ]


FOR_GOOD = [RefuseCode.VERSION, RefuseCode.ROLE, RefuseCode.FINGERPRINT, RefuseCode.KEY]


@pytest.mark.parametrize("code", FOR_GOOD)
def test_a_gateway_that_no_broker_ever_welcomed_ends_when_it_is_refused_for_good(code: RefuseCode):
    link = fresh_link()
    link.handle(Started(), now=0.0)
    request = ask(link)
    link.handle(RequestsAccepted([request]), now=0.1)
    no = Heard(SessionId(0), Refuse(code, "start it with the same app file"))
    assert link.handle(no, no, now=0.2) == [Leave("start it with the same app file", 1)]
    assert link.handle(Started(), LinkLost(), Heard(SESSION, WELCOME), now=0.3) == []
    assert link.next_wakeup() == 3.0, "what was accepted still has its outcome"
    assert answers(link.handle(Tick(), now=3.0)) == [(request, Status.TIMEOUT, b"no answer before the deadline")]
    assert link.next_wakeup() is None and link.handle(Tick(), now=99.0) == []


@pytest.mark.parametrize("code", FOR_GOOD)
def test_a_gateway_that_was_welcome_before_tries_again_ever_more_rarely(code: RefuseCode):
    link = joined_link()
    no, waits = Heard(SessionId(0), Refuse(code, "another app")), []
    for now in range(100, 107):
        link.handle(Started(), now=now)
        report, reconnect = link.handle(no, now=now)
        assert report == Report("error", "the broker refuses this gateway: another app")
        waits.append(reconnect.after_seconds)
    assert waits == [1, 2, 4, 8, 16, 16, 16]
    for now in range(107, 1200):  # a few hours of it
        link.handle(Started(), now=now)
        assert link.handle(no, now=now)[-1] == Reconnect(16)
    rejoin(link, WELCOME, 1200.0)
    assert link.handle(no, now=1200.1)[1] == Reconnect(1.0), "it was welcome again"


def test_a_lost_link_is_made_anew_soon_and_without_a_session_later():
    spread = Random(1)
    link = joined_link()
    assert link.handle(LinkLost(), now=1.0) == [Reconnect(spread.uniform(0.05, 0.1))]
    link.handle(Started(), now=1.1)
    assert link.handle(LinkLost(), now=1.2) == [Reconnect(spread.uniform(0.5, 1.0))]


def test_a_welcome_to_a_closed_socket_is_not_heard():
    link = joined_link()
    link.handle(LinkLost(), now=1.0)
    assert link.handle(Heard(OTHER, replace(WELCOME, session=OTHER)), now=1.0) == []
    assert not link.joined


def test_a_welcome_said_twice_submits_nothing_twice():
    link = joined_link()
    link.handle(RequestsAccepted([ask(link)]), now=0.0)
    assert link.handle(Heard(SESSION, WELCOME), now=0.1) == []


# ── silence ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_link_with_nothing_to_say_beats_and_one_that_spoke_does_not():
    link = joined_link()
    assert link.handle(Tick(), now=1.0) == [Transmit(SESSION, Heartbeat(EPOCH, 0, []))]
    link.handle(RequestsAccepted([ask(link)]), now=1.9)
    assert link.handle(Tick(), now=2.0) == []
    assert link.next_wakeup() == pytest.approx(2.9)
    assert len(link.handle(RequestsAccepted([ask(link)]), now=2.9)) == 1


def beat_until(link: Link, start: float, end: float) -> list[LinkEffect]:
    effects = []
    while (wake := link.next_wakeup()) is not None and wake <= end:
        assert wake > start
        effects += link.handle(Tick(), now=(start := wake))
    return effects


@pytest.mark.parametrize("joined", [True, False])
def test_a_silent_broker_is_given_up_after_dead_seconds(joined):
    link = fresh_link()
    link.handle(Started(), now=0.0)
    if joined:
        link.handle(Heard(SESSION, WELCOME), now=0.0)
    assert not [e for e in beat_until(link, 0.0, 4.9) if isinstance(e, Reconnect)]
    assert link.next_wakeup() == 5.0
    report, reconnect = link.handle(Tick(), now=5.0)
    assert report == Report("warning", "no word from the broker for 5 s")
    assert isinstance(reconnect, Reconnect)
    assert not link.joined


def test_any_word_of_the_broker_is_a_sign_of_life():
    link = joined_link()
    beat_until(link, 0.0, 4.5)
    assert link.handle(Heard(SESSION, Ack([], [])), now=4.5) == []
    assert not [e for e in beat_until(link, 4.5, 9.4) if isinstance(e, Reconnect)]


def test_silence_while_the_gateway_itself_stood_still_proves_nothing():
    link = joined_link()
    assert link.handle(Tick(), now=60.0) == [Transmit(SESSION, Heartbeat(EPOCH, 0, []))]


def test_welcome_sets_the_heartbeat():
    link = joined_link(replace(WELCOME, heartbeat_ms=100, dead_ms=300))
    assert link.next_wakeup() == pytest.approx(0.1)
    assert isinstance(beat_until(link, 0.0, 0.31)[-1], Reconnect)


# ── submitting ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_task_ids_count_up_under_the_gateways_prefix():
    link = fresh_link()
    assert [ask(link).id - FIRST_ID for _ in range(3)] == [0, 1, 2]


def test_task_ids_start_over_after_four_billion():
    link = fresh_link()
    link._allotted = 0xFFFF_FFFF
    assert [ask(link).id - FIRST_ID for _ in range(2)] == [0xFFFF_FFFF, 0]


def test_requests_of_one_turn_travel_in_one_submit_per_route_in_order():
    link = joined_link()
    first, second, third = ask(link), ask(link, "/caption"), ask(link)
    effects = link.handle(RequestsAccepted([first, second]), RequestsAccepted([third]), now=0.0)
    assert effects == [
        Transmit(SESSION, Submit("/inference", columns(first, third))),
        Transmit(SESSION, Submit("/caption", columns(second, state=1))),
    ]
    assert link.unanswered() == [first, second, third]
    assert {(request.submissions, request.sent_epoch) for request in link.unanswered()} == {(1, EPOCH)}


def test_contexts_travel_when_a_request_has_one():
    link = joined_link()
    plain, traced = ask(link), ask(link, context={"request_id": "r1"})
    (effect,) = link.handle(RequestsAccepted([plain, traced]), now=0.0)
    assert effect.message.columns.contexts == [None, {"request_id": "r1"}]


def test_remaining_time_is_rounded_down_and_never_below_a_millisecond():
    link = joined_link()
    link.handle(RequestsAccepted([ask(link, deadline=0.01)]), now=0.01)  # a scan for deadlines was just made
    soon, over = ask(link, deadline=0.0319), ask(link, deadline=0.0105)
    (effect,) = link.handle(RequestsAccepted([soon, over]), now=0.02)
    assert effect.message.columns.remaining_ms == [11, 1]


def test_a_message_is_split_at_its_most_rows():
    link = joined_link(replace(WELCOME, message_rows_max=2))
    requests = [ask(link) for _ in range(5)]
    effects = link.handle(RequestsAccepted(requests), now=0.0)
    assert [len(message.columns.ids) for message in said(effects)] == [2, 2, 1]
    assert submitted(effects) == [request.id for request in requests]


def test_a_message_is_split_at_its_most_inline_bytes_and_large_payloads_do_not_count():
    link = joined_link()  # 200 000 bytes inline
    sizes = [60_000, 60_000, 65_536, 900_000, 60_000, 60_000]
    effects = link.handle(RequestsAccepted([ask(link, payload=b"x" * size) for size in sizes]), now=0.0)
    assert [[len(p) for p in m.columns.payloads] for m in said(effects)] == [sizes[:5], sizes[5:]]


def test_a_row_above_the_inline_limit_goes_alone_and_no_limit_stops_everything():
    link = joined_link(replace(WELCOME, message_rows_max=0, message_inline_bytes_max=10))
    first, second = ask(link, payload=b"x" * 50), ask(link, payload=b"x" * 50)
    effects = link.handle(RequestsAccepted([first, second]), now=0.0)
    assert [len(message.columns.ids) for message in said(effects)] == [1, 1]
    effects = link.handle(RequestsAbandoned([first.id, second.id], "gone"), now=0.0)
    assert [message.ids for message in said(effects)] == [[first.id], [second.id]]


def test_a_payload_above_the_frame_limit_is_answered_and_never_sent():
    link = joined_link()
    large, small = ask(link, payload=bytes(1_000_001)), ask(link)
    effects = link.handle(RequestsAccepted([large, small]), now=0.0)
    assert submitted(effects) == [small.id]
    assert answers(effects) == [(large, Status.TOO_LARGE, b"the request is larger than a message may be")]


def test_requests_from_before_the_welcome_are_kept_and_are_not_again():
    link = fresh_link()
    early = ask(link)
    assert link.handle(RequestsAccepted([early]), now=0.0) == []
    link.handle(Started(), now=0.0)
    late, together = ask(link), ask(link)
    assert link.handle(RequestsAccepted([late]), now=0.5) == []
    effects = link.handle(RequestsAccepted([together]), Heard(SESSION, WELCOME), now=1.0)
    expected = Submit("/inference", columns(early, late, together, remaining_ms=2000), all=True)
    assert effects == [Transmit(SESSION, expected)]


def test_one_id_is_not_accepted_twice():
    link = joined_link()
    request = ask(link)
    with pytest.raises(AssertionError, match="given out twice"):
        link.handle(RequestsAccepted([request, request]), now=0.0)


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_replies_of_one_turn_make_one_answer():
    link = joined_link()
    first, second, third = ask(link), ask(link), ask(link)
    link.handle(RequestsAccepted([first, second, third]), now=0.0)
    effects = link.handle(
        reply(1, (second, Status.OK, b"2"), (first, Status.SHED, b"busy")), reply(2, (third, Status.OK, b"3")), now=0.1
    )
    assert effects == [Answer([second, first, third], [Status.OK, Status.SHED, Status.OK], [b"2", b"busy", b"3"])]
    assert link.pending == 0


def test_a_second_answer_is_dropped_and_counted():
    link = joined_link()
    first, second = ask(link), ask(link)
    link.handle(RequestsAccepted([first, second]), now=0.0)
    link.handle(reply(1, (first, Status.OK, b"1")), now=0.1)
    effects = link.handle(reply(2, (first, Status.OK, b"1"), (second, Status.OK, b"2")), now=0.2)
    assert answers(effects) == [(second, Status.OK, b"2")]
    assert link.late == 1


def test_the_highest_reply_number_goes_into_whatever_is_said_next():
    link = joined_link()
    first, second = ask(link), ask(link)
    link.handle(RequestsAccepted([first]), now=0.0)
    link.handle(reply(4, (first, Status.OK, b"")), reply(3, (first, Status.OK, b"")), now=0.0)
    effects = link.handle(RequestsAccepted([second]), now=0.0)
    effects += link.handle(RequestsAbandoned([second.id], "gone"), now=0.0)
    effects += link.handle(Tick(), now=1.0)
    assert said(effects) == [
        Submit("/inference", columns(second), handled=4),
        Cancel([second.id], "gone", handled=4),
        Heartbeat(EPOCH, 4, []),
    ]


def test_many_bytes_of_answers_are_acknowledged_at_once_and_few_with_the_next_word():
    limits = Limits(answer_bytes_max=8 * 1000)
    link = fresh_link(limits)
    link.handle(Started(), Heard(SESSION, WELCOME), now=0.0)
    one, two, three = [ask(link) for _ in range(3)]
    link.handle(RequestsAccepted([one, two, three]), now=0.05)
    small, large = b"x" * (1000 - ROW_BYTES), b"x" * (1001 - ROW_BYTES)
    assert said(link.handle(reply(1, (one, Status.OK, small)), now=0.1)) == []
    assert said(link.handle(reply(2, (two, Status.OK, large)), now=0.2)) == [Heartbeat(EPOCH, 2, [])]
    assert said(link.handle(reply(3, (three, Status.OK, small)), now=0.3)) == [], "the count began anew"
    assert said(link.handle(Tick(), now=1.2)) == [Heartbeat(EPOCH, 3, [])]


def test_a_number_of_another_session_acknowledges_nothing_but_its_answer_counts():
    link = joined_link()
    request = ask(link)
    link.handle(RequestsAccepted([request]), now=0.0)
    assert len(answers(link.handle(reply(9, (request, Status.OK, b""), session=OTHER), now=0.0))) == 1
    assert said(link.handle(Tick(), now=1.0)) == [Heartbeat(EPOCH, 0, [])]


# ── AGAIN ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"250", 0.25), (b"", 0.1), (b"soon", 0.1), (b"0", 0.001), (b"999999999", 60.0), (memoryview(b"30"), 0.03)],
)
def test_again_is_submitted_again_when_the_broker_says(text, seconds):
    link = joined_link()
    request = ask(link, deadline=100.0)
    link.handle(RequestsAccepted([request]), now=0.0)
    assert link.handle(reply(1, (request, Status.AGAIN, text)), now=0.5) == []
    assert link.next_wakeup() == pytest.approx(min(0.5 + seconds, 1.0))
    assert submitted(link.handle(Heard(SESSION, Ack([], [])), now=0.5 + seconds - 0.0005)) == []
    (message,) = said(link.handle(Tick(), now=0.5 + seconds))
    assert (message.columns.ids, message.again, message.all) == ([request.id], True, False)


def test_again_said_twice_is_submitted_once():
    link = joined_link()
    request = ask(link)
    link.handle(RequestsAccepted([request]), now=0.0)
    again = reply(1, (request, Status.AGAIN, b""))
    link.handle(again, again, now=0.0)
    assert submitted(link.handle(Tick(), now=0.2)) == [request.id]
    assert link.late == 1


def test_again_and_answers_in_one_reply_go_their_own_ways():
    link = joined_link()
    first, second = ask(link), ask(link)
    link.handle(RequestsAccepted([first, second]), now=0.0)
    effects = link.handle(reply(1, (first, Status.AGAIN, b""), (second, Status.OK, b"2")), now=0.0)
    assert answers(effects) == [(second, Status.OK, b"2")]
    assert link.unanswered() == [first]


def test_again_ends_at_the_deadline_and_no_broker_is_told():
    link = joined_link()
    request = ask(link, deadline=0.3)
    link.handle(RequestsAccepted([request]), now=0.0)
    link.handle(reply(1, (request, Status.AGAIN, b"500")), now=0.0)
    effects = link.handle(Tick(), now=0.3)
    assert effects == [Answer([request], [Status.TIMEOUT], [b"no answer before the deadline"])]
    assert said(link.handle(Tick(), now=0.5)) == []


def test_again_waits_for_the_next_broker_too():
    link = joined_link()
    request = ask(link)
    link.handle(RequestsAccepted([request]), now=0.0)
    link.handle(reply(1, (request, Status.AGAIN, b"10")), LinkLost(), now=0.0)
    assert link.next_wakeup() == 3.0
    assert link.handle(Tick(), now=0.2) == []
    assert submitted(rejoin(link, next_broker(1), 0.3)) == [request.id]
    assert submitted(link.handle(Tick(), now=0.9)) == []
    assert request.losses == 0


# ── deadlines and clients that leave ──────────────────────────────────────────────────────────────────────────────


def test_what_is_lost_midway_too_often_is_an_error():
    link = joined_link()
    link.handle(RequestsAccepted([request := ask(link)]), now=0.0)
    for number in range(1, Limits().requeues_max + 1):
        tried = reply(number, (request, Status.AGAIN, b"10"))
        assert (
            answers(link.handle(replace(tried, message=replace(tried.message, attempts=[1])), now=0.1 * number)) == []
        )
        (said,) = link.handle(Tick(), now=0.1 * number + 0.02)
        assert said.message.again
    late = reply(9, (request, Status.AGAIN, b"10"))
    effects = link.handle(replace(late, message=replace(late.message, attempts=[1])), now=1.0)
    assert answers(effects) == [(request, Status.INTERNAL, b"what one stage made for the next was lost too often")]
    assert link.pending == 0


def test_a_broker_that_takes_nothing_in_may_say_again_as_often_as_it_likes():
    link = joined_link()
    link.handle(RequestsAccepted([request := ask(link)]), now=0.0)
    for number in range(1, Limits().requeues_max + 5):
        assert answers(link.handle(reply(number, (request, Status.AGAIN, b"10")), now=0.1 * number)) == []
        link.handle(Tick(), now=0.1 * number + 0.02)
    assert link.pending == 1


def test_a_request_without_an_answer_times_out_and_is_cancelled():
    link = joined_link()
    short, long, longer = (ask(link, deadline=deadline) for deadline in (0.5, 0.8, 0.9))
    link.handle(RequestsAccepted([longer, long, short]), now=0.0)
    assert link.next_wakeup() == 0.5
    assert link.handle(Tick(), now=0.5) == [
        Transmit(SESSION, Cancel([short.id], "deadline")),
        Answer([short], [Status.TIMEOUT], [b"no answer before the deadline"]),
    ]
    assert link.next_wakeup() == 0.8


def test_a_request_whose_time_is_over_on_arrival_is_never_submitted():
    link = joined_link()
    request = ask(link, deadline=0.5)
    effects = link.handle(RequestsAccepted([request]), now=0.5)
    assert effects == [Answer([request], [Status.TIMEOUT], [b"no answer before the deadline"])]


def test_deadlines_are_looked_for_every_50_ms_at_most():
    link = joined_link()
    requests = [ask(link, deadline=0.100 + 0.001 * n) for n in range(30)]
    link.handle(RequestsAccepted(requests), now=0.0)
    assert len(answers(link.handle(Tick(), now=0.100))) == 1
    assert link.next_wakeup() == pytest.approx(0.150)
    assert answers(link.handle(Tick(), now=0.149)) == []
    assert len(answers(link.handle(Tick(), now=0.151))) == 29
    assert link.next_wakeup() == pytest.approx(1.151)


def test_a_deadline_passes_without_a_broker_as_well():
    link = fresh_link()
    request = ask(link)
    link.handle(RequestsAccepted([request]), now=0.0)
    assert link.next_wakeup() == 3.0
    assert answers(link.handle(Tick(), now=3.0)) == [(request, Status.TIMEOUT, b"no answer before the deadline")]
    assert link.next_wakeup() is None


def test_abandoned_requests_are_cancelled_where_they_are_and_get_no_answer():
    link = joined_link()
    sent, unsent = ask(link), ask(link)
    link.handle(RequestsAccepted([sent]), now=0.0)
    gone = RequestsAbandoned([sent.id, unsent.id, TaskId(1)], "client gone")
    assert link.handle(RequestsAccepted([unsent]), gone, now=0.0) == [
        Transmit(SESSION, Cancel([sent.id], "client gone"))
    ]
    assert link.handle(reply(1, (sent, Status.OK, b"")), now=0.1) == []
    assert (link.pending, link.late) == (0, 1)


def test_many_cancelled_at_once_are_split_like_any_message():
    link = joined_link(replace(WELCOME, message_rows_max=2))
    requests = [ask(link) for _ in range(3)]
    link.handle(RequestsAccepted(requests), now=0.0)
    effects = link.handle(RequestsAbandoned([request.id for request in requests], "stop"), now=0.0)
    assert [message.ids for message in said(effects)] == [[r.id for r in requests[:2]], [requests[2].id]]


def test_what_was_abandoned_on_a_broken_link_is_cancelled_at_the_same_broker_only():
    for welcome, cancelled in ((replace(WELCOME, session=OTHER), True), (next_broker(1), False)):
        link = joined_link()
        request = ask(link)
        link.handle(RequestsAccepted([request]), now=0.0)
        link.handle(LinkLost(), RequestsAbandoned([request.id], "gone"), now=0.1)
        assert said(rejoin(link, welcome, 0.2)) == ([Cancel([request.id], "gone")] if cancelled else [])


# ── lost brokers ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_session_with_the_same_broker_submits_everything_again_and_says_that_it_is_all():
    link = joined_link()
    first, second, once = ask(link), ask(link, "/caption"), ask(link, "/once")
    link.handle(RequestsAccepted([first, second, once]), now=0.0)
    answered = ask(link)
    link.handle(RequestsAccepted([answered]), now=0.0)
    link.handle(reply(1, (answered, Status.OK, b"")), now=0.0)
    effects = rejoin(link, replace(WELCOME, session=OTHER), 1.0)
    assert effects == [
        Transmit(OTHER, Submit("/inference", columns(first, remaining_ms=2000), again=True)),
        Transmit(OTHER, Submit("/caption", columns(second, remaining_ms=2000, state=1), again=True)),
        Transmit(OTHER, Submit("/once", columns(once, remaining_ms=2000), again=True, all=True)),
    ]
    assert {request.losses for request in link.unanswered()} == {0}


def test_a_new_session_told_while_joined_counts_as_new():
    link = joined_link()
    request = ask(link)
    link.handle(RequestsAccepted([request]), now=0.0)
    assert submitted(link.handle(Heard(OTHER, replace(WELCOME, session=OTHER)), now=0.1)) == [request.id]


def test_a_new_broker_gets_everything_again_but_once_only_routes_end():
    link = joined_link()
    plain, once = ask(link), ask(link, "/once")
    link.handle(RequestsAccepted([plain, once]), now=0.0)
    unsent = ask(link, "/once")
    link.handle(LinkLost(), RequestsAccepted([unsent]), now=0.5)
    effects = rejoin(link, next_broker(1), 1.0)
    assert effects == [
        Report("warning", "the broker lost its memory, with 2 requests in it"),
        Transmit(SessionId(78), Submit("/inference", columns(plain, remaining_ms=2000), again=True)),
        Transmit(SessionId(78), Submit("/once", columns(unsent, remaining_ms=2000), all=True)),
        Answer([once], [Status.INTERNAL], [b"outcome unknown"]),
    ]


def test_a_request_lives_through_three_lost_brokers_and_ends_with_the_fourth():
    link = joined_link()
    request = ask(link, deadline=100.0)
    link.handle(RequestsAccepted([request]), now=0.0)
    for number in (1, 2, 3):
        assert submitted(rejoin(link, next_broker(number), float(number))) == [request.id]
    assert answers(rejoin(link, next_broker(4), 4.0)) == [(request, Status.INTERNAL, b"the broker was lost too often")]
    assert link.pending == 0


def test_a_broker_that_said_that_it_goes_is_no_loss():
    link = joined_link()
    request = ask(link, deadline=100.0)
    link.handle(RequestsAccepted([request]), now=0.0)
    for number in range(1, 6):
        drain = Heard(SESSION, Drain(1000, "a new version"))
        assert link.handle(drain, now=number - 0.5) == [Report("info", "the broker is about to go: a new version")]
        assert submitted(rejoin(link, next_broker(number), float(number))) == [request.id]
    assert request.losses == 0
    rejoin(link, next_broker(6), 6.0)
    assert request.losses == 1


def test_after_two_losses_halves_are_submitted_100_ms_apart():
    link = joined_link()
    requests = [ask(link, deadline=100.0) for _ in range(5)]
    link.handle(RequestsAccepted(requests), now=0.0)
    rejoin(link, next_broker(1), 1.0)
    link.handle(LinkLost(), now=2.0)
    newcomer = ask(link, deadline=100.0)
    link.handle(Started(), RequestsAccepted([newcomer]), now=2.0)
    second = next_broker(2)
    effects = link.handle(Heard(second.session, second), now=2.0)
    assert submitted(effects) == [request.id for request in [*requests[:3], newcomer]]
    assert not any(message.all for message in said(effects))
    assert link.next_wakeup() == pytest.approx(2.1)
    link.handle(RequestsAbandoned([requests[3].id], "gone"), now=2.05)
    assert submitted(link.handle(Tick(), now=2.1)) == [requests[4].id]
    assert submitted(rejoin(link, next_broker(3), 2.9)) == [requests[0].id, requests[1].id, newcomer.id]


def test_the_half_that_killed_no_broker_is_not_charged():
    link = joined_link()
    guilty, innocent = ask(link, deadline=100.0), ask(link, deadline=100.0)
    link.handle(RequestsAccepted([guilty, innocent]), now=0.0)
    rejoin(link, next_broker(1), 1.0)
    for number in (2, 3, 4):
        rejoin(link, next_broker(number), float(number))  # dies before the second half is submitted
    assert (guilty.losses, innocent.losses) == (4, 2)
    assert link.unanswered() == [innocent]


# ── always ────────────────────────────────────────────────────────────────────────────────────────────────────────


class GatewayAndBroker(RuleBasedStateMachine):
    """A Link against a broker that forgets, repeats itself and is cut off, in whatever order hypothesis likes."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.link = fresh_link()
        self.epoch, self.session, self.number, self.planned = EPOCH, 100, 0, False
        self.is_up = False  # the link has a socket
        self.joined = False
        self.live: dict[TaskId, int] = {}  # tasks the broker has
        self.said: list[TaskId] = []  # tasks it answered, whether that arrived or not
        self.accepted: dict[TaskId, Request] = {}
        self.abandoned: set[TaskId] = set()
        self.answered: Counter[TaskId] = Counter()
        self.runs: dict[TaskId, set[int]] = {}  # by which brokers
        self.welcome()

    def do(self, *events) -> None:
        for effect in self.link.handle(*events, now=self.now):
            match effect:
                case Answer():
                    assert len(effect.requests) == len(effect.statuses) == len(effect.payloads)
                    assert Status.AGAIN not in effect.statuses
                    self.answered.update(request.id for request in effect.requests)
                case Transmit(message=Submit() as submit):
                    assert self.joined and effect.session == self.session and submit.handled <= self.number
                    for id in submit.columns.ids:
                        assert id not in self.abandoned
                        self.live[id] = self.epoch
                        self.runs.setdefault(id, set()).add(self.epoch)
                    if submit.all:
                        assert self.live.keys() >= self.link._table.keys()
                case Transmit(message=Cancel() as cancel):
                    for id in cancel.ids:
                        self.live.pop(id, None)
                case Transmit(message=Hello()):
                    assert not self.joined and effect.session == 0
                case Reconnect():
                    self.is_up = self.joined = False
                case Transmit(message=Heartbeat() as beat):
                    assert (effect.session, beat.epoch) == (self.session, self.epoch) and beat.handled <= self.number
                case Report():
                    pass
                case _:
                    raise AssertionError(effect)

    @rule(
        action=st.sampled_from(
            ["accept"] * 3 + ["answer"] * 3 + ["welcome"] * 2 + ["time", "abandon", "lose", "restart"]
        ),
        picks=st.lists(st.integers(0, 99), min_size=1, max_size=5),
        route=st.sampled_from(list(ROUTES)),
        status=st.sampled_from([Status.OK, Status.SHED, Status.AGAIN]),
        seconds=st.floats(0.01, 3),
        is_well=st.booleans(),
    )
    def step(self, action: str, picks: list[int], route: str, status: Status, seconds: float, is_well: bool) -> None:
        """One rule, with weights: so most steps find requests under way."""
        match action:
            case "accept":
                self.accept(route, len(picks), 3 * seconds)
            case "answer":
                self.answer(picks, status, arrives=is_well)
            case "welcome":
                self.welcome()
            case "time":
                self.pass_time(seconds if is_well else seconds / 20)
            case "abandon":
                self.abandon(picks)
            case _:
                self.disaster(restarts=action == "restart", back=is_well)

    def accept(self, route: str, count: int, seconds: float) -> None:
        requests = [self.link.request(route, b"x", None, self.now + seconds, None) for _ in range(count)]
        self.accepted |= {request.id: request for request in requests}
        self.do(RequestsAccepted(requests))

    def answer(self, picks: list[int], status: Status, arrives: bool) -> None:
        """To any task the broker was ever given in its life, so that many answers are late."""
        known = list(dict.fromkeys([*self.live, *self.said]))
        if not self.joined or not known:
            return
        ids = list(dict.fromkeys(known[pick % len(known)] for pick in picks))
        for id in ids:
            self.live.pop(id, None)
        self.said += ids
        self.number += 1
        none = [0] * len(ids)
        message = Reply(self.number, ids, [int(status)] * len(ids), none, [b""] * len(ids), none, none, none)
        if arrives:
            self.do(Heard(SessionId(self.session), message))
        else:
            self.disaster(restarts=False, back=True)

    def abandon(self, picks: list[int]) -> None:
        everything = list(self.accepted)
        ids = {everything[pick % len(everything)] for pick in picks if everything}
        self.abandoned |= ids & self.link._table.keys()
        self.do(RequestsAbandoned(sorted(ids), "client gone"))

    def disaster(self, restarts: bool, back: bool) -> None:
        """The connection breaks, perhaps because the broker lost its memory; perhaps it is back at once."""
        if restarts:
            self.epoch += 1
            self.live.clear()
        self.is_up = self.joined = False
        self.do(LinkLost())
        if back:
            self.welcome()

    def welcome(self) -> None:
        if not self.is_up:
            self.is_up = True
            self.do(Started())
        if not self.joined:
            self.session += 1
            self.number = 0
            self.joined = True
            welcome = replace(WELCOME, epoch=self.epoch, session=SessionId(self.session))
            self.do(Heard(welcome.session, welcome))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (wake := self.link.next_wakeup()) is not None and wake <= end:
            assert wake >= self.now
            self.now = wake
            self.do(Tick())
            following = self.link.next_wakeup()
            assert following is None or following > wake, "a wakeup that is not over spins"
        self.now = end
        self.do(Tick())

    @invariant()
    def every_request_is_pending_or_has_one_outcome(self) -> None:
        assert all(times == 1 for times in self.answered.values())
        pending = {request.id for request in self.link.unanswered()}
        assert pending.isdisjoint(self.answered) and pending.isdisjoint(self.abandoned)
        assert pending | self.answered.keys() | self.abandoned == self.accepted.keys()

    @invariant()
    def a_once_only_request_never_reaches_a_second_broker_unless_given_back(self) -> None:
        for id, request in self.accepted.items():
            assert request.route != "/once" or len(self.runs.get(id, ())) <= 1 or id in self.said

    @invariant()
    def what_a_joined_broker_was_given_is_remembered_as_given(self) -> None:
        for request in self.link.unanswered():
            assert not self.joined or request.sent_epoch in (0, self.epoch)

    def teardown(self) -> None:
        if not hasattr(self, "link"):
            return
        self.welcome()
        self.pass_time(0.2)
        assert {request.id for request in self.link.unanswered()} <= self.live.keys(), "the broker has all that is open"
        self.pass_time(20.0)
        assert self.link.pending == 0, "every deadline has passed"
        self.every_request_is_pending_or_has_one_outcome()


TestGatewayAndBroker = GatewayAndBroker.TestCase
