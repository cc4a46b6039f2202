"""What the classes of a route say of its bodies: JSON Schemas from their annotations, media types, examples.

Made in a gateway, of the classes of the first and the last stage; workers do without. A class that overrides
`get_forward_json_schema` has the word. Of all others the annotation of `forward` counts where it says what the body is:
msgspec or pydantic make the schema, whichever understands the type, and are imported when there is one to make.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import operator
import sys
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from zmesh.annotations import item_type
from zmesh.components import PREFIX, closed
from zmesh.tracebacks import one_line
from zmesh.worker import MOSEC_REF_TEMPLATE, ParseTarget, Worker

__all__ = ["Body", "RouteSchema", "request_of", "response_of"]

Json = dict[str, Any]
Made = tuple[Json, Mapping[str, Json]]

EXAMPLES = 8  # of one body; more than a reader looks at
EXAMPLE_CHARACTERS = 10_000  # of one example; whoever opens the page reads them all

log = logging.getLogger("zmesh.openapi")


class Body(NamedTuple):
    """What is known of one body: its JSON Schema (None: nothing) with the components that it refers to, its media type
    (empty: what the plan says), and examples."""

    schema: Json | None = None
    components: Mapping[str, Json] = MappingProxyType({})
    media_type: str = ""
    examples: tuple[Any, ...] = ()


class RouteSchema(NamedTuple):
    """Of one route."""

    request: Body = Body()
    response: Body = Body()


def request_of(path: str, worker: type[Worker], *, in_batch: bool) -> Body:
    """The body that the first stage of the route reads. What has no schema is logged, and left out."""
    reads_json = worker.deserialize is Worker.deserialize
    media_type = "application/json" if reads_json else worker.resp_mime_type
    if media_type == "text/event-stream":
        media_type = "application/octet-stream"  # that is what it answers; how it reads a body is its own affair
    schema, components = _schema_or_none(path, worker, ParseTarget.INPUT, media_type, in_batch)
    examples = _examples(worker, in_batch) if reads_json or (schema and "json" in media_type) else ()
    return Body(schema, components, media_type, examples)


def response_of(path: str, worker: type[Worker], *, in_batch: bool) -> Body:
    """The body of a 200 that the last stage of the route writes. What has no schema is logged, and left out."""
    return Body(*_schema_or_none(path, worker, ParseTarget.RETURN, worker.resp_mime_type, in_batch))


def _schema_or_none(
    path: str, worker: type[Worker], target: ParseTarget, media_type: str, in_batch: bool
) -> tuple[Json | None, Mapping[str, Json]]:
    try:
        schema, components = _schema(worker, target, media_type, in_batch)
        schema, components = _writable(schema), _writable(components)
        closed(schema, components)
    except Exception as error:  # of the user's annotations, or of a hook of his: no reason not to serve
        side = "request" if target is ParseTarget.INPUT else "result"
        said = f"forward of {worker.__name__}: {one_line(error)}"
        log.warning("route %s has no schema of its %s in /openapi, because of %s", path, side, said)
        return None, {}
    return schema or None, components


def _schema(worker: type[Worker], target: ParseTarget, media_type: str, in_batch: bool) -> Made:
    """Empty if nothing is said. Raises whatever comes of annotations that cannot be described."""
    hook = worker.get_forward_json_schema
    if not hook.__module__.startswith("zmesh."):  # that of a mixin of ours says the same, and knows of no batches
        return hook(target, MOSEC_REF_TEMPLATE)
    if "json" not in media_type and "msgpack" not in media_type:
        return {}, {}
    kind = _without_errors(item_type(worker.forward, target, in_batch=in_batch))
    codec = worker.deserialize if target is ParseTarget.INPUT else worker.serialize
    is_ours = codec.__module__.startswith("zmesh.")
    if kind is Any or not (is_ours or any(_is_model(part) for part in _parts(kind))):
        return {}, {}  # what a codec of the user's gives to forward, or takes from it, need not be the body
    return _made(kind, target)


# ── annotations ───────────────────────────────────────────────────────────────────────────────────────────────────


def _parts(kind: Any) -> Iterator[Any]:
    """An annotation, and the types that it is composed of."""
    yield kind
    for part in typing.get_args(kind):
        yield from _parts(part)


def _is_pydantic(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "__pydantic_core_schema__")


def _is_model(kind: Any) -> bool:
    """A class that says what it looks like from outside, so that a codec of the user's will have used it."""
    return _is_pydantic(kind) or (isinstance(kind, type) and hasattr(kind, "__struct_fields__"))


def _without_errors(kind: Any) -> Any:
    """A result may be an exception instead, which is another answer."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    left = [part for part in typing.get_args(kind) if not (isinstance(part, type) and issubclass(part, Exception))]
    return functools.reduce(operator.or_, left) if left else Any


def _made(kind: Any, target: ParseTarget) -> Made:
    ways = [_by_msgspec, _by_pydantic]
    if any(_is_pydantic(part) for part in _parts(kind)):
        ways.reverse()
    reasons: list[Exception] = []
    for way in ways:
        try:
            return way(kind, target)
        except ImportError:  # msgspec is an extra
            continue
        except Exception as error:
            reasons.append(error)
    raise reasons[0]


def _by_msgspec(kind: Any, target: ParseTarget) -> Made:
    import msgspec

    try:
        (schema,), components = msgspec.json.schema_components([kind], ref_template=MOSEC_REF_TEMPLATE)
    except TypeError as error:
        raise TypeError(str(error).splitlines()[-1]) from error  # after what could be done in a call that is ours
    return schema, components


def _by_pydantic(kind: Any, target: ParseTarget) -> Made:
    import pydantic

    mode: typing.Literal["validation", "serialization"]
    mode = "validation" if target is ParseTarget.INPUT else "serialization"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a default that JSON cannot say; then it is left out
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind)
        schemas, definitions = pydantic.TypeAdapter.json_schemas(
            [("body", mode, adapter)], ref_template=f"{PREFIX}{{model}}"
        )
    return schemas["body", mode], definitions.get("$defs", {})


def _writable(value: Any) -> Any:
    """A copy that is JSON: without a `default` of infinity or NaN. Raises TypeError or ValueError for what is none."""
    return json.loads(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: part for key, part in value.items() if key != "default" or not _is_not_finite(part)}
        return {key: _finite(part) for key, part in kept.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


# ── examples ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _examples(worker: type[Worker], in_batch: bool) -> tuple[Any, ...]:
    """The examples of the class that are JSON; of a batch its items, each one once."""
    said: object = worker.multi_examples  # which may be a property of its objects
    several = list(said) if isinstance(said, Sequence) else []
    whole = several or ([] if worker.example is None else [worker.example])
    items = [item for one in whole for item in (one if in_batch and isinstance(one, list) else [one])]
    found: dict[str, None] = {}
    for item in items:
        try:
            written = json.dumps(item, default=_as_json, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            continue
        if len(written) <= EXAMPLE_CHARACTERS and len(found) < EXAMPLES:
            found[written] = None
    return tuple(json.loads(written) for written in found)


def _as_json(value: Any) -> Any:
    """An object of a class that forward takes, as a client would send it."""
    if isinstance(value, Mapping):
        return dict(value)
    if _is_pydantic(type(value)) and hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if "msgspec" in sys.modules and not isinstance(value, bytes | bytearray | memoryview):
        return sys.modules["msgspec"].to_builtins(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
