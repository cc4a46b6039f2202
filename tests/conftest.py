"""Shared by all tests: what is needed from outside, the order of the layers, and the time each of them takes."""

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings

from tests.beside import SECONDS_MAX, VARIABLE, Beside, Teller, is_beside

__all__ = ["need"]

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}

# The quick ones first, so that a mistake shows in seconds. Tests right in tests/ are the layer "house". The simulation
# was begun before all of them, see tests/simulation/ahead.py, and is over before anybody looks at throughput.
LAYERS = ["house", "unit", "stories", "conformance", "integration", "simulation", "chaos"]

settings.register_profile("zmesh", deadline=None, derandomize=IN_CI, print_blob=True)
settings.load_profile("zmesh")

# nohup, and a shell without job control for what it sends to the background, start us with these ignored, and that is
# inherited. Meshes that the tests start would then rightly ignore them too.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


def need(condition: object, reason: str) -> None:
    """Skip on a contributor's machine when something is not there; in CI it has to be, so fail.

    need(shutil.which("redis-server"), "redis-server is not installed: apt-get install redis-server")
    """
    if not condition and IN_CI:
        pytest.fail(f"needed in CI: {reason}", pytrace=False)
    elif not condition:
        pytest.skip(reason)


@pytest.fixture(scope="session", name="need")
def need_fixture() -> Callable[[object, str], None]:
    return need


def layer_of(nodeid: str) -> str:
    parts = nodeid.split("::")[0].split("/")
    return parts[1] if len(parts) > 2 and parts[1] in LAYERS else LAYERS[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (LAYERS.index(layer_of(item.nodeid)), is_beside(item.nodeid)))
    for item in items:
        if (layer := layer_of(item.nodeid)) in {"integration", "chaos"}:
            item.add_marker(layer)
        if is_beside(item.nodeid) and VARIABLE not in os.environ:
            item.add_marker(pytest.mark.timeout(SECONDS_MAX))  # it may have to be waited for


# ── files that run beside all others ──────────────────────────────────────────────────────────────────────────────

BESIDE = pytest.StashKey[Beside]()


def pytest_configure(config: pytest.Config) -> None:
    if VARIABLE in os.environ:
        config.pluginmanager.register(Teller(config, int(os.environ[VARIABLE])))


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    is_whole = config.args in (["tests"], [str(config.rootpath / "tests")]) and not config.option.keyword
    if is_whole and not config.option.markexpr and not config.option.collectonly:
        config.stash[BESIDE] = Beside(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if BESIDE in config.stash:
        config.stash[BESIDE].end()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not is_beside(item.nodeid) or BESIDE not in item.config.stash:
        return None
    reports = list(item.config.stash[BESIDE].reports_of(item.nodeid))
    if not reports:
        return None  # it is run here
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)  # what the tests before it have left for it
    return True


# ── the time that each layer takes ────────────────────────────────────────────────────────────────────────────────

seconds_by_layer: Counter[str] = Counter()
tests_by_layer: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    layer = layer_of(report.nodeid)
    seconds_by_layer[layer] += report.duration
    tests_by_layer[layer] += report.when == "setup"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("time by layer")
    for layer in LAYERS:
        if tests_by_layer[layer]:
            terminalreporter.write_line(
                f"{layer:<12} {tests_by_layer[layer]:>6} tests {seconds_by_layer[layer]:>8.1f} s"
            )
