"""`zmesh check --run` and `--dry-run`, as they are typed. What they say of mistakes is in `test_mistakes`."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, TEXT, ZMESH, wait_until
from tests.integration.test_mistakes import processes_with

APP = Path(__file__).parent / "apps" / "tried.py"
MARK = "ZMESH_TEST_DRY_RUN"

SHOWN = """\
/words, example 1 of 2:
STAGE  START  WARM-UP  DECODE  FORWARD  ENCODE  BYTES IN  BYTES OUT
Parse  T  T  T  T  T  25  15
Count  T  -  T  T  T  15  26
answered in T with 26 bytes of application/json: {"words":3,"card":"first"}

/words, example 2 of 2:
STAGE  START  WARM-UP  DECODE  FORWARD  ENCODE  BYTES IN  BYTES OUT
Parse  T  T  T  T  T  20  10
Count  T  -  T  T  T  10  26
answered in T with 26 bytes of application/json: {"words":2,"card":"first"}

/silent: not tried, because stage Silent has no example; give its class one, as in: example = …, what forward takes
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **TEXT, MARK: str(os.getpid()), **more}


def type_in(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(**env), capture_output=True, text=True, timeout=30, check=False
    )
    assert processes_with(f"{MARK}={os.getpid()}") == [], "a process is left"
    return done


@pytest.mark.parametrize(
    ("command", "env"),
    [
        ([*ZMESH, "check", "--run", str(APP)], {}),
        ([sys.executable, str(APP), "--dry-run"], {"ZMESH_PORT": "1"}),  # nothing listens anywhere
    ],
)
def test_every_stage_of_every_route_is_tried_as_it_would_run(command: list[str], env: dict[str, str]) -> None:
    done = type_in(*command, **env)
    assert done.returncode == 0, done.stderr
    told = re.sub(r"\d+\.\d\d m?s", "T", done.stdout)
    assert re.sub(r" {2,}", "  ", told) == SHOWN
    assert done.stderr.count("to stdout") == 2, "what the app prints does not mix with what is shown"
    assert "INFO worker Count/1 [dry-run] counting" in done.stderr


def test_programs_get_json_and_a_failure_in_it() -> None:
    done = type_in(*ZMESH, "check", "--run", "-o", "json", str(APP))
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"], len(said["trials"])) == (0, True, 3)
    failing = REPOSITORY / "tests" / "integration" / "apps" / "mistakes" / "second_stage_raises.py"
    done = type_in(*ZMESH, "check", "--run", "-o", "json", str(failing))
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"]) == (1, False)
    assert (said["failure"]["stage"], said["failure"]["step"]) == ("Count", "forward")
    assert "KeyError: 'text'" in said["failure"]["traceback"] and done.stderr.endswith("KeyError: 'text'\n")


def test_a_signal_ends_it_with_all_its_processes() -> None:
    with tempfile.TemporaryFile("w+") as log:
        env = environment(HANG="1", ZMESH_DRY_RUN="yes")
        process = subprocess.Popen([*ZMESH, "run", str(APP)], cwd=REPOSITORY, env=env, stderr=log)

        def says() -> str:
            return os.pread(log.fileno(), 100_000, 0).decode()

        wait_until(lambda: "hanging" in says(), 20, "forward to begin")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        wait_until(lambda: not processes_with(f"{MARK}={os.getpid()}"), 5, "all processes to end")
        assert "Traceback" not in says()
