"""Two hundred worlds, each with its own app, hosts, load and bad luck; and proof that their checks bite.

What one of them does wrong is played again by the command that its failure names.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.planted import credit_is_granted_twice
from tests.simulation import coverage
from tests.simulation.ahead import SEEDS, Played
from tests.simulation.simulation import Failed, run
from zmesh.core import endings, outcomes
from zmesh.core.link import Link
from zmesh.core.midway import Midway
from zmesh.core.session import Session
from zmesh.core.stages import StageRecord

TASKS_MIN, FAULTS_MIN = 2000, 20
REPLAYED = 7
SEEDS_TO_CATCH = 30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", name="hits")
def hits_fixture(played: Played) -> Counter[str]:
    return sum((report.hits for report in played.reports), Counter())


def test_every_seed_holds_what_is_promised(played: Played):
    assert not played.failures, "\n".join(map(str, played.failures))
    assert [report.seed for report in played.reports] == list(SEEDS)


def test_every_seed_is_as_hard_as_it_should_be(played: Played):
    assert min(report.tasks for report in played.reports) >= TASKS_MIN
    assert min(report.faults for report in played.reports) >= FAULTS_MIN


def test_every_event_effect_and_row_of_a_table_was_hit(hits: Counter[str]):
    assert coverage.missing(hits) == []


def test_what_is_called_impossible_exists_and_never_happened(hits: Counter[str]):
    for what in coverage.IMPOSSIBLE:
        assert what in coverage.everything()
        assert not hits[what], f"{what} happened {hits[what]} times"


def test_a_seed_goes_the_same_way_in_another_process_whatever_its_hashes_are():
    here = run(REPLAYED, is_told=True)
    code = f"from tests.simulation.simulation import run; print(run({REPLAYED}, is_told=True).digest)"
    for hash_seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        root = Path(__file__).parents[2]
        there = subprocess.run(
            [sys.executable, "-c", code], env=environ, cwd=root, capture_output=True, text=True, check=True
        )
        assert there.stdout.strip() == here.digest


def test_a_transcript_and_more_checks_change_nothing():
    told, untold = run(REPLAYED, is_told=True), run(REPLAYED)
    assert (told.steps, told.messages, told.seconds) == (untold.steps, untold.messages, untold.seconds)
    assert (told.outcomes, told.kinds, told.hits) == (untold.outcomes, untold.kinds, untold.hits)
    assert told.digest
    assert not untold.digest


def test_two_seeds_are_two_worlds():
    assert run(REPLAYED).steps != run(REPLAYED + 1).steps


# ── mistakes that must be caught ──────────────────────────────────────────────────────────────────────────────────


def nothing_is_submitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "_everything", lambda link, now: list(link._accepted))


def suspects_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StageRecord, "_suspect_may_go", lambda stage: False)


def results_are_never_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_acknowledge", lambda mesh, worker, lease: None)


def cancels_are_not_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "_cancel", lambda session, ids: None)


def nothing_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Midway, "withholds", lambda midway, hop: False)


def who_was_withheld_is_not_awoken(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Midway.add

    def forgetful(midway: Midway, hop: int, size: int) -> None:
        add(midway, hop, size)
        midway.fell = False

    monkeypatch.setattr(Midway, "add", forgetful)


def streams_are_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "break_off", lambda *lease: None)
    monkeypatch.setattr(endings, "has_streamed", lambda task: False)


@pytest.mark.parametrize(
    ("plant", "word"),
    [
        (credit_is_granted_twice, "I10"),
        (nothing_is_submitted_again, "I7|everybody who had it is well"),  # a once-only task may be given up first
        (suspects_wait_for_ever, "I7"),
        (results_are_never_acknowledged, "I7"),
        (cancels_are_not_heeded, "I11"),
        (nothing_is_withheld, "beyond its step"),
        (who_was_withheld_is_not_awoken, "I12"),
        (streams_are_run_again, "I2"),
    ],
)
def test_a_planted_mistake_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], word: str, monkeypatch: pytest.MonkeyPatch
):
    plant(monkeypatch)
    with pytest.raises(Failed, match=word) as caught:
        for seed in range(SEEDS_TO_CATCH):
            run(seed)
    assert str(caught.value).endswith(f"python -m tests.simulation --seed {caught.value.seed}")


def test_a_failure_tells_the_story_of_its_task_when_it_is_played_again(monkeypatch: pytest.MonkeyPatch):
    cancels_are_not_heeded(monkeypatch)
    with pytest.raises(Failed) as first:
        for seed in range(SEEDS_TO_CATCH):
            run(seed)
    with pytest.raises(Failed) as again:
        run(first.value.seed, is_told=True)
    assert again.value.text == first.value.text
    story = [str(line) for line in again.value.story]
    assert any("accepts" in line for line in story)
    assert "FAILED" in story[-1]
