"""Between an agent and its children: a pipe of JSON lines, a page of shared memory, and dying together.

`Pipe` carries the document with which a child begins, the few words after it, and, by its end of file, the news that
the other side is gone. A `Slate` is 64 bytes that a worker writes before each phase and its agent reads when the worker
has died: it says which lease was running, and which row. One word of it is the agent's: which lease to break off.
`child_pipe` is the child's first step: it finds its end of the pipe and makes sure that it never outlives its parent.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import select
import signal
import socket
import struct
from time import monotonic
from typing import NamedTuple

from zmesh.messages import LeaseId, Phase

__all__ = [
    "LINE_BYTES_MAX",
    "PIPE_VARIABLE",
    "Pipe",
    "Slate",
    "SlateWords",
    "child_pipe",
    "is_ready",
    "pipe_pair",
]

PIPE_VARIABLE = "ZMESH_PIPE"
LINE_BYTES_MAX = 16 * 1024 * 1024
SEND_SECONDS = 1.0  # how long a sender waits for a reader before it gives the pipe up
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def is_ready(fd: int, until: float, event: int = select.POLLIN) -> bool:
    """Wait until it can be read, or written; False when that time has come first, on the clock of `monotonic`.

    Not by select, which knows no descriptor from 1024 on: an agent has several for each of its children.
    """
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(math.ceil(max(0.0, until - monotonic()) * 1000)))


class Pipe:
    """One end. That the other is gone or slow never raises: what cannot be sent is lost, and `receive` says None."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._left = bytearray()  # of a line whose end has not come yet
        self._ended = self._broken = False
        self.fd = end.fileno()

    def send(self, **fields: object) -> None:
        """One line. A pipe that took only a part of one is of no use any more, so nothing is sent after that."""
        left = memoryview(json.dumps(fields).encode() + b"\n")
        until = monotonic() + SEND_SECONDS
        while left and not self._broken:
            try:
                left = left[self._socket.send(left, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                self._broken = not is_ready(self.fd, until, select.POLLOUT)
            except OSError:
                self._broken = True

    def receive(self) -> list[dict[str, object]] | None:
        """All complete lines there are now; None when the other end is gone and every line was taken."""
        while not self._ended:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._left += data
            self._ended = not data or len(self._left) > LINE_BYTES_MAX
        *lines, rest = bytes(self._left).split(b"\n")
        self._left = bytearray(rest)
        said = [words for line in lines if (words := _words(line)) is not None]
        return None if self._ended and not said else said

    def receive_first(self, seconds: float) -> dict[str, object]:
        """The line a child begins with, alone. Raises EOFError or TimeoutError when it does not come."""
        until = monotonic() + seconds
        while b"\n" not in self._left:
            if not is_ready(self.fd, until):
                raise TimeoutError(f"the agent said nothing for {seconds:g} s")
            data = self._socket.recv(65536)
            if not data:
                raise EOFError("the agent is gone")
            self._left += data
        line, _, rest = bytes(self._left).partition(b"\n")
        self._left = bytearray(rest)
        words = _words(line)
        if words is None:
            raise EOFError("the agent's first line is not JSON")
        return words

    def close(self) -> None:
        self._socket.close()


def _words(line: bytes) -> dict[str, object] | None:
    """None for what is not an object in JSON: a child is user code, and may write anything anywhere."""
    try:
        words = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return words if isinstance(words, dict) else None


def pipe_pair() -> tuple[Pipe, socket.socket]:
    """Our end, and the socket to hand to a child."""
    ours, theirs = socket.socketpair()
    return Pipe(ours), theirs


def child_pipe() -> Pipe | None:
    """The pipe to our agent, None when no agent started us. From here on this process ends when its agent does.

    It leaves when it is told to or when the pipe ends, not by SIGINT, SIGTERM or SIGHUP, which a terminal or a
    supervisor may send to the whole family. They get a handler that does nothing, because to be ignored is inherited by
    programs that user code starts, and to be handled is not.
    """
    given = os.environ.pop(PIPE_VARIABLE, "")
    if not given:
        return None
    fd, _, parent = given.partition(":")
    _die_with_parent()
    if os.getppid() != int(parent):
        os._exit(1)  # it was gone before we could ask to be told
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _heed_not)
    os.set_inheritable(int(fd), False)
    return Pipe(socket.socket(fileno=int(fd)))


def _heed_not(number: int, frame: object) -> None:
    pass


def _die_with_parent() -> None:
    import ctypes

    if hasattr(signal, "pidfd_send_signal"):  # Linux; elsewhere the end of the pipe has to do
        ctypes.CDLL(None, use_errno=True).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


class SlateWords(NamedTuple):
    """What a slate says: the running lease (0 for none), what is done with it, at which row; and how many ended."""

    lease: LeaseId
    phase: Phase
    row: int
    finished: int


class Slate:
    """64 bytes shared by a worker, who writes, and its agent, who reads. Writing costs a quarter of a microsecond, and
    a third of that for the row alone: `row[0] = number`.

    The agent writes one word only, with `order`, before it sends the signal for which the worker reads `ordered`.
    """

    BYTES = 64
    _WORDS = struct.Struct("@QBxxxI")  # native, so that the lease is written in one piece
    _ROW_AT = 12
    _FINISHED = _ORDERED = struct.Struct("@Q")
    _ORDERED_AT = 32

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._page = mmap.mmap(fd, self.BYTES)
        self._finished: int = self._FINISHED.unpack_from(self._page, self._WORDS.size)[0]
        self._pack = self._WORDS.pack_into
        self.row = memoryview(self._page)[self._ROW_AT : self._ROW_AT + 4].cast("I")

    @staticmethod
    def make() -> Slate:
        fd = os.memfd_create("zmesh-slate", os.MFD_CLOEXEC)
        os.ftruncate(fd, Slate.BYTES)
        return Slate(fd)

    @staticmethod
    def open(fd: int) -> Slate:
        os.set_inheritable(fd, False)
        return Slate(fd)

    def write(self, lease: int, phase: int, row: int = 0) -> None:
        self._pack(self._page, 0, lease, phase, row)

    def finish(self) -> None:
        """The running lease is done and its results are sent."""
        self._finished += 1
        self._FINISHED.pack_into(self._page, self._WORDS.size, self._finished)
        self.write(0, Phase.IDLE)

    def read(self) -> SlateWords:
        lease, phase, row = self._WORDS.unpack_from(self._page, 0)
        known = Phase(phase) if phase in Phase._value2member_map_ else Phase.FORWARD
        return SlateWords(LeaseId(lease), known, row, self._FINISHED.unpack_from(self._page, self._WORDS.size)[0])

    def order(self, lease: int) -> None:
        """This lease is to be broken off."""
        self._ORDERED.pack_into(self._page, self._ORDERED_AT, lease)

    def ordered(self) -> int:
        lease: int = self._ORDERED.unpack_from(self._page, self._ORDERED_AT)[0]
        return lease

    def close(self) -> None:
        self.row.release()
        self._page.close()
        os.close(self.fd)
