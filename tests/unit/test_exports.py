"""The public names, and what importing them does not cost."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import zmesh

ROOT = Path(__file__).parents[2]

PUBLIC = [
    "ClientError",
    "DecodingError",
    "EncodingError",
    "Runtime",
    "SSEWorker",
    "Server",
    "ServerError",
    "Stage",
    "ValidationError",
    "Worker",
    "__version__",
    "current_task",
    "get_logger",
]


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_exactly_the_public_names_are_there():
    assert sorted(zmesh.__all__) == sorted(PUBLIC)
    assert all(getattr(zmesh, name) is not None for name in PUBLIC)
    assert set(PUBLIC) <= set(dir(zmesh))


def test_runtime_is_stage():
    assert zmesh.Runtime is zmesh.Stage


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'zmesh' has no attribute 'Sever'"):
        _ = zmesh.Sever  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_distribution():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert zmesh.__version__ == project["version"]


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import zmesh", {"fastapi", "uvicorn", "zmq", "click", "json", "dataclasses", "typing_extensions"}),
        ("from zmesh import Server, get_logger, ClientError", {"fastapi", "uvicorn", "zmq", "click"}),
        ("from zmesh import Worker, SSEWorker", {"fastapi", "uvicorn", "zmq", "click"}),
        ("from zmesh import current_task", {"fastapi", "uvicorn", "zmq", "click", "asyncio"}),
        ("import zmesh.stage, zmesh.worker", {"fastapi", "starlette", "pydantic", "uvicorn", "click", "asyncio"}),
        ("import zmesh.loader", {"fastapi", "uvicorn", "zmq", "click"}),
        ("import zmesh.cli", {"fastapi", "uvicorn", "zmq", "asyncio", "urllib.request", "msgpack", "numpy"}),
    ],
)
def test_importing_costs_only_what_is_used(statement: str, unwanted: set[str]):
    assert modules_after(statement) & unwanted == set()


def test_a_users_logger_speaks_in_the_format_of_all_processes_and_the_root_logger_stays_the_users():
    code = """
import logging
from zmesh import get_logger
from zmesh.logs import setup
setup("warning", "gateway"); setup("info", "Echo/1 100%", "text")
get_logger().info("hello %s", "mesh")
get_logger().debug("not said")
logging.getLogger("uvicorn.error").warning("from below")
assert logging.getLogger().handlers == [] and logging.getLogger().level == logging.WARNING
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    first, second = done.stderr.splitlines()
    assert re.fullmatch(f"{moment} INFO Echo/1 100% hello mesh", first)
    assert re.fullmatch(f"{moment} WARNING Echo/1 100% from below", second)


def test_everything_can_be_imported_by_a_star():
    code = "from zmesh import *\nprint(Server.__name__, Worker.__name__, __version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["Server", "Worker", zmesh.__version__]


def test_the_package_is_python_alone_from_3_11_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["build-system"]["build-backend"] == "hatchling.build", "which compiles nothing"
    assert {path.suffix for path in (ROOT / "zmesh").rglob("*.*")}.isdisjoint({".c", ".pyx", ".rs", ".so", ".cpp"})
