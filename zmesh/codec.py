"""Payloads between stages: `dumps` a value in one worker, `loads` the same value in the next.

What goes in comes out, types included: None, bool, int of any size, float, complex, str, bytes, bytearray, list, tuple,
dict (any hashable key, in order), set, frozenset, datetime, date, time, timedelta, Decimal, UUID, numpy arrays and
scalars of `_DTYPE`, CPU torch tensors of `_TORCH_DTYPE`, and dataclasses given to `register`. Types are exact: a
subclass (OrderedDict, namedtuple, IntEnum, memmap) is refused rather than sent as something else. Never pickle: bytes
from the wire can make these values and nothing else, so `loads` of any bytes at all is a value or a `DecodingError`.

Two layouts. A *plain* payload (None, bool, int of 64 bits, float, str, bytes, list, dict of those) is msgpack and
nothing else, packed and unpacked by C in one call. Any other begins with 0xC1, a byte that msgpack never uses:

    0xC1 | version 1 | 6 zero bytes | body length, u64 | body | buffer | buffer …      buffers start at multiples of 16

The body is msgpack in which `[mark, field, …]` stands for a value msgpack does not know; a mark is an empty extension
whose code is the `_Tag`. Memory of arrays, tensors and bytearrays lies in the buffers, used in the order of the body,
each once. So no size in the bytes can make us allocate more than came in.

Copies of a large array: one into the payload (straight from its memory, if that is contiguous) and one out of it, into
memory of its own. The copy out is kept on purpose: users write into their arrays, `bytes` must not be written to, and
memory received from ZeroMQ, though it looks writable, may be shared with the sender or a retry. What is avoided are
msgpack's growing buffer and its `bytes` per array; given the memoryview of a received frame, `loads` adds none.

Not kept: identity (a list sent twice is two lists), strides other than C and Fortran order, tzinfo classes other than
timezone and ZoneInfo (the UTC offset is kept), attributes of a dataclass that are not fields.
"""

from __future__ import annotations

import dataclasses
import enum
import gc
import importlib
import math
import re
import struct
import sys
import uuid
import zoneinfo
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgpack

from zmesh.errors import DecodingError, EncodingError

__all__ = ["DEPTH_MAX", "dumps", "loads", "register"]

DEPTH_MAX = 128  # levels of containers; a value that contains itself ends here too

_MAGIC, _VERSION, _ALIGNMENT = 0xC1, 1, 16
_HEADER = struct.Struct("!BB6xQ")
_DIMENSIONS_MAX = 64  # numpy's own limit; it also bounds the product of a stranger's shape

_LEAVES = frozenset({type(None), bool, int, float, str, bytes})
_PLAIN = _LEAVES | {list, dict}
_DTYPE = re.compile(r"[<>|](?:b1|[iu][1248]|f[248]|c8|c16|[US][1-9][0-9]{0,9}|[mM]8(?:\[[0-9]{0,9}[A-Za-z]{1,2}\])?)")
_TORCH_DTYPE = re.compile(r"bool|uint8|int(?:8|16|32|64)|b?float16|float(?:32|64)|complex(?:64|128)")
_T = TypeVar("_T")


def dumps(value: Any) -> bytes:
    """The bytes of `value`. `EncodingError` names the first type that cannot be sent."""
    try:
        body: bytes = msgpack.packb(value, strict_types=True)
        if _is_plain(value):
            return body
    except (TypeError, ValueError, OverflowError):
        pass  # a type, a depth, an int or a lone surrogate that plain msgpack does not take; the encoder knows better
    try:
        return _Encoder().encode(value)
    except (ValueError, OverflowError, RecursionError) as error:
        raise EncodingError(f"the value cannot be sent to the next stage: {error}") from error


