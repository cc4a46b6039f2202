"""Content codings: what gzip and zstd are called, how a body is packed and unpacked, which one a client wants.

gzip is Python's own. zstd is `compression.zstd` of Python 3.14, or the package that brings it to older ones (the extra
`compression`); without either only gzip is spoken. Both unpack into pieces of a size that the caller names, so that a
body which unpacks to more than anybody has room for is found out before it has.
"""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from zmesh.answers import Refusal

__all__ = ["PACKED_BYTES_MIN", "Coding", "Unpacking", "Wanted", "coding_of", "known", "may_pack", "wanted"]

GZIP_LEVEL, ZSTD_LEVEL = 1, 1  # the next ones cost twice the time and more, for answers that are hardly smaller
PACKED_BYTES_MIN = 1024  # a smaller answer goes out in one packet, packed or not
MEMBERS_MAX = 10_000  # of one body: each may be empty, and costs all the same
WINDOW_LOG_MAX = 23  # 8 MiB, which is what zstd may use in HTTP (RFC 9659)
GZIP_WBITS = 31
PACKED_ALREADY = ("image/", "audio/", "video/", "text/event-stream")  # of the last, nobody may hold back an event

_weight_of = re.compile(r"\s*[qQ]\s*=\s*([01](?:\.[0-9]{0,3})?)\s*").fullmatch


def _zstd() -> Any:
    """The library; None when there is none. Not `zstandard`, which unpacks as much as there is, and takes a body that
    ends too early for a whole one."""
    with suppress(ImportError):
        return importlib.import_module("compression.zstd")
    with suppress(ImportError):
        return importlib.import_module("backports.zstd")
    return None


zstd = _zstd()


class Unpacker(Protocol):
    """One gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Coding(NamedTuple):
    name: str
    pack: Callable[[bytes], bytes]
    unpacker: Callable[[], Unpacker]
    error: type[Exception]


class Wanted(NamedTuple):
    """How an answer is to be packed. `is_must`: even one that is too small for it to be of use."""

    coding: Coding | None = None
    is_must: bool = False


class _Inflate:
    """zlib's with the manners of all others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(GZIP_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self.eof and not self._zlib.unconsumed_tail  # the checksum is there when all is, and comes last

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def known() -> tuple[Coding, ...]:
    """What can be spoken here, the better ones first."""
    gzip = Coding("gzip", lambda body: zlib.compress(body, GZIP_LEVEL, GZIP_WBITS), _Inflate, zlib.error)
    if zstd is None:
        return (gzip,)
    options = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}
    better = Coding(
        "zstd",
        lambda body: zstd.compress(body, ZSTD_LEVEL),
        lambda: zstd.ZstdDecompressor(options=options),
        zstd.ZstdError,
    )
    return (better, gzip)


def may_pack(mime_type: str) -> bool:
    """Whether packing answers of this type is of any use."""
    return not mime_type.lower().startswith(PACKED_ALREADY)


def coding_of(said: str, codings: Sequence[Coding]) -> Coding | None:
    """Of a request's body, by its `content-encoding`; None when it is not packed. Raises Refusal for another one, and
    for several, which would be a bomb in a bomb."""
    names = [name for part in said.split(",") if (name := _canonical(part)) not in ("", "identity")]
    if not names:
        return None
    for coding in codings:
        if names == [coding.name]:
            return coding
    taken = [coding.name for coding in codings]
    text = f"unsupported content-encoding {said[:40]!r}: send {' or '.join(taken)}, once, or none"
    raise Refusal(415, text, accept_encoding=", ".join(taken).encode())


def wanted(said: str, codings: Sequence[Coding]) -> Wanted:
    """By the `accept-encoding` of a request. The first one counts of those that are wanted most.

    Raises Refusal when neither any of them nor a plain answer will do.
    """
    weights: dict[str, float] = {}
    for part in said.split(","):
        name, _, parameter = part.partition(";")
        weight = _weight_of(parameter) if parameter.strip() else None
        if weight is not None or not parameter.strip():
            weights[_canonical(name)] = float(weight[1]) if weight else 1.0
    others = weights.get("*")
    plain = weights.get("identity", None if others else others)  # who says `*` has no wish for a plain one
    best = max(codings, key=lambda coding: weights.get(coding.name, others or 0.0))
    weight_of_best = weights.get(best.name, others or 0.0)
    if weight_of_best and weight_of_best >= (plain or 0.0):
        return Wanted(best, is_must=plain == 0.0)
    if plain == 0.0:
        names = " or ".join(coding.name for coding in codings)
        raise Refusal(406, f"not acceptable: an answer may be in {names}, or plain, and accept-encoding wants neither")
    return Wanted()


def _canonical(name: str) -> str:
    name = name.strip().lower()
    return name.removeprefix("x-") if name == "x-gzip" else name


class Unpacking:
    """A body as it comes, of any number of members, one after another. Raises Refusal for what is no such body."""

    def __init__(self, coding: Coding) -> None:
        self._coding, self._member = coding, coding.unpacker()
        self._rest = b""  # behind the end of the last member
        self._members, self._has_begun = 1, False
        self.has_more = False

    def some(self, data: bytes, most: int) -> bytes:
        """At most so many bytes of what `data` brings. While it `has_more`, call again, with no data."""
        self._has_begun = self._has_begun or bool(data)
        if self._member.eof:
            data, self._rest = self._rest + data, b""
            if data:
                self._next_member()
        member = self._member
        try:
            piece = b"" if member.eof else member.decompress(data, most)
        except self._coding.error:
            name = self._coding.name
            limits = " within a window of 8 MiB" if name == "zstd" else ""
            raise Refusal(400, f"bad request: the body is not valid {name}{limits}") from None
        self._rest = member.unused_data if member.eof else b""
        self.has_more = bool(self._rest) if member.eof else not member.needs_input
        return piece

    def more(self, most: int) -> bytes:
        """At least so many bytes of the rest, and less than twice as many; all if there is less."""
        pieces, size = [], 0
        while self.has_more and size < most:
            pieces.append(self.some(b"", most))
            size += len(pieces[-1])
        return b"".join(pieces)

    def end(self) -> None:
        """Nothing follows."""
        if self._has_begun and not self._member.eof:
            raise Refusal(400, f"bad request: the {self._coding.name} body ends too early")

    def _next_member(self) -> None:
        self._members += 1
        if self._members > MEMBERS_MAX:
            text = f"bad request: the {self._coding.name} body has more than {MEMBERS_MAX} members"
            raise Refusal(400, text)
        self._member = self._coding.unpacker()
