"""The directory of a run's sockets: one that another run sweeps away while it is being made is made anew."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from zmesh.errors import StartError
from zmesh.transport import private_directory

Flock = Callable[[int, int], None]


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all runs of this user have their directories."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"zmesh-{os.getuid()}"


def before_the_lock(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Once, between the making of a lock and its taking."""
    flock: Flock = fcntl.flock

    def interrupted(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        happens()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", interrupted)


def test_one_that_was_swept_before_it_was_locked_is_made_anew(others: Path, monkeypatch: pytest.MonkeyPatch):
    before_the_lock(monkeypatch, lambda: private_directory().remove())  # it sweeps first
    held = private_directory()
    assert list(others.iterdir()) == [held.path] and (held.path / "lock").exists()
    held.remove()


def test_one_whose_sweeper_is_still_at_it_is_left_to_it(others: Path, monkeypatch: pytest.MonkeyPatch):
    locked: list[int] = []

    def lock() -> None:
        (place,) = others.iterdir()
        locked.append(os.open(place / "lock", os.O_RDWR))
        fcntl.flock(locked[0], fcntl.LOCK_EX | fcntl.LOCK_NB)

    before_the_lock(monkeypatch, lock)
    held = private_directory()
    assert len(list(others.iterdir())) == 2
    os.close(locked[0])
    held.remove()


def test_what_a_killed_run_left_is_swept_and_what_a_living_one_has_is_not(others: Path):
    living, dead = private_directory(), private_directory()
    (dead.path / "front.s").touch()
    os.close(dead._lock)
    third = private_directory()
    assert sorted(others.iterdir()) == sorted([living.path, third.path])
    for one in (living, third):
        one.remove()
    assert list(others.iterdir()) == []


def test_a_path_of_the_users_that_is_in_use_is_one_sentence(tmp_path: Path):
    held = private_directory(str(tmp_path / "s"))
    with pytest.raises(StartError, match=r"is in use by another zmesh; give another --path"):
        private_directory(str(tmp_path / "s"))
    held.remove()
