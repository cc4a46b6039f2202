"""Shared memory as a store: nothing is taken on trust, nothing is read while it is written, nothing stays for ever."""

import errno
import os
import random
from pathlib import Path
from time import monotonic

import pytest

from zmesh.errors import PayloadLost, StoreAway
from zmesh.messages import Kind
from zmesh.segments import _REFERENCE, SPARE_SECONDS, SWEEP_SECONDS, SharedMemory, Sweeper

BODY = bytes(range(256)) * 40


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "tmp0123abc_"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def memory(directory: Path) -> SharedMemory:
    return SharedMemory(directory, 1)


def put(memory: SharedMemory, payload: bytes = BODY, seconds: float = 60.0) -> bytes:
    (reference,) = memory.put([payload], [seconds])
    assert isinstance(reference, bytes), reference
    return reference


def get(memory: SharedMemory, reference: bytes) -> bytes | Exception:
    (found,) = memory.get([reference])
    return found if isinstance(found, Exception) else bytes(found)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# ── there and back ────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_put_is_got_as_often_as_one_likes_and_by_others(memory: SharedMemory, directory: Path):
    references = memory.put([BODY, b"x", memoryview(BODY)], [60.0] * 3)
    other = SharedMemory(directory, 1)
    for reader in (memory, other, other):
        found = reader.get([bytes(reference) for reference in references])  # type: ignore[arg-type]
        assert [bytes(one) for one in found] == [BODY, b"x", BODY]  # type: ignore[arg-type]
    assert memory.kind is Kind.HOST_BOUND and all(len(reference) < 64 for reference in references)  # type: ignore[arg-type]


def test_files_are_for_their_owner_alone(memory: SharedMemory, directory: Path):
    put(memory)
    (file,) = directory.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_another_run_of_the_same_user_can_be_read(memory: SharedMemory, tmp_path: Path):
    (tmp_path / "tmpzzzzzzzz").mkdir()
    other = SharedMemory(tmp_path / "tmpzzzzzzzz", 1)
    assert get(other, put(memory)) == BODY
    assert other.name == memory.name


def test_other_memory_has_another_name(memory: SharedMemory, tmp_path: Path):
    (elsewhere := tmp_path / "elsewhere" / "tmp0123abc_").mkdir(parents=True)
    assert SharedMemory(elsewhere, 1).name != memory.name


# ── released ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_released_is_gone_and_its_file_is_written_again(memory: SharedMemory, directory: Path):
    first = put(memory, b"a" * 5000)
    (file,) = directory.iterdir()
    number = file.stat().st_ino
    memory.release([first])
    assert isinstance(get(memory, first), PayloadLost)
    second = put(memory, b"b" * 4000)
    assert get(memory, second) == b"b" * 4000
    (file,) = directory.iterdir()
    assert file.stat().st_ino == number
    assert isinstance(get(memory, first), PayloadLost)


@pytest.mark.parametrize("size", [5001, 2400])
def test_a_file_that_is_too_small_or_far_too_large_is_not_written_again(memory, directory, size):
    memory.release([put(memory, b"a" * 5000)])
    put(memory, b"b" * size)
    assert len(names(directory)) == 2


def test_what_somebody_reads_is_not_written_again(memory: SharedMemory, directory: Path):
    first = put(memory, b"a" * 5000)
    (view,) = memory.get([first])
    memory.release([first])
    put(memory, b"b" * 5000)
    assert not isinstance(view, Exception) and bytes(view) == b"a" * 5000 and len(names(directory)) == 2
    del view
    put(memory, b"c" * 5000)
    assert len(names(directory)) == 2, "now it is"


def test_who_comes_while_it_is_written_again_finds_nothing(memory: SharedMemory, directory: Path, monkeypatch):
    """The reader has opened the file before it was released, and looks at it after somebody else has claimed it."""
    first, fstat = put(memory, b"a" * 5000), os.fstat
    writer = SharedMemory(directory, 1)

    def late(fd: int) -> os.stat_result:
        monkeypatch.undo()
        writer.release([first])
        put(writer, b"b" * 5000)
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", late)
    assert isinstance(get(memory, first), PayloadLost)


def test_releasing_twice_or_what_is_no_reference_does_no_harm(memory: SharedMemory, directory: Path):
    reference = put(memory)
    memory.release([reference, reference, b"nonsense", b""])
    assert len(names(directory)) == 1


def test_of_two_writers_one_gets_the_file(memory: SharedMemory, directory: Path):
    memory.release([put(memory, b"a" * 5000)])
    spares = memory._spares()
    other = SharedMemory(directory, 1)
    assert other._claim(str(directory / "0"), 5000, dict(spares)) is not None
    assert memory._claim(str(directory / "1"), 5000, dict(spares)) is None


# ── what is wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


