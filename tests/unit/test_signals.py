"""Signals that mean "stop": ended by at once, early; read in order, later; and none lost in between."""

import os
import select
import signal
import subprocess
import sys

import pytest

from zmesh.signals import STOPPING, Signals, ending_early


def test_signals_are_read_in_order_and_the_former_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert signals.take() == []
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.take() == [signal.SIGTERM, signal.SIGINT]
        assert signals.take() == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_end_of_a_child_can_be_read_too():
    before = signal.getsignal(signal.SIGCHLD)
    with Signals(children=True) as signals, subprocess.Popen(["true"]):
        assert select.select([signals.fd], [], [], 10)[0]
        assert signals.take() == [signal.SIGCHLD]
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.parametrize("number", STOPPING)
def test_an_early_one_ends_the_process_with_0(number: signal.Signals):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end, ending_early():
        os.kill(os.getpid(), number)
    assert end.value.code == 0
    assert signal.getsignal(number) is before
    with Signals() as signals:
        signals.take()  # or the next test would be told of it


def test_an_early_one_that_somebody_swallowed_is_told_of_later():
    with ending_early():
        with pytest.raises(SystemExit):  # which code of a user may swallow
            os.kill(os.getpid(), signal.SIGTERM)
        with Signals() as signals:
            assert select.select([signals.fd], [], [], 10)[0], "nobody would look"
            assert signals.take() == [signal.SIGTERM]


def test_after_the_agent_nothing_ends_early_any_more():
    """Its exit code would be lost."""
    before = signal.getsignal(signal.SIGTERM)
    with ending_early():
        with Signals():
            pass
        assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_early(), Signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_that_imports_zmesh_changes_nothing():
    code = (
        "import signal, threading\n"
        "from zmesh.signals import end_early\n"
        "thread = threading.Thread(target=end_early, args=(signal.SIGTERM,))\n"
        "thread.start(); thread.join()\n"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"True\n", b"")


def test_importing_zmesh_leaves_the_signals_of_a_program_alone():
    code = "import signal, zmesh.server; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"True\n"
