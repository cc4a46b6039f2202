"""Streams at the gateway's half: in order, of one lease, whole, and never begun a second time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.core.test_link import (
    EPOCH,
    OTHER,
    SESSION,
    WELCOME,
    answers,
    ask,
    joined_link,
    next_broker,
    rejoin,
    reply,
    said,
    submitted,
)
from zmesh.core.effects import Answer, Deliver, LinkEffect, Transmit
from zmesh.core.events import Heard, LinkLost, RequestsAbandoned, RequestsAccepted, Started, Tick
from zmesh.core.link import Link
from zmesh.core.requests import Request
from zmesh.messages import Cancel, Chunk, LeaseId, Payload, Refuse, RefuseCode, Reply, SessionId, Status, TaskId

LOST, BROKEN = b"events of the stream were lost", b"the broker was lost in the middle of the stream"


def submitted_to(link: Link, *requests: Request) -> tuple[Request, ...]:
    link.handle(RequestsAccepted(list(requests)), now=0.0)
    return requests


def chunk(
    *events: tuple[Request, int, bytes], lease: int = 1, epoch: int = EPOCH, session: SessionId = SESSION
) -> Heard:
    ids, numbers, payloads = (
        [request.id for request, _, _ in events],
        [n for _, n, _ in events],
        [p for *_, p in events],
    )
    return Heard(session, Chunk(epoch, LeaseId(lease), ids, numbers, list[Payload](payloads)))


def ends(number: int, *ended: tuple[Request, Status, int], lease: int = 1) -> Heard:
    """A REPLY: status and number of events."""
    none, count = [0] * len(ended), [events for *_, events in ended]
    ids, statuses = [request.id for request, *_ in ended], [int(status) for _, status, _ in ended]
    payloads: list[Payload] = [b""] * len(ended)
    leases = [LeaseId(lease if events else 0) for events in count]
    return Heard(SESSION, Reply(number, ids, statuses, none, payloads, none, none, none, leases, count))


def events(effects: list[LinkEffect]) -> list[tuple[Request, Payload]]:
    return [
        pair
        for effect in effects
        if isinstance(effect, Deliver)
        for pair in zip(effect.requests, effect.payloads, strict=True)
    ]


def cancelled(effects: list[LinkEffect]) -> list[TaskId]:
    return [id for message in said(effects) if isinstance(message, Cancel) for id in message.ids]


def test_events_are_delivered_in_order_and_before_the_answer():
    link = joined_link()
    a, b = submitted_to(link, ask(link), ask(link))
    first = link.handle(chunk((a, 0, b"a0"), (b, 0, b"b0")), now=0.1)
    assert events(first) == [(a, b"a0"), (b, b"b0")]
    effects = link.handle(chunk((a, 1, b"a1")), ends(1, (a, Status.OK, 2), (b, Status.OK, 1)), now=0.2)
    assert events(effects) == [(a, b"a1")]
    assert answers(effects) == [(a, Status.OK, b""), (b, Status.OK, b"")]
    kinds = [type(effect) for effect in effects if not isinstance(effect, Transmit)]
    assert kinds == [Deliver, Answer]
    assert link.handle(Tick(), now=0.3) == []


@pytest.mark.parametrize("first", [0, 1], ids=["in the middle", "at the start"])
def test_a_gap_ends_the_stream_and_tells_the_broker(first: int):
    link = joined_link()
    (a,) = submitted_to(link, ask(link))
    if not first:
        link.handle(chunk((a, 0, b"a0")), now=0.1)
    effects = link.handle(chunk((a, 2, b"a2")), now=0.2)
    assert (events(effects), answers(effects)) == ([], [(a, Status.INTERNAL, LOST)])
    assert cancelled(link.handle(Tick(), now=0.3)) + cancelled(effects) == [a.id]
    assert events(link.handle(chunk((a, 3, b"a3")), now=0.4)) == []


@pytest.mark.parametrize("said_in_all", [0, 1, 3])
def test_a_stream_that_is_not_whole_at_its_end_is_an_error(said_in_all: int):
    link = joined_link()
    (a,) = submitted_to(link, ask(link))
    link.handle(chunk((a, 0, b"a0")), chunk((a, 1, b"a1")), now=0.1)
    assert answers(link.handle(ends(1, (a, Status.OK, said_in_all)), now=0.2)) == [(a, Status.INTERNAL, LOST)]


def test_a_stream_of_which_nothing_came_is_an_error_as_well():
    link = joined_link()
    a, b = submitted_to(link, ask(link), ask(link))
    effects = link.handle(ends(1, (a, Status.OK, 2), (b, Status.OK, 0)), now=0.2)
    assert answers(effects) == [(a, Status.INTERNAL, LOST), (b, Status.OK, b"")]


def test_the_end_by_another_lease_is_none():
    link = joined_link()
    (a,) = submitted_to(link, ask(link))
    link.handle(chunk((a, 0, b"a0"), lease=4), now=0.1)
    assert answers(link.handle(ends(1, (a, Status.OK, 1), lease=5), now=0.2)) == [(a, Status.INTERNAL, LOST)]


def test_an_error_keeps_its_own_words():
    link = joined_link()
    a, b = submitted_to(link, ask(link), ask(link))
    link.handle(chunk((a, 0, b"a0")), now=0.1)
    effects = link.handle(reply(1, (a, Status.VALIDATION, b"no"), (b, Status.OK, b"yes")), now=0.2)
    assert answers(effects) == [(a, Status.VALIDATION, b"no"), (b, Status.OK, b"yes")]


def test_another_lease_and_what_was_heard_before_are_dropped():
    link = joined_link()
    (a,) = submitted_to(link, ask(link))
    link.handle(chunk((a, 0, b"a0")), now=0.1)
    for other in (chunk((a, 0, b"again")), chunk((a, 1, b"x"), lease=2), chunk((a, 7, b"x"), lease=2)):
        assert link.handle(other, now=0.2) == []
    assert events(link.handle(chunk((a, 1, b"a1")), now=0.3)) == [(a, b"a1")]


def test_what_nobody_waits_for_another_epoch_and_another_session_are_dropped():
    link = joined_link()
    (a,) = submitted_to(link, ask(link))
    stranger = ask(link)
    for other in (
        chunk((stranger, 0, b"x")),
        chunk((a, 0, b"x"), epoch=EPOCH + 1),
        chunk((a, 0, b"x"), session=OTHER),
    ):
        assert link.handle(other, now=0.2) == []


def test_a_client_that_leaves_is_not_told_more():
    link = joined_link()
    (a,) = submitted_to(link, ask(link))
    link.handle(chunk((a, 0, b"a0")), now=0.1)
    assert cancelled(link.handle(RequestsAbandoned([a.id], "gone"), now=0.2)) == [a.id]
    assert link.handle(chunk((a, 1, b"a1")), now=0.3) == []
    assert answers(link.handle(LinkLost(), now=0.4)) == []


def test_the_deadline_ends_a_stream():
    link = joined_link()
    (a,) = submitted_to(link, ask(link, deadline=1.0))
    link.handle(chunk((a, 0, b"a0")), now=0.1)
    ((request, status, _),) = answers(link.handle(Tick(), now=1.0))
    assert (request, status) == (a, Status.TIMEOUT)


# ── a broker is lost ──────────────────────────────────────────────────────────────────────────────────────────────


def test_with_the_connection_a_stream_ends_and_what_has_not_begun_is_submitted_again():
    link = joined_link()
    a, b = submitted_to(link, ask(link), ask(link))
    link.handle(chunk((a, 0, b"a0")), now=0.1)
    assert answers(link.handle(LinkLost(), now=0.2)) == [(a, Status.INTERNAL, BROKEN)]
    effects = rejoin(link, next_broker(1), now=0.3)
    assert (submitted(effects), cancelled(effects)) == ([b.id], [])


def test_a_broker_that_still_has_it_is_told_to_stop():
    link = joined_link()
    (a,) = submitted_to(link, ask(link))
    link.handle(chunk((a, 0, b"a0")), now=0.1)
    assert cancelled(rejoin(link, replace(WELCOME, session=OTHER), now=0.3)) == [a.id]


def test_a_stream_does_not_outlive_a_session_that_the_broker_does_not_know():
    link = joined_link()
    (a,) = submitted_to(link, ask(link))
    link.handle(chunk((a, 0, b"a0")), now=0.1)
    link.handle(Heard(SESSION, Refuse(RefuseCode.UNKNOWN_PEER, "say HELLO again")), now=0.2)
    link.handle(Started(), now=0.3)
    welcome = next_broker(1)
    effects = link.handle(Heard(welcome.session, welcome), now=0.3)
    assert answers(effects) == [(a, Status.INTERNAL, BROKEN)]
    assert submitted(effects) == []


def test_a_stream_is_never_submitted_again_even_if_it_is_asked_for():
    link = joined_link()
    (a,) = submitted_to(link, ask(link))
    link.handle(chunk((a, 0, b"a0")), now=0.1)
    effects = link.handle(reply(1, (a, Status.AGAIN, b"50")), now=0.2)
    assert answers(effects) == [(a, Status.INTERNAL, LOST)]
    assert submitted(link.handle(Tick(), now=1.0)) == []
