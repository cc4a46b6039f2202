"""The search, against made-up servers and made-up generators whose limits are known."""

from collections.abc import Callable

import pytest

from zmesh.bench.figures import Figures
from zmesh.bench.knee import RATIO_MAX, STEPS_MAX, Knee, Step, judged

P99_MAX = 0.1


def run(rate: float, carries: float = 1e9, knows: float = 1e9, p99: float = 0.01) -> Figures:
    """A server that carries so many a second, a generator that can send so many."""
    figures = Figures(10.0, due=round(rate * 10), good_in_time=round(min(rate, carries) * 10))
    late = 0.5 if rate > knows else 0.0001
    for _ in range(100):
        figures.answered(200, p99 + late)
        figures.lateness.record(late)
    return figures


def search(start: float, carries: float = 1e9, knows: float = 1e9) -> Knee:
    return searched(start, lambda rate: judged(rate, run(rate, carries, knows), P99_MAX))


def searched(start: float, step: Callable[[float], Step]) -> Knee:
    knee = Knee(start)
    for rate in knee.rates():
        knee.steps.append(step(rate))
    return knee


# ── one step ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_is_carried_with_95_of_100_back_and_its_p99_within_the_limit():
    assert judged(100, run(100), P99_MAX).limit == ""
    assert judged(100, run(100, carries=95.0), P99_MAX).limit == ""


def test_a_step_is_not_carried_when_too_little_comes_back():
    step = judged(100, run(100, carries=94.0), P99_MAX)
    assert (step.limit, step.why) == ("server", "94% of what was offered came back as 2xx in time")


def test_a_step_is_not_carried_when_answers_take_too_long():
    step = judged(100, run(100, p99=0.11), P99_MAX)
    assert (step.limit, step.why) == ("server", "p99 110.1 ms, above 100.0 ms")


def test_a_late_step_that_is_not_carried_is_the_generators_limit():
    """It is late by 0.5 s of 10, which explains a p99 above the limit, and 5 % that are missing."""
    assert judged(100, run(100, knows=50.0), P99_MAX).limit == "generator"
    figures = run(100, carries=94.0, knows=50.0)
    figures.not_sent = 5
    assert judged(100, figures, 10.0).limit == "generator"


def test_what_a_late_generator_does_not_explain_is_the_servers_limit():
    step = judged(100, run(100, carries=80.0, knows=50.0), P99_MAX)
    assert (step.limit, step.why) == ("server", "80% of what was offered came back as 2xx in time")


def test_a_late_step_that_is_carried_all_the_same_is_carried():
    assert judged(100, run(100, knows=50.0), p99_seconds_max=1.0).limit == ""


def test_a_step_of_which_not_all_was_sent_is_not_carried():
    figures = run(100)
    figures.not_sent = 1
    assert judged(100, figures, P99_MAX).limit == "server"


# ── the search ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start", [1.0, 60.0, 900.0, 5000.0])
@pytest.mark.parametrize("carries", [70.0, 1234.0, 40_000.0])
def test_the_knee_is_found_within_a_tenth_from_below_and_from_above(start: float, carries: float):
    knee = search(start, carries)
    assert knee.rate is not None and knee.is_of_server
    # 95 % may be missing, and the rates are a tenth apart.
    assert carries / RATIO_MAX * 0.99 <= knee.rate <= carries / 0.95 * 1.01
    assert knee.text().startswith(f"knee: {knee.rate:g} req/s; at ")
    assert len(knee.steps) <= STEPS_MAX


def test_rates_double_until_one_is_not_carried_and_then_close_in():
    assert [step.rate for step in search(100.0, 1000.0).steps] == [100, 200, 400, 800, 1600, 1130, 951, 1040]


def test_the_limit_of_the_generator_is_not_that_of_the_server():
    knee = search(100.0, carries=5000.0, knows=1000.0)
    assert not knee.is_of_server and knee.rate is not None and 900 < knee.rate <= 1000
    assert knee.text() == (
        f"{knee.rate:g} req/s was carried, and the knee may be higher: 1040 req/s is the limit of the generator, not of"
        " the server (the generator was late: p99 500 ms, and 51 ms is allowed); give the generator a core or a"
        " machine of its own"
    )
    rates = [step.rate for step in knee.steps]
    assert rates[:6] == [100, 200, 400, 800, 1600, 1600], "a late run is done once more"


def test_one_late_run_that_is_right_when_done_again_does_not_end_the_search():
    late = iter([True])

    def step(rate: float) -> Step:
        return judged(rate, run(rate, 1000.0, knows=0.0 if rate == 400 and next(late, False) else 1e9), P99_MAX)

    knee = searched(100.0, step)
    assert [step.rate for step in knee.steps][:5] == [100, 200, 400, 400, 800]
    assert knee.is_of_server and knee.rate is not None and 900 < knee.rate < 1100


def test_a_server_that_carries_nothing_ends_the_search_and_says_why():
    knee = search(10.0, carries=0.0)
    assert knee.rate is None and not knee.is_of_server
    assert min(step.rate for step in knee.steps) >= 0.1
    assert knee.text().startswith("no knee was found: not even ")
    assert knee.text().endswith("0% of what was offered came back as 2xx in time")


def test_a_server_without_a_limit_ends_the_search_too():
    knee = search(10.0)
    assert len(knee.steps) <= STEPS_MAX and not knee.is_of_server
    assert knee.text().endswith("was carried, and no higher rate was tried")


def test_a_search_that_begins_too_low_ends_with_what_it_has():
    knee = search(0.1, carries=600_000.0)
    assert len(knee.steps) == STEPS_MAX and knee.rate == 416_000


def test_a_server_that_is_moody_still_ends_the_search():
    moods = iter([True, False] * STEPS_MAX)
    knee = searched(100.0, lambda rate: Step(rate, run(rate), "" if next(moods) else "server", "moody"))
    assert len(knee.steps) <= STEPS_MAX and knee.rate is not None
