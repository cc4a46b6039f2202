"""What an agent needs of its host: the HTTP socket, signals, the stages to run, and words for the person at it."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType

from zmesh.config import Plan, StagePlan
from zmesh.errors import StartError, UsageError

__all__ = ["Signals", "announcement", "chosen_stages", "class_name", "curl_data", "listen"]

BACKLOG = 2048
EXAMPLE_CHARACTERS_MAX = 200  # of an example that is shown in the line to try
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to reach what listens on every interface


# ── the HTTP socket ───────────────────────────────────────────────────────────────────────────────────────────────


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on a name or an address, IPv4 first; port 0 takes a free one. Raises StartError."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise StartError(f"cannot listen on {where}: nobody knows the address {host!r}; give another --host") from None
    refused = StartError(f"cannot listen on {where}: it has no address")
    for family, kind, protocol, _, address in sorted(found, key=lambda one: one[0] != socket.AF_INET):
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            refused = StartError(f"cannot listen on {where}: {_why(error, host, port)}")
        else:
            return listener
    raise refused


def _why(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use; stop the program that has it, or give another --port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; give another --host"
        case errno.EACCES:
            return f"port {port} is not for everybody; give a --port above 1023"
    return error.strerror or str(error)


# ── stages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def chosen_stages(plan: Plan, wanted: Sequence[str]) -> list[StagePlan]:
    """The stages to run here: all as planned, or those of `--stage NAME[:N]`, with `num` set. Raises StartError."""
    if not wanted:
        return list(plan.stages)
    chosen: dict[str, StagePlan] = {}
    for text in wanted:
        name, colon, count = text.rpartition(":")
        if not colon or not count.isdecimal():
            name, count = text, ""
        stage = next((stage for stage in plan.stages if stage.name == name), None)
        if stage is None:
            known = ", ".join(stage.name for stage in plan.stages)
            raise StartError(f"there is no stage {name!r}; the stages are: {known}")
        num = int(count) if count else stage.num
        if num < 1:
            raise UsageError(f"--stage {text}: at least one worker, or leave the stage out")
        if stage.env and len(stage.env) < num:
            raise StartError(f"--stage {text}: the app file has an env for {len(stage.env)} workers of it only")
        chosen[name] = replace(stage, num=num)
    return [chosen[stage.name] for stage in plan.stages if stage.name in chosen]


def class_name(stage: StagePlan) -> str:
    return stage.worker.rpartition(":")[2]


def curl_data(example: bytes | None, directory: Path) -> str:
    """How curl is to send `example`: in the line itself when it reads well there, else from a file in `directory`."""
    if example is None:
        return "--data-binary @FILE"
    text = example.decode("utf-8", errors="ignore")
    if text.encode() == example and text.isprintable() and "'" not in text and len(text) <= EXAMPLE_CHARACTERS_MAX:
        return f"--data '{text}'"
    (directory / "example").write_bytes(example)
    return f"--data-binary @{directory / 'example'}"


def announcement(plan: Plan, stages: Sequence[StagePlan], listener: socket.socket, data: str) -> str:
    """What is said once everything is ready: where, what, and a line to try it with; `data` is what curl sends."""
    host, port = listener.getsockname()[:2]
    reach = ANYWHERE.get(host, host)
    url = f"http://[{reach}]:{port}" if ":" in reach else f"http://{reach}:{port}"
    everywhere = "" if host == reach else ", and on every interface of this machine"
    rows = [("stage", "class", "workers", "batch", "wait")]
    for stage in stages:
        batch = str(stage.max_batch_size)
        wait = f"{stage.max_wait_ms:g} ms" if stage.max_batch_size > 1 else "-"
        rows.append((stage.name, class_name(stage), str(stage.num), batch, wait))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [f"zmesh is ready on {url}{everywhere}", "", *table]
    if plan.routes:
        lines += ["", f"try it: curl -X POST {url}{plan.routes[0].path} {data}"]
    return "\n".join(lines)


# ── signals ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Signals:
    """SIGINT, SIGTERM and SIGHUP as something to read from `fd`, while this is entered. Only in the main thread."""

    def __enter__(self) -> Signals:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self.fd = self._ours.fileno()
        self._wakeup_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, _noted)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._ours.close()
        self._theirs.close()

    def take(self) -> list[signal.Signals]:
        """Those that came since this was last asked, in order."""
        try:
            return [signal.Signals(number) for number in self._ours.recv(4096) if number in self._before]
        except BlockingIOError:
            return []


def _noted(number: int, frame: FrameType | None) -> None:
    pass  # the wake-up descriptor has it
