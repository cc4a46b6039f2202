"""Processes that an app needs beside its workers (`Server.register_daemon`): a Redis, say. When one ends, so does the
server.

A daemon is a process that the app file has started, or a command, which is started here, by the agent and nobody else.
An app file runs in the gateway too, so what it starts itself is started there once more: such a copy is ended, as it is
by `zmesh check`. At the end of the agent, however it goes, its daemons are told to end as well.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from time import monotonic

from zmesh.errors import DeclarationError, StartError
from zmesh.pipe import is_ready
from zmesh.processes import Watches, end_with_us, signal_name

__all__ = ["Daemon", "DaemonProcess", "Daemons"]

LEAVE_SECONDS = 5.0  # from SIGTERM to SIGKILL

DaemonProcess = subprocess.Popen[bytes] | subprocess.Popen[str] | BaseProcess | Sequence[str]

log = logging.getLogger("zmesh.daemons")


@dataclass(slots=True, eq=False)
class Daemon:
    """One of them. `pidfd` is -1 while nobody watches it."""

    name: str
    process: DaemonProcess
    pidfd: int = -1
    has_group: bool = False  # a command has a process group of its own, and all of it is meant

    @property
    def pid(self) -> int | None:
        """None of a command, and of a multiprocessing.Process, that was not started yet."""
        return self.process.pid if isinstance(self.process, subprocess.Popen | BaseProcess) else None

    def exit_code(self) -> int | None:
        """None while it runs; minus the number of the signal that ended it."""
        match self.process:
            case subprocess.Popen():
                return self.process.poll()
            case BaseProcess():
                return self.process.exitcode
        return None

    def start(self) -> None:
        """Run it, if it is a command. Raises StartError, also for a process that does not run."""
        if not isinstance(self.process, subprocess.Popen | BaseProcess):
            try:
                self.process = subprocess.Popen(self.process, stdin=subprocess.DEVNULL, start_new_session=True)
                self.has_group = True
            except OSError as error:
                raise StartError(f"daemon {self.name} cannot be started: {error.strerror}: {error.filename}") from error
        if self.pid is None:
            raise StartError(f"daemon {self.name} does not run; call its start() before server.run()")
        if (code := self.exit_code()) is not None:
            raise StartError(f"daemon {self.name} has ended before the server began: {signal_name(code)}")
        self.pidfd = os.pidfd_open(self.pid)

    def end(self) -> None:
        """SIGTERM, and what does not heed it SIGKILL. Harmless when it has ended."""
        if self.pid is None or self.exit_code() is not None:
            return
        pidfd = os.pidfd_open(self.pid) if self.pidfd < 0 else self.pidfd
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._send(number, pidfd)
            if is_ready(pidfd, monotonic() + LEAVE_SECONDS):
                break
            log.warning("daemon %s does not heed %s", self.name, number.name)
        if self.has_group:
            self._send(signal.SIGKILL, pidfd)  # what has outlived its leader, whom nobody has waited for yet
        os.close(pidfd)
        self.pidfd = -1
        self.exit_code()

    def _send(self, number: signal.Signals, pidfd: int) -> None:
        if self.has_group and self.pid is not None:
            os.killpg(self.pid, number)
        else:
            signal.pidfd_send_signal(pidfd, number)


class Daemons:
    """Those of one app, in the order in which they were registered."""

    def __init__(self) -> None:
        self._daemons: dict[str, Daemon] = {}
        self._lifelines: list[int] = []

    def register(self, name: object, process: object) -> None:
        """Raises DeclarationError."""
        if not isinstance(name, str) or not name:
            raise DeclarationError(f"register_daemon: name must be text, not {name!r}")
        if name in self._daemons:
            raise DeclarationError(f"two daemons are named {name!r}")
        is_command = isinstance(process, list | tuple) and process and all(isinstance(word, str) for word in process)
        if not isinstance(process, subprocess.Popen | BaseProcess) and not is_command:
            known = "a subprocess.Popen, a multiprocessing.Process or a command as a list of text"
            raise DeclarationError(f"daemon {name!r} must be {known}, not {process!r}")
        self._daemons[name] = Daemon(name, process)  # type: ignore[arg-type]  # the line above has looked

    @property
    def pids(self) -> set[int]:
        return {daemon.pid for daemon in self._daemons.values() if daemon.pid is not None}

    def start(self) -> None:
        """Without an eye on them. Raises StartError."""
        for daemon in self._daemons.values():
            daemon.start()

    def watch(self, watches: Watches, ended: Callable[[str], object]) -> None:
        """Start the commands, and call `ended` with a sentence about each that ends. Raises StartError."""
        for daemon in self._daemons.values():
            daemon.start()
            assert daemon.pid is not None, "it was started"
            self._lifelines += end_with_us(-daemon.pid if daemon.has_group else daemon.pid)
            watches.add(daemon.pidfd, partial(self._bury, daemon, watches, ended))

    def _bury(self, daemon: Daemon, watches: Watches, ended: Callable[[str], object]) -> None:
        watches.drop(daemon.pidfd)
        os.close(daemon.pidfd)
        daemon.pidfd = -1
        code = daemon.exit_code()
        ended(f"daemon {daemon.name} ended: {'nobody knows how' if code is None else signal_name(code)}")

    def end(self) -> None:
        """Have all of them end, and wait for it."""
        for daemon in reversed(self._daemons.values()):
            daemon.end()
        for fd in self._lifelines:
            os.close(fd)
        self._lifelines = []
