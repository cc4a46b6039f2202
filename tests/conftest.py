"""Shared by all tests: what is needed from outside, the order of the layers, and the time each of them takes."""

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings

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
    items.sort(key=lambda item: LAYERS.index(layer_of(item.nodeid)))
    for item in items:
        if (layer := layer_of(item.nodeid)) in {"integration", "chaos"}:
            item.add_marker(layer)


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
