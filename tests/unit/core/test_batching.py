"""When a batch is cut: every rule of core/batching.py, one sentence each. The clock is an argument."""

from collections.abc import Iterable
from math import inf
from random import Random

import pytest

from zmesh.core.batching import Batcher, Release

MOST = 32
WAIT = 0.005
SERVICE = 0.010
CYCLE = 0.020  # from one answer to the next


def answered(batcher: Batcher, now: float, count: int, service: float) -> None:
    """A batch of the last stage came back."""
    batcher.ran(now, count, service)
    batcher.answered(now, count)


def taught(batcher: Batcher, returns: Iterable[float], rounds: int = 30, service: float = SERVICE) -> float:
    """Let the same tasks come back after each answer, at these times after it. Returns when the last answer was."""
    now = 0.0
    returns = sorted(returns)
    for _ in range(rounds):
        now += CYCLE
        answered(batcher, now, len(returns), service)
        for after in returns:
            batcher.arrived(now + after, 1)
    now += CYCLE
    answered(batcher, now, len(returns), service)
    return now


def bursts(batcher: Batcher, follow: Iterable[float], rounds: int = 30) -> float:
    """Let a task nobody expects be followed by others, at these times after it. Returns when the next one comes."""
    answered(batcher, 0.0, 1, SERVICE)
    for _ in range(8):  # learn that nobody follows an answer
        answered(batcher, 0.0 + _ * CYCLE, 1, SERVICE)
    now = 1.0
    for _ in range(rounds):
        batcher.arrived(now, 1)
        for after in sorted(follow):
            batcher.arrived(now + after, 1)
        now += CYCLE
    return now


def due(batcher: Batcher, now: float, waiting: int = 1, **given: object) -> float:
    """Asked with one idle worker and tasks that came just now, unless given otherwise."""
    facts: dict[str, object] = {"oldest": now, "idle_since": now, "idle_others": 0, "free_in": lambda now: inf}
    return batcher.due(now, waiting, **(facts | given))  # type: ignore[arg-type]


CROWD = [0.0005 + 0.0001 * i for i in range(16)]  # sixteen clients, back within two milliseconds


# ── modes that do not learn ──


def test_stage_without_batching_never_waits():
    batcher = Batcher(1, WAIT)
    now = taught(batcher, CROWD)
    assert due(batcher, now) == now
    assert batcher.reason(now, 1, now, now) is Release.SINGLE
    assert batcher.reason(now + 1, 7, now, now) is Release.SINGLE


def test_window_of_no_length_never_waits():
    batcher = Batcher(MOST, 0.0)
    now = taught(batcher, CROWD)
    assert due(batcher, now) == now
    assert batcher.reason(now, 1, now, now) is Release.CROWD


def test_greedy_never_waits():
    batcher = Batcher(MOST, WAIT, "greedy")
    now = taught(batcher, CROWD)
    assert due(batcher, now) == now
    assert batcher.reason(now + 1, 1, now, now) is Release.CROWD


def test_fixed_window_opens_when_both_a_task_and_a_worker_are_there():
    batcher = Batcher(MOST, WAIT, "fixed")
    assert due(batcher, 1.002, oldest=1.001, idle_since=1.0) == pytest.approx(1.006)
    assert due(batcher, 1.002, oldest=1.0, idle_since=1.002) == pytest.approx(1.007)


@pytest.mark.parametrize("wrong", [(0, WAIT, "crowd"), (MOST, -1.0, "crowd"), (MOST, WAIT, "later")])
def test_settings_that_mean_nothing_are_our_mistake(wrong: tuple[int, float, str]):
    with pytest.raises(AssertionError):
        Batcher(*wrong)


# ── the answer window ──


def test_nobody_waits_before_the_first_batch_was_answered():
    batcher = Batcher(MOST, WAIT)
    batcher.arrived(1.0, 1)
    assert batcher.service == 0.0
    assert due(batcher, 1.0) == 1.0


def test_first_of_a_crowd_waits_for_the_others():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    batcher.arrived(now + CROWD[0], 1)
    again = due(batcher, now + CROWD[0])
    assert now + CROWD[0] < again <= now + CROWD[0] + 0.000126, "ask again at the next bin"


