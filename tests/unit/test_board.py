"""The page that several gateways share: rows that do not touch each other, and counts that outlive a gateway."""

import os

import pytest

from zmesh.board import DURATION_BOUNDS, Board


def second_view(board: Board, gateways: int, routes: int, mine: int) -> Board:
    """As another process has it."""
    return Board.open(os.dup(board.fd), gateways, routes, mine)


def test_what_one_writes_all_read_in_its_row_alone():
    board = Board.make(3, 2)
    other = second_view(board, 3, 2, 1)
    other.mine.enter(77)
    other.mine.requests, other.mine.connections = 5, 6
    assert board.summary() == [{"number": 2, "pid": 77, "requests": 5, "connections": 6}]
    assert board.others() == [6] and other.others() == [], "who is not there has no connections"
    board.mine.enter(78)
    assert other.others() == [0]
    for one in (board, other):
        one.close()


@pytest.mark.parametrize("route", [0, 1])
def test_every_status_of_every_route_has_a_place_of_its_own(route: int):
    board = Board.make(2, 2)
    for row in board.rows:  # any other place would be seen in the counts of somebody else
        for code in (200, *range(400, 600)):
            for _ in range(code % 3):
                row.answered(route, code)
    for row in board.rows:
        assert dict(row.answers(route)) == {code: code % 3 for code in (200, *range(400, 600)) if code % 3}
        assert list(row.answers(1 - route)) == []
        assert (row.pid, row.requests, row.connections, row.seconds) == (0, 0, 0, 0.0)
        assert row.durations() == [0] * (len(DURATION_BOUNDS) + 1)
    board.close()


def test_lags_of_the_loop_are_counted_apart_from_durations():
    board = Board.make(2, 1)
    row = board.rows[0]
    row.lagged(0, 0.25)
    row.lagged(len(DURATION_BOUNDS), 100.5)
    assert row.lags() == [1] + [0] * (len(DURATION_BOUNDS) - 1) + [1]
    assert (row.lag_seconds, row.seconds) == (100.75, 0.0)
    assert sum(row.durations()) == 0 and list(row.answers(0)) == [] and sum(board.rows[1].lags()) == 0
    board.close()


def test_durations_are_counted_by_bucket_and_added_up():
    board = Board.make(2, 1)
    row = board.rows[1]
    row.took(0, 0.25)
    row.took(len(DURATION_BOUNDS), 100.5)
    assert row.durations() == [1] + [0] * (len(DURATION_BOUNDS) - 1) + [1]
    assert row.seconds == 100.75
    assert list(row.answers(0)) == [] and sum(board.rows[0].durations()) == 0
    board.close()


def test_who_leaves_takes_along_what_was_open_and_leaves_what_was_counted():
    board = Board.make(2, 1)
    row = board.mine
    row.enter(7)
    row.requests, row.connections = 3, 4
    row.answered(0, 200)
    row.took(2, 0.5)
    row.leave()
    assert (row.pid, row.requests, row.connections) == (0, 0, 0) and board.summary() == []
    assert (dict(row.answers(0)), row.durations()[2], row.seconds) == ({200: 1}, 1, 0.5)
    board.close()


def test_a_closed_board_gives_its_descriptor_back():
    board = Board.make(2, 1)
    board.close()
    with pytest.raises(OSError):
        os.fstat(board.fd)