def loads(data: bytes | memoryview) -> Any:
    """The value that `dumps` was given. `DecodingError` for bytes that it did not make."""
    try:
        view = memoryview(data).cast("B")
        if view.nbytes and view[0] == _MAGIC:
            return _Decoder().decode(view)
        return _unpack(view, ext_hook=_refuse_mark)
    except DecodingError:
        raise
    except Exception as error:  # hostile bytes reach many constructors; whatever those raise, the bytes are at fault
        raise DecodingError(f"not a payload of zmesh.codec: {str(error) or type(error).__name__}") from error


def register(cls: type[_T], *, name: str | None = None) -> type[_T]:
    """Let a dataclass travel between stages; usable as a decorator.

    It is sent under `name`, by default the qualified name without its module, because the module of an app file is
    called differently in different processes. Only the fields travel: on arrival they are set as they were, and neither
    `__init__` nor `__post_init__` runs a second time.
    """
    if not (dataclasses.is_dataclass(cls) and isinstance(cls, type)):
        raise TypeError(f"register takes a dataclass, not {cls!r}")
    name = name or cls.__qualname__
    known = _classes.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{name!r} is already {known.__module__}.{known.__qualname__}; register(cls, name=…) another")
    _classes[name] = cls
    _class_names[cls] = name
    return cls


_classes: dict[str, Any] = {}  # name → class
_class_names: dict[type, str] = {}


def _is_plain(value: Any) -> bool:
    """Whether the msgpack of `value`, which exists already, gives it back. The packer takes a bytearray, a memoryview
    and its own ExtType without asking; and an ExtType out of a client's msgpack must never become one of our marks.

    Level by level, since `get_referents` opens all containers of a level in one C call: of a list and a dict it returns
    what they hold (of a dict it may leave out keys that are all exactly str). The value was packed, so this ends.
    """
    level = [value]
    for _ in range(DEPTH_MAX):
        kinds = set(map(type, level))
        if kinds <= _LEAVES:
            return True
        if not kinds <= _PLAIN:
            return False
        level = gc.get_referents(*level)
    return False


def _unpack(view: memoryview, **hooks: Any) -> Any:
    # unpackb bounds every length by len(view). timestamp=3: its one built-in extension becomes a datetime, so that
    # no type comes out that could not have gone in.
    return msgpack.unpackb(view, strict_map_key=False, unicode_errors="surrogatepass", timestamp=3, **hooks)


def _refuse_mark(code: int, data: bytes) -> Any:
    raise DecodingError(f"msgpack extension {code} in a plain payload")


# What a mark says its array is. The numbers, 1 and up, are on the wire: append, never reorder.
_Tag = enum.IntEnum(
    "_Tag",
    "TUPLE SET FROZENSET DICT INT BYTEARRAY COMPLEX DATETIME DATE TIME TIMEDELTA DECIMAL UUID"
    " DATACLASS ARRAY SCALAR TENSOR",
)
_TAGS = {int(tag): tag for tag in _Tag}  # a call of an enum is slow
_MARKS = {tag: msgpack.ExtType(tag, b"") for tag in _Tag}
_SEQUENCES: dict[type, _Tag] = {tuple: _Tag.TUPLE, set: _Tag.SET, frozenset: _Tag.FROZENSET}


class _Atom(NamedTuple):
    """A type that is a few plain fields: how it comes apart, which types the fields have, how it is put together."""

    tag: _Tag
    fields: tuple[type, ...]
    take_apart: Callable[[Any], tuple[Any, ...]]
    put_together: Callable[..., Any]


def _clock_apart(value: datetime | time) -> tuple[str, int, str]:
    zone = (value.tzinfo.key or "") if isinstance(value.tzinfo, zoneinfo.ZoneInfo) else ""
    if value.tzinfo is not None and not zone:
        if (offset := value.utcoffset()) is None:
            raise EncodingError(f"{value!r} cannot be sent to the next stage: its tzinfo has no UTC offset")
        zone = f"{offset // timedelta(microseconds=1):+}"  # fromisoformat would lose an offset below a second
    return value.replace(tzinfo=None).isoformat(), value.fold, zone


