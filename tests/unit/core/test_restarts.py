"""Restarts: who is started again when, and when a stage is failing."""

from random import Random

import pytest

from zmesh.core.restarts import BACKOFF_SECONDS, DEATHS, JITTER, RESTARTS_PER_MINUTE, Deeds, Restarts


class NoChance(Random):
    def uniform(self, a: float, b: float) -> float:
        assert (a, b) == (1 - JITTER, 1 + JITTER)
        return 1.0


@pytest.fixture
def restarts() -> Restarts:
    return Restarts(2, NoChance())


def test_every_deed_has_its_row():
    assert set(DEATHS) == set(Deeds)


def test_a_worker_that_finished_a_lease_is_replaced_at_once(restarts: Restarts):
    assert [restarts.died(1, Deeds.WORKED, now) for now in range(20)] == [0.0] * 20


def test_one_that_dies_before_it_finished_a_lease_waits_longer_and_longer(restarts: Restarts):
    waits = [restarts.died(1, Deeds.READY, 1000.0 * n) for n in range(8)]
    assert waits == [*BACKOFF_SECONDS, 30.0, 30.0]
    assert not restarts.is_failing


def test_workers_wait_each_for_themselves(restarts: Restarts):
    restarts.died(1, Deeds.READY, 0)
    restarts.died(1, Deeds.READY, 0)
    assert restarts.died(2, Deeds.READY, 0) == 0.0


def test_a_finished_lease_forgives_everything(restarts: Restarts):
    for _ in range(4):
        restarts.died(1, Deeds.READY, 0)
    restarts.died(1, Deeds.WORKED, 0)
    assert restarts.died(1, Deeds.READY, 0) == 0.0


def test_three_failed_starts_make_a_stage_failing_whichever_workers_they_were(restarts: Restarts):
    assert restarts.died(1, Deeds.NONE, 0) == 0.0
    assert restarts.died(2, Deeds.NONE, 0) == 0.0
    assert not restarts.is_failing
    assert restarts.died(1, Deeds.NONE, 0) == 30.0
    assert restarts.is_failing


def test_beyond_the_budget_of_a_minute_a_stage_is_failing_and_says_so():
    restarts = Restarts(2, NoChance(), 3)
    assert [restarts.died(1, Deeds.WORKED, now) for now in range(6)] == [0.0] * 6
    assert not restarts.is_failing and restarts.excess == ""
    assert restarts.died(2, Deeds.WORKED, 6) == 30.0
    assert restarts.is_failing
    assert restarts.excess == "its workers ended more than 6 times within a minute"
    restarts.started()
    assert restarts.excess == ""
    assert restarts.died(2, Deeds.WORKED, 66) == 0.0


def test_a_good_start_ends_the_failing(restarts: Restarts):
    for _ in range(3):
        restarts.died(1, Deeds.NONE, 0)
    restarts.started()
    assert not restarts.is_failing and restarts.failed_starts == 0


def test_too_many_restarts_in_a_minute_make_a_stage_failing(restarts: Restarts):
    budget = 2 * RESTARTS_PER_MINUTE
    assert [restarts.died(1, Deeds.WORKED, 0.1 * n) for n in range(budget)] == [0.0] * budget
    assert restarts.died(1, Deeds.WORKED, 30) == 30.0
    assert restarts.is_failing
    restarts.started()
    assert not restarts.is_failing
    assert restarts.died(1, Deeds.WORKED, 95) == 0.0
    assert not restarts.is_failing


def test_waits_are_spread():
    waits = {Restarts(1, Random(seed)).died(1, Deeds.READY, 0) for seed in range(9)}
    assert waits == {0.0}, "no wait is no wait"
    restarts = Restarts(1, Random(1))
    restarts.died(1, Deeds.READY, 0)
    spread = [restarts.died(1, Deeds.READY, 0)]
    assert 0.08 <= spread[0] <= 0.12