def test_crowd_leaves_the_moment_its_last_one_is_back():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    waited = []
    for waiting, after in enumerate(CROWD, 1):
        batcher.arrived(now + after, 1)
        waited.append(due(batcher, now + after, waiting, oldest=now + CROWD[0]) > now + after)
    assert waited == [True] * 15 + [False]
    assert batcher.reason(now + CROWD[-1], 16, now + CROWD[0], now) is Release.CROWD


def test_tasks_of_one_message_count_each():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    batcher.arrived(now + 0.0005, 10)
    assert due(batcher, now + 0.0005, 10) > now + 0.0005
    batcher.arrived(now + 0.0006, 6)
    assert due(batcher, now + 0.0006, 16) == now + 0.0006


def test_waiting_ends_where_it_costs_more_than_it_saves():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, [*CROWD, 0.0045])  # one straggler
    for after in CROWD:
        batcher.arrived(now + after, 1)
    last = now + CROWD[-1]
    assert due(batcher, last, 16) == last, "16 tasks x 2.5 ms against the 10 ms of one"
    assert due(batcher, last, 1) > last, "but a single one waits for the straggler"


def test_short_services_are_worth_less_waiting_than_long_ones():
    for service, waits in ((0.0005, False), (0.050, True)):
        batcher = Batcher(MOST, WAIT)
        now = taught(batcher, [*CROWD, 0.0045], service=service)
        for after in CROWD:
            batcher.arrived(now + after, 1)
        last = now + CROWD[-1]
        assert (due(batcher, last, 4) > last) is waits


def test_smaller_batch_is_followed_by_as_many_as_usual():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD) + CYCLE
    answered(batcher, now, 2, SERVICE)  # the other 14 of the crowd are held up elsewhere
    batcher.arrived(now + 0.0010, 1)
    batcher.arrived(now + 0.0011, 1)
    assert due(batcher, now + 0.0011, 2) > now + 0.0011


def test_larger_batch_is_followed_by_its_share():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD[:4]) + CYCLE
    answered(batcher, now, 16, SERVICE)
    for _ in range(4):
        batcher.arrived(now + 0.0005, 1)
    assert due(batcher, now + 0.0005, 4) > now + 0.0005


def test_window_that_the_next_answer_cuts_short_keeps_its_forecast():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    for _ in range(50):  # answers that follow at once, from other workers
        now += 0.0002
        answered(batcher, now, 1, SERVICE)
    batcher.arrived(now + 0.0005, 1)
    assert due(batcher, now + 0.0005) > now + 0.0005


def test_answers_at_the_same_moment_teach_nothing():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    for _ in range(50):
        answered(batcher, now, 1, SERVICE)
    batcher.arrived(now + 0.0005, 1)
    assert due(batcher, now + 0.0005) > now + 0.0005


def test_old_crowd_is_forgotten():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    for _ in range(60):  # a single client is left, and comes back late
        now += CYCLE
        answered(batcher, now, 1, SERVICE)
        batcher.arrived(now + 0.010, 1)
    assert due(batcher, now + 0.010) == now + 0.010


def test_crowd_of_one_does_not_wait_for_itself():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, [0.0005])
    batcher.arrived(now + 0.0005, 1)
    assert due(batcher, now + 0.0005) == now + 0.0005


# ── the burst window ──


def test_first_of_a_burst_waits_for_the_rest():
    batcher = Batcher(MOST, WAIT)
    now = bursts(batcher, CROWD)
    batcher.arrived(now, 1)
    again = due(batcher, now)
    assert now < again <= now + 0.000126


def test_burst_leaves_where_usually_nobody_follows():
    batcher = Batcher(MOST, WAIT)
    now = bursts(batcher, CROWD)
    batcher.arrived(now, 1)
    batcher.arrived(now + 0.001, 3)
    assert due(batcher, now + 0.001, 4) > now + 0.001
    assert due(batcher, now + 0.0025, 4, oldest=now, idle_since=now) == now + 0.0025


def test_lonely_tasks_do_not_wait():
    batcher = Batcher(MOST, WAIT)
    now = bursts(batcher, [])
    batcher.arrived(now, 1)
    assert due(batcher, now) == now


def test_tasks_that_came_with_the_first_of_a_burst_are_not_waited_for_again():
    batcher = Batcher(MOST, WAIT)
    now = bursts(batcher, [])
    for _ in range(20):
        batcher.arrived(now, 8)
        now += CYCLE
    batcher.arrived(now, 8)
    assert due(batcher, now, 8) == now


