"""docs/states.md says what the tables say."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from zmesh.core.tasks import TASK_STEPS, Step, TaskState

SCRIPT = Path(__file__).parents[2] / "scripts" / "states"


@pytest.fixture(scope="module")
def states() -> ModuleType:
    """The script, as a module."""
    loader = SourceFileLoader("states_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, loader.name, module)  # dataclasses look there
        patch.setattr("sys.dont_write_bytecode", True)
        loader.exec_module(module)
    return module


def test_page_of_states_is_up_to_date(states: ModuleType):
    assert states.PAGE.read_text(encoding="utf-8") == states.page(), "run scripts/states"


def test_diagram_and_table_show_every_step_of_a_task(states: ModuleType):
    table = states.TABLES[0]
    diagram, grid = "\n".join(states.diagram(table)), states.grid(table)
    for state, steps in TASK_STEPS.items():
        row = next(line for line in grid if line.startswith(f"| **{state.name}**"))
        cells = dict(zip(Step, [cell.strip() for cell in row.split("|")[2:-1]], strict=True))
        assert {step: TaskState[name] for step, name in cells.items() if name} == steps
        for after in steps.values():
            assert f"{state.name} --> {after.name}: " in diagram


def test_page_is_checked_without_being_written(
    states: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(states, "ROOT", tmp_path)
    monkeypatch.setattr(states, "PAGE", tmp_path / "docs" / "states.md")
    monkeypatch.setattr("sys.argv", ["states", "--check"])
    assert states.main() == 1 and not states.PAGE.exists()
    assert "out of date: run scripts/states" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["states"])
    assert states.main() == 0
    monkeypatch.setattr("sys.argv", ["states", "--check"])
    assert states.main() == 0
