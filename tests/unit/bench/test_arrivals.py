"""Schedules: as many as were asked for, where they belong, the same for the same seed."""

from itertools import pairwise
from random import Random
from statistics import mean, pstdev

import pytest

from zmesh.bench.arrivals import ARRIVALS, arrivals


def test_constant_arrivals_have_the_same_gap_and_do_not_drift():
    drawn = list(arrivals("constant", 3000.0, 100.0, Random(0)))
    assert len(drawn) == 300_000
    assert drawn[:3] == [0.0, 1 / 3000, 2 / 3000]
    assert drawn[-1] == 299_999 / 3000


def test_poisson_arrivals_have_exponential_gaps_with_the_mean_of_the_rate():
    drawn = list(arrivals("poisson", 500.0, 200.0, Random(1)))
    gaps = [after - before for before, after in pairwise([0.0, *drawn])]
    # 100 000 gaps: their mean is known to 0.3 %, and an exponential one deviates by its own mean.
    assert mean(gaps) == pytest.approx(1 / 500, rel=0.01)
    assert pstdev(gaps) == pytest.approx(mean(gaps), rel=0.02)
    assert sum(gap > 1 / 500 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.01)


def test_a_seed_gives_one_schedule_and_another_seed_another():
    first, again, other = (list(arrivals("poisson", 100.0, 5.0, Random(seed))) for seed in (7, 7, 8))
    assert first == again != other


@pytest.mark.parametrize("kind", ARRIVALS)
def test_nothing_is_due_before_the_beginning_or_after_the_end(kind: str):
    drawn = list(arrivals(kind, 1000.0, 0.5, Random(3)))
    assert drawn == sorted(drawn)
    assert drawn[0] >= 0.0 and drawn[-1] < 0.5


def test_a_rate_may_be_so_low_that_nothing_is_due():
    assert list(arrivals("poisson", 0.001, 1.0, Random(0))) == []
