"""The only `import zmq`: endpoints, sockets made from one table, and a reader that drains them for an event loop.

Three rules hold everywhere. A send never waits: it was sent, the peer has no room, or the peer is gone. A socket
belongs to one thread. No option is set outside `_socket`: libzmq applies most of them to later binds and connects
only, and several defaults lose messages (finite high-water marks with heartbeats, queueing to a dead peer).

libzmq signals a socket through a file descriptor that tells only of *changes*; receiving, sending and reading the
events all use the signal up. So after every drain and every burst of sends the owner asks `pending()` again.
"""

from __future__ import annotations

import fcntl
import os
import random
import resource
import shutil
import tempfile
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TypeAlias

import zmq

from zmesh.errors import StartError
from zmesh.messages import Payload

__all__ = [
    "Context",
    "Dealer",
    "Frames",
    "Monitor",
    "Poller",
    "PrivateDirectory",
    "Router",
    "Sent",
    "check_library",
    "is_in_use",
    "private_directory",
    "raise_file_limit",
    "stage_endpoint",
]

Frames: TypeAlias = list[Payload]
COPY_BYTES_MIN = 65536  # from this size on a frame is handed to libzmq and back without a copy
IPC_PATH_BYTES_MAX = 107
FRESH_TRIES_MAX = 100  # each is lost only to another run that starts in the same moment
# Plain ints: to combine members of zmq's enums costs more than many a call into the library.
AT_ONCE, AND_MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
HAS_MORE, EVENTS, READABLE, WRITABLE = int(zmq.RCVMORE), int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.POLLOUT)
LIBRARY_OLDEST = (4, 3, 5)  # older ones have holes that an unauthenticated peer can use


class Sent(Enum):
    SENT = "sent"
    FULL = "full"  # the peer does not read; try again later
    GONE = "gone"  # no such peer is connected


def check_library() -> None:
    """Raises StartError when libzmq is too old."""
    if zmq.zmq_version_info() < LIBRARY_OLDEST:
        raise StartError(f"libzmq {zmq.zmq_version()} is too old; install pyzmq 26 or newer, which brings 4.3.5")


def raise_file_limit() -> None:
    """Allow as many open files as the system lets this process have; libzmq spins when it runs out of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def stage_endpoint(front: str, index: int) -> str:
    """The endpoint of stage `index`, derived from the front's: the next ports on tcp, the same directory on ipc."""
    if front.startswith("tcp://"):
        host, _, port = front.rpartition(":")
        return f"{host}:{int(port) + 1 + index}"
    return f"{front.rpartition('/')[0]}/{index}.s"


class PrivateDirectory:
    """A 0700 directory for ipc sockets, held by a lock that a dead process lets go. `is_ours`: made for this run."""

    def __init__(self, path: Path, lock: int, *, is_ours: bool) -> None:
        self.path, self._lock, self._is_ours = path, lock, is_ours

    @property
    def front(self) -> str:
        return f"ipc://{self.path}/front.s"

    def remove(self) -> None:
        """What we put there; the user may keep other things in a directory of their own."""
        if self._is_ours:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            for left in (*self.path.glob("*.s"), self.path / "example"):
                left.unlink(missing_ok=True)
        os.close(self._lock)


def private_directory(path: str = "", *, below: str = "") -> PrivateDirectory:
    """Make (or take over) the directory of one run's sockets, and sweep what killed runs left behind. With `below`, a
    fresh one there, for other things.

    Raises StartError when the path is too long for a socket, belongs to somebody else, or is in use.
    """
    if path:
        place = Path(path)
        held = _hold(place, is_ours=not place.exists())
    else:
        parent = Path(below or tempfile.gettempdir()) / f"zmesh-{os.getuid()}"
        for _ in range(FRESH_TRIES_MAX):
            _own(parent)
            _sweep(parent)
            try:
                place = Path(tempfile.mkdtemp(dir=parent))
            except FileNotFoundError:
                continue  # somebody has just left, and found it empty
            if held := _hold(place, is_ours=True):
                break
    if held is None:
        raise StartError(f"the socket directory {place} is in use by another zmesh; give another --path")
    return held


