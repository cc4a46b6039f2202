"""Everything is told to stop, in every way there is, while clients send as fast as they are answered."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from tests.chaos.history import History
from tests.chaos.layouts import FARM, is_alive
from tests.chaos.proofs.findings import Findings, Loaded, hold_all_right, is_right, loaded, longest_wait
from tests.harness import wait_until

BACK_SECONDS = 60.0
END_SECONDS = 60.0
ON_ITS_WAY_SECONDS = 0.25  # a request sent just before the signal may be read after it
CTRL_C = b"\x03"
# Makes the terminal on its stdin its own, as a shell does for what it starts in the foreground.
OWN_THE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def rolling(found: Findings) -> None:
    """SIGTERM for every worker, for every agent of workers and for the broker, one after the other, at saturation."""
    with loaded(FARM, workers=1) as it:
        for worker in it.mesh.workers():
            it.wait_served(200)
            os.kill(worker.pid, signal.SIGTERM)  # which is their agents' business, so it changes nothing
        os.kill(it.mesh.child("broker"), signal.SIGTERM)
        it.wait_served(200)
        codes = {}
        for name in ("workers", "others", "broker"):
            codes[name] = it.mesh.programs[name].stop(seconds=END_SECONDS)
            it.mesh.start(name)
            wait_until(lambda: is_whole(it), BACK_SECONDS, f"all to be back after {name}")
            it.wait_served(200)
        deaths = it.deaths()
        history = it.finish()
    hold_all_right(found, history)
    ended = ", ".join(f"{name} {code}" for name, code in codes.items())
    found.hold(not any(codes.values()), f"exit codes: {ended}")
    found.hold(deaths == 0, f"{deaths} deaths charged")


def is_whole(it: Loaded) -> bool:
    try:
        return len(it.mesh.workers()) == 4 and it.mesh.ask("/readyz")[0] == 200
    except OSError:
        return False


def group(found: Findings) -> None:
    """`kill -TERM -- -PGID` of a whole `zmesh run` at saturation."""

    def end(it: Loaded) -> None:
        os.killpg(it.mesh.programs["head"].process.pid, signal.SIGTERM)

    _everything_ends(found, "SIGTERM for the process group", end)


def terminal(found: Findings) -> None:
    """Ctrl-C in the terminal where `zmesh run` stands in the foreground, at saturation."""
    ours, theirs = pty.openpty()

    def end(_: Loaded) -> None:
        os.write(ours, CTRL_C)

    try:
        _everything_ends(found, "Ctrl-C", end, (sys.executable, "-c", OWN_THE_TERMINAL), stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def _everything_ends(
    found: Findings, what: str, end: Callable[[Loaded], None], before: tuple[str, ...] = (), **popen: Any
) -> None:
    with loaded("isolated", before=before, popen={"start_new_session": True, **popen}) as it:
        it.wait_served(500 if found.is_short else 5000)
        family = [pid for _, pid in it.mesh.processes()]
        head = it.mesh.programs["head"].process
        at = monotonic()
        end(it)
        try:
            code = head.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        took = monotonic() - at
        left = [pid for pid in family if is_alive(pid)]
        log = it.mesh.programs["head"].log()
        history = it.finish()
    _hold_none_failed(found, history, what, at)
    found.hold(code == 0, f"it ended {took:.2f} s later with code {code}")
    found.hold(not left, f"{len(left)} of its {len(family)} processes are left")
    if code:
        found.note(f"its last words: {log[-500:]}")


def _hold_none_failed(found: Findings, history: History, what: str, at: float) -> None:
    """Whoever was accepted was answered rightly. Refused is who got 503 and had sent no sooner than the signal."""
    accepted, refused, failed = 0, 0, list[str]()
    inside = 0
    for nonce, request in history.requests.items():
        answer = request.answers[0] if request.answers else None
        if answer is not None and answer.status == 503 and request.sent > at - ON_ITS_WAY_SECONDS:
            refused += 1
            continue
        accepted += 1
        inside += request.sent <= at < request.done
        if answer is None:
            how = "broken off" if request.broken is not None else "never answered"
            failed.append(f"{how}, sent {request.sent - at:+.3f} s")
        elif not is_right(answer, nonce):
            failed.append(f"answered {answer.status} {answer.text[:60]!r}, sent {request.sent - at:+.3f} s")
    failed += ["answered twice"] * len(history.extras)
    found.note(f"{what} with {inside} requests inside; longest wait {longest_wait(history):.2f} s")
    found.hold(bool(inside) and not failed, f"{accepted} accepted requests, {len(failed)} failed; {refused} refused")
    for text in failed[:5]:
        found.note(text)