def test_nobody_new_is_a_surprise_while_the_crowd_is_coming():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    for after in CROWD:
        batcher.arrived(now + after, 1)
    assert batcher._burst.opened == float("-inf")
    batcher.arrived(now + CROWD[-1], 1)
    batcher.arrived(now + CROWD[-1], 1)
    assert batcher._burst.opened == now + CROWD[-1], "the eighteenth of sixteen is one"


def test_late_task_is_a_surprise_where_nobody_comes_late():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    batcher.arrived(now + 0.0045, 1)
    assert batcher._burst.opened == now + 0.0045


def test_burst_that_hits_an_answer_is_still_a_burst():
    batcher = Batcher(MOST, WAIT)
    now = 0.0
    for turn in range(60):  # bursts, of which every third happens to follow an answer
        now += CYCLE
        if turn % 3:
            answered(batcher, now - 0.010, 17, SERVICE)
        answered(batcher, now, 17, SERVICE)
        if turn % 3 == 0:
            batcher.arrived(now + 0.001, 1)
            for after in CROWD:
                batcher.arrived(now + 0.001 + after, 1)
    now += CYCLE
    answered(batcher, now, 17, SERVICE)
    batcher.arrived(now + 0.003, 1)
    assert batcher._burst.opened == now + 0.003
    assert due(batcher, now + 0.003) > now + 0.003


# ── several stages ──


def passes(batcher: Batcher, returns: Iterable[float], rounds: int = 30) -> float:
    """A first stage whose tasks go on to a quick second one, and whose clients are back at these times after that."""
    now, returns = 0.0, sorted(returns)
    for _ in range(rounds):
        now += CYCLE
        batcher.ran(now, len(returns), SERVICE)
        batcher.passed_on(now, len(returns))
        for after in returns:
            batcher.arrived(now + after, 1)
    return now


def test_clients_of_a_quick_next_stage_are_waited_for():
    batcher = Batcher(MOST, WAIT)
    now = passes(batcher, [0.003] * 8) + CYCLE
    batcher.passed_on(now, 8)
    assert due(batcher, now + 0.0005, 8) > now + 0.0005, "8 x 10 ms against 8 x 2.5 ms"
    assert due(batcher, now + 0.0005, 31) == now + 0.0005
    batcher.arrived(now + 0.003, 1)
    assert batcher._burst.opened == float("-inf"), "they follow nobody's burst"


def test_clients_of_a_slow_next_stage_are_not():
    batcher = Batcher(MOST, WAIT)
    now = passes(batcher, [0.008] * 8) + CYCLE
    batcher.passed_on(now, 8)
    assert due(batcher, now + 0.0005, 1) == now + 0.0005


def test_stage_that_does_not_learn_takes_no_notice_of_what_it_passes_on():
    batcher = Batcher(MOST, WAIT, "greedy")
    passes(batcher, CROWD)
    assert batcher._onward.opened == float("-inf")


def test_batch_waits_for_one_of_the_stage_before_that_ends_in_time():
    batcher = Batcher(MOST, WAIT)
    batcher.ran(0.0, 4, SERVICE)
    coming = [(1.002, 4), (1.004, 8)]
    assert due(batcher, 1.0, 4, coming=lambda now: coming) == pytest.approx(1.002), "4 x 10 ms against 4 x 2 ms"
    assert due(batcher, 1.0, 14, coming=lambda now: coming) == pytest.approx(1.004), "only the second is worth it"
    assert due(batcher, 1.0, 31, coming=lambda now: coming) == 1.0, "there is room for one"
    assert due(batcher, 1.0, 4, coming=lambda now: []) == 1.0


def test_what_other_idle_workers_take_is_not_waited_for():
    batcher = Batcher(MOST, WAIT)
    batcher.ran(0.0, 4, SERVICE)
    coming = [(1.002, 4), (1.0021, 4)]
    assert due(batcher, 1.0, 4, coming=lambda now: coming, idle_others=3) == pytest.approx(1.0021)
    assert due(batcher, 1.0, 4, coming=lambda now: coming, idle_others=8) == 1.0


def test_nobody_waits_for_a_batch_that_ends_after_the_window():
    batcher = Batcher(MOST, WAIT)
    batcher.ran(0.0, 4, SERVICE)
    assert due(batcher, 1.0, coming=lambda now: [(1.0 + WAIT + 0.0001, 32)]) == 1.0
    assert due(batcher, 1.0, oldest=0.999, idle_since=0.998, coming=lambda now: [(1.0045, 32)]) == 1.0


