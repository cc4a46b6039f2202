"""A proxy for ZeroMQ over TCP that can lose a message, as a network does when a connection breaks under it.

It understands just enough of ZMTP 3 to see where a message ends: 64 bytes of greeting, then frames of one byte of flags
(1 more to come, 2 long, 4 command), a length of one byte or eight, and a body.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from io import BufferedReader
from types import TracebackType

GREETING_BYTES = 64
MORE, LONG, COMMAND = 1, 2, 4


class Proxy:
    """Listens on `ports` and passes everything on to the port of the same place in `to`, while it is entered.

    Of each connection the first `drop` messages towards the broker are lost.
    """

    def __init__(self, ports: Sequence[int], to: Sequence[int], drop: int = 0) -> None:
        self._ways = list(zip(ports, to, strict=True))
        self._drop = drop
        self._held = ExitStack()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.dropped = 0
        self.connections = 0

    def __enter__(self) -> Proxy:
        for port, to in self._ways:
            listener = self._held.enter_context(socket.create_server(("127.0.0.1", port)))
            threading.Thread(target=self._accept, args=(listener, to), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection."""
        with self._lock:
            open_now, self._open = self._open, []
        for one in open_now:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def _accept(self, listener: socket.socket, to: int) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(("127.0.0.1", to), timeout=5)
                broker.settimeout(None)
            except OSError:
                peer.close()
                continue
            with self._lock:
                self._open += [peer, broker]
            self.connections += 1
            threading.Thread(target=self._pass_messages, args=(peer, broker), daemon=True).start()
            threading.Thread(target=self._pass_bytes, args=(broker, peer), daemon=True).start()

    def _pass_bytes(self, source: socket.socket, to: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                to.sendall(data)
        except OSError:
            pass
        self._end(source, to)

    def _pass_messages(self, source: socket.socket, to: socket.socket) -> None:
        try:
            with source.makefile("rb") as file:
                greeting = GREETING_BYTES
                while greeting:  # piece by piece: each side waits for the first bytes of the other
                    piece = file.read1(greeting)
                    if not piece:
                        raise EOFError
                    to.sendall(piece)
                    greeting -= len(piece)
                left = self._drop
                while True:
                    frame, flags = _frame(file)
                    if flags & COMMAND or not left:
                        to.sendall(frame)
                    elif not flags & MORE:
                        left -= 1
                        self.dropped += 1
        except (OSError, EOFError):
            pass
        self._end(source, to)

    def _end(self, *both: socket.socket) -> None:
        for one in both:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def _exactly(file: BufferedReader, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _frame(file: BufferedReader) -> tuple[bytes, int]:
    head = _exactly(file, 1)
    flags = head[0]
    length = _exactly(file, 8 if flags & LONG else 1)
    return head + length + _exactly(file, int.from_bytes(length, "big")), flags