def forged(**fields: object) -> bytes:
    given = {"magic": b"ZMS1", "run": b"tmp0123abc_", "ends": 1, "nonce": b"12345678", "size": 10, **fields}
    return _REFERENCE.pack(*given.values())


@pytest.mark.parametrize(
    "reference",
    [b"", b"/etc/passwd", b"x" * _REFERENCE.size, forged(magic=b"ZMS2"), forged(run=b"../../../ab"), forged(size=0),
     forged(run=b"tmp/../../a"), forged(run=b"tmp0123abc\0"), forged(size=2**63), forged()],
)  # fmt: skip
def test_a_reference_that_nobody_made_leads_nowhere(memory: SharedMemory, reference: bytes):
    assert isinstance(get(memory, reference), PayloadLost)


def test_random_bytes_lead_nowhere(memory: SharedMemory):
    dice = random.Random(5)
    for size in [_REFERENCE.size] * 500 + list(range(100)):
        assert isinstance(get(memory, dice.randbytes(size)), PayloadLost)


@pytest.mark.parametrize("size", [len(BODY) + 1, 2**40])
def test_a_file_that_is_smaller_than_was_said_is_not_mapped(memory: SharedMemory, size: int):
    *others, _ = _REFERENCE.unpack(put(memory))
    assert isinstance(get(memory, _REFERENCE.pack(*others, size)), PayloadLost)


def file_of(reference: bytes, directory: Path) -> Path:
    _, _, ends_ms, nonce, _ = _REFERENCE.unpack(reference)
    return directory / f"{ends_ms:016x}-{nonce.hex()}"


@pytest.mark.parametrize("what", ["link", "directory", "fifo"])
def test_what_is_no_file_is_not_read(memory: SharedMemory, directory: Path, what: str):
    reference = put(memory)
    place = file_of(reference, directory)
    place.rename(directory / "moved")
    match what:
        case "link":
            place.symlink_to(directory / "moved")
        case "directory":
            place.mkdir()
        case "fifo":
            os.mkfifo(place)
    assert isinstance(get(memory, reference), PayloadLost | StoreAway)


def test_no_room_is_an_error_of_that_payload_and_leaves_nothing(memory: SharedMemory, directory: Path, monkeypatch):
    write = os.write

    def full(fd: int, view: memoryview) -> int:
        if len(view) > 5000:
            return write(fd, view[:1000])  # as a disk does that is just full
        if len(view) in (4000, 5000):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, view)

    monkeypatch.setattr(os, "write", full)
    failed, fine = memory.put([b"x" * 6000, b"y" * 10], [60.0] * 2)
    assert isinstance(failed, StoreAway) and "No space left on device" in str(failed)
    assert isinstance(fine, bytes) and len(names(directory)) == 1


def test_when_there_is_no_room_what_was_released_makes_some(memory: SharedMemory, directory: Path, monkeypatch):
    memory.release([put(memory, b"a" * 100)])
    opened = os.open

    def full(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and any(name.endswith(".spare") for name in names(directory)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", full)
    assert get(memory, put(memory, BODY)) == BODY
    assert len(names(directory)) == 1


def test_a_directory_that_is_gone_is_an_error_of_each_payload(memory: SharedMemory, directory: Path):
    reference = put(memory)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    assert [type(one) for one in memory.put([b"a", b"b"], [1.0] * 2)] == [StoreAway, StoreAway]
    assert isinstance(get(memory, reference), PayloadLost)


def test_a_process_without_files_left_has_lost_nothing(memory: SharedMemory, monkeypatch):
    reference = put(memory)

    def refuse(*args: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    (found,) = memory.get([reference])
    assert isinstance(found, StoreAway) and "Too many open files" in str(found)


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_sweeper_takes_away_what_is_past_its_time(memory: SharedMemory, directory: Path):
    now = monotonic()
    put(memory, seconds=-5.0)
    put(memory, seconds=100.0)
    memory.release([put(memory, b"z" * 7)])
    (directory / "lock").write_text("")
    sweeper = Sweeper(str(directory), now)
    assert sweeper.due == now + SWEEP_SECONDS
    sweeper.sweep(now + 1)
    assert len(names(directory)) == 4, "not yet"
    sweeper.sweep(now + SWEEP_SECONDS)
    assert len(names(directory)) == 3
    sweeper.sweep(now + SPARE_SECONDS + 5)
    assert len(names(directory)) == 2, "the spare one too"
    sweeper.sweep(now + 200)
    assert names(directory) == ["lock"]


def test_a_sweeper_of_nothing_has_nothing_to_do(tmp_path: Path):
    sweeper = Sweeper("", 0.0)
    sweeper.sweep(100.0)
    assert sweeper.due is None
    gone = Sweeper(str(tmp_path / "gone"), 0.0)
    gone.sweep(100.0)
    assert gone.due == 100.0 + SWEEP_SECONDS
