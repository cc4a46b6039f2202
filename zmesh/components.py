"""The named schemas of the OpenAPI document: whoever brings one, its references lead to it and to no other of its name.

Two routes may each have a class `Box`, with nothing in common. A name stands for one schema together with all it refers
to; the second `Box` becomes `Box_2`, and so does whatever else would have meant the first one.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["PREFIX", "Components", "closed"]

Json = dict[str, Any]

PREFIX = "#/components/schemas/"

NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]")  # of OpenAPI; a hook of a user may write what it likes


class Components:
    """`schemas` is that part of the document, in the order in which they came."""

    def __init__(self) -> None:
        self.schemas: dict[str, Json] = {}
        self._names: dict[tuple[str, str], str] = {}

    def add(self, schema: Json, components: Mapping[str, Json]) -> Json:
        """The schema with references into this document. Raises ValueError for one that leads nowhere."""
        reached = closed(schema, components)
        names = {name: self._name(name, part, closed(part, components)) for name, part in reached.items()}
        for name, part in reached.items():
            self.schemas.setdefault(names[name], _renamed(part, names))
        renamed: Json = _renamed(schema, names)
        return renamed

    def _name(self, name: str, part: Json, reached: Mapping[str, Json]) -> str:
        """The name of what stands there already with the same meaning, or else a free one."""
        meaning = (name, json.dumps([part, reached], sort_keys=True))
        if meaning not in self._names:
            base = NOT_IN_A_NAME.sub("_", name)
            taken = set(self._names.values())
            numbered = (f"{base}_{number}" for number in itertools.count(2))
            self._names[meaning] = next(free for free in itertools.chain([base], numbered) if free not in taken)
        return self._names[meaning]


def closed(schema: Any, components: Mapping[str, Json]) -> dict[str, Json]:
    """The components that a schema refers to, and those that these refer to. Raises ValueError for one that is not
    there."""
    found: dict[str, Json] = {}
    waiting = [schema]
    while waiting:
        for reference in _references(waiting.pop()):
            if not reference.startswith("#"):
                continue  # another document's
            name = reference.removeprefix(PREFIX)
            if not reference.startswith(PREFIX) or name not in components:
                raise ValueError(f"it refers to {reference}, which is not among its components")
            if name not in found:
                found[name] = components[name]
                waiting.append(components[name])
    return found


def _references(schema: Any) -> Iterator[str]:
    """Those of `$ref`, and of the `mapping` of a discriminator."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        yield from _mapping(schema).values()
    for part in _parts(schema):
        yield from _references(part)


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """A copy that refers to components by their new names."""
    if isinstance(schema, list):
        return [_renamed(part, names) for part in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: _renamed(part, names) for key, part in schema.items()}
    if isinstance(schema.get("$ref"), str):
        copy["$ref"] = _led_to(schema["$ref"], names)
    if mapping := _mapping(schema):
        copy["discriminator"]["mapping"] = {key: _led_to(reference, names) for key, reference in mapping.items()}
    return copy


def _led_to(reference: str, names: Mapping[str, str]) -> str:
    name = reference.removeprefix(PREFIX)
    return PREFIX + names[name] if reference.startswith(PREFIX) else reference


def _mapping(schema: Json) -> dict[str, str]:
    discriminator = schema.get("discriminator")
    mapping = discriminator.get("mapping") if isinstance(discriminator, dict) else None
    return mapping if isinstance(mapping, dict) and all(isinstance(to, str) for to in mapping.values()) else {}


def _parts(schema: Any) -> Iterator[Any]:
    if isinstance(schema, dict):
        yield from schema.values()
    elif isinstance(schema, list):
        yield from schema
