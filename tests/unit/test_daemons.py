"""Daemons of an app: what may be one, and that they end with whoever watches them, and are noticed when they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import wait_until
from zmesh.daemons import Daemons
from zmesh.errors import DeclarationError, StartError
from zmesh.processes import Watches
from zmesh.transport import Poller

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);print('deaf', flush=True); time.sleep(60)"
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def daemons_of(*processes: Any) -> Daemons:
    daemons = Daemons()
    for number, process in enumerate(processes):
        daemons.register(f"d{number}", process)
    return daemons


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def obituaries(daemons: Daemons, then: Callable[[], object] = lambda: None) -> list[str]:
    """Watch them, do something, and wait until one has ended."""
    said: list[str] = []
    watches = Watches(Poller())
    daemons.watch(watches, said.append)
    then()
    until = time.monotonic() + 20
    while not said and time.monotonic() < until:
        watches.wait(0.1)
    return said


@pytest.mark.parametrize(
    ("name", "process", "why"),
    [
        (1, SLEEP, "name must be text, not 1"),
        ("", SLEEP, "name must be text"),
        (
            "redis",
            None,
            "must be a subprocess.Popen, a multiprocessing.Process or a command as a list of text, not None",
        ),
        ("redis", "redis-server", "must be a subprocess.Popen"),
        ("redis", [], "must be a subprocess.Popen"),
        ("redis", ["redis-server", 6379], "must be a subprocess.Popen"),
    ],
)
def test_what_is_no_process_is_refused(name: Any, process: Any, why: str):
    with pytest.raises(DeclarationError, match=why):
        Daemons().register(name, process)


def test_two_of_one_name_are_refused():
    daemons = daemons_of(SLEEP)
    with pytest.raises(DeclarationError, match="two daemons are named 'd0'"):
        daemons.register("d0", SLEEP)


@pytest.mark.parametrize("code", [0, 3])
def test_the_end_of_a_process_is_told_with_its_exit_code_whatever_that_is(code: int):
    command = [sys.executable, "-c", f"input(); raise SystemExit({code})"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        daemons = daemons_of(process)
        process.communicate(b"\n")
        with pytest.raises(StartError, match=f"d0 has ended before the server began: exit code {code}"):
            daemons.watch(Watches(Poller()), lambda said: None)
    assert obituaries(daemons_of([sys.executable, "-c", f"raise SystemExit({code})"])) == [
        f"daemon d0 ended: exit code {code}"
    ]


def test_a_command_is_started_in_a_session_of_its_own_and_ends_with_the_rest(sleeper: subprocess.Popen[bytes]):
    daemons = daemons_of(sleeper, SLEEP)
    daemons.watch(Watches(Poller()), lambda said: None)
    (command,) = daemons.pids - {sleeper.pid}
    assert os.getsid(command) == command and os.getsid(sleeper.pid) == os.getsid(0)
    daemons.end()
    assert sleeper.returncode == -signal.SIGTERM and not is_running(command)
    daemons.end()  # harmless


def test_a_sigterm_is_for_all_that_a_command_has_started(tmp_path: Path):
    here, told = tmp_path / "here", tmp_path / "told"
    child = f"trap 'touch {told}; exit' TERM; touch {here}; while :; do sleep 0.05; done"
    daemons = daemons_of(["sh", "-c", f'trap : TERM; sh -c "{child}" & wait; wait'])  # it waits, and passes nothing on
    daemons.start()
    wait_until(here.exists, 10, "what it starts")
    daemons.end()
    assert told.exists()


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_what_a_command_has_started_does_not_outlive_it(how: str, tmp_path: Path):
    told = tmp_path / "pid"
    daemons = daemons_of(["sh", "-c", f"sh -c 'trap : TERM; echo $$ > {told}; while :; do sleep 1; done' & wait"])
    if how == "killed":
        daemons.watch(Watches(Poller()), lambda said: None)
    else:
        daemons.start()
    wait_until(lambda: told.exists() and told.read_text(), 10, "what it starts")
    if how == "killed":
        for fd in daemons._lifelines:  # as it is when we are gone
            os.close(fd)
        daemons._lifelines = []
    else:
        daemons.end()
    wait_until(lambda: not is_running(int(told.read_text())), 10, "its end")
    daemons.end()


def test_a_command_that_is_not_there_is_one_sentence():
    with pytest.raises(StartError, match=r"daemon d0 cannot be started: No such file or directory: /no/such/thing"):
        daemons_of(["/no/such/thing"]).watch(Watches(Poller()), lambda said: None)


def test_a_process_of_multiprocessing_counts_too_and_has_to_run():
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    daemons = daemons_of(process)
    with pytest.raises(StartError, match=r"daemon d0 does not run; call its start\(\) before server.run\(\)"):
        daemons.watch(Watches(Poller()), lambda said: None)
    process.start()
    assert daemons.pids == {process.pid}
    assert obituaries(daemons, process.kill) == ["daemon d0 ended: SIGKILL"]
    daemons.end()
    assert process.exitcode == -signal.SIGKILL


def test_one_that_does_not_heed_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zmesh.daemons.LEAVE_SECONDS", 0.05)
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"deaf\n"
        daemons_of(process).end()
        assert process.returncode == -signal.SIGKILL


def test_whoever_is_killed_takes_its_daemons_along():
    code = f"""
import os, signal
from zmesh.daemons import Daemons
from zmesh.processes import Watches
from zmesh.transport import Poller
daemons = Daemons()
daemons.register("d", {SLEEP!r})
daemons.watch(Watches(Poller()), print)
print(*daemons.pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
    wait_until(lambda: not is_running(pid), 10, "the daemon to be gone")
