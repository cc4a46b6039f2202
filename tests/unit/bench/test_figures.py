"""The histogram beside a sorted list, and the fates of requests."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmesh.bench.figures import PERCENTILES, TICKS_MAX, Figures, Histogram, is_good


def exact(durations: list[float], percent: float) -> float:
    """The nearest rank, from all of them."""
    rank = max(1, ceil(len(durations) * round(percent * 1000) / 100_000))
    return sorted(durations)[rank - 1]


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=300))
def test_a_percentile_is_never_too_short_and_hardly_too_long(durations: list[float]):
    histogram = Histogram()
    for duration in durations:
        histogram.record(duration)
    for percent in PERCENTILES:
        truth, said = exact(durations, percent), histogram.percentile(percent)
        assert truth <= said * (1 + 1e-12)
        assert said <= truth + max(1.1e-6, truth * 0.002)
    assert histogram.longest == max(durations)
    assert histogram.mean() == pytest.approx(sum(durations) / len(durations))


def test_the_rank_is_the_nearest_and_does_not_suffer_from_fractions():
    histogram = Histogram()
    for number in range(1, 1001):
        histogram.record((number + 0.5) * 1e-6)  # in the bucket that ends at the next microsecond
    # 99.9 / 100 * 1000 is 999.0000000000001 for a computer, which is not a reason to take the 1000th.
    said = [histogram.percentile(percent) * 1e6 for percent in (50, 90, 99, 99.9, 100)]
    assert said == pytest.approx([501, 901, 991, 1000, 1000.5], abs=1e-6)


def test_every_duration_has_a_bucket_from_nothing_to_the_longest():
    histogram = Histogram()
    for duration in (0.0, 1e-7, 1023e-6, 1024e-6, 1.0, TICKS_MAX / 1e6, 1e9):
        histogram.record(duration)
    assert histogram.count == 7 and histogram.longest == 1e9
    assert histogram.percentile(1) <= 1e-6


def test_an_empty_histogram_says_nothing_and_does_not_fail():
    said = Histogram().to_json()
    assert said == dict.fromkeys(("count", "p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "max_ms", "mean_ms"), 0)


def test_only_2xx_is_goodput_and_its_latency_stands_apart_from_that_of_errors():
    assert [is_good(status) for status in (199, 200, 204, 299, 301, 404, 429, 500)] == [
        False, True, True, True, False, False, False, False,
    ]  # fmt: skip
    figures = Figures(2.0, due=5)
    for status, seconds in ((200, 0.1), (200, 0.1), (429, 0.001), (302, 0.002)):
        figures.answered(status, seconds)
    figures.broken = 1
    assert figures.good == 2 and figures.fates == figures.due == 5
    assert figures.latency.count == 2 and figures.latency.percentile(50) == pytest.approx(0.1, rel=0.002)
    assert figures.latency_of_others.count == 2 and figures.latency_of_others.longest == 0.002


def test_what_timed_out_is_in_the_latency_with_what_it_had_waited():
    figures = Figures(1.0, due=2)
    figures.answered(200, 0.01)
    figures.timed_out_after(3.0)
    assert figures.latency.count == 2 and figures.latency.longest == 3.0
    assert figures.good == 1 and figures.fates == 2


def test_goodput_counts_what_came_in_time_and_not_what_came_at_last():
    figures = Figures(10.0, due=1000, good_in_time=400)
    for _ in range(1000):
        figures.answered(200, 8.0)
    assert (figures.offered, figures.goodput) == (100.0, 40.0)
    assert figures.to_json()["goodput_per_second"] == 40.0
