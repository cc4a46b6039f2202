"""The digits example as a user runs it: by `zmesh run` and by `python app.py`, asked with curl and with its client."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.harness import REPOSITORY, RunningMesh, running

FOLDER = REPOSITORY / "examples" / "digits"
APP = FOLDER / "app.py"
LABELS: dict[str, int] = json.loads((FOLDER / "samples" / "labels.json").read_text())


def ask_with_curl(mesh: RunningMesh, image: str) -> int:
    sample = FOLDER / "samples" / image
    command = ["curl", "-sS", "--fail", "--max-time", "10", "--data-binary", f"@{sample}", f"{mesh.url}/digits"]
    answer = subprocess.run(command, capture_output=True, check=True).stdout
    return int(json.loads(answer)["digit"])


@pytest.mark.parametrize("command", [None, [sys.executable, str(APP)]], ids=["zmesh run", "python app.py"])
def test_a_picture_sent_with_curl_is_read_right(command: list[str] | None, need: Callable[[object, str], None]) -> None:
    need(shutil.which("curl"), "curl is not installed")
    with running(APP, command=command) as mesh:
        for image, digit in list(LABELS.items())[:3]:
            assert ask_with_curl(mesh, image) == digit
        assert mesh.stop() == 0


def test_the_client_of_the_example_finds_at_least_nine_of_ten_right() -> None:
    with running(APP) as mesh:
        client = [sys.executable, str(FOLDER / "client.py"), "--url", f"{mesh.url}/digits", "--clients", "16"]
        done = subprocess.run(client, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout.splitlines()[-1]


def test_the_line_that_zmesh_run_prints_works_when_it_is_typed(need: Callable[[object, str], None]) -> None:
    need(shutil.which("curl"), "curl is not installed")
    with running(APP) as mesh:
        typed = mesh.said("try it: ")  # the agent says it a moment after /readyz does
        done = subprocess.run(typed, shell=True, capture_output=True, timeout=20, check=True)
        assert "digit" in json.loads(done.stdout), done


def test_pictures_that_are_none_are_answered_by_name() -> None:
    with running(APP) as mesh:
        garbage = mesh.post("/digits", b"this is not a picture")
        assert (garbage.status, garbage.body[:16]) == (400, b"decoding error: ")
        assert mesh.post("/digits", b"").status == 400
        assert mesh.get("/digits").status == 405
        assert mesh.post("/letters", b"x").status == 404
