"""The user's part of a traceback."""

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from zmesh.errors import EncodingError
from zmesh.tracebacks import as_typed, one_line, users_traceback, with_place
from zmesh.worker import Worker

ZMESH = str(Path(sys.modules["zmesh"].__file__ or "").parent)


class Echo(Worker):
    def forward(self, data):
        return data


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call()
    error = caught.value
    return error.with_traceback(error.__traceback__.tb_next.tb_next)  # without the frames of this file


def users(tmp_path: Path, source: str) -> ModuleType:
    """A module of the user's."""
    path = tmp_path / "theirs.py"
    path.write_text(textwrap.dedent(source))
    module = ModuleType("theirs")
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def test_what_we_cannot_write_has_no_frame_of_theirs_nor_of_json():
    error = raised(lambda: Echo().serialize({1}))
    assert isinstance(error, EncodingError) and error.__cause__ is not None
    assert users_traceback(error) == ""
    assert one_line(error).startswith("EncodingError: the result cannot be written as JSON: set is not a JSON type")


def test_frames_of_theirs_above_and_below_ours_stay_and_ours_go(tmp_path: Path):
    module = users(
        tmp_path,
        """
        import json
        from zmesh.worker import Worker

        class Mine(Worker):
            def forward(self, data): ...
            def serialize(self, data):
                return super().serialize(data)

        def read(text):
            return json.loads(text)
        """,
    )
    error = raised(lambda: module.Mine().serialize({1}))
    told = users_traceback(error)
    assert told.count('File "') == 1 and 'theirs.py", line 8, in serialize' in told
    assert ZMESH not in told and json.__file__ not in told
    assert told.rstrip().splitlines()[-1].endswith(one_line(error).partition(": ")[2])


def test_what_they_call_of_the_standard_library_is_theirs(tmp_path: Path):
    module = users(tmp_path, "import json\n\ndef read(text):\n    return json.loads(text)\n")
    told = users_traceback(raised(lambda: module.read("{")))
    assert "theirs.py" in told and json.__file__ in told


def test_an_error_that_cannot_be_said_is_named():
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert one_line(Broken()) == "Broken: (its text cannot be shown: ValueError)"
    assert one_line(KeyError("a\nb")) == r"KeyError: 'a\nb'"
    assert one_line(RuntimeError("several\n  lines")) == "RuntimeError: several lines"
    assert one_line(SystemExit()) == "SystemExit"


def test_a_place_is_the_last_line_of_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    module = users(tmp_path, "from zmesh.stage import Stage\n\ndef declare(worker):\n    Stage(worker, num=0)\n")
    error = raised(lambda: module.declare(Echo))
    assert (
        with_place(error, "app.py", str(tmp_path / "app.py"))
        == "theirs.py, line 4: Echo: num must be at least 1, not 0"
    )
    assert with_place(error, "mine.py", str(tmp_path / "theirs.py")).startswith("mine.py, line 4: ")
    assert with_place(ValueError("no trace"), "app.py", "app.py") == "app.py: no trace"


def test_a_file_below_here_is_called_by_its_path_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert as_typed(str(tmp_path / "in" / "app.py")) == "in/app.py"
    assert as_typed("/elsewhere/app.py") == "/elsewhere/app.py"