def _hold(place: Path, *, is_ours: bool) -> PrivateDirectory | None:
    """None when somebody else has its lock, or had it: a sweep takes what is not locked yet for what was left."""
    _own(place)
    if len(str(place)) + len("/front.s") > IPC_PATH_BYTES_MAX - 8:
        raise StartError(f"the socket directory {place} is too long for ipc sockets; give a shorter --path")
    lock = os.open(place / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(place / "lock")
    except OSError:
        os.close(lock)
        return None
    return PrivateDirectory(place, lock, is_ours=is_ours)


def is_in_use(path: str) -> bool:
    """Whether a run has its sockets in this directory at the moment."""
    try:
        lock = os.open(Path(path) / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _own(place: Path) -> None:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        pass  # and what it is comes out below
    except OSError as error:
        text = f"the socket directory {place} cannot be made: {error.strerror}; give another --path"
        raise StartError(text) from None
    state = place.lstat()
    if state.st_uid != os.getuid() or not place.is_dir() or place.is_symlink():
        raise StartError(f"{place} is not a directory of yours; remove it or give another --path")
    if state.st_mode & 0o077:
        place.chmod(0o700)


def _sweep(parent: Path) -> None:
    for left in parent.iterdir():
        try:
            lock = os.open(left / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:
            pass  # its owner lives
        finally:
            os.close(lock)


class Context:
    """One per process, made after any exec and never carried over a fork."""

    def __init__(self) -> None:
        check_library()
        self._zmq = zmq.Context()
        self._zmq.set(zmq.MAX_SOCKETS, min(65536, int(self._zmq.get(zmq.SOCKET_LIMIT))))
        self._zmq.set(zmq.BLOCKY, 0)

    def router(self, frame_bytes_max: int, *endpoints: str) -> Router:
        """A ROUTER that `bind` puts on all of these endpoints."""
        return Router(_socket(self._zmq, zmq.ROUTER, frame_bytes_max, *endpoints), endpoints)

    def dealer(self, endpoint: str) -> Dealer:
        """A DEALER connected to `endpoint`; libzmq keeps connecting until somebody is there."""
        socket = _socket(self._zmq, zmq.DEALER, -1, endpoint)
        socket.connect(endpoint)
        return Dealer(socket)

    def close(self) -> None:
        self._zmq.destroy(linger=0)


def _socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, frame_bytes_max: int, *endpoints: str
) -> zmq.Socket[bytes]:
    """The table of socket options; nobody else sets any. Times in milliseconds, keep-alive in seconds."""
    socket: zmq.Socket[bytes] = context.socket(kind)
    is_far = not all(endpoint.startswith("ipc://") for endpoint in endpoints)
    options: dict[int, int] = {
        zmq.LINGER: 0,
        zmq.SNDHWM: 4000,
        zmq.RCVHWM: 0 if kind == zmq.DEALER else 2000,  # 0: a full connecting socket can abort the process
        zmq.HEARTBEAT_IVL: 0,
        zmq.HANDSHAKE_IVL: 5000,
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: 15,
        zmq.TCP_KEEPALIVE_INTVL: 5,
        zmq.TCP_KEEPALIVE_CNT: 3,
        zmq.TCP_MAXRT: 15000,
        zmq.IPV6: int(any("[" in endpoint for endpoint in endpoints)),  # it would widen what an IPv4 address means
    }
    if kind == zmq.ROUTER:
        options |= {
            zmq.ROUTER_MANDATORY: 1,
            zmq.ROUTER_HANDOVER: 0,
            zmq.BACKLOG: 1024,
            zmq.MAXMSGSIZE: frame_bytes_max + 8 * 1024 * 1024,
        }
    else:
        options |= {
            zmq.IMMEDIATE: 1,  # never queue for a broker that is away: its successor knows nothing of it
            zmq.RECONNECT_IVL: random.randint(20, 60),
            zmq.RECONNECT_IVL_MAX: random.randint(1000, 2000) if is_far else random.randint(80, 120),
            zmq.CONNECT_TIMEOUT: 3000,
        }
    for option, value in options.items():
        socket.setsockopt(option, value)
    return socket


class Monitor:
    """Tells that connections of one socket were lost, not whose.

    Ask `take` once before waiting for `fd`: only a reader that found nothing is woken.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket: zmq.Socket[bytes] = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.fd = int(self._socket.getsockopt(zmq.FD))

    def take(self) -> int:
        """How many were lost since this was last asked. Uses up the descriptor's signal."""
        lost = 0
        try:
            while True:
                self._socket.recv_multipart(zmq.NOBLOCK)
                lost += 1
        except zmq.Again:
            return lost

    def close(self) -> None:
        self._socket.close(linger=0)


class _Endpoint:
    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor: Monitor | None = None
        self.fd = int(socket.getsockopt(zmq.FD))

    def monitor(self) -> Monitor:
        """One that is closed with this socket."""
        if self._monitor is None:
            self._monitor = Monitor(self._socket)
        return self._monitor

    def pending(self) -> bool:
        """Whether something is there to receive. Uses up the descriptor's signal, as every call does."""
        return bool(int(self._socket.getsockopt(EVENTS)) & READABLE)

    def close(self, linger_ms: int = 0) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
        self._socket.close(linger=linger_ms)

    def _receive(self, leading: int) -> Frames | None:
        """The next message. Its `leading` frames are copied, the rest are payloads of a frame each."""
        receive, option = self._socket.recv, self._socket.getsockopt
        try:
            frames: Frames = [receive(AT_ONCE)]
        except zmq.Again:
            return None
        while len(frames) < leading or option(HAS_MORE):
            if len(frames) < leading:
                frames.append(receive(AT_ONCE))
            else:
                frames.append(receive(AT_ONCE, copy=False).buffer)
        return frames


class Router(_Endpoint):
    """The broker's side: many peers, each by its routing id."""

    def __init__(self, socket: zmq.Socket[bytes], endpoints: Sequence[str]) -> None:
        super().__init__(socket)
        self._endpoints = endpoints

    def bind(self) -> None:
        """Listen on all its endpoints. Raises StartError when an address is taken or not ours."""
        mask = os.umask(0o077)
        try:
            for endpoint in self._endpoints:
                self._bind(endpoint)
        finally:
            os.umask(mask)

    def _bind(self, endpoint: str) -> None:
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise StartError(f"cannot listen on {endpoint}: {error.strerror}; is another broker there?") from None

    def receive(self) -> Frames | None:
        """[routing id, frames…] of the next message, or None when there is none. Payload frames are memoryviews."""
        return self._receive(2)

    def send(self, routing_id: bytes, frames: Sequence[Payload]) -> Sent:
        """All frames or none of them, without waiting."""
        send = self._socket.send
        try:
            send(routing_id, AND_MORE)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return Sent.GONE
            raise
        _send_all(self._socket, frames)
        return Sent.SENT


class Dealer(_Endpoint):
    """A peer's side: one broker."""

    def receive(self) -> Frames | None:
        """The frames of the next message, or None when there is none. Payload frames are memoryviews."""
        return self._receive(1)

    def send(self, frames: Sequence[Payload]) -> bool:
        """False when the broker is away or does not read; nothing was sent then."""
        if self.disconnected():
            return False
        try:
            _send_all(self._socket, frames)
        except zmq.Again:  # it ended between the two lines; not even the first frame was taken
            return False
        return True

    def disconnected(self) -> bool:
        """Whether nobody is at the other end at this moment."""
        return not int(self._socket.getsockopt(EVENTS)) & WRITABLE


def _send_all(socket: zmq.Socket[bytes], frames: Sequence[Payload]) -> None:
    """The frames of one message; the first was allowed, so libzmq takes the rest of them too."""
    last = len(frames) - 1
    for index, frame in enumerate(frames):
        socket.send(frame, AND_MORE if index < last else AT_ONCE, copy=len(frame) < COPY_BYTES_MIN)


class Poller:
    """Waits for sockets and plain file descriptors together, for programs without an event loop."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def watch(self, thing: _Endpoint | int) -> None:
        self._poller.register(thing if isinstance(thing, int) else thing._socket, zmq.POLLIN)

    def forget(self, thing: _Endpoint | int) -> None:
        self._poller.unregister(thing if isinstance(thing, int) else thing._socket)

    def wait(self, seconds: float | None) -> set[int]:
        """Wait until something is readable, for `seconds` (rounded up to a whole ms) at most: which plain descriptors
        are. A socket's owner asks the socket."""
        timeout = None if seconds is None else max(0, -int(-seconds * 1000 // 1))
        ready = self._poller.poll(timeout)
        return {thing for thing, _ in ready if isinstance(thing, int)}
