"""What makes a run worthless, through whose fault, and at which figure."""

import pytest

from zmesh.bench.figures import Figures
from zmesh.bench.verdict import CPU_SHARE_MAX, LATE_SECONDS_MIN, LATE_SHARE_MAX, STALL_SECONDS_MAX, faults, late_limit


def run(count: int = 1000, latency: float = 0.02, lateness: float = 0.0002, **more: int) -> Figures:
    figures = Figures(10.0, due=count, good_in_time=count, connections=8)
    for _ in range(count):
        figures.answered(200, latency)
        figures.lateness.record(lateness)
    for name, value in more.items():
        setattr(figures, name, value)
    return figures


def whose(figures: Figures) -> list[str]:
    return [fault.whose for fault in faults(figures)]


def test_the_limits_are_those_of_the_document():
    assert (LATE_SHARE_MAX, LATE_SECONDS_MIN, STALL_SECONDS_MAX, CPU_SHARE_MAX) == (0.1, 0.001, 0.1, 0.9)


def test_a_run_on_time_is_valid():
    assert whose(run()) == []


@pytest.mark.parametrize(
    ("latency", "lateness", "is_late"),
    [
        (0.002, 0.0009, False),  # below a millisecond nothing is called late
        (0.002, 0.0011, True),
        (0.1, 0.009, False),  # a tenth of the p99 latency
        (0.1, 0.011, True),
    ],
)
def test_lateness_is_held_against_a_tenth_of_the_p99_latency(latency: float, lateness: float, is_late: bool):
    figures = run(latency=latency, lateness=lateness)
    assert whose(figures) == ["generator"] * is_late
    assert late_limit(figures) == pytest.approx(max(0.001, latency / 10), rel=0.003)


def test_one_late_request_in_a_hundred_is_allowed_and_two_are_not():
    figures = run()
    for _ in range(10):
        figures.lateness.record(0.05)
    assert whose(figures) == []
    for _ in range(2):
        figures.lateness.record(0.05)
    (fault,) = faults(figures)
    assert fault.whose == "generator"
    assert fault.text.startswith("the generator was late, not the server: one request in a hundred left 50 ms or more")
    assert "2 ms is allowed" in fault.text and fault.text.endswith("a core or a machine of its own")


def test_a_generator_that_stood_still_once_makes_a_run_worthless():
    figures = run()
    figures.lateness.record(0.11)
    (fault,) = faults(figures)
    assert fault.whose == "generator"
    assert fault.text.startswith("the generator stood still, not the server: a request left 110 ms after it was due")


def test_what_was_not_sent_is_the_servers_doing_as_far_as_one_can_see():
    (fault,) = faults(run(not_sent=3))
    assert fault.whose == "server"
    assert fault.text.startswith("3 of 1000 requests were not sent, because all 8 connections were busy")
    assert fault.text.endswith("raise --connections")


def test_a_run_without_a_good_answer_says_what_came_instead():
    figures = Figures(10.0, due=10, timed_out=2, broken=1, unconnected=1)
    figures.lateness.record(5.0)  # which does not matter then
    for _ in range(6):
        figures.answered(404, 0.01)
    (fault,) = faults(figures)
    assert fault.text == (
        "no request was answered with 2xx (6 were answered 404, 2 timed out, 1 lost their connection, 1 got no"
        " connection): try one with curl first"
    )


def test_a_run_in_which_nothing_was_due_says_so():
    (fault,) = faults(Figures(1.0))
    assert fault.whose == "load"
    assert fault.text == "no request was due while it was measured: raise the rate, or --seconds"