def _clock_together(kind: Any, text: str, fold: int, zone: str) -> Any:
    is_offset = zone[:1] in ("+", "-")
    tz = timezone(timedelta(microseconds=int(zone))) if is_offset else zoneinfo.ZoneInfo(zone) if zone else None
    return kind.fromisoformat(text).replace(fold=fold, tzinfo=tz)


_CLOCK = (str, int, str)
_ATOMS: dict[type, _Atom] = {
    int: _Atom(
        _Tag.INT,
        (bytes,),
        lambda it: (it.to_bytes(it.bit_length() // 8 + 1, signed=True),),
        partial(int.from_bytes, signed=True),
    ),
    complex: _Atom(_Tag.COMPLEX, (float, float), lambda value: (value.real, value.imag), complex),
    datetime: _Atom(_Tag.DATETIME, _CLOCK, _clock_apart, partial(_clock_together, datetime)),
    date: _Atom(_Tag.DATE, (str,), lambda value: (value.isoformat(),), date.fromisoformat),
    time: _Atom(_Tag.TIME, _CLOCK, _clock_apart, partial(_clock_together, time)),
    timedelta: _Atom(_Tag.TIMEDELTA, (int,) * 3, lambda it: (it.days, it.seconds, it.microseconds), timedelta),
    Decimal: _Atom(_Tag.DECIMAL, (str,), lambda value: (str(value),), Decimal),
    uuid.UUID: _Atom(_Tag.UUID, (bytes,), lambda value: (value.bytes,), lambda raw: uuid.UUID(bytes=raw)),
}
_ATOMS_BY_TAG = {atom.tag: atom for atom in _ATOMS.values()}
_SEQUENCES_BY_TAG = {tag: kind for kind, tag in _SEQUENCES.items()}


class _Encoder:
    """One value on its way out: `lower` turns it into what msgpack packs, and sets large memory aside."""

    def __init__(self) -> None:
        self.buffers: list[Any] = []
        self.is_marked = False

    def encode(self, value: Any) -> bytes:
        # Integers are leaves, so the one thing left for `default` is an integer beyond 64 bits.
        body: bytes = msgpack.packb(self.lower(value, DEPTH_MAX), unicode_errors="surrogatepass", default=self.atom)
        if not self.is_marked:
            return body
        end = _HEADER.size + len(body)
        parts: list[Any] = [_HEADER.pack(_MAGIC, _VERSION, len(body)), body]
        for buffer in self.buffers:
            padding = -end % _ALIGNMENT
            parts += (bytes(padding), buffer)
            end += padding + len(buffer)
        return b"".join(parts)

    def mark(self, tag: _Tag, *fields: Any) -> list[Any]:
        self.is_marked = True
        return [_MARKS[tag], *fields]

    def atom(self, value: Any) -> list[Any]:
        atom = _ATOMS[type(value)]
        return self.mark(atom.tag, *atom.take_apart(value))

    def lower(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _LEAVES:
            return value
        if depth == 0:
            raise EncodingError(f"the value is nested deeper than {DEPTH_MAX} levels, or contains itself")
        if kind is list:
            return self.lower_all(value, depth)
        if kind is dict:
            return self.lower_dict(value, depth)
        if kind in _SEQUENCES:
            return self.mark(_SEQUENCES[kind], *self.lower_all(value, depth))
        if kind in _ATOMS:
            return self.atom(value)
        if kind is bytearray:
            self.buffers.append(value)
            return self.mark(_Tag.BYTEARRAY, len(value))
        if kind in _class_names:
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return self.mark(_Tag.DATACLASS, _class_names[kind], self.lower_dict(fields, depth))
        return self.lower_foreign(value)

    def lower_all(self, values: Any, depth: int) -> Any:
        if _LEAVES.issuperset(map(type, values)):
            return values
        return [item if type(item) in _LEAVES else self.lower(item, depth - 1) for item in values]

    def lower_dict(self, value: dict[Any, Any], depth: int) -> Any:
        if _LEAVES.issuperset(map(type, value)):
            return {k: v if type(v) in _LEAVES else self.lower(v, depth - 1) for k, v in value.items()}
        return self.mark(_Tag.DICT, *self.lower_all([part for pair in value.items() for part in pair], depth))

    def lower_foreign(self, value: Any) -> list[Any]:
        """Values of libraries that we do not import: if theirs is not loaded, the value cannot be theirs."""
        numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
        if numpy is not None and type(value) is numpy.ndarray:
            return self.lower_array(numpy, value)
        if numpy is not None and isinstance(value, numpy.generic) and type(value) is value.dtype.type:
            return self.lower_scalar(numpy, value)
        if torch is not None and type(value) is torch.Tensor:
            return self.lower_tensor(torch, value)
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise EncodingError(
            f"a value of type {kind} cannot be sent to the next stage. Three ways out: zmesh.codec.register it"
            " (a dataclass); a mixin of zmesh.mixins that carries it; PickleIPCMixin, if you trust every peer"
        )

    def lower_array(self, numpy: Any, array: Any) -> list[Any]:
        dtype = array.dtype.str
        if not _DTYPE.fullmatch(dtype):
            raise EncodingError(f"a numpy array of dtype {array.dtype} cannot be sent to the next stage: use .astype()")
        is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        flat = numpy.ascontiguousarray((array.T if is_fortran else array).reshape(-1))  # copies only what has gaps
        self.buffers.append(flat.view(numpy.uint8))
        return self.mark(_Tag.ARRAY, dtype, "F" if is_fortran else "C", *array.shape)

    def lower_scalar(self, numpy: Any, scalar: Any) -> list[Any]:
        if isinstance(scalar, numpy.str_):  # as text: its dtype says nothing if it is empty, and numpy drops final NULs
            return self.mark(_Tag.SCALAR, "U", str.__str__(scalar))
        if isinstance(scalar, numpy.bytes_):
            return self.mark(_Tag.SCALAR, "S", bytes(scalar))
        if not _DTYPE.fullmatch(scalar.dtype.str):
            raise EncodingError(f"a numpy scalar of dtype {scalar.dtype} cannot be sent to the next stage")
        return self.mark(_Tag.SCALAR, scalar.dtype.str, scalar.tobytes())

    def lower_tensor(self, torch: Any, tensor: Any) -> list[Any]:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.requires_grad:
            raise EncodingError("a tensor that requires grad cannot be sent to the next stage: .detach() it")
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or not _TORCH_DTYPE.fullmatch(dtype):
            what = f"{dtype}, {tensor.layout}, {tensor.device}"
            raise EncodingError(f"a tensor ({what}) cannot be sent to the next stage: .cpu(), .to_dense(), .to(dtype)")
        flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
        self.buffers.append(flat.view(torch.uint8).numpy() if len(flat) else b"")  # torch views nothing as bytes
        return self.mark(_Tag.TENSOR, dtype, *tensor.shape)


class _Decoder:
    """One payload on its way in: msgpack calls back for each mark and each finished array."""

    def decode(self, view: memoryview) -> Any:
        _, version, body_bytes = _HEADER.unpack_from(view)
        if version != _VERSION:
            raise DecodingError(f"the payload has layout version {version}, this host knows {_VERSION}")
        if body_bytes > view.nbytes - _HEADER.size:
            raise DecodingError("the payload ends inside its body")
        self.buffers, self.cursor, self.marks_open = view, _HEADER.size + body_bytes, 0
        value = _unpack(view[_HEADER.size : self.cursor], ext_hook=self.on_mark, list_hook=self.on_array)
        if self.marks_open or self.cursor != view.nbytes:
            raise DecodingError("a mark that heads no array, or bytes after the last buffer")
        return value

    def on_mark(self, code: int, data: bytes) -> _Tag:
        if data:
            raise DecodingError("a mark has content")
        self.marks_open += 1
        return _TAGS[code]

    def on_array(self, items: list[Any]) -> Any:
        if not items or type(items[0]) is not _Tag:
            return items
        self.marks_open -= 1
        tag: _Tag = items.pop(0)
        if tag in _SEQUENCES_BY_TAG:
            return _SEQUENCES_BY_TAG[tag](items)
        if tag in _ATOMS_BY_TAG:
            _expect(items, *_ATOMS_BY_TAG[tag].fields)
            return _ATOMS_BY_TAG[tag].put_together(*items)
        return getattr(self, f"build_{tag.name.lower()}")(items)

    def take(self, size: int) -> bytearray:
        """The next buffer, in memory of its own: the one copy on the way in."""
        start = self.cursor + -self.cursor % _ALIGNMENT
        if size > self.buffers.nbytes - start:
            raise DecodingError("the payload ends inside a buffer")
        self.cursor = start + size
        return bytearray(self.buffers[start : self.cursor])

    def build_dict(self, items: list[Any]) -> dict[Any, Any]:
        return dict(zip(items[::2], items[1::2], strict=True))

    def build_bytearray(self, items: list[Any]) -> bytearray:
        return self.take(_elements(items))

    def build_dataclass(self, items: list[Any]) -> Any:
        _expect(items, str, dict)
        name, fields = items
        cls = _classes.get(name)
        if cls is None or fields.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise DecodingError(f"the dataclass {name!r} is not registered in this stage with these fields")
        value = cls.__new__(cls)
        for field, content in fields.items():
            object.__setattr__(value, field, content)
        return value

    def build_array(self, items: list[Any]) -> Any:
        _expect(items[:2], str, str)
        name, order, *shape = items
        if not _DTYPE.fullmatch(name) or order not in ("C", "F"):
            raise DecodingError(f"an array of dtype {name!r} and order {order!r}")
        numpy: Any = importlib.import_module("numpy")
        dtype = numpy.dtype(name)
        buffer = self.take(_elements(shape) * dtype.itemsize)
        if dtype.kind == "U" and buffer and numpy.frombuffer(buffer, f"{name[0]}u4").max() > sys.maxunicode:
            raise DecodingError("an array of text holds what is not a character")
        return numpy.ndarray(tuple(shape), dtype, buffer, order=order)

    def build_scalar(self, items: list[Any]) -> Any:
        _expect(items, str, str if items[:1] == ["U"] else bytes)
        name, content = items
        numpy: Any = importlib.import_module("numpy")
        if name in ("U", "S"):
            return (numpy.str_ if name == "U" else numpy.bytes_)(content)
        if not _DTYPE.fullmatch(name) or numpy.dtype(name).itemsize != len(content):
            raise DecodingError(f"a numpy scalar of dtype {name!r} in {len(content)} bytes")
        return numpy.frombuffer(content, name)[0]

    def build_tensor(self, items: list[Any]) -> Any:
        _expect(items[:1], str)
        name, *shape = items
        if not _TORCH_DTYPE.fullmatch(name):
            raise DecodingError(f"a tensor of dtype {name!r}")
        torch: Any = importlib.import_module("torch")
        dtype = getattr(torch, name)
        buffer = self.take(_elements(shape) * dtype.itemsize)
        return torch.frombuffer(buffer, dtype=dtype).reshape(shape) if buffer else torch.empty(shape, dtype=dtype)


def _expect(items: list[Any], *kinds: type) -> None:
    if tuple(map(type, items)) != kinds:
        raise DecodingError(f"{len(items)} fields where {', '.join(kind.__name__ for kind in kinds)} should be")


def _elements(shape: list[Any]) -> int:
    if len(shape) > _DIMENSIONS_MAX or any(type(length) is not int or length < 0 for length in shape):
        raise DecodingError("a shape that no array has")
    return math.prod(shape)
