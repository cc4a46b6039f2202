"""docs/migrating-from-mosec.md and docs/testing.md name tests: they are there, and nothing of mosec is left out."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.unit.test_config import MOSEC_FLAGS, MOSEC_VARIABLES
from tests.unit.test_mosec_names import NAMES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migrating-from-mosec.md").read_text()
TESTING = (ROOT / "docs" / "testing.md").read_text()

SECTIONS = (
    "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9", "1.10", "1.11", "1.12", "2", "3", "4", "6", "7",
    "Versions",
)  # fmt: skip
VERDICTS = {"same", "better", "differs", "not yet"}

# What mosec 0.9.7 counts and answers; names and flags are asked of other tests.
METRICS = ("throughput_total", "process_duration_second", "batch_size", "batch_duration_second", "remaining_task")
STATUSES = (200, 400, 404, 405, 408, 413, 422, 429, 500, 503)

EXAMPLES = {
    "echo.py", "custom_env.py", "distil_bert_server_pytorch.py", "resnet50_msgpack/", "stable_diffusion/", "segment/",
    "jax_single_layer/", "embedding/", "rerank/", "type_validation/", "multi_route/", "server_side_event/", "shm_ipc/",
    "monitor/",
}  # fmt: skip

SEED = "The first seed's tests, and ours for them"
SEED_TESTS = {
    "a worker that finds no socket",
    "echo of a batch",
    "task states and flags",
    "ids",
    "capacity",
    "timeouts",
    "shutdown without pending work",
    "shutdown with pending work",
    "unknown ids in a batch",
    "frame round trip",
    "timeouts per worker",
    "square",
    "mixed-case errors",
    "multi-route",
    "SSE",
    "OpenAPI",
}


def section(page: str, title: str) -> list[list[str]]:
    """The rows of all tables between a heading that begins so and the next one."""
    parts = re.split(r"^## ", page, flags=re.MULTILINE)
    (text,) = [part for part in parts if re.match(rf"{re.escape(title)}( |$)", part, flags=re.MULTILINE)]
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in rows if set(row[0]) != {"-"} and row[-1] not in ("test", "our tests")]


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    return frozenset(node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def is_there(node_id: str) -> bool:
    file, _, name = node_id.partition("::")
    path = ROOT / file
    return path.is_file() and (not name or name in names_in(path))


@pytest.mark.parametrize("page", ["docs/migrating-from-mosec.md", "docs/testing.md"])
def test_every_test_that_is_named_is_there(page: str):
    named = re.findall(r"`(tests/[\w/.]+\.py(?:::\w+)?)`", (ROOT / page).read_text())
    assert named and [node_id for node_id in named if not is_there(node_id)] == []


@pytest.mark.parametrize("title", SECTIONS)
def test_every_row_says_what_it_is_and_the_same_is_shown_by_a_test(title: str):
    rows = section(PAGE, title)
    assert rows
    for row in rows:
        (verdict,) = [cell for cell in row[1:3] if cell in VERDICTS]
        how = row[row.index(verdict) + 1]
        has_test = "`tests/" in row[-1]
        assert has_test if verdict == "same" else how, row


@pytest.mark.parametrize("module", NAMES)
def test_every_name_of_mosec_is_on_the_page(module: str):
    assert [name for name in NAMES[module].split() if not re.search(rf"\b{name}\b", PAGE)] == []


def test_every_mixin_flag_variable_metric_and_status_of_mosec_is_on_the_page():
    wanted = {*MOSEC_FLAGS | MOSEC_VARIABLES, *(f"mosec_service_{name}" for name in METRICS)}
    assert sorted(name for name in wanted if name not in PAGE) == []
    assert [status for status in STATUSES if not re.search(rf"\b{status}\b", PAGE)] == []


def test_every_example_of_mosec_has_one_of_ours_that_a_test_runs():
    rows = section(PAGE, "6")
    assert {row[0].strip("`") for row in rows} == EXAMPLES
    assert all("`examples/" in row[2] and "`tests/" in row[3] for row in rows)


def test_every_row_of_an_argument_is_there():
    for name in ("worker", "num", "max_batch_size", "max_wait_time", "timeout", "start_method", "env", "route"):
        assert re.search(rf"append_worker\([^)]*\b{name}\b", PAGE), name


def test_every_test_of_the_first_seed_has_one_of_ours():
    rows = section(TESTING, SEED)
    assert {row[0] for row in rows} == SEED_TESTS
    assert all("`tests/" in row[-1] for row in rows)
