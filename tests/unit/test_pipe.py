"""Pipe, Slate and child_pipe: what agents and their children say to each other, and that they die together."""

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from zmesh.messages import Phase
from zmesh.pipe import LINE_BYTES_MAX, PIPE_VARIABLE, Pipe, Slate, SlateWords, child_pipe, pipe_pair
from zmesh.transport import raise_file_limit


@pytest.fixture
def ends() -> Iterator[tuple[Pipe, Pipe]]:
    ours, theirs = pipe_pair()
    other = Pipe(theirs)
    yield ours, other
    ours.close()
    other.close()


FIRST_TOO_HIGH = 1024  # for select(2); an agent with some 150 children comes to these


def test_a_pipe_may_have_a_high_number():
    raise_file_limit()
    low, theirs = pipe_pair()
    here = Pipe(socket.socket(fileno=fcntl.fcntl(low.fd, fcntl.F_DUPFD_CLOEXEC, FIRST_TOO_HIGH)))
    there = Pipe(socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, FIRST_TOO_HIGH)))
    low.close()
    theirs.close()
    with pytest.raises(TimeoutError):
        there.receive_first(0.0)
    here.send(say="ready")
    assert there.receive_first(10.0) == {"say": "ready"}
    reader = threading.Thread(target=here.receive_first, args=(10.0,))
    reader.start()
    there.send(say="x" * (LINE_BYTES_MAX // 8))  # in several pieces
    reader.join()
    here.close()
    there.close()


def test_pipe_brings_lines_in_order(ends: tuple[Pipe, Pipe]):
    here, there = ends
    here.send(say="ready")
    here.send(say="drain", seconds=1.5)
    assert there.receive() == [{"say": "ready"}, {"say": "drain", "seconds": 1.5}]


def test_pipe_has_nothing_to_say_until_somebody_speaks(ends: tuple[Pipe, Pipe]):
    assert ends[0].receive() == []


def test_pipe_keeps_half_a_line_until_its_end_comes(ends: tuple[Pipe, Pipe]):
    here, there = ends
    here._socket.send(b'{"say": "dra')
    assert there.receive() == []
    here._socket.send(b'in"}\n{"say"')
    assert there.receive() == [{"say": "drain"}]


def test_pipe_gives_the_last_words_before_it_says_that_the_other_end_is_gone(ends: tuple[Pipe, Pipe]):
    here, there = ends
    here.send(say="left")
    here.close()
    assert there.receive() == [{"say": "left"}]
    assert there.receive() is None
    assert there.receive() is None


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b"\xff\n", b"\n", b"[" * 100_000 + b"\n"])
def test_pipe_skips_what_is_not_an_object(ends: tuple[Pipe, Pipe], line: bytes):
    here, there = ends
    here._socket.setblocking(True)
    here._socket.sendall(line)
    here.send(say="ready")
    assert there.receive() == [{"say": "ready"}]


