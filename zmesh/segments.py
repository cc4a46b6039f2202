"""Shared memory as a store of payloads: a file in memory for each, in a directory of the run (see `payloads`).

The agent makes the directory: 0700, under a lock as that of the sockets, below one of the user's. It takes away what is
past its time, and at the end the directory itself. Workers make the files: created, never opened, and written rather
than mapped, so that no room is an error and never a SIGBUS. A reader takes nothing on trust: a reference is numbers of
fixed size, of which the name is made, and a file that is not exactly as large as was said is not mapped. A file never
changes once there is a reference to it, and who has mapped it keeps what it had, whoever takes the file away.

The name of a file begins with the time at which it may be taken away, in ms of the monotonic clock, which is the same
for all processes of a host.
"""

from __future__ import annotations

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
SWEEP_SECONDS = 2.0  # between two looks at what is past its time

_REFERENCE = struct.Struct(">4s11sQ8sQ")  # magic, the run's directory, ms at which it ends, random bytes, size
_MAGIC = b"ZMS1"
_RUN = re.compile(rb"tmp[a-z0-9_]{8}")  # as `mkdtemp` calls it
_NAME = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}")
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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

    def put(self, payloads: Sequence[Payload], seconds: Sequence[float]) -> list[bytes | Exception]:
        put: list[bytes | Exception] = []
        for payload, left in zip(payloads, seconds, strict=True):
            try:
                put.append(self._put(payload, int((monotonic() + max(0.0, left)) * 1000)))
            except OSError as error:
                put.append(StoreAway(f"shared memory does not take it: {error.strerror}"))
        return put

    def _put(self, payload: Payload, ends_ms: int) -> bytes:
        nonce = os.urandom(8)
        path = f"{self._directory}/{_name(ends_ms, nonce)}"
        fd = os.open(path, _NEW, 0o600)
        try:
            view = memoryview(payload).cast("B")
            while view:  # a write that finds no room says so, or comes short and the next one says so
                view = view[os.write(fd, view) :]
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        return _REFERENCE.pack(_MAGIC, self._run, ends_ms, nonce, len(payload))

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
            raise PayloadLost("what the stage before left in shared memory is not there any more") from error
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode) or state.st_uid != os.getuid() or state.st_size != size:
                raise PayloadLost("what the stage before left in shared memory is not what it said")
            return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
        finally:
            os.close(fd)

    def _read(self, reference: bytes) -> tuple[str, int]:
        """The file of a reference, and its size."""
        try:
            magic, run, ends_ms, nonce, size = _REFERENCE.unpack(reference)
        except struct.error:
            magic, run, ends_ms, nonce, size = b"", b"", 0, b"", 0
        if magic != _MAGIC or not _RUN.fullmatch(run) or not 1 <= size < 1 << 48:
            raise PayloadLost("the stage before said where to find its result in words that nobody knows")
        return f"{self._base}/{run.decode()}/{_name(ends_ms, nonce)}", size

    def release(self, references: Sequence[bytes]) -> None:
        for reference in references:
            with suppress(OSError, PayloadLost):  # it ended in its own time
                os.unlink(self._read(reference)[0])


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
                named = _NAME.fullmatch(entry.name)
                if named and int(named[1], 16) <= now * 1000:
                    os.unlink(entry.path)