def test_batch_that_is_late_is_asked_for_again_in_a_moment():
    batcher = Batcher(MOST, WAIT)
    batcher.ran(0.0, 4, SERVICE)
    assert 1.0001 < due(batcher, 1.0, coming=lambda now: [(now, 4)]) < 1.0002


def test_end_of_a_batch_is_known_from_those_that_took_as_long():
    batcher = Batcher(MOST, WAIT)
    assert batcher.remaining(0.001) == inf, "nothing is known yet"
    batcher.ran(0.0, 4, SERVICE)
    assert batcher.remaining(0.001) == pytest.approx(SERVICE - 0.001)
    assert batcher.remaining(0.012) == 0.0, "any moment now"


# ── what waiting saves ──


def test_nobody_waits_for_tasks_that_another_idle_worker_takes():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD[:3])
    batcher.arrived(now + CROWD[0], 1)
    assert due(batcher, now + CROWD[0], idle_others=1) > now + CROWD[0]
    assert due(batcher, now + CROWD[0], idle_others=2) == now + CROWD[0]


def test_nobody_waits_for_more_tasks_than_there_is_room_for():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, [0.001] * 8 + [0.0045] * 24)
    batcher.arrived(now + 0.001, 8)
    at = now + 0.0012
    assert due(batcher, at, 16) > at, "16 more, of 10 ms each, for 3.5 ms of 16 tasks"
    assert due(batcher, at, 29) == at, "only 3 more, for 3.5 ms of 29 tasks"


def test_nobody_waits_when_another_worker_is_free_in_a_moment():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    at = now + CROWD[0]
    batcher.arrived(at, 1)
    assert due(batcher, at, free_in=lambda now: 0.00001) == at
    assert due(batcher, at, free_in=lambda now: 0.0) == at, "it is a little late, so any moment now"
    assert due(batcher, at, free_in=lambda now: 0.008) > at
    assert due(batcher, at, free_in=lambda now: 0.080) > at


def test_fast_worker_waits_for_less_company_than_a_slow_one():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    at = now + CROWD[-3]
    batcher.arrived(at, 14)
    assert due(batcher, at, 14) > at, "two more are worth a tenth of a batch of 10 ms"
    assert due(batcher, at, 14, pace=0.1) == at
    assert due(batcher, at, 14, pace=10.0) > at


def test_worker_is_judged_by_itself_only_where_it_is_far_from_the_others():
    batcher = Batcher(MOST, WAIT)
    assert batcher.pace(0.0) == 1.0
    batcher.ran(0.0, 4, SERVICE)
    assert batcher.pace(0.0) == 1.0, "nothing is known of it"
    assert [batcher.pace(times * SERVICE) for times in (0.7, 1.0, 1.4)] == [1.0, 1.0, 1.0]
    assert [batcher.pace(times * SERVICE) for times in (0.5, 2.0)] == pytest.approx([0.5, 2.0])
    assert batcher.remaining(0.004, 2.0) == pytest.approx(2 * SERVICE - 0.004)
    assert batcher.remaining(2.4 * SERVICE, 2.0) == 0.0, "any moment now"
    assert batcher.remaining(3.1 * SERVICE, 2.0) == inf, "stuck"


def test_what_a_workers_batches_take_follows_the_newest():
    batcher = Batcher(MOST, WAIT)
    first = batcher.ran(0.0, 4, 0.010, 0.0)
    assert first == 0.010
    assert batcher.ran(1.0, 4, 0.020, first) == pytest.approx(0.012)


def test_worker_of_uneven_batches_is_expected_by_those_that_were_as_long():
    """Of batches that take 2 or 18 ms, one that runs for 3 ms takes 15 more, though it is past the mean of 10."""
    batcher = Batcher(MOST, WAIT)
    now = 0.0
    for turn in range(40):
        now += CYCLE
        answered(batcher, now, 16, (0.002, 0.018)[turn % 2])
        for after in CROWD:
            batcher.arrived(now + after, 1)
    assert batcher._services.remaining(0.001) == pytest.approx(0.009)
    assert batcher._services.remaining(0.003) == pytest.approx(0.015)
    assert batcher._services.remaining(0.012) == pytest.approx(0.006)
    assert batcher._services.remaining(0.019) == 0.0
    assert batcher._services.remaining(0.028) == float("inf")


