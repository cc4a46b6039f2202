"""Cutting what is too long for one message, or for one field of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from zmesh.messages import LIST_ITEMS_MAX, OWN_FRAME_BYTES, Payload

__all__ = ["lists", "parts", "tail"]

T = TypeVar("T")


def parts(payloads: Sequence[Payload], rows_max: int, inline_bytes_max: int) -> list[slice]:
    """Cut rows into messages within the limits of rows and of inline bytes, in order; at least one row in each.

    A payload that has a frame of its own is not inline. Without any row there is one part, which is empty.
    """
    if len(payloads) <= rows_max and sum(map(len, payloads)) <= inline_bytes_max:
        return [slice(0, len(payloads))]
    found = []
    start = inline = 0
    for row, payload in enumerate(payloads):
        size = len(payload) if len(payload) < OWN_FRAME_BYTES else 0
        if row > start and (row - start >= rows_max or inline + size > inline_bytes_max):
            found.append(slice(start, row))
            start, inline = row, 0
        inline += size
    return [*found, slice(start, len(payloads))]


def lists(items: list[T], items_max: int = LIST_ITEMS_MAX) -> list[list[T]]:
    """Cut a list that is not a column into lists that a message may carry; none of no items."""
    if 0 < len(items) <= items_max <= LIST_ITEMS_MAX:
        return [items]
    most = min(items_max, LIST_ITEMS_MAX)
    return [items[start : start + most] for start in range(0, len(items), most)]


def tail(text: str, bytes_max: int) -> str:
    """The end of `text`, in as many bytes of UTF-8 as a field may have: what went wrong stands last in a traceback."""
    if len(text) * 4 <= bytes_max:
        return text
    return text.encode(errors="replace")[-bytes_max:].decode(errors="ignore")
