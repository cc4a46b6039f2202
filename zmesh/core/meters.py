"""The metrics of user code, added up over all workers: counters and histograms for good, gauges while a worker is here.

A report of a worker has absolute values of its process. What they are above those of its last report is added to a
total, so a total goes on when a process ends, and counts nothing twice when one comes back in a new session. Reports
are numbered: one that is read after a later one says nothing new. The form is in docs/protocol.md §5.20.

What one worker may have is bounded by `zmesh.metrics`; here the bounds are those of all, and hold against any peer.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from math import inf
from operator import add, sub

from zmesh.catalogue import KINDS, VALUE_CHARACTERS_MAX, WORKER_SERIES_MAX, base_name, problem_of
from zmesh.messages import PeerId

__all__ = ["Meters"]

FAMILIES_MAX = 256
SERIES_MAX = 1024  # of all families and stages together
GONE_MAX = 1024  # processes that ended, or seemed to, whose last values are remembered
COMPLAINTS_MAX = 64

_Key = tuple[str, ...]  # the stage, for a gauge the worker, and the label values


@dataclass(slots=True)
class _Family:
    kind: str
    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]
    totals: dict[_Key, list[float]] = field(default_factory=dict)
    owners: dict[_Key, PeerId] = field(default_factory=dict)  # of gauges: whose it is

    def is_like(self, other: _Family) -> bool:
        return (self.kind, self.labels, self.buckets) == (other.kind, other.labels, other.buckets)

    @property
    def width(self) -> int:
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


@dataclass(slots=True)
class _Series:
    """One series of one process. `family` is None when it is not shown."""

    family: _Family | None
    key: _Key
    width: int
    values: list[float]  # of the last report


@dataclass(slots=True)
class _Book:
    """What one process has reported."""

    report: int = 0
    series: dict[int, _Series] = field(default_factory=dict)


class Meters:
    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}
        self._books: dict[PeerId, _Book] = {}
        self._gone: OrderedDict[PeerId, None] = OrderedDict()
        self._series = 0  # that are shown
        self._said: set[str] = set()
        self.complaints: list[str] = []  # to be said, and taken out by who says it

    def take(self, peer: PeerId, stage: str, worker: str, report: str, *, is_here: bool) -> str:
        """What a process says, whose worker has that name in `/metrics`; why that cannot be read, if it cannot.

        From one that is not here any more only what adds up is taken.
        """
        try:
            number, new, now, *_ = json.loads(report)
            book = self._books.setdefault(peer, _Book())
            if type(number) is not int:
                raise TypeError("reports are numbered")
            if number <= book.report:
                return ""
            for definition in new:
                self._define(book, stage, worker, *definition[:7])
            changes = [(book.series[one[0]], _numbers(one[1:])) for one in now]
            book.report = number
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            return f"metrics: not a report ({type(error).__name__})"
        if is_here:
            self._gone.pop(peer, None)
        else:
            self._remember(peer)
        for series, values in changes:
            if len(values) == series.width:
                self._change(series, values, peer, is_here=is_here)
        return ""

    def gone(self, peer: PeerId) -> None:
        """Its worker is not here any more: its gauges say nothing now, its counts stay."""
        if peer not in self._books:
            return
        for family in self._families.values():
            for key in [key for key, owner in family.owners.items() if owner == peer]:
                del family.owners[key], family.totals[key]
                self._series -= 1
        self._remember(peer)

    def snapshot(self) -> list[dict[str, object]]:
        """Families with their series, each as its stage, its labels (of a gauge the worker first) and its numbers."""
        return [
            {
                "name": family.name,
                "kind": family.kind,
                "help": family.help,
                "labels": family.labels,
                "buckets": family.buckets,
                "series": [[key[0], key[1:], values] for key, values in family.totals.items()],
            }
            for family in self._families.values()
        ]

    def _remember(self, peer: PeerId) -> None:
        """It may come back, or its last words may."""
        self._gone[peer] = None
        while len(self._gone) > GONE_MAX:
            del self._books[self._gone.popitem(last=False)[0]]

    def _define(
        self,
        book: _Book,
        stage: str,
        worker: str,
        number: int,
        kind: str,
        name: str,
        help: str,
        labels: list[str],
        given: list[str],
        buckets: list[float],
    ) -> None:
        """A series that this process will speak of by its number, from now on or again."""
        if number in book.series:
            return
        if len(book.series) >= WORKER_SERIES_MAX or kind not in KINDS or len(labels) != len(given):
            raise ValueError("too many series, or not one")
        if {str} != {type(text) for text in (name, help, *labels, *given)} or max(map(len, given), default=0) > (
            VALUE_CHARACTERS_MAX
        ):
            raise TypeError("texts must be short texts")
        "".join((help, *given)).encode()  # a ValueError for what UTF-8 cannot say, and so nobody could be shown
        family = _Family(kind, name, help, tuple(labels), tuple(_numbers(buckets)))
        key = (stage, worker, *given) if kind == "gauge" else (stage, *given)
        known = self._family(stage, family)
        if known is not None and kind != "gauge" and not self._has_room(known, key):
            known = None
        book.series[number] = _Series(known, key, family.width, [0.0] * family.width)

    def _family(self, stage: str, wanted: _Family) -> _Family | None:
        """The family of that name, if it is such a one."""
        if problem := problem_of(wanted.kind, wanted.name, wanted.help, wanted.labels, wanted.buckets):
            self._complain(f"the metric {wanted.name[:100]!r} of stage {stage} is not shown: it {problem}")
            return None
        name = base_name(wanted.name)
        known = self._families.get(name)
        if known is not None and not known.is_like(wanted):
            theirs, ours = (f"a {one.kind} with labels ({', '.join(one.labels)})" for one in (wanted, known))
            text = f"the metric {wanted.name} of stage {stage} is not shown: it is {theirs}"
            self._complain(f"{text}, and one of that name is {ours} or has other buckets; call one of them otherwise")
            return None
        if known is None and len(self._families) >= FAMILIES_MAX:
            self._complain(f"there are {FAMILIES_MAX} metrics of user code; those that come after them are not shown")
            return None
        return self._families.setdefault(name, wanted)

    def _has_room(self, family: _Family, key: _Key) -> bool:
        """Make its total, unless there is one."""
        if key not in family.totals:
            if self._series >= SERIES_MAX:
                self._complain(f"there are {SERIES_MAX} series of user metrics; {family.name} has more, not shown")
                return False
            family.totals[key] = [0.0] * family.width
            self._series += 1
        return True

    def _change(self, series: _Series, values: list[float], peer: PeerId, *, is_here: bool) -> None:
        family, key = series.family, series.key
        if family is None:
            return
        if family.kind != "gauge":
            total = family.totals[key]
            if min(map(sub, values[1:] or values, series.values[1:] or series.values)) < 0:
                return  # a count that falls is none
            total[:] = map(add, total, map(sub, values, series.values))
            series.values = values
        elif is_here and self._has_room(family, key):
            family.totals[key], family.owners[key] = values, peer

    def _complain(self, text: str) -> None:
        if text not in self._said and len(self._said) < COMPLAINTS_MAX:
            self._said.add(text)
            self.complaints.append(text)


def _numbers(values: list[float]) -> list[float]:
    """All of them, finite, as is then their sum: each is far from the largest there is, see `zmesh.metrics`."""
    if not {int, float}.issuperset(map(type, values)) or not -inf < sum(values) < inf:
        raise ValueError("what should be finite numbers is not")
    return list(map(float, values))
