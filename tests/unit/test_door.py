"""What a gateway refuses by itself: how long a door is closed, and which bodies are denied."""

from __future__ import annotations

import pytest

from zmesh.door import DENIED_MAX, DENIED_SECONDS, DenyList, Door


def measured(per_second: int, pending: int) -> Door:
    """A door that looked at the clock for a second, up to 101.0, while something waited."""
    one = Door(100.0)
    one.pending = 1
    one.measure(100.0)
    one.answered += per_second
    one.measure(101.0)
    one.pending = pending
    return one


# A door


@pytest.mark.parametrize(
    ("per_second", "pending", "seconds"),
    [
        (1000, 100, 0.01),  # they take 0.1 s
        (1000, 900, 0.09),
        (1000, 5000, 0.1),
        (100_000, 1000, 0.001),
    ],
)
def test_a_door_is_closed_for_a_tenth_of_the_time_that_what_waits_takes(per_second: int, pending: int, seconds: float):
    one = measured(per_second, pending)
    one.close("full", 200.0)
    assert one.closed_until == pytest.approx(200.0 + seconds)
    assert one.text == "full"


def test_without_a_rate_a_door_stays_open():
    one = Door(100.0)
    one.pending = 10
    one.close("full", 100.0)
    assert one.closed_until < 0
    assert one.drain_seconds() is None
    assert one.retry_after() == 1


def test_what_is_stuck_is_closed_for_the_longest_time():
    one = Door(100.0)
    one.pending = 10
    one.measure(100.0)
    one.measure(109.9)
    assert one.drain_seconds() is None, "a slow model may answer nothing for a while"
    one.measure(110.0)
    one.close("full", 110.0)
    assert one.closed_until == pytest.approx(110.1)
    assert one.retry_after() == 60


def test_only_time_in_which_something_waits_is_measured():
    one = Door(100.0)
    one.measure(100.5)
    one.pending += 1
    one.answered += 1
    one.leave()
    one.measure(130.0)
    assert one.drain_seconds() is None, "one request in half a minute says nothing about the rate"
    one.pending += 2
    one.measure(140.0)
    one.answered += 10
    one.measure(140.5)
    assert one.drain_seconds() is None, "too short a time"
    one.leave()
    one.measure(141.0)
    one.pending = 5
    assert one.drain_seconds() == 0.5


def test_retry_after_is_between_a_second_and_a_minute():
    assert [measured(10, pending).retry_after() for pending in (1, 11, 20, 21, 10_000)] == [1, 2, 2, 3, 60]


# Those who are denied


def test_a_body_is_denied_on_its_route_until_its_time_is_over():
    denied = DenyList()
    assert not denied.bodies
    denied.add("/a", b"poison", b"worker died", 100.0)
    assert denied
    assert denied.answer("/a", b"poison", 101.0) == b"worker died"
    assert denied.answer("/a", b"poisom", 101.0) is None
    assert denied.answer("/b", b"poison", 101.0) is None
    assert denied.answer("/a", b"poison", 100.0 + DENIED_SECONDS) is None
    assert not denied.bodies


def test_what_is_added_again_is_denied_for_longer():
    denied = DenyList()
    denied.add("/a", b"one", b"", 100.0)
    denied.add("/a", b"two", b"", 110.0)
    denied.add("/a", b"one", b"", 120.0)
    assert len(denied.bodies) == 2
    now = 110.0 + DENIED_SECONDS
    assert (denied.answer("/a", b"two", now), denied.answer("/a", b"one", now)) == (None, b"")
    assert len(denied.bodies) == 1


def test_of_too_many_the_oldest_goes():
    denied = DenyList()
    for number in range(DENIED_MAX + 1):
        denied.add("/a", b"%06d" % number, b"", 100.0)
    assert len(denied.bodies) == DENIED_MAX
    assert denied.answer("/a", b"000000", 100.0) is None
    assert denied.answer("/a", b"000001", 100.0) == b""


def test_one_route_is_forgotten_and_the_others_are_not():
    denied = DenyList()
    denied.add("/a", b"poison", b"", 100.0)
    denied.add("/b", b"poison", b"", 100.0)
    denied.forget("/a")
    assert (denied.answer("/a", b"poison", 100.0), denied.answer("/b", b"poison", 100.0)) == (None, b"")
    assert len(denied.bodies) == 1


def test_only_what_could_be_one_of_them_is_hashed(monkeypatch: pytest.MonkeyPatch):
    denied = DenyList()
    denied.add("/a", b"poison", b"", 100.0)
    hashed = []
    digest = DenyList._digest
    monkeypatch.setattr(DenyList, "_digest", lambda self, path, body: hashed.append(body) or digest(self, path, body))
    assert denied.answer("/a", b"longer than poison", 100.0) is None
    assert denied.answer("/b", b"poison", 100.0) is None
    assert hashed == []
    assert denied.answer("/a", b"poison", 100.0) == b""
    assert denied.answer("/a", b"poison", 100.0 + DENIED_SECONDS) is None
    assert hashed == [b"poison"], "nobody is denied any more"


def test_the_hash_has_a_key_of_its_own():
    assert DenyList()._digest("/a", b"x") != DenyList()._digest("/a", b"x")