def test_stuck_worker_is_not_waited_for():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    batcher.arrived(now + CROWD[0], 1)
    assert batcher.remaining(1.0) == inf
    assert due(batcher, now + CROWD[0], free_in=lambda at: batcher.remaining(1.0)) > now + CROWD[0]


def test_time_that_grows_with_the_batch_is_not_saved_by_waiting():
    batcher = Batcher(MOST, WAIT)
    random = Random(1)
    now = 0.0
    for _ in range(60):
        now += CYCLE
        size = random.randint(1, MOST)
        answered(batcher, now, size, 0.001 * size)
        for after in CROWD:
            batcher.arrived(now + after, 1)
    assert batcher.service > 0.005
    batcher.arrived(now + CYCLE, 1)
    answered(batcher, now + CYCLE, 16, 0.016)
    batcher.arrived(now + CYCLE + CROWD[0], 1)
    assert due(batcher, now + CYCLE + CROWD[0]) == now + CYCLE + CROWD[0]


@pytest.mark.parametrize(("fixed", "per_task"), [(0.010, 0.0), (0.010, 0.0005), (0.0, 0.001)])
def test_intercept_is_what_a_batch_takes_before_its_first_task(fixed: float, per_task: float):
    batcher = Batcher(MOST, WAIT)
    random = Random(2)
    for turn in range(200):
        size = random.randint(1, MOST)
        answered(batcher, turn * CYCLE, size, fixed + per_task * size)
    assert batcher._services.intercept == pytest.approx(fixed, abs=1e-6)


def test_intercept_of_batches_of_one_size_is_their_mean():
    batcher = Batcher(MOST, WAIT)
    for turn in range(50):
        answered(batcher, turn * CYCLE, 16, 0.010 + 0.001 * (turn % 2))
    assert batcher._services.intercept == batcher.service == pytest.approx(0.0105, abs=0.0002)


def test_noise_over_nearly_equal_sizes_is_not_taken_for_a_slope():
    batcher = Batcher(MOST, WAIT)
    random = Random(3)
    intercepts = []
    for turn in range(1000):
        answered(batcher, turn * CYCLE, 31 + random.randint(0, 1), random.lognormvariate(-4.6, 0.2))
        intercepts.append(batcher._services.intercept)
    intercepts.sort()
    assert intercepts[100] > 0.008, "in nine of ten moments it is near the mean of 10 ms"


def test_slope_is_remembered_while_all_batches_have_one_size():
    batcher = Batcher(MOST, WAIT)
    random = Random(4)
    for turn in range(100):
        size = random.randint(1, MOST)
        answered(batcher, turn * CYCLE, size, 0.001 * size * random.lognormvariate(0, 0.2))
    for turn in range(100, 1100):
        answered(batcher, turn * CYCLE, MOST, 0.032 * random.lognormvariate(0, 0.2))
    assert batcher._services.intercept < 0.006


def test_slope_that_is_no_more_is_forgotten():
    batcher = Batcher(MOST, WAIT)
    random = Random(5)
    for turn in range(400):
        size = random.randint(1, MOST)
        answered(batcher, turn * CYCLE, size, 0.001 * size if turn < 100 else SERVICE)
    assert batcher._services.intercept == pytest.approx(SERVICE, rel=0.05)


def test_slope_too_small_to_square_is_none():
    batcher = Batcher(MOST, WAIT)
    for turn in range(20):
        answered(batcher, turn * CYCLE, 1 + turn, 1e-170 * (1 + turn))
    assert batcher._services.intercept == batcher.service


def test_larger_batches_that_are_faster_change_nothing():
    batcher = Batcher(MOST, WAIT)
    for turn in range(50):
        answered(batcher, turn * CYCLE, 1 + turn % 2, 0.010 - 0.001 * (turn % 2))
    assert batcher._services.intercept == batcher.service


# ── the end of the window ──


def test_no_task_waits_longer_than_the_window():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, [0.0045] * 16)
    batcher.arrived(now, 1)
    asked = at = now
    while (again := due(batcher, at, oldest=now, idle_since=now - 1)) > at:
        asked = again
        at = again
    assert asked <= now + WAIT
    end = now + 0.0045 + WAIT
    assert due(batcher, end, oldest=now + 0.0045, idle_since=now) == end


