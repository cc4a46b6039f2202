"""Which words of the core were used: every event heard, every effect asked for, every row of the tables taken.

The tables are watched by laying a counting dict over each of their rows. What they say stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, get_args

from zmesh.core import agency, contact, effects, events, tasks, workers

__all__ = ["IMPOSSIBLE", "everything", "missing", "watching"]

UNIONS: dict[str, Any] = {
    "the dispatcher hears": events.DispatcherEvent,
    "the dispatcher asks for": effects.DispatcherEffect,
    "a link hears": events.LinkEvent,
    "a link asks for": effects.LinkEffect,
    "a session hears": events.SessionEvent,
    "a session asks for": effects.SessionEffect,
    "an agent hears": agency.AgentEvent,
    "an agent asks for": agency.AgentEffect,
}
TABLES: dict[str, dict[Enum, dict[Enum, Enum]]] = {
    "a task": tasks.TASK_STEPS,  # type: ignore[dict-item]
    "presence": workers.PRESENCE_STEPS,  # type: ignore[dict-item]
    "contact": contact.STEPS,  # type: ignore[dict-item]
}

OTHERS = ["midway: a step is withheld from an idle worker"]

# What cannot happen, however bad the luck, and why.
IMPOSSIBLE = {
    "presence: EXITING EXIT": "a repeated EXITED is acknowledged and changes nothing: the first one decides",
}

# What agents are told to do to their workers, and what comes of it.
ORDERS = [
    "one took too long",
    "several took too long",
    "a worker is interrupted",
    "a worker is killed that takes too long",
    "a worker is killed that is stuck",
    "a group of suspects leaves",
]


def everything() -> list[str]:
    """All there is to be hit, in the order of the tables."""
    words = [f"{who} {kind.__name__}" for who, union in UNIONS.items() for kind in get_args(union)]
    rows = [
        f"{table}: {row.name} {column.name}"
        for table, content in TABLES.items()
        for row, columns in content.items()
        for column in columns
    ]
    return words + rows + OTHERS + ORDERS


def missing(hits: Counter[str]) -> list[str]:
    return [what for what in everything() if not hits[what] and what not in IMPOSSIBLE]


class _Row(dict[Enum, Enum]):
    """A row of a table that counts how often each of its cells was looked up."""

    def __init__(self, content: dict[Enum, Enum], names: dict[Enum, str], hits: Counter[str]) -> None:
        super().__init__(content)
        self._names, self._hits = names, hits

    def __getitem__(self, key: Enum) -> Enum:
        self._hits[self._names[key]] += 1
        return super().__getitem__(key)

    def get(self, key: Enum, default: Enum | None = None) -> Enum | None:  # type: ignore[override]
        if key in self._names:
            self._hits[self._names[key]] += 1
        return super().get(key, default)


@contextmanager
def watching(hits: Counter[str]) -> Iterator[None]:
    """Count every row of the tables that is taken meanwhile."""
    kept = [(table, row, columns) for table in TABLES.values() for row, columns in table.items()]
    for name, table in TABLES.items():
        for row, columns in list(table.items()):
            names = {column: f"{name}: {row.name} {column.name}" for column in columns}
            table[row] = _Row(columns, names, hits)
    try:
        yield
    finally:
        for table, row, columns in kept:
            table[row] = columns
