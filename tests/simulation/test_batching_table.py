"""The batching rule against the best fixed window of each load: one worker, and the worst cells of the whole table.

The whole table, with the commands, is `./scripts/bench batching`.
"""

import pytest

from benchmarks.batching import run_worst, verdict


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_rule_keeps_its_bars_where_it_is_weakest() -> None:
    good, sentence = verdict(run_worst())
    print(sentence)
    assert good, sentence
