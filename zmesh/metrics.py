"""A worker's own metrics: `self.metrics.counter(…)`, `.gauge(…)` and `.histogram(…)`.

They count in plain numbers, in a mesh and in a test without one. In a mesh what has changed goes to the broker with
the next RESULTS, or with the CREDIT that an idle worker repeats; nothing is sent for them alone. The broker adds up
counters and histograms over all workers, and `/metrics` shows them beside zmesh's own.

A *report* holds what has changed since the last one, as absolute values of this process. The first report in a session
holds everything, so that none that was lost with a connection is missed, and reports are numbered, so that none counts
that comes too late. docs/protocol.md §5.20 has the form.

There is a bound on everything that user code could let grow without end: what is over it still counts for whoever has
it in hand, but is not shown, and the log says so once.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_left
from collections.abc import Sequence
from threading import RLock
from typing import ClassVar, Self, TypeVar

from zmesh.catalogue import VALUE_CHARACTERS_MAX, WORKER_SERIES_MAX, base_name, problem_of
from zmesh.errors import DeclarationError

__all__ = ["BUCKETS", "Counter", "Gauge", "Histogram", "Metrics", "metrics_of"]

BUCKETS = tuple(0.001 * 2**power for power in range(17))  # 1 ms to 65.5 s, as zmesh's own durations
FAMILIES_MAX = 64  # of one worker
REPORT_CHARACTERS_MAX = 40 * 1024  # what is left over goes with the next one
COMPLAINTS_MAX = 64
LARGEST = 1e250  # of one value: above it, sums may not stay finite
LABELLED = -1  # the number of what stands for a family with labels and has no value itself

S = TypeVar("S", bound="_Series")

log = logging.getLogger("zmesh.worker")
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class _Series:
    """One set of label values of a family. `number` is 0 when it is not shown."""

    __slots__ = ("_book", "_family", "_labels", "_values", "number")
    kind: ClassVar[str] = ""

    def __init__(self, book: Metrics, family: _Family, labels: tuple[str, ...], number: int) -> None:
        self._book, self._family, self._labels, self.number = book, family, labels, number
        self._values = [0.0] * self.width(family.buckets)

    @staticmethod
    def width(buckets: Sequence[float]) -> int:
        """How many numbers it has."""
        return 1

    def labels(self, *values: object, **named: object) -> Self:
        """The one with these values, in the order of the labels or by their names. Keep it where it is used often."""
        found = self._family.with_labels(values, named)
        assert isinstance(found, type(self)), "a family has one kind"
        return found

    def mark(self) -> None:
        """It is going to change; the lock is held."""
        if self.number > 0:
            self._book.changed[self.number] = self
        elif self.number == LABELLED:
            raise self._family.wrong("none: write .labels(…) first")

    def copy(self) -> list[float]:
        return self._values.copy()

    def definition(self) -> list[object]:
        """As in a report."""
        family = self._family
        return [self.number, family.kind, family.name, family.help, family.labels, self._labels, family.buckets]


class Counter(_Series):
    """Only goes up."""

    __slots__ = ()
    kind = "counter"

    def inc(self, amount: float = 1.0) -> None:
        amount = float(amount)
        if not 0 <= amount < LARGEST:
            raise ValueError(f"the counter {self._family.name} only goes up, not by {amount}")
        with self._book.lock:
            self.mark()
            self._values[0] += amount

    @property
    def value(self) -> float:
        return self._values[0]


class Gauge(_Series):
    """A number of this worker that goes up and down. What is not finite is passed over, and the log says so once."""

    __slots__ = ()
    kind = "gauge"

    def set(self, value: float) -> None:
        with self._book.lock:
            self._set(float(value))

    def inc(self, amount: float = 1.0) -> None:
        with self._book.lock:
            self._set(self._values[0] + float(amount))

    def dec(self, amount: float = 1.0) -> None:
        self.inc(-amount)

    def _set(self, value: float) -> None:
        self.mark()
        if -LARGEST < value < LARGEST:
            self._values[0] = value
        else:
            self._book.complain(
                f"the gauge {self._family.name} was set to what is no finite number; it keeps its value"
            )

    @property
    def value(self) -> float:
        return self._values[0]


class Histogram(_Series):
    """How often a value was at most so large, and the sum of all. What is not finite is passed over, said once."""

    __slots__ = ()
    kind = "histogram"

    @staticmethod
    def width(buckets: Sequence[float]) -> int:
        return len(buckets) + 2  # the sum first, and what is above all bounds last

    def observe(self, value: float) -> None:
        value = float(value)
        with self._book.lock:
            self.mark()
            if -LARGEST < value < LARGEST:
                self._values[1 + bisect_left(self._family.buckets, value)] += 1
                self._values[0] += value
            else:
                self._book.complain(f"the histogram {self._family.name} was told what is no finite number")

    @property
    def sum(self) -> float:
        return self._values[0]

    @property
    def count(self) -> int:
        return int(sum(self._values[1:]))


class _Family:
    """A name, and a series for each set of label values that was used."""

    def __init__(
        self,
        book: Metrics,
        make: type[_Series],
        name: str,
        help: str,
        labels: tuple[str, ...],
        buckets: tuple[float, ...],
    ) -> None:
        self.kind, self.name, self.help, self.labels, self.buckets = make.kind, name, help, labels, buckets
        self.is_shown = True
        self._book, self._make = book, make
        self._series: dict[tuple[str, ...], _Series] = {}
        self._loose: _Series | None = None  # one for all that are not shown

    def face(self) -> _Series:
        """What user code gets: the only series, or what stands for all of them."""
        return self._make(self._book, self, (), LABELLED) if self.labels else self.with_labels((), {})

    def with_labels(self, values: tuple[object, ...], named: dict[str, object]) -> _Series:
        if named:
            if values or named.keys() != set(self.labels):
                raise self.wrong(", ".join([*map(repr, values), *named]))
            values = tuple([named[label] for label in self.labels])
        key = tuple(map(str, values))
        found = self._series.get(key)
        return found if found is not None else self._add(key)

    def _add(self, key: tuple[str, ...]) -> _Series:
        if len(key) != len(self.labels):
            raise self.wrong(", ".join(map(repr, key)) or "none")
        key = tuple([value.encode(errors="replace").decode() for value in key])  # JSON knows text that UTF-8 does not
        book = self._book
        with book.lock:
            is_long = max(map(len, key), default=0) > VALUE_CHARACTERS_MAX
            if self.is_shown and not is_long and len(book.series) < WORKER_SERIES_MAX:
                made = self._series.get(key)
                if made is None:  # no other thread was here first
                    made = self._series[key] = self._make(book, self, key, len(book.series) + 1)
                    book.series.append(made)
                    made.mark()  # it is shown before it has counted anything
                return made
            if self.is_shown:
                why = (
                    f"is longer than {VALUE_CHARACTERS_MAX} characters"
                    if is_long
                    else f"comes after {WORKER_SERIES_MAX} others"
                )
                book.complain(f"a set of label values of the metric {self.name} {why}, and is not shown")
            if self._loose is None:
                self._loose = self._make(book, self, (), 0)
            return self._loose

    def wrong(self, given: str) -> DeclarationError:
        wanted = f"the labels {', '.join(self.labels)}" if self.labels else "no labels"
        return DeclarationError(f"the metric {self.name} has {wanted}, and was given {given}")


class Metrics:
    """All of one worker. Asking again for a name gives the same metric, so it may be asked for where it is used."""

    def __init__(self) -> None:
        self.lock = RLock()  # a handler of logs may count, too
        self.series: list[_Series] = []  # number n is at n - 1
        self.changed: dict[int, _Series] = {}  # since the last report, in the order in which they did
        self._families: dict[str, tuple[_Family, _Series]] = {}
        self._session = self._reports = 0
        self._told: set[int] = set()  # numbers that were defined in this session
        self._complaints: set[str] = set()

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        """Shown as `NAMESPACE_name_total`, with or without `_total` here, summed over all workers of the stage."""
        return self._metric(Counter, name, help, labels)

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Gauge:
        """Shown as `NAMESPACE_name` for each worker, with its number as the label `connection`, while it lives."""
        return self._metric(Gauge, name, help, labels)

    def histogram(
        self, name: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] = BUCKETS
    ) -> Histogram:
        """Shown as `NAMESPACE_name`, summed over all workers of the stage. `buckets` are upper bounds, rising."""
        return self._metric(Histogram, name, help, labels, tuple(map(float, buckets)))

    def _metric(self, make: type[S], name: str, help: str, labels: Sequence[str], buckets: tuple[float, ...] = ()) -> S:
        name, help = str(name), str(help)
        labels = (labels,) if isinstance(labels, str) else tuple(map(str, labels))
        with self.lock:
            known = self._families.get(base_name(name))
            if known is None:
                known = self._declare(make, name, help, labels, buckets)
            family, face = known
            if not isinstance(face, make) or (family.labels, family.buckets) != (labels, buckets):
                words = f"a {make.kind} with {_labels(labels)}"
                raise DeclarationError(f"the metric {name} cannot be {words}: it is {_words(family)} already")
            return face

    def _declare(
        self, make: type[_Series], name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> tuple[_Family, _Series]:
        if problem := problem_of(make.kind, name, help, labels, buckets):
            raise DeclarationError(f"the metric {name[:200]} {problem}")
        family = _Family(self, make, name, help, labels, buckets)
        if len(self._families) >= FAMILIES_MAX:
            self.complain(f"a worker may have {FAMILIES_MAX} metrics; what comes after them is not shown")
            family.is_shown = False
            return family, family.face()
        self._families[base_name(name)] = family, family.face()
        return self._families[base_name(name)]

    def complain(self, text: str) -> None:
        """Once."""
        if text not in self._complaints and len(self._complaints) < COMPLAINTS_MAX:
            self._complaints.add(text)
            log.warning("%s", text)

    def report(self, session: int) -> str:
        """What has changed since the last report, all of it if that was in another session; empty when nothing has."""
        if not self.changed and session == self._session:
            return ""
        with self.lock:
            if session != self._session:
                self._session = session
                self._told.clear()
                self.changed = {series.number: series for series in self.series}
            new, now, size = list[str](), list[str](), 0
            while self.changed and size < REPORT_CHARACTERS_MAX:
                number = next(iter(self.changed))
                series = self.changed.pop(number)
                if number not in self._told:
                    self._told.add(number)
                    new.append(_json(series.definition()))
                    size += len(new[-1])
                now.append(_json([number, *series.copy()]))
                size += len(now[-1])
            if not now:
                return ""
            self._reports += 1
            return f"[{self._reports},[{','.join(new)}],[{','.join(now)}]]"


def metrics_of(worker: object) -> Metrics:
    """What a worker has counted and will count; nothing if its class uses the name `metrics` for something else."""
    try:
        found = getattr(worker, "metrics", None)
    except Exception:  # theirs, and their business
        found = None
    return found if isinstance(found, Metrics) else Metrics()


def _labels(labels: Sequence[str]) -> str:
    return f"labels {', '.join(labels)}" if labels else "no labels"


def _words(family: _Family) -> str:
    buckets = f" and buckets {', '.join(map('{:g}'.format, family.buckets))}" if family.buckets else ""
    return f"a {family.kind} with {_labels(family.labels)}{buckets}"
