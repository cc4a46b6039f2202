"""Everything that clients do wrong, at once: each gets a clear answer, and nothing of it is left behind."""

import secrets

import pytest

from tests.integration.bad_clients import run

COUNT = 1000


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["fast", "asgi"])
@pytest.mark.parametrize("compression", [False, True], ids=["", "compression"])
def test_bad_clients_harm_nobody_and_leave_nothing_behind(lane: str, compression: bool) -> None:
    """`python -m tests.integration.bad_clients` sends 10 000, or again what a seed sent."""
    seed = secrets.randbelow(2**32)
    storm = run(COUNT, seed, lane, compression=compression)
    assert {seen.rpartition(": ")[0] for seen in storm.seen} == set(storm.ways)
