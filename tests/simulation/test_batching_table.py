"""The batching rule against the best fixed window of each load: one worker, and the worst cells of the whole table.

The whole table, with the commands, is `./scripts/bench batching`.
"""

import pytest

from benchmarks.batching import verdict
from tests.simulation.ahead import Played


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_rule_keeps_its_bars_where_it_is_weakest(played: Played) -> None:
    good, sentence = verdict(played.cells)
    print(sentence)
    assert good, sentence