def test_asking_again_never_goes_past_the_end():
    batcher = Batcher(MOST, 0.00013)
    now = taught(batcher, [0.00001, *[0.00012] * 16])
    batcher.arrived(now + 0.00001, 1)
    again = due(batcher, now + 0.00001, oldest=now + 0.00001, idle_since=now)
    assert now + 0.00001 < again <= now + 0.00001 + 0.00013


def test_window_counts_from_when_the_worker_was_idle():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD)
    batcher.arrived(now + 0.0005, 1)
    assert due(batcher, now + 0.0005, oldest=now - 1.0, idle_since=now) > now + 0.0005
    assert due(batcher, now + 0.0005, oldest=now - 1.0, idle_since=now - 0.5) == now + 0.0005


def test_each_batch_says_why_it_left():
    batcher = Batcher(MOST, WAIT)
    assert batcher.reason(1.0, MOST, 0.9, 0.9) is Release.FULL
    assert batcher.reason(1.0, 4, 1.0 - WAIT, 0.9) is Release.WINDOW
    assert batcher.reason(1.0, 4, 0.9, 0.998) is Release.CROWD
    assert [release.value for release in Release] == ["full", "crowd", "window", "single"]


# ── how long batches take ──


def test_service_follows_the_newest_batches():
    batcher = Batcher(MOST, WAIT)
    answered(batcher, 1.0, 4, 0.030)
    assert batcher.service == 0.030
    for turn in range(40):
        answered(batcher, 1.1 + turn, 4, 0.010)
    assert batcher.service == pytest.approx(0.010, rel=0.01)


def test_clients_come_back_after_answers_whatever_the_batch_took():
    batcher = Batcher(MOST, WAIT)
    now = taught(batcher, CROWD) + CYCLE
    batcher.answered(now, 16)
    assert batcher.service == pytest.approx(SERVICE)
    batcher.arrived(now + CROWD[0], 1)
    assert due(batcher, now + CROWD[0]) > now + CROWD[0]


def test_modes_that_do_not_learn_of_crowds_learn_of_time():
    batcher = Batcher(1, WAIT)
    answered(batcher, 1.0, 1, SERVICE)
    assert batcher.service == SERVICE


def test_prefetch_pays_until_batches_are_known_to_be_slow():
    batcher = Batcher(MOST, WAIT)
    assert batcher.prefetch_pays()
    for turn in range(20):
        answered(batcher, turn, 4, 0.050)
    assert batcher.prefetch_pays()
    for turn in range(20, 30):
        answered(batcher, turn, 4, 0.060)
    assert not batcher.prefetch_pays()


def test_prefetch_does_not_pay_where_batches_vary_widely():
    batcher = Batcher(MOST, WAIT)
    for turn in range(7):
        answered(batcher, turn, 4, 0.020 if turn % 3 == 0 else 0.005)
    assert batcher.prefetch_pays(), "seven are too few to know"
    answered(batcher, 8.0, 4, 0.005)
    assert not batcher.prefetch_pays()


def test_one_slow_batch_of_many_does_not_stop_prefetch():
    batcher = Batcher(MOST, WAIT)
    for turn in range(40):
        answered(batcher, turn, 4, 0.040 if turn == 20 else 0.010)
    assert batcher.prefetch_pays()


def test_shortest_is_known_from_twenty_batches_within_a_minute():
    batcher = Batcher(MOST, WAIT)
    for turn in range(19):
        answered(batcher, turn, 4, 0.010 + 0.001 * turn)
    assert batcher.shortest(19.0) is None
    answered(batcher, 19.0, 4, 0.029)
    assert batcher.shortest(19.0) == pytest.approx(0.014), "of the last 16"
    assert batcher.shortest(60.0) == pytest.approx(0.014)
    assert batcher.shortest(60.1) is None, "one of the twenty is too old"


def test_a_client_that_comes_back_after_its_answer_is_no_part_of_a_burst():
    """One fast client asks many times within a window; to wait for its next request would be to wait for itself."""
    batcher, dice, now, waited = Batcher(MOST, WAIT), Random(1), 0.0, 0
    for turn in range(2000):
        batcher.arrived(now, 1)
        waited += turn > 200 and batcher.due(now, 1, now, now - WAIT / 50, 0, lambda at: inf) > now
        now += WAIT / 10
        answered(batcher, now, 1, WAIT / 10)
        now += 2 * WAIT if turn % 20 == 19 else dice.uniform(0.01, 0.03) * WAIT
    assert waited < 20, f"waited for nobody {waited} times of 1800"