def test_pipe_ends_at_a_line_that_never_ends(ends: tuple[Pipe, Pipe]):
    here, there = ends
    block = b"x" * 65536
    for _ in range(LINE_BYTES_MAX // len(block) + 2):
        try:
            here._socket.send(block)
        except BlockingIOError:
            pass
        if there.receive() is None:
            return
    pytest.fail("an endless line was kept")


def test_sending_to_nobody_is_not_an_error(ends: tuple[Pipe, Pipe]):
    here, there = ends
    there.close()
    here.send(say="ready")
    here.send(say="ready")


def test_sending_to_somebody_who_never_reads_is_given_up(ends: tuple[Pipe, Pipe], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zmesh.pipe.SEND_SECONDS", 0.01)
    here, there = ends
    here.send(text="x" * 10_000_000)
    here.send(say="this would begin in the middle of that line")
    here.close()
    while (lines := there.receive()) is not None:
        assert lines == []


def test_first_line_is_taken_alone(ends: tuple[Pipe, Pipe]):
    here, there = ends
    here.send(role="worker")
    here.send(say="drain")
    assert there.receive_first(1) == {"role": "worker"}
    assert there.receive() == [{"say": "drain"}]


def test_first_line_that_does_not_come_is_an_error(ends: tuple[Pipe, Pipe]):
    here, there = ends
    with pytest.raises(TimeoutError):
        there.receive_first(0.01)
    here._socket.send(b"rubbish\n")
    with pytest.raises(EOFError, match="not JSON"):
        there.receive_first(1)
    here.close()
    with pytest.raises(EOFError, match="gone"):
        there.receive_first(1)


# ── slate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_slate_shows_the_other_process_what_was_written():
    written = Slate.make()
    read = Slate.open(os.dup(written.fd))
    assert read.read() == SlateWords(0, Phase.STARTING, 0, 0)
    written.write(2**64 - 1, Phase.ENCODE, 2**32 - 1)
    assert read.read() == SlateWords(2**64 - 1, Phase.ENCODE, 2**32 - 1, 0)
    written.finish()
    written.finish()
    assert read.read() == SlateWords(0, Phase.IDLE, 0, 2)
    written.close()
    read.close()


def test_slate_has_a_word_of_the_agents_that_the_worker_does_not_touch():
    agents = Slate.make()
    workers = Slate.open(os.dup(agents.fd))
    assert workers.ordered() == 0
    agents.order(2**64 - 1)
    workers.write(3, Phase.FORWARD, 1)
    workers.finish()
    assert workers.ordered() == 2**64 - 1
    assert agents.read() == SlateWords(0, Phase.IDLE, 0, 1)
    agents.close()
    workers.close()


def test_slate_with_a_phase_that_nobody_knows_says_forward():
    slate = Slate.make()
    slate.write(1, 99)
    assert slate.read().phase is Phase.FORWARD
    slate.close()


def test_slate_is_not_inherited_by_what_a_worker_starts():
    slate = Slate.make()
    os.set_inheritable(slate.fd, True)
    Slate.open(slate.fd)
    assert not os.get_inheritable(slate.fd)
    slate.close()


# ── child ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CHILD = """
import os, sys
from zmesh.pipe import PIPE_VARIABLE, child_pipe
pipe = child_pipe()
pipe.send(say="ready", environ=PIPE_VARIABLE in os.environ, inheritable=os.get_inheritable(pipe.fd))
import select
while True:
    select.select([pipe.fd], [], [])
    for line in pipe.receive() or sys.exit(7):
        pipe.send(heard=line)
"""


def start(code: str, parent: int) -> tuple[subprocess.Popen[bytes], Pipe]:
    ours, theirs = socket.socketpair()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, PIPE_VARIABLE: f"{theirs.fileno()}:{parent}"},
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    return child, Pipe(ours)


def say_next(pipe: Pipe) -> list[dict[str, object]] | None:
    assert select.select([pipe.fd], [], [], 10)[0], "the child says nothing"
    return pipe.receive()


def test_child_finds_its_pipe_and_hides_it_from_its_own_children():
    child, pipe = start(CHILD, os.getpid())
    assert say_next(pipe) == [{"say": "ready", "environ": False, "inheritable": False}]
    pipe.close()
    assert child.wait(10) == 7


def test_child_does_not_heed_what_means_stop():
    child, pipe = start(CHILD, os.getpid())
    say_next(pipe)
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGHUP)
    pipe.send(say="hello")
    assert say_next(pipe) == [{"heard": {"say": "hello"}}]
    pipe.close()
    assert child.wait(10) == 7


def test_child_of_a_parent_that_is_gone_ends_at_once():
    child, pipe = start(CHILD, parent=1)
    assert say_next(pipe) is None
    assert child.wait(10) == 1
    pipe.close()


def test_child_ends_with_its_parent():
    parent = """
import os, subprocess, sys, socket, signal
ours, theirs = socket.socketpair()
child = subprocess.Popen([sys.executable, "-c", "from zmesh.pipe import child_pipe; pipe = child_pipe(); "
    "pipe.send(say='ready'); import threading; threading.Event().wait()"],
    env={**os.environ, "ZMESH_PIPE": f"{theirs.fileno()}:{os.getpid()}"}, pass_fds=[theirs.fileno()])
ours.recv(1)
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        pid = int(killed.stdout.readline())
        try:
            orphan = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # gone already
        assert select.select([orphan], [], [], 10)[0], "the child outlives its parent"
        os.close(orphan)


def test_without_an_agent_there_is_no_pipe():
    assert child_pipe() is None
