"""Every example as its README says: started, asked, and answered what the README promises. tests/readme.py reads them.

What cannot be run from its README is in RUN_ELSEWHERE with the test that runs it, or carries the words
"not run in tests".
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.test_migration_doc import is_there
from tests.harness import REPOSITORY, ZMESH, running
from tests.readme import EXAMPLES, apps_of, differences, needs_of, runs_of

FOLDERS = sorted(path for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith(("_", ".")))
NOT_RUN = "not run in tests"
RUN_ELSEWHERE = {
    "two_hosts": "tests/integration/test_hosts.py::test_the_example_says_which_host_did_what",
}
IN_CI = {line.partition("==")[0].lower() for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}

Need = Callable[[object, str], None]


def readme(folder: Path) -> str:
    """Empty if there is none; then the tests of this folder fail, and no others."""
    page = folder / "README.md"
    return page.read_text(encoding="utf-8") if page.is_file() else ""


def is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def skip_without(folder: Path, need: Need) -> None:
    """What it needs is there, or this test is skipped with the reason; what constraints.txt has must be there in CI."""
    for name in needs_of(readme(folder)):
        if name.lower() in IN_CI:
            need(is_installed(name), f"examples/{folder.name} needs {name}")
        elif not is_installed(name):
            pytest.skip(f"examples/{folder.name} needs {name}, which is not installed")


def is_run_here(folder: Path) -> bool:
    return folder.name not in RUN_ELSEWHERE and NOT_RUN not in readme(folder)


def printed(commands: list[str], port: int) -> str:
    """What the commands print one after the other, each on lines of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = []
    for command in commands:
        here = re.sub(r"\b8000\b", str(port), command)
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {here}"],
            cwd=REPOSITORY, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{here} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        said.append(done.stdout if done.stdout.endswith("\n") else f"{done.stdout}\n")
    return "".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [*filter(is_run_here, FOLDERS)], ids=lambda folder: folder.name)
def test_an_example_does_what_its_readme_says(folder: Path, need: Need) -> None:
    skip_without(folder, need)
    runs = runs_of(readme(folder), f"examples/{folder.name}")
    assert any(asking.promised for run in runs for asking in run.askings), (
        f"no command of examples/{folder.name}/README.md has an answer beside it: see docs/testing.md"
    )
    for run in runs:
        with running(run.app, *run.arguments, env=run.env) as mesh:
            for asking in run.askings:
                said = printed(asking.commands, mesh.port)
                wrong = differences(asking.promised, said, asking.language) if asking.promised else ""
                assert not wrong, f"{asking.commands}: {wrong}"
            assert mesh.stop() == 0, mesh.log()


def test_the_app_of_the_readme_answers_as_it_says(tmp_path: Path) -> None:
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ((asked, promised),) = re.findall(r"^\$ zmesh run app.py\n\$ (curl .*)\n(.*)$", page, re.MULTILINE)
    (tmp_path / "app.py").write_text(source)
    with running(tmp_path / "app.py") as mesh:
        assert differences(promised, printed([asked], mesh.port), "json") == ""


# ── what every folder has ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_can_be_checked(folder: Path, need: Need) -> None:
    if NOT_RUN not in readme(folder):  # such a one is checked without what it needs
        skip_without(folder, need)
    apps = apps_of(folder)
    assert apps, f"no file of examples/{folder.name} makes a Server"
    for app in apps:
        command = [*ZMESH, "check", str(app)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"examples/{folder.name}/{app.name}" in readme(folder), f"README: how is {app.name} started?"


def test_what_is_run_elsewhere_is_run_there() -> None:
    assert {name for name, test in RUN_ELSEWHERE.items() if not is_there(test)} == set()
    assert set(RUN_ELSEWHERE) <= {folder.name for folder in FOLDERS}


def test_the_index_has_every_example_and_no_other() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)/\) \|", index, re.MULTILINE)
    assert [name for name, _ in rows] == [folder.name for folder in FOLDERS], "a row for each folder, by the alphabet"
    assert all(name == target for name, target in rows)
    not_run = {name for name, _ in rows if re.search(rf"^\| \[{name}\].*{NOT_RUN}", index, re.MULTILINE)}
    assert not_run == {folder.name for folder in FOLDERS if NOT_RUN in readme(folder)}
    assert "examples/README.md" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
