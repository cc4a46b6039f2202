"""Environments of the other servers, one each, built when they are first needed: `.peers/NAME`, or `$ZMESH_PEERS/NAME`.

`requirements-NAME.txt` beside this file says what is in it. README.md says how each is configured, and why.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

__all__ = ["PEERS", "Unavailable", "installed_version", "python_of"]

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
PEERS = tuple(sorted(path.stem.removeprefix("requirements-") for path in HERE.glob("requirements-*.txt")))
INSTALL_SECONDS_MAX = 900
STAMP = "zmesh-stamp"


class Unavailable(Exception):
    """A server that cannot be measured here; the text says why, in one line."""


def home(peer: str) -> Path:
    return Path(os.environ.get("ZMESH_PEERS") or REPOSITORY / ".peers") / peer


def python_of(peer: str, may_install: bool = True) -> Path:
    """The Python of a peer's environment, which is made or renewed when it has to be. Raises Unavailable."""
    requirements = HERE / f"requirements-{peer}.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    python, stamp = home(peer) / "bin" / "python", home(peer) / STAMP
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    if not may_install:
        raise Unavailable(f"{peer} is not installed: ./scripts/bench peers {peer}")
    print(f"installing {peer} into {home(peer)} …", file=sys.stderr, flush=True)
    if not python.exists():
        _run(peer, [sys.executable, "-m", "venv", str(home(peer))])
    _run(peer, [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", "-r", str(requirements)])
    stamp.write_text(wanted)
    return python


def _run(peer: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{peer} cannot be installed: {type(error).__name__}") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.startswith("ERROR")]
        raise Unavailable(f"{peer} cannot be installed: {lines[-1] if lines else f'exit code {done.returncode}'}")


def installed_version(peer: str, distribution: str = "") -> str:
    """Of the distribution of that name, or of another one, in a peer's environment."""
    code = f"import importlib.metadata as m; print(m.version({distribution or peer!r}))"
    command = [str(home(peer) / "bin" / "python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
