"""The long part of this layer is begun before the first test of all, if any test needs it."""

import pytest

from tests.simulation.ahead import Ahead, Played

AHEAD = pytest.StashKey[Ahead]()


def pytest_collection_finish(session: pytest.Session) -> None:
    needed = any("played" in item.fixturenames for item in session.items if isinstance(item, pytest.Function))
    if needed and not session.config.option.collectonly:
        session.config.stash[AHEAD] = Ahead()


def pytest_unconfigure(config: pytest.Config) -> None:
    if AHEAD in config.stash:
        config.stash[AHEAD].end()


@pytest.fixture(scope="session")
def played(pytestconfig: pytest.Config) -> Played:
    return pytestconfig.stash[AHEAD].played()
