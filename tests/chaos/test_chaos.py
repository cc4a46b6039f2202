"""Everything at once for 30 s: no accepted request is lost, and nothing else that `checker.py` says is violated."""

import pytest

from tests.chaos.run import main

SEED = 7


@pytest.mark.timeout(150)
def test_every_fault_there_is_violates_no_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    """`scripts/chaos --profile mix --seed 7` goes on for longer; the report of this run is in its output."""
    code = main(["--profile", "mix", "--minutes", "0.5", "--seed", str(SEED)])
    said = capsys.readouterr().out
    print(said)
    assert code == 0, said
