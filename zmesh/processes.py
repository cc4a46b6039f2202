"""The processes of one host as their agent sees them: started, watched, ended, never left behind.

A child is exec'd, never forked from a process with threads and sockets. It has a session of its own, so that a terminal
signals only the agent, and whatever it starts is in its process group and ends with it, even when the agent itself is
killed: then the kernel ends the group. Its exit is known at once, by a pidfd, and until it is reaped its number cannot
belong to anybody else, so that no signal ever meets a stranger.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from zmesh.config import StagePlan
from zmesh.core.restarts import Deeds, Restarts
from zmesh.messages import Exited, Kill, LeaseId, PeerId, WorkerBeat
from zmesh.pipe import PIPE_VARIABLE, Slate, pipe_pair
from zmesh.transport import Poller

__all__ = ["Child", "OutOfMemoryKills", "Slot", "Watches", "end_with_us", "reap_orphans", "signal_name"]

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def signal_name(code: int) -> str:
    """How a process ended, in words, from its exit code or minus its signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class Child:
    """One process. `document` is its first line on the pipe; `env` is laid over our environment, which stays as it is.

    Start it from the main thread only: a child ends when the *thread* that started it does.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        document: Mapping[str, object],
        *,
        env: Mapping[str, str] | None = None,
        slate: Slate | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        self.name, self.slate = name, slate
        self.peer = PeerId(os.urandom(16))
        self.started_at = monotonic()
        self.is_ready = False
        self.failure = ""  # the traceback of a start that failed
        self.failure_line = ""
        self.pipe, theirs = pipe_pair()
        self._lifeline: list[int] = []  # see `end_with_us`
        fds = [theirs.fileno(), *keep, *([slate.fd] if slate else [])]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {}), PIPE_VARIABLE: f"{fds[0]}:{os.getpid()}"},
                pass_fds=fds,
                start_new_session=True,
            )
        except OSError:
            self.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        try:
            self._lifeline = end_with_us(-self.pid)
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:  # no files left; one that we cannot watch must not run
            self._process.kill()
            self._process.wait()
            self.close()
            raise
        self.pipe.send(**document, peer=self.peer.hex(), **({"slate": slate.fd} if slate else {}))

    def runs(self, peer: PeerId, lease: LeaseId) -> bool:
        """Whether it is that process, and this is what it does now."""
        return self.slate is not None and self.peer == peer and self.slate.read().lease == lease

    def obey(self, kill: Kill) -> None:
        """End it, or interrupt it."""
        if kill.interrupt:
            self.interrupt(kill.lease)
        else:
            self.kill()

    def interrupt(self, lease: LeaseId) -> None:
        """Ask it to break off this lease. Harmless when it does something else by now, or has ended."""
        assert self.slate is not None, "only workers have a slate"
        if self._process.returncode is None:
            self.slate.order(lease)
            signal.pidfd_send_signal(self.pidfd, signal.SIGUSR1)

    def kill(self) -> None:
        """At once, and whatever it started with it. Harmless when it has ended already."""
        if self._process.returncode is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self._kill_group()

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left in it

    def reap(self) -> int:
        """Wait for it; its exit code, or minus its signal. What it started and left behind ends now."""
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        self._kill_group()
        code = self._process.wait()
        os.close(self.pidfd)
        return code

    def close(self) -> None:
        """Forget it, after `reap`."""
        self.pipe.close()
        for fd in self._lifeline:
            os.close(fd)
        if self.slate is not None:
            self.slate.close()

    def beat(self, stage: str, worker_id: int) -> WorkerBeat:
        assert self.slate is not None, "only workers have a slate"
        words = self.slate.read()
        return WorkerBeat(self.peer, stage, worker_id, self.pid, words.lease, words.phase, self._rss_bytes())

    def exited(self, stage: str, worker_id: int, code: int, *, is_oom: bool, is_failing: bool, why: str = "") -> Exited:
        """What the broker is told of its end; `why` goes before how it ended."""
        assert self.slate is not None, "only workers have a slate"
        words = self.slate.read()
        reason = self.failure or self.failure_line or (f"{why}, the last by " if why else "") + signal_name(code)
        return Exited(
            self.peer, stage, worker_id, code, words.lease, words.phase, words.row, is_oom, reason, is_failing
        )

    def _rss_bytes(self) -> int:
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_BYTES
        except (OSError, IndexError, ValueError):
            return 0  # it ended a moment ago


def end_with_us(whom: int) -> list[int]:
    """Have the kernel end a process when we are gone, however we went, or of a negative number its process group;
    descriptors to keep open until then.

    PDEATHSIG ends a child too, but not what the child has started. Here the kernel is asked to tell the group by a
    signal when a pipe has news for its reader, and the only news there will ever be is that its writer is gone. Both
    ends are ours, and are closed one after the other when we end. The reader must not be the first, and nobody promises
    an order: so there is a pipe whose reader has the lower number, and one whose reader has the higher.
    """
    held: list[int] = []
    try:
        held += os.pipe()
        held += os.pipe()
        held.append(os.dup(held[2]))
        os.close(held.pop(2))
        for reader in (held[0], held[3]):
            fcntl.fcntl(reader, fcntl.F_SETOWN, whom)
            fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError:
        for fd in held:
            os.close(fd)
        raise
    return held


def reap_orphans(ours: Container[int]) -> None:
    """As process 1 of a container we inherit whoever lost its parent; take note of those that ended.

    Not of `ours`, nor of what somebody else in this process has started: that is in our session, and an orphan is not.
    """
    here = os.getsid(0)
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError:
        return  # a /proc that is not ours
    for pid in map(int, children):
        try:
            if pid not in ours and os.getsid(pid) != here:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        except (ChildProcessError, ProcessLookupError):
            pass  # it was taken note of meanwhile


class Watches:
    """Descriptors, and what to do when something is there to be read."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._reactions: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, react: Callable[[], None]) -> None:
        self._poller.watch(fd)
        self._reactions[fd] = react

    def drop(self, fd: int) -> None:
        if self._reactions.pop(fd, None) is not None:
            self._poller.forget(fd)

    def wait(self, seconds: float | None) -> None:
        for fd in self._poller.wait(seconds):
            if fd in self._reactions:  # an earlier one may have dropped it
                self._reactions[fd]()


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one process: a worker of `stage`, or a gateway or the broker if there is none."""

    role: str  # worker, gateway or broker
    stage: StagePlan | None
    worker_id: int  # of the workers of a stage, or of several gateways, from 1 on; 0 where there is but one
    restarts: Restarts
    start_at: float | None = 0.0  # None while it runs, or must not
    help_at: float | None = None  # when it is killed because it said goodbye and did not go
    child: Child | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Equal for the workers of one stage."""
        return self.role, self.stage.name if self.stage else self.name

    @property
    def name(self) -> str:
        name = self.stage.name if self.stage else self.role
        return f"{name}/{self.worker_id}" if self.worker_id else name

    def deeds(self) -> Deeds:
        assert self.child is not None, "nobody is in this slot"
        if self.child.slate is None:
            return Deeds.WORKED if self.child.is_ready else Deeds.NONE
        if self.child.slate.read().finished:
            return Deeds.WORKED
        return Deeds.READY if self.child.is_ready else Deeds.NONE

    def obituary(self, code: int) -> str:
        """How its child ended, for the log."""
        assert self.child is not None, "nobody is in this slot"
        if self.child.failure_line:
            return f"{self.name} failed to start: {self.child.failure_line}"
        return f"{self.name} ended: {signal_name(code)}"


class OutOfMemoryKills:
    """How often the kernel has killed in our cgroup for want of memory; tells such a SIGKILL from somebody's own."""

    def __init__(self, cgroups: str = "/sys/fs/cgroup", ours: str = "/proc/self/cgroup") -> None:
        self._file = self._find(Path(cgroups), Path(ours))
        self._seen = self._count()

    @staticmethod
    def _find(cgroups: Path, ours: Path) -> Path | None:
        try:
            lines = [line.split(":", 2) for line in ours.read_text().splitlines()]
        except OSError:
            return None
        for _, controllers, path in lines:
            group = path.lstrip("/")
            for file in (
                cgroups / group / "memory.events",
                cgroups / "memory" / group / "memory.oom_control",
                cgroups / "memory" / "memory.oom_control",  # in a container, where our own group is mounted as the root
            ):
                if controllers in {"", "memory"} and file.is_file():
                    return file
        return None

    def _count(self) -> int:
        try:
            text = self._file.read_text() if self._file else ""
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def rose(self) -> bool:
        """Whether it happened since this was last asked."""
        before, self._seen = self._seen, self._count()
        return self._seen > before
