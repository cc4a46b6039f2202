"""Refusals of what an app file declares."""

import sys

import pytest

from zmesh.declaring import declaration, unknown_name
from zmesh.errors import DeclarationError


class Shelf:
    @declaration
    def __init__(self, width: int, *, depth: int = 1) -> None:
        if width < 1:
            raise DeclarationError("too narrow")
        self.width, self.depth = width, depth

    @declaration
    def put(self, book: str, **marks: int) -> tuple[str, dict[str, int]]:
        if not book:
            raise KeyError("of the user's")
        return book, marks


def test_a_right_call_goes_through():
    assert vars(Shelf(3, depth=2)) == {"width": 3, "depth": 2}
    assert Shelf(3).put("a", page=1) == ("a", {"page": 1})
    assert Shelf.put.__name__ == "put"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Shelf(3, dept=2), "Shelf() has no keyword 'dept'; did you mean depth?"),
        (lambda: Shelf(3, colour=2), "Shelf() has no keyword 'colour'; known are width, depth"),
        (Shelf, "Shelf(): missing a required argument: 'width'"),
        (lambda: Shelf(1, 2), "Shelf(): too many positional arguments"),
        (lambda: Shelf(0), "too narrow"),
        (lambda: Shelf(1).put(), "put(): missing a required argument: 'book'"),
    ],
)
def test_a_wrong_call_is_a_value_error_and_a_type_error_in_one_sentence(call, said):
    for kind in (ValueError, TypeError):
        with pytest.raises(kind) as caught:
            call()
        assert str(caught.value) == said


def test_another_error_is_left_alone():
    with pytest.raises(KeyError, match="of the user's"):
        Shelf(1).put("")


def test_a_part_of_one_name_is_that_name():
    said = str(unknown_name("Stage() has no keyword", "wait", ["max_batch_size", "max_wait_time"]))
    assert said == "Stage() has no keyword 'wait'; did you mean max_wait_time?"


def test_no_hook_is_set_where_tests_run():
    with pytest.raises(DeclarationError):
        Shelf(0)
    assert sys.excepthook is sys.__excepthook__
