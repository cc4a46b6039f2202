"""Acceptance lines in the form that CI has time for; `scripts/prove NAME` shows the whole of each, with its figures.

Not here: `first-batch`, whose point is a batch longer than a lease; `rolling`, which `tests/integration` has in parts
(`test_programs.py`).
"""

import pytest

from tests.chaos.proofs.run import PROOFS, prove

ELSEWHERE = {"first-batch", "rolling"}


@pytest.mark.parametrize("name", [name for name in PROOFS if name not in ELSEWHERE])
def test_every_claim_holds(name: str) -> None:
    said: list[str] = []
    has_held = prove(name, is_short=True, say=said.append)
    print("\n".join(said))
    assert has_held, "\n".join(said)
