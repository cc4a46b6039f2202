"""What is the same in one request or answer after another, and so need not be made again each time.

A client on a connection that it keeps says the same headers with each request, but for the length of the body; HTTP/2
has its table of headers for that reason. `Repeated` is the head of a request that the parser has read and that is gone
through: bytes that are equal to it, the digits of `content-length` aside, mean the same, and need not be parsed.
`AnswerHeads` keeps the first bytes of a 200, which change once a second, with the date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from zmesh.answers import Header

__all__ = ["AnswerHeads", "Repeated"]

What = TypeVar("What")

LENGTH_DIGITS_MAX = 9
REPEATED_BYTES_MAX = 4096  # of a head that is kept as long as its connection
_find_length = re.compile(rb"\r\ncontent-length: ?([0-9]{1,%d})\r\n" % LENGTH_DIGITS_MAX, re.IGNORECASE).search


class Repeated(Generic[What]):
    """The bytes of the head of a request, which is said to mean `head`. `before` is what stands before the digits of
    its length, `after` the rest of it."""

    __slots__ = ("_bytes", "_digits_at", "_size", "_start", "after", "before", "head")

    def __init__(self, request: bytes, digits: slice, size: int, head: What) -> None:
        self._start, self._size = len(request) - size, len(request)
        self._bytes = request[: self._start]
        self._digits_at = digits.start
        self.before, self.after = self._bytes[: digits.start], self._bytes[digits.stop :]
        self.head = head

    @classmethod
    def of(cls, request: bytes, size: int, head: What) -> Repeated[What] | None:
        """The head of `request`, if these bytes are one whole request with so many bytes of body, and nothing else."""
        end = request.find(b"\r\n\r\n") + 4
        found = _find_length(request, 0, end)
        if end + size != len(request) or found is None or end > REPEATED_BYTES_MAX:
            return None
        return cls(request, slice(*found.span(1)), size, head)

    def body_of(self, data: bytes) -> bytes:
        """The body of a whole request that has this head; empty for any other bytes."""
        if len(data) == self._size and data.startswith(self._bytes):
            return data[self._start :]
        if not data.startswith(self.before):
            return b""
        end = data.find(b"\r", self._digits_at, self._digits_at + LENGTH_DIGITS_MAX + 1)
        digits = data[self._digits_at : end]
        if end < 0 or not digits.isdigit() or not data.startswith(self.after, end):
            return b""
        body = data[end + len(self.after) :]
        return body if len(body) == int(digits) else b""


class AnswerHeads:
    """`of` gives a status line and the headers behind it, up to the value of `x-request-id`."""

    def __init__(self, status_line: bytes, headers: Callable[[str], Sequence[Header]]) -> None:
        """`headers` says which ones come first in the answers of a path."""
        self._status_line, self._headers = status_line, headers
        self._default: object = None
        self._heads: dict[str, bytes] = {}

    def of(self, path: str, default: list[Header]) -> bytes:
        """`default` are uvicorn's: a new list each time they change."""
        if default is not self._default:
            self._default = default
            self._heads.clear()
        if (head := self._heads.get(path)) is None:
            lines = [b"%s: %s\r\n" % header for header in (*default, *self._headers(path))]
            self._heads[path] = head = b"".join([self._status_line, *lines, b"x-request-id: "])
        return head
