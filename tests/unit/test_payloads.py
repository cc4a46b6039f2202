"""Which payloads of a batch go into which store, in how many calls, and what if a store fails."""

import logging
from collections.abc import Sequence

import pytest

from zmesh.errors import PayloadLost, StoreAway
from zmesh.messages import Kind, Payload
from zmesh.payloads import Apart, Store, Stores

INLINE, REFERENCE, BOUND = int(Kind.INLINE), int(Kind.REFERENCE), int(Kind.HOST_BOUND)
FULL = StoreAway("it is full")


class Shelf:
    """A store that takes down each call; what is in `refuses` it does not take."""

    def __init__(self, kind: Kind = Kind.HOST_BOUND, least_bytes: int = 5, refuses: Sequence[bytes] = ()) -> None:
        self.kind, self.least_bytes, self.refuses = kind, least_bytes, refuses
        self.calls: list[tuple[str, list[bytes]]] = []
        self.seconds: list[float] = []

    def put(self, payloads: Sequence[Payload], seconds: Sequence[float]) -> list[bytes | Exception]:
        self.calls.append(("put", [bytes(payload) for payload in payloads]))
        self.seconds += seconds
        return [FULL if payload in self.refuses else b"@" + bytes(payload[:1]) for payload in payloads]

    def get(self, references: Sequence[bytes]) -> list[Payload | Exception]:
        self.calls.append(("get", list(references)))
        return [PayloadLost("gone") if one == b"@gone" else one[1:] * 9 for one in references]

    def release(self, references: Sequence[bytes]) -> None:
        self.calls.append(("release", list(references)))


def put(stores: Stores, *payloads: bytes, may_go: Sequence[int] | None = None, is_near: bool = True) -> Apart | None:
    chosen = range(len(payloads)) if may_go is None else may_go
    return stores.put(payloads, chosen, [10.0 + index for index in chosen], is_near=is_near)


def test_a_shelf_is_a_store():
    store: Store = Shelf()
    assert store.least_bytes == 5


def test_the_large_ones_go_in_one_call_and_say_what_they_stand_for():
    shelf = Shelf()
    apart = put(Stores([shelf]), b"small", b"aaaaaaa", b"x", b"bbbbbb", b"cccccc", may_go=[0, 1, 2, 4])
    assert shelf.calls == [("put", [b"small", b"aaaaaaa", b"cccccc"])] and shelf.seconds == [10.0, 11.0, 14.0]
    assert apart == Apart([b"@s", b"@a", b"x", b"bbbbbb", b"@c"], [2, 2, 0, 0, 2], [5, 7, 1, 6, 6], {})


@pytest.mark.parametrize("is_near", [True, False])
def test_what_only_this_host_can_open_stays_inline_unless_everybody_is_here(is_near: bool):
    shelf = Shelf()
    assert (put(Stores([shelf]), b"large one", is_near=is_near) is None) is not is_near
    assert len(shelf.calls) == is_near


@pytest.mark.parametrize(("is_near", "kind"), [(True, BOUND), (False, REFERENCE)])
def test_the_first_store_that_may_take_it_does(is_near: bool, kind: int):
    apart = put(Stores([Shelf(), Shelf(Kind.REFERENCE)]), b"large one", is_near=is_near)
    assert apart is not None and apart.kinds == [kind]


def test_where_nothing_is_large_nobody_is_asked():
    shelf = Shelf()
    assert put(Stores([shelf]), b"tiny", b"") is None and put(Stores(), b"large one") is None and not shelf.calls


def test_the_least_that_goes_anywhere_is_known():
    assert Stores().least_bytes is None and Stores([], [Shelf()]).least_bytes is None
    assert Stores([Shelf(least_bytes=9), Shelf(least_bytes=7)]).least_bytes == 7


def test_what_a_store_does_not_take_stays_inline_and_is_said_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "zmesh.worker")
    shelf = Shelf(refuses=[b"refused"])
    stores = Stores([shelf])
    for _ in range(2):
        assert put(stores, b"refused", b"accepted") == Apart([b"refused", b"@a"], [0, 2], [7, 8], {0: FULL})
    assert put(stores, b"accepted") is not None
    assert put(stores, b"refused") is not None
    assert [record.getMessage() for record in caplog.records] == [
        "it is full: until that is mended, large results go through the broker",
        "large results go past the broker again",
        "it is full: until that is mended, large results go through the broker",
    ]


def test_references_are_got_in_one_call_of_each_kind():
    near, far = Shelf(), Shelf(Kind.REFERENCE)
    stores = Stores([near], [far])
    kinds, payloads = [BOUND, INLINE, REFERENCE, BOUND, BOUND], [b"@a", b"inline", b"@b", b"@gone", b"@not wanted"]
    found = stores.fetch(kinds, payloads, [0, 1, 2, 3])
    assert found[:3] == [b"a" * 9, b"inline", b"b" * 9] and isinstance(found[3], PayloadLost)
    assert near.calls == [("get", [b"@a", b"@gone"])] and far.calls == [("get", [b"@b"])]


def test_a_kind_that_this_worker_has_no_store_for_is_an_error_of_its_rows():
    found = Stores([Shelf()]).fetch([REFERENCE, BOUND], [b"@a", b"@b"], [0, 1])
    assert isinstance(found[0], StoreAway) and found[1] == b"b" * 9


def test_what_is_released_goes_to_the_store_of_its_kind():
    near, far = Shelf(), Shelf(Kind.REFERENCE)
    Stores([near], [far]).release([BOUND, REFERENCE, BOUND, 7], [b"a", b"b", b"c", b"d"])
    assert (near.calls, far.calls) == ([("release", [b"a", b"c"])], [("release", [b"b"])])
