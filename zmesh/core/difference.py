"""In what two apps differ, in one sentence for the person whose program was refused.

A fingerprint only tells that they differ. The *shape* is what it is made of, as JSON text (`Plan.shape`): the stages in
order, each with its codec for the next one, and the routes with their stages. The refused one sends its own in HELLO;
nothing in it is believed before it was looked at, and of what is shown nothing is long.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from zmesh.messages import TEXT_BYTES_MAX, Role

__all__ = ["difference", "shape_for_hello"]

NAMES_MAX = 8  # of one list
NAME_CHARS_MAX = 60
DIFFERENCES_MAX = 3
WHAT_TO_START = {Role.GATEWAY: "this gateway", Role.AGENT: "these workers", Role.WORKER: "this worker"}


class _Shape(NamedTuple):
    codecs: dict[str, str]  # by stage, in order
    routes: dict[str, list[str]]  # paths to names of stages


def shape_for_hello(shape: str) -> str:
    """`shape`, or nothing if a HELLO cannot carry it: then the difference is told without its parts."""
    return shape if len(shape.encode()) <= TEXT_BYTES_MAX else ""


def difference(head: str, yours: str, role: Role) -> str:
    """What to tell a peer in this role whose shape is `yours`, if the broker's is `head`."""
    here, there = _read(head), _read(yours)
    found = _differences(here, there) if here is not None and there is not None else []
    if len(found) > DIFFERENCES_MAX:
        found[DIFFERENCES_MAX:] = [f"and {len(found) - DIFFERENCES_MAX} more"]
    what = "; ".join(found) or "its stages, routes or codecs differ from yours"
    return (
        f"the head serves another app: {what}; start {WHAT_TO_START.get(role, 'this program')} with the same app file"
    )


def _read(shape: str) -> _Shape | None:
    """None when it is not a shape: a peer may send anything."""
    try:
        stages, routes = json.loads(shape)
        codecs = {_text(name): _text(codec) for name, codec in stages}
        return _Shape(codecs, {_text(path): [_text(name) for name in names] for path, names in routes})
    except (ValueError, TypeError, RecursionError):
        return None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is text")
    return value


def _differences(here: _Shape, there: _Shape) -> list[str]:
    return [*_stages(here, there), *_codecs(here, there), *_routes(here, there)]


def _stages(here: _Shape, there: _Shape) -> list[str]:
    ours, theirs = list(here.codecs), list(there.codecs)
    if ours == theirs:
        return []
    if len(ours) <= NAMES_MAX and len(theirs) <= NAMES_MAX:
        return [f"its stages are {_names(ours)}, yours {_names(theirs)}"]
    only_ours = [name for name in ours if name not in there.codecs]
    only_theirs = [name for name in theirs if name not in here.codecs]
    if not only_ours and not only_theirs:
        return ["its stages are yours in another order"]
    return [
        *([f"you do not have its stages {_names(only_ours)}"] if only_ours else []),
        *([f"it does not have your stages {_names(only_theirs)}"] if only_theirs else []),
    ]


def _codecs(here: _Shape, there: _Shape) -> list[str]:
    return [
        f"its stage {_name(stage)} writes for the next stage in {_name(codec)}, yours in {_name(there.codecs[stage])}"
        for stage, codec in here.codecs.items()
        if there.codecs.get(stage, codec) != codec
    ]


def _routes(here: _Shape, there: _Shape) -> list[str]:
    found = []
    for path, stages in here.routes.items():
        theirs = there.routes.get(path)
        if theirs is None:
            found.append(f"you do not have its route {_name(path)}")
        elif theirs != stages:
            found.append(f"its route {_name(path)} goes through {_way(stages)}, yours through {_way(theirs)}")
    found += [f"it does not have your route {_name(path)}" for path in there.routes if path not in here.routes]
    if not found and list(here.routes) != list(there.routes):
        found.append("its routes are yours in another order")
    return found


def _way(stages: list[str]) -> str:
    return _names(stages, " → ")


def _names(names: list[str], between: str = ", ") -> str:
    shown = [_name(name) for name in names[:NAMES_MAX]]
    if len(names) > NAMES_MAX:
        shown.append(f"{len(names) - NAMES_MAX} more")
    return between.join(shown) or "none"


def _name(name: str) -> str:
    """Printable and short."""
    clean = "".join(character if character.isprintable() else "?" for character in name[: NAME_CHARS_MAX + 1])
    return clean if len(name) <= NAME_CHARS_MAX else clean[:NAME_CHARS_MAX] + "…"
