"""Shared memory as a store of payloads: a file in memory for each, in a directory of the run (see `payloads`).

The agent makes the directory: 0700, under a lock as that of the sockets, below one of the user's. It takes away what is
past its time, and at the end the directory itself. Workers make the files: created or claimed, never shared, and
written rather than mapped, so that no room is an error and never a SIGBUS. A reader takes nothing on trust: a reference
is numbers of fixed size, of which the name is made, and a file that is not as large as was said is not mapped.

New memory costs the kernel eight times as long as memory that was used before, so what is released is kept for a while
and written again. Who reads a file has a shared lock on it until the last view of it is gone, and who writes one an
exclusive lock; and a file that is written again has another name first. So nobody ever reads what is being written:
whoever comes too late finds the name gone.

The name of a file begins with the time at which it may be taken away, in ms of the monotonic clock, which is the same
for all processes of a host.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import re
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from zmesh.errors import PayloadLost, StoreAway
from zmesh.messages import Kind, Payload

__all__ = ["LEAST_BYTES", "MEMORY", "SharedMemory", "Sweeper"]

MEMORY = Path("/dev/shm")  # a tmpfs on any Linux
LEAST_BYTES = 1024 * 1024  # of who does not say
SPARE_SECONDS = 30.0  # that a released file is kept to be written again
SPARE_FACTOR = 2  # it may be so many times larger than what is to be written
SWEEP_SECONDS = 2.0  # between two looks at what is past its time

_REFERENCE = struct.Struct(">4s11sQ8sQ")  # magic, the run's directory, ms at which it ends, random bytes, size
_MAGIC = b"ZMS1"
_RUN = re.compile(rb"tmp[a-z0-9_]{8}")  # as `mkdtemp` calls it
_NAME = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}")
_SPARE = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}-([0-9a-f]{1,12})\.spare")  # the last is its size
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAPPED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # all pages at once: a fault for each costs more
_SIZE_MAX = 1 << 47
GONE = "what the stage before left in shared memory is not there any more"


class SharedMemory:
    """That of this host, for a worker whose agent has made `directory`. Raises OSError when it is of no use.

    `name` is for HELLO: equal for two workers only if each can open what the other has put there, which takes the same
    mount of the same running kernel, and the same user."""

    kind = Kind.HOST_BOUND

    def __init__(self, directory: Path, least_bytes: int = LEAST_BYTES) -> None:
        assert least_bytes >= 1, "nothing cannot be mapped"
        self._directory, self._base, self._run = str(directory), str(directory.parent), directory.name.encode()
        self.least_bytes = least_bytes
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        told = f"{boot} {os.stat(self._base).st_dev} {self._base} {os.getuid()}"
        self.name = hashlib.sha256(told.encode()).hexdigest()[:32]

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, payloads: Sequence[Payload], seconds: Sequence[float]) -> list[bytes | Exception]:
        put: list[bytes | Exception] = []
        spares = self._spares()
        for payload, left in zip(payloads, seconds, strict=True):
            try:
                put.append(self._put(payload, int((monotonic() + max(0.0, left)) * 1000), spares))
            except OSError as error:
                put.append(StoreAway(f"shared memory does not take it: {error.strerror}"))
        return put

    def _put(self, payload: Payload, ends_ms: int, spares: dict[str, int]) -> bytes:
        nonce, view = os.urandom(8), memoryview(payload).cast("B")
        name = _name(ends_ms, nonce)
        try:
            self._write(name, view, spares)
        except OSError as error:
            if error.errno != errno.ENOSPC or not spares:
                raise
            self._drop(spares)  # they may be what takes the room
            self._write(name, view, spares)
        return _REFERENCE.pack(_MAGIC, self._run, ends_ms, nonce, view.nbytes)

    def _write(self, name: str, view: memoryview, spares: dict[str, int]) -> None:
        path = f"{self._directory}/{name}"
        fd = self._claim(path, view.nbytes, spares)
        if fd is None:
            fd = os.open(path, _NEW, 0o600)
        try:
            while view:  # a write that finds no room says so, or comes short and the next one says so
                view = view[os.write(fd, view) :]
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)

    def _spares(self) -> dict[str, int]:
        """Released files and their sizes. Never an error: without them there are new ones."""
        with suppress(OSError):
            names = [name for name in os.listdir(self._directory) if name.endswith(".spare")]
            return {spare[0]: int(spare[2], 16) for name in names if (spare := _SPARE.fullmatch(name))}
        return {}

    def _claim(self, path: str, size: int, spares: dict[str, int]) -> int | None:
        """A spare of about that size that nobody reads any more, locked and at `path`; None if there is none."""
        for spare, capacity in list(spares.items()):
            if not size <= capacity <= SPARE_FACTOR * size:
                continue
            del spares[spare]
            with suppress(OSError):
                fd = os.open(f"{self._directory}/{spare}", _OLD | os.O_WRONLY)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.rename(f"{self._directory}/{spare}", path)
                    return fd
                except OSError:  # somebody reads it still, or another worker was quicker
                    os.close(fd)
        return None

    def _drop(self, spares: dict[str, int]) -> None:
        for spare in spares:
            with suppress(OSError):
                os.unlink(f"{self._directory}/{spare}")
        spares.clear()

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, references: Sequence[bytes]) -> list[Payload | Exception]:
        got: list[Payload | Exception] = []
        for reference in references:
            try:
                got.append(self._get(reference))
            except PayloadLost as error:
                got.append(error)
            except OSError as error:
                got.append(StoreAway(f"shared memory cannot be read: {error.strerror}"))
        return got

    def _get(self, reference: bytes) -> Payload:
        """Raises PayloadLost, or OSError for what is wrong with this process: no files, or no addresses, left."""
        path, size = self._read(reference)
        try:
            fd = os.open(path, _OLD)
        except (FileNotFoundError, PermissionError) as error:
            raise PayloadLost(GONE) from error
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode) or state.st_uid != os.getuid() or state.st_size < size:
                raise PayloadLost("what the stage before left in shared memory is not what it said")
            self._lock(fd, path)
            return memoryview(mmap.mmap(fd, size, _MAPPED, mmap.PROT_READ))  # which keeps the lock
        finally:
            os.close(fd)

    @staticmethod
    def _lock(fd: int, path: str) -> None:
        """From here on it stays as it is, if it still has its name. Raises PayloadLost."""
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.stat(path)
        except (BlockingIOError, FileNotFoundError) as error:
            raise PayloadLost(GONE) from error

    def _read(self, reference: bytes) -> tuple[str, int]:
        """The file of a reference, and the size of what is in it."""
        try:
            magic, run, ends_ms, nonce, size = _REFERENCE.unpack(reference)
        except struct.error:
            magic, run, ends_ms, nonce, size = b"", b"", 0, b"", 0
        if magic != _MAGIC or not _RUN.fullmatch(run) or not 1 <= size <= _SIZE_MAX:
            raise PayloadLost("the stage before said where its result is in words that nobody knows")
        return f"{self._base}/{run.decode()}/{_name(ends_ms, nonce)}", size

    def release(self, references: Sequence[bytes]) -> None:
        for reference in references:
            with suppress(OSError, PayloadLost):  # it ended in its own time
                path, _ = self._read(reference)
                size, ends_ms = os.stat(path).st_size, int((monotonic() + SPARE_SECONDS) * 1000)
                os.rename(path, f"{os.path.dirname(path)}/{_name(ends_ms, os.urandom(8))}-{size:x}.spare")


def _name(ends_ms: int, nonce: bytes) -> str:
    return f"{ends_ms:016x}-{nonce.hex()}"


class Sweeper:
    """Takes away from `directory` what is past its time; `due` is when to `sweep` again, None for never."""

    def __init__(self, directory: str, now: float) -> None:
        self.directory = directory
        self.due = now + SWEEP_SECONDS if directory else None

    def sweep(self, now: float) -> None:
        if self.due is None or now < self.due:
            return
        self.due = now + SWEEP_SECONDS
        with suppress(OSError):
            for entry in os.scandir(self.directory):
                named = _NAME.match(entry.name)
                if named and int(named[1], 16) <= now * 1000:
                    os.unlink(entry.path)
