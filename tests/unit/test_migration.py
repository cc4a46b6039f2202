"""`zmesh check` on a file that imports mosec: line by line what to write instead, without running it."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from zmesh.cli import main
from zmesh.migration import findings, report

APP = """\
import mosec
import mosec.errors as wrong
from mosec import Server, Worker
from mosec.mixin import (
    MsgpackMixin,
    PlasmaShmIPCMixin as Plasma,
)
from mosec.worker import Worker as W, NoSuchName


class Mine(MsgpackMixin, mosec.Worker):
    def forward(self, data):
        raise wrong.ValidationError(mosec.errors.MosecError)


if __name__ == "__main__":
    raise SystemExit("this file must not run")
"""


def changed(source: str) -> list[tuple[int, str]]:
    return [(one.line, one.after) for one in findings(textwrap.dedent(source)) if one.after]


def noted(source: str) -> list[tuple[int, str]]:
    return [(one.line, one.advice) for one in findings(textwrap.dedent(source)) if one.advice]


def test_every_line_that_says_mosec_is_there_with_what_to_write():
    assert changed(APP) == [
        (1, "import zmesh"),
        (2, "import zmesh.errors as wrong"),
        (3, "from zmesh import Server, Worker"),
        (4, "from zmesh.mixin import ("),
        (8, "from zmesh.worker import Worker as W, NoSuchName"),
        (11, "class Mine(MsgpackMixin, zmesh.Worker):"),
        (13, "raise wrong.ValidationError(zmesh.errors.MosecError)"),
    ]


def test_a_name_that_is_not_there_has_a_word_about_what_to_do():
    plasma, missing = noted(APP)
    assert plasma[0] == 6 and "put RedisShmIPCMixin or ShmIPCMixin in its place" in plasma[1]
    assert missing == (8, "zmesh has no worker.NoSuchName; see docs/migrating-from-mosec.md")


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("from mosec.plugins import IPCWrapper", "gone since mosec 0.8"),
        ("import mosec.coordinator", "a worker is tried without a server by making one"),
        ("from mosec.args import parse_arguments", "give them as keywords"),
        ("from mosec.mixin import PlasmaShmIPCMixin", "put RedisShmIPCMixin or ShmIPCMixin in its place"),
        ("import mosec.mixin; mosec.mixin.PlasmaShmIPCMixin.set_plasma_path('p')", "does nothing but say so"),
        ("from mosec.protocol import HTTPStautsCode", "write HTTPStatusCode"),
        ("import mosec as m; m.Gone", "zmesh has no Gone; see docs/migrating-from-mosec.md"),
        ("import mosec; mosec.server.GUARD_CHECK_INTERVAL", "so nothing is polled"),
        ("import mosec; mosec.Runtime(W, start_method='fork')", "each worker is a fresh process"),
        ("import mosec; s.append_worker(W, ipc_wrapper=None)", "gone since mosec 0.8"),
        ("import mosec, os; os.environ['MOSEC_PORT'] = '1'", "ZMESH_PORT is its name here"),
        ("import mosec, os; os.environ['MOSEC_WAIT'] = '1'", "zmesh reads no MOSEC_WAIT"),
        ("import mosec; name = 'mosec_service_throughput'", "names of metrics begin with zmesh_"),
        ("import mosec; prometheus_client.start_http_server(5000)", "count with self.metrics"),
        ("import mosec; start_http_server(5000)", "so this port is taken when the second comes"),
    ],
)
def test_what_differs_is_noted_where_it_stands(line: str, advice: str):
    (said,) = noted(line)
    assert said[0] == 1 and advice in said[1]


@pytest.mark.parametrize(
    "source",
    [
        "from zmesh import Worker",
        "import mosecular",
        "from .mosec import thing",
        "text = 'import mosec, MOSEC_PORT'",
        "s.append_worker(W, start_method='fork')",
    ],
)
def test_a_file_that_does_not_import_mosec_is_left_alone(source: str):
    assert findings(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "from mosec import Server, Worker, SSEWorker, Runtime, ClientError, get_logger",
        "from mosec.errors import MosecError, MosecTimeoutError",
        "from mosec.utils import ParseTarget, parse_func_type",
        "from mosec.mixin import MsgpackMixin, NumBinIPCMixin, TypedMsgPackMixin",
        "import mosec; server.append_worker(W, start_method='spawn')",
    ],
)
def test_what_is_the_same_needs_no_word(source: str):
    assert noted(source) == [] and len(changed(source)) == 1


def test_what_it_tells_to_write_is_the_file_with_the_name_of_the_library_replaced():
    lines = APP.splitlines()
    for line, after in changed(APP):
        lines[line - 1] = lines[line - 1].replace(lines[line - 1].strip(), after)
    assert "\n".join(lines) + "\n" == APP.replace("mosec", "zmesh")


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mosec", None)  # it cannot be imported, installed or not

    def run(*more: str, code: int = 1) -> str:
        with pytest.raises(SystemExit) as end:
            main(["check", "app.py", *more])
        said = capsys.readouterr()
        assert end.value.code == code, said.err
        return said.out

    return run


def test_check_says_what_to_change_and_does_not_run_the_file(check: Callable[..., str], tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    lines = check().splitlines()
    assert lines[:4] == [
        "app.py is written for mosec; this is what to change:",
        "",
        "app.py, line 1:  import mosec",
        "  write  import zmesh",
    ]
    assert lines[-1] == "all else, one by one: docs/migrating-from-mosec.md"


def test_check_gives_it_as_json_too(check: Callable[..., str], tmp_path: Path):
    (tmp_path / "app.py").write_text("from mosec import Server\n")
    (one,) = json.loads(check("-o", "json"))
    assert one == {
        "file": "app.py",
        "line": 1,
        "before": "from mosec import Server",
        "after": "from zmesh import Server",
        "advice": "",
    }


def test_modules_beside_the_file_are_read_too_and_none_twice(check: Callable[..., str], tmp_path: Path):
    (tmp_path / "app.py").write_text("import models, parts\n")
    (tmp_path / "models.py").write_text("import app\nfrom mosec import Worker\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("import mosec\n")
    said = check()
    assert said.count("models.py, line 2:  from mosec import Worker") == 1
    assert said.count("__init__.py, line 1:  import mosec") == 1


def test_a_module_of_a_package_is_read_too_whatever_its_encoding(check: Callable[..., str], tmp_path: Path):
    (tmp_path / "app.py").write_text("from parts.workers import W\n", encoding="utf-8-sig")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "workers.py").write_bytes(b"# coding: latin-1\nimport mosec  # \xe9\n")
    assert "workers.py, line 2:  import mosec" in check()


def test_a_dry_run_of_what_can_go_without_mosec_goes_on(check: Callable[..., str], tmp_path: Path):
    source = "try:\n    import mosec\nexcept ImportError:\n    import zmesh as mosec\n"
    worker = "class W(mosec.Worker):\n    example = 1\n    def forward(self, data): return data\n"
    (tmp_path / "app.py").write_text(f"{source}{worker}server = mosec.Server()\nserver.append_worker(W)\n")
    assert "W" in check("--run", code=0)


def test_a_file_for_zmesh_is_checked_as_ever(check: Callable[..., str], tmp_path: Path):
    source = "from zmesh import Server, Worker\nclass W(Worker):\n    def forward(self, data): return data\n"
    (tmp_path / "app.py").write_text(f"{source}server = Server()\nserver.append_worker(W)\n")
    assert "/inference" in check(code=0)


def test_a_file_that_cannot_be_read_is_left_to_whoever_runs_it(tmp_path: Path):
    (tmp_path / "app.py").write_text("import mosec\nclass :\n")
    assert report(str(tmp_path / "app.py")) == report(str(tmp_path / "none.py")) == ""


def test_run_says_who_knows_more(check: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "app.py").write_text("import mosec\n")
    with pytest.raises(SystemExit):
        main(["run", "app.py"])
    assert capsys.readouterr().err.splitlines()[-1].endswith("; what to change in it says: zmesh check app.py")
