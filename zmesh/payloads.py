"""Payloads that go past the broker: what a `Store` of them is, and which payloads of a batch go into which.

A large result is put into a store, shared memory or Redis, and a small *reference* to it travels in its place; a worker
of the next stage gets it from there. A batch costs one call of a store on either side. Three rules:

* A reference is released when the broker has acknowledged the results of whoever it was for, never when it is read: so
  a worker that is given the task after a death finds it. What nobody releases ends by its time to live.
* What only this host can open is put there only if TASKS said that everybody who may be given it can open it.
* A store that takes nothing costs no request that a message can carry: then it goes through the broker.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from zmesh.errors import StoreAway
from zmesh.messages import Kind, Payload

__all__ = ["LINGER_SECONDS", "Apart", "Store", "Stores"]

LINGER_SECONDS = 30.0  # that a reference outlives the deadline of its task
INLINE = int(Kind.INLINE)

log = logging.getLogger("zmesh.worker")


class Store(Protocol):
    """Where payloads wait for the next stage. It belongs to one thread of one worker, and never raises for a batch."""

    kind: Kind
    least_bytes: int
    """A payload below this stays inline."""

    def put(self, payloads: Sequence[Payload], seconds: Sequence[float]) -> list[bytes | Exception]:
        """A reference to each, or why it could not be stored; `seconds` is how long each has to be there."""

    def get(self, references: Sequence[bytes]) -> list[Payload | Exception]:
        """What each stands for; `PayloadLost` for one that is gone, another error for one that cannot be asked for."""

    def release(self, references: Sequence[bytes]) -> None:
        """Nobody needs these any more. Harmless for one that is gone."""


class Apart(NamedTuple):
    """The payloads of a batch after some of them went into a store, column by column.

    `sizes` are the bytes that each stands for; `failures` are those, by index, that should have gone and stayed inline.
    """

    payloads: list[Payload]
    kinds: list[int]
    sizes: list[int]
    failures: dict[int, Exception]


class Stores:
    """Those of one worker. What it hands on goes into the first of `putting` that it may go into, and what comes as a
    reference is got from the store of its kind, of either list."""

    def __init__(self, putting: Sequence[Store] = (), getting: Sequence[Store] = ()) -> None:
        self._putting = tuple(putting)
        self._by_kind = {int(store.kind): store for store in (*getting, *putting)}
        self._is_failing = False
        self.least_bytes = min((store.least_bytes for store in putting), default=None)
        """The smallest payload that may go into any of them; None when nothing ever does."""

    def put(
        self, payloads: Sequence[Payload], may_go: Sequence[int], seconds: Sequence[float], *, is_near: bool
    ) -> Apart | None:
        """Put the large ones among `payloads` where they belong. Of those only that `may_go`, by index, for so many
        seconds each; with `is_near` also where only this host finds them. None when all of them stay as they are."""
        for store in self._putting:
            if store.kind is Kind.HOST_BOUND and not is_near:
                continue
            pairs = zip(may_go, seconds, strict=True)
            chosen = [(index, left) for index, left in pairs if len(payloads[index]) >= store.least_bytes]
            if chosen:
                return self._put_into(store, payloads, chosen)
        return None

    def _put_into(self, store: Store, payloads: Sequence[Payload], chosen: list[tuple[int, float]]) -> Apart:
        put = store.put([payloads[index] for index, _ in chosen], [left for _, left in chosen])
        apart = Apart(list(payloads), [INLINE] * len(payloads), list(map(len, payloads)), {})
        for (index, _), reference in zip(chosen, put, strict=True):
            if isinstance(reference, Exception):
                apart.failures[index] = reference
            else:
                apart.payloads[index], apart.kinds[index] = reference, int(store.kind)
        self._note(next(iter(apart.failures.values()), None))
        return apart

    def _note(self, failure: Exception | None) -> None:
        """Once when it begins, and once when it is over."""
        if failure is not None and not self._is_failing:
            log.warning("%s: until that is mended, large results go through the broker", failure)
        elif failure is None and self._is_failing:
            log.info("large results go past the broker again")
        self._is_failing = failure is not None

    def fetch(
        self, kinds: Sequence[int], payloads: Sequence[Payload], rows: Sequence[int]
    ) -> list[Payload | Exception]:
        """`payloads`, in which each reference of `rows` is what it stands for, or why that cannot be had."""
        found: list[Payload | Exception] = list(payloads)
        for kind in sorted({kinds[row] for row in rows} - {INLINE}):
            its = [row for row in rows if kinds[row] == kind]
            store = self._by_kind.get(kind)
            if store is None:
                got: list[Payload | Exception] = [StoreAway("this worker cannot read where the stage before left it")]
                got *= len(its)
            else:
                got = store.get([bytes(payloads[row]) for row in its])
            for row, payload in zip(its, got, strict=True):
                found[row] = payload
        return found

    def release(self, kinds: Sequence[int], references: Sequence[bytes]) -> None:
        """What these stood for was used, and the broker knows."""
        for kind, store in self._by_kind.items():
            if its := [reference for reference, of_kind in zip(references, kinds, strict=True) if of_kind == kind]:
                store.release(its)
