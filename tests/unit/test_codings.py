"""gzip and zstd: which one is wanted, and that a body unpacks in pieces that are no larger than was asked for."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import IN_CI
from zmesh import codings
from zmesh.answers import Refusal
from zmesh.codings import MEMBERS_MAX, Coding, Unpacking, coding_of, known, may_pack, wanted

CODINGS = known()
GZIP = CODINGS[-1]
ZSTD = codings.zstd
HAS_ZSTD = pytest.mark.skipif(ZSTD is None and not IN_CI, reason="zstd is not installed: pip install '.[compression]'")
EITHER = [
    pytest.param("gzip", id="gzip"),
    pytest.param("zstd", id="zstd", marks=HAS_ZSTD),
]


def called(name: str) -> Coding:
    (coding,) = [coding for coding in CODINGS if coding.name == name]
    return coding


def fake(name: str) -> Coding:
    return Coding(name, bytes, codings._Inflate, zlib.error)


BOTH = (fake("zstd"), fake("gzip"))


# ── which one ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "name", "is_must"),
    [
        ("", None, False),
        ("gzip", "gzip", False),
        ("GZIP", "gzip", False),
        ("x-gzip", "gzip", False),
        ("zstd", "zstd", False),
        ("gzip, deflate, br, zstd", "zstd", False),
        ("gzip, zstd;q=0.9", "gzip", False),
        ("gzip;q=0.8, zstd;q=0.8", "zstd", False),
        ("gzip ; q = 0.5 , zstd;q=0", "gzip", False),
        ("br, deflate", None, False),
        ("*", "zstd", False),
        ("zstd;q=0, *", "gzip", False),
        ("*;q=0", "406", False),
        ("gzip, *;q=0", "gzip", True),
        ("gzip;q=0", None, False),
        ("identity", None, False),
        ("identity, gzip", "gzip", False),
        ("identity, gzip;q=0.5", None, False),
        ("identity;q=0.5, gzip;q=0.5", "gzip", False),
        ("identity;q=0", "406", False),
        ("identity;q=0, br", "406", False),
        ("identity;q=0, gzip;q=0.001", "gzip", True),
        ("*;q=0, identity;q=0.1", None, False),
        ("gzip;q=soon", None, False),
        ("gzip;q=1;q=2", None, False),
        ("gzip;q=", None, False),
        (",,gzip,,", "gzip", False),
    ],
)
def test_who_wants_what(said: str, name: str | None, is_must: bool):
    if name == "406":
        with pytest.raises(Refusal, match="zstd or gzip, or plain") as caught:
            wanted(said, BOTH)
        assert caught.value.http == 406
        return
    coding, must = wanted(said, BOTH)
    assert (coding and coding.name, must) == (name, is_must)


def test_what_cannot_be_spoken_is_not_chosen():
    assert wanted("zstd, gzip;q=0.1", BOTH[1:]).coding == BOTH[1]
    assert wanted("zstd", BOTH[1:]).coding is None


@pytest.mark.parametrize(
    ("said", "name"),
    [("", None), ("identity", None), ("gzip", "gzip"), (" X-GZIP ", "gzip"), ("zstd,identity", "zstd")],
)
def test_how_a_body_is_packed(said: str, name: str | None):
    coding = coding_of(said, BOTH)
    assert (coding and coding.name) == name


@pytest.mark.parametrize("said", ["br", "deflate", "gzip, zstd", "gzip, gzip", "gzip;q=1", "*", "größer"])
def test_another_encoding_or_several_is_415_and_names_those_that_are_taken(said: str):
    with pytest.raises(Refusal, match="send zstd or gzip, once, or none") as caught:
        coding_of(said, BOTH)
    assert (caught.value.http, caught.value.accept_encoding) == (415, b"zstd, gzip")


@pytest.mark.parametrize(
    ("mime_type", "may"),
    [("application/json", True), ("text/plain; charset=utf-8", True), ("", True)]
    + [(name, False) for name in ("image/png", "Video/mp4", "audio/ogg", "text/event-stream; charset=utf-8")],
)
def test_what_is_packed_already_is_not_packed_again(mime_type: str, may: bool):
    assert may_pack(mime_type) is may


def test_without_the_package_there_is_gzip(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codings, "zstd", None)
    assert [coding.name for coding in known()] == ["gzip"]


# ── unpacking ─────────────────────────────────────────────────────────────────────────────────────────────────────


def unpacked(coding: Coding, packed: bytes, cut: int = 1 << 20, most: int = 1 << 20) -> bytes:
    """Sent in pieces of `cut` bytes and taken in pieces of `most`."""
    unpacking, pieces = Unpacking(coding), []
    for start in range(0, len(packed), cut):
        pieces.append(unpacking.some(packed[start : start + cut], most))
        while unpacking.has_more:
            pieces.append(unpacking.some(b"", most))
    assert max(map(len, pieces), default=0) <= most
    unpacking.end()
    return b"".join(pieces)


@pytest.mark.parametrize("name", EITHER)
@given(
    parts=st.lists(st.binary(max_size=300) | st.binary(max_size=9).map(lambda seed: seed * 700), max_size=3),
    cut=st.integers(1, 400),
    most=st.integers(1, 400),
)
@example(parts=[b"x" * 64], cut=100, most=64)  # the output ends with the room for it
def test_what_was_packed_comes_out_again_however_it_is_cut(name: str, parts: list[bytes], cut: int, most: int):
    coding = called(name)
    assert unpacked(coding, b"".join(map(coding.pack, parts)), cut, most) == b"".join(parts)


@pytest.mark.parametrize("name", EITHER)
def test_a_piece_is_never_larger_than_asked_though_a_few_bytes_bring_millions(name: str):
    coding, unpacking = called(name), Unpacking(called(name))
    bomb = coding.pack(bytes(50_000_000))
    assert len(unpacking.some(bomb[:1000], 4096)) <= 4096 and unpacking.has_more
    assert 100_000 <= len(unpacking.more(100_000)) < 200_000


@pytest.mark.parametrize("name", EITHER)
def test_a_body_that_ends_too_early_is_400_wherever_it_ends(name: str):
    packed = called(name).pack(b"a body of some length " * 20)
    for end in range(1, len(packed)):
        with pytest.raises(Refusal, match=f"^bad request: the {name} body ends too early$") as caught:
            unpacked(called(name), packed[:end])
        assert caught.value.http == 400


@pytest.mark.parametrize("name", EITHER)
@pytest.mark.parametrize("broken", [b"no such thing", b'{"x": 1}', b"\0" * 100])
def test_a_body_that_is_not_packed_is_400(name: str, broken: bytes):
    with pytest.raises(Refusal, match=f"^bad request: the body is not valid {name}") as caught:
        unpacked(called(name), broken)
    assert caught.value.http == 400


@pytest.mark.parametrize("name", EITHER)
def test_a_body_with_something_else_behind_it_is_400(name: str):
    with pytest.raises(Refusal, match="is not valid"):
        unpacked(called(name), called(name).pack(b"right") + b"wrong, and long enough to see")


def test_a_broken_checksum_is_400():
    packed = bytearray(gzip.compress(b"something"))
    packed[-6] ^= 1
    with pytest.raises(Refusal, match=r"^bad request: the body is not valid gzip$"):
        unpacked(GZIP, bytes(packed))


@pytest.mark.parametrize("name", EITHER)
def test_nothing_at_all_is_nothing(name: str):
    assert unpacked(called(name), b"") == b""


def test_members_are_bounded_although_they_are_empty():
    empty = GZIP.pack(b"")
    assert unpacked(GZIP, empty * MEMBERS_MAX) == b""
    with pytest.raises(Refusal, match=f"^bad request: the gzip body has more than {MEMBERS_MAX} members$"):
        unpacked(GZIP, empty * (MEMBERS_MAX + 1))


@HAS_ZSTD
def test_a_window_beyond_that_of_http_is_400():
    """RFC 9659: it is memory, whatever the body unpacks to."""
    for log, is_taken in ((23, True), (24, False)):
        packer = ZSTD.ZstdCompressor(options={ZSTD.CompressionParameter.window_log: log})
        packed = packer.compress(b"short") + packer.flush()
        if is_taken:
            assert unpacked(called("zstd"), packed) == b"short"
        else:
            with pytest.raises(Refusal, match=r"^bad request: the body is not valid zstd within a window of 8 MiB$"):
                unpacked(called("zstd"), packed)
