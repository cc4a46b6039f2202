"""Acceptance lines in the form that CI has time for; `scripts/prove NAME` shows the whole of each, with its figures.

Not here: `first-batch`, whose point is a batch longer than a lease; `rolling`, which `tests/integration` has in parts
(`test_programs.py`).
"""

from collections.abc import Callable

import pytest

from tests.chaos.proofs.run import PROOFS, prove
from tests.redises import SERVERS, program

ELSEWHERE = {"first-batch", "rolling"}


@pytest.mark.parametrize("name", [name for name in PROOFS if name not in ELSEWHERE])
def test_every_claim_holds(name: str, need: Callable[[object, str], None]) -> None:
    for server in SERVERS if name.startswith("redis-") else ():
        program(server, need)
    said: list[str] = []
    has_held = prove(name, is_short=True, say=said.append)
    print("\n".join(said))
    assert has_held, "\n".join(said)
