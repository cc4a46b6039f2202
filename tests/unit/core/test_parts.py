"""Cutting rows, lists and texts into what a message may carry."""

import pytest

from zmesh.core.parts import lists, parts, tail
from zmesh.messages import LIST_ITEMS_MAX, OWN_FRAME_BYTES


@pytest.mark.parametrize(
    ("sizes", "cuts"),
    [
        ([], [(0, 0)]),
        ([1, 1, 1], [(0, 3)]),
        ([1, 1, 1, 1], [(0, 3), (3, 4)]),
        ([40, 60, 1], [(0, 2), (2, 3)]),
        ([400, 1], [(0, 1), (1, 2)]),
        ([1, 400], [(0, 1), (1, 2)]),
        ([60, OWN_FRAME_BYTES, 40], [(0, 3)]),
        ([60, OWN_FRAME_BYTES - 1], [(0, 1), (1, 2)]),
    ],
)
def test_rows_are_cut_within_the_limits_of_rows_and_of_inline_bytes(sizes: list[int], cuts: list[tuple[int, int]]):
    found = parts([bytes(size) for size in sizes], 3, 100)
    assert [(part.start, part.stop) for part in found] == cuts


@pytest.mark.parametrize(("count", "lengths"), [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])])
def test_lists_are_cut_in_order(count: int, lengths: list[int]):
    found = lists(list(range(count)), 3)
    assert [len(part) for part in found] == lengths
    assert [item for part in found for item in part] == list(range(count))


def test_no_list_is_longer_than_the_wire_takes():
    found = lists(list(range(LIST_ITEMS_MAX + 1)), 2 * LIST_ITEMS_MAX)
    assert [len(part) for part in found] == [LIST_ITEMS_MAX, 1]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""),
        ("ab", "ab"),
        ("abcdefgh", "abcdefgh"),
        ("abcdefghi", "bcdefghi"),
        ("üüüüx", "üüüx"),
        ("\ud800" * 9, "?" * 8),
    ],
)
def test_of_a_text_that_is_too_long_the_end_is_kept(text: str, kept: str):
    assert tail(text, 8) == kept
    assert len(kept.encode()) <= 8
