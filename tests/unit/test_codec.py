"""The payload codec: every type comes back as it was, everything else is refused, and no bytes do harm."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import importlib
import importlib.util
import inspect
import math
import struct
import subprocess
import sys
import tracemalloc
import uuid
import zoneinfo
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from zmesh import codec
from zmesh.codec import dumps, loads, register
from zmesh.errors import DecodingError, EncodingError


def same(left: Any, right: Any) -> bool:
    """Equal in type, content, order and sign of zero; NaN is equal to itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, numpy.ndarray | numpy.generic):
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, set | frozenset):
        return len(left) == len(right) and all(any(same(item, other) for other in right) for item in left)
    if isinstance(left, int):
        return left == right  # repr refuses the longest ones
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, one.name), getattr(right, one.name)) for one in dataclasses.fields(left))
    if type(left).__module__ == "torch":
        return (left.dtype, left.shape, repr(left.tolist())) == (right.dtype, right.shape, repr(right.tolist()))
    if isinstance(left, datetime | time):
        return (repr(left), left.utcoffset()) == (repr(right), right.utcoffset())
    return repr(left) == repr(right)


def assert_comes_back(value: Any) -> None:
    seen = loads(dumps(value))
    assert same(value, seen), f"{value!r} came back as {seen!r}"


def marked(body: Any, *buffers: bytes, version: int = 1) -> bytes:
    """A payload in the marked layout, as a stranger may write it."""
    packed = msgpack.packb(body)
    payload = struct.pack("!BB6xQ", 0xC1, version, len(packed)) + packed
    for buffer in buffers:
        payload += bytes(-len(payload) % 16) + buffer
    return payload


def mark(name: str) -> msgpack.ExtType:
    return msgpack.ExtType(codec._Tag[name], b"")


# What comes back


@functools.partial(register, name="unit.Box")  # a page of docs/ registers one too
@dataclasses.dataclass
class Box:
    corner: tuple[int, int]
    pixels: Any = None
    area: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self.area += 100


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    name: str


register(Key, name="unit.Key")


def boxed(pixels: Any) -> Box:
    return Box((1, 2), pixels)


ANY_TEXT = st.text(st.characters())  # lone surrogates included
ZONES = st.timezones() | st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone) | st.none()
DTYPES = (
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="?")
    | npst.unsigned_integer_dtypes(endianness="?")
    | npst.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | npst.complex_number_dtypes(endianness="?", sizes=(64, 128))
    | npst.unicode_string_dtypes(endianness="?", max_len=5)
    | npst.byte_string_dtypes(max_len=5)
    | npst.datetime64_dtypes(endianness="?")
    | npst.timedelta64_dtypes(endianness="?")
)
ARRAYS = npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
SCALARS = npst.arrays(DTYPES, ()).map(lambda array: array[()])
HASHABLE_ATOMS: dict[type, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.integers() | st.integers(min_value=-(2**200), max_value=2**200),
    float: st.floats(),
    str: ANY_TEXT,
    bytes: st.binary(),
    complex: st.complex_numbers(),
    datetime: st.datetimes(timezones=ZONES, allow_imaginary=True),
    date: st.dates(),
    time: st.times(timezones=ZONES),
    timedelta: st.timedeltas(),
    # hypothesis cannot print a signalling NaN; it has a test of its own
    Decimal: st.decimals().filter(lambda number: not number.is_snan()),
    uuid.UUID: st.uuids(),
}
ATOMS = HASHABLE_ATOMS | {bytearray: st.binary().map(bytearray), numpy.ndarray: ARRAYS, numpy.generic: SCALARS}


def tensors() -> st.SearchStrategy[Any]:
    """CPU tensors of every dtype that travels, where torch is installed."""
    torch = importlib.import_module("torch")
    kinds = npst.boolean_dtypes() | npst.integer_dtypes(endianness="=") | npst.floating_dtypes(endianness="=")
    kinds |= npst.complex_number_dtypes(endianness="=", sizes=(64, 128))
    shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    return npst.arrays(kinds, shapes).map(torch.from_numpy) | st.just(torch.ones(2, dtype=torch.bfloat16))


if importlib.util.find_spec("torch"):
    ATOMS |= {importlib.import_module("torch").Tensor: tensors()}


def containers_of(keys: st.SearchStrategy[Any], inner: st.SearchStrategy[Any]) -> dict[type, st.SearchStrategy[Any]]:
    """What holds others, registered dataclasses among them; `keys` can be hashed."""
    return {
        list: st.lists(inner, max_size=4),
        tuple: st.lists(inner, max_size=4).map(tuple),
        dict: st.dictionaries(keys, inner, max_size=4),
        set: st.sets(keys, max_size=4),
        frozenset: st.frozensets(keys, max_size=4),
        Box: st.builds(boxed, inner),
    }


def hashable_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3) | st.builds(Key, ANY_TEXT)


HASHABLE = st.recursive(st.one_of(*HASHABLE_ATOMS.values()), hashable_of, max_leaves=5)
VALUES = st.recursive(
    st.one_of(HASHABLE, *ATOMS.values()),
    lambda inner: st.one_of(*containers_of(HASHABLE, inner).values()),
    max_leaves=12,
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(value=VALUES)
@pytest.mark.slow
def test_any_value_of_the_known_types_comes_back_as_it_was(value):
    assert_comes_back(value)


def test_every_type_that_the_codec_knows_is_among_those_made_up():
    known = codec._LEAVES | set(codec._SEQUENCES) | set(codec._ATOMS) | {list, dict, bytearray, numpy.ndarray}
    made = set(ATOMS) | set(containers_of(HASHABLE, st.none()))
    assert made >= known | {numpy.generic, Box}
    assert not importlib.util.find_spec("torch") or "Tensor" in {kind.__name__ for kind in made}


@settings(max_examples=50)
@given(value=PLAIN)
def test_a_plain_value_is_msgpack_and_nothing_else(value):
    assert dumps(value) == msgpack.packb(value)
    assert_comes_back(value)


@pytest.mark.parametrize(
    "value",
    [
        (),
        ((), [(), {()}], frozenset({frozenset()})),
        {(1, (2,)): "tuple", frozenset({1}): "set", 1: "int", None: 0, 2.5: 0, b"k": 0, 2**80: 0},
        {"b": 1, "a": 2, "c": {"z": (1,), "y": bytearray(b"1"), "x": numpy.arange(2)}},
        2**64,
        "\ud800",
        [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**5000],
        {2**64: -(2**64)},
        [math.nan, -0.0, -math.inf, complex(-0.0, math.nan)],
        ["\ud800", "\ud83d\ude00", {"\udfff": "\x00"}],
        [bytearray(), bytearray(b"x" * 17), (b"\xc1", bytearray(b"y"))],
        [Decimal("-0E+5"), Decimal("NaN123"), Decimal("-Infinity"), Decimal("1.10")],
        [timedelta.min, timedelta.max, date.min, datetime.max.replace(tzinfo=UTC), time.max],
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=-3, seconds=7, microseconds=9))),
        time(1, 2, 3, 4, tzinfo=UTC),
        uuid.UUID(int=2**127 + 1),
    ],
)
def test_a_value_comes_back_as_it_was(value):
    assert_comes_back(value)


def test_a_signalling_nan_comes_back_as_it_was():
    assert str(loads(dumps(Decimal("-sNaN12")))) == "-sNaN12"


def test_a_time_in_a_zone_keeps_the_zone_and_the_side_of_the_clock_change():
    for fold in (0, 1):
        sent = datetime(2020, 10, 25, 2, 30, fold=fold, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
        seen = loads(dumps(sent))
        assert (seen.tzinfo, seen.fold, seen.utcoffset()) == (sent.tzinfo, fold, timedelta(hours=2 - fold))
    assert loads(dumps(time(1, tzinfo=zoneinfo.ZoneInfo("Asia/Tokyo")))).tzinfo.key == "Asia/Tokyo"


class OddZone(tzinfo):
    def __init__(self, offset: timedelta | None) -> None:
        self.offset = offset

    def utcoffset(self, when: datetime | None) -> timedelta | None:
        return self.offset

    def dst(self, when: datetime | None) -> None:
        return None


def test_a_time_in_a_zone_of_another_library_keeps_its_utc_offset_or_is_refused():
    hour = timedelta(hours=1)
    assert loads(dumps(datetime(2020, 1, 1, tzinfo=OddZone(hour)))) == datetime(2020, 1, 1, tzinfo=timezone(hour))
    with pytest.raises(EncodingError, match="its tzinfo has no UTC offset"):
        dumps(time(1, tzinfo=OddZone(None)))


def test_a_zone_that_this_host_has_not_is_a_decoding_error_that_names_it():
    with pytest.raises(DecodingError, match="Mars/Olympus"):
        loads(marked([mark("DATETIME"), "2020-01-01T00:00:00", 0, "Mars/Olympus"]))


# What is refused


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (object(), "object"),
        (collections.OrderedDict(), r"collections\.OrderedDict"),
        (enum.IntEnum("Colour", "RED").RED, "Colour"),
        (collections.namedtuple("Point", "x")(1), "Point"),
        (memoryview(b"x"), "memoryview"),
        (msgpack.ExtType(1, b""), r"msgpack\.ext\.ExtType"),
        (msgpack.Timestamp(1), "Timestamp"),
        (ValueError("x"), "ValueError"),
        (numpy.ma.masked_array([1]), "MaskedArray"),
    ],
)
def test_another_type_is_refused_by_name_with_three_ways_out_wherever_it_sits(value, name):
    for place in (value, [value], {"k": [value]}, (1, value), {(): [value]}, [[], {"k": {"k": value}}]):
        with pytest.raises(EncodingError, match=rf"type .*{name} cannot .*register it .* mixin .* PickleIPCMixin"):
            dumps(place)


@pytest.mark.parametrize("key", [memoryview(b"x"), msgpack.ExtType(1, b""), (msgpack.Timestamp(1),)])
def test_a_type_that_msgpack_would_take_is_refused_as_a_key_too(key):
    with pytest.raises(EncodingError, match="cannot be sent"):
        dumps({"a": {key: 1}})


def nested(levels: int, wrap: Any) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: frozenset([v])])
def test_a_value_as_deep_as_allowed_comes_back_and_one_level_more_is_refused(wrap):
    assert_comes_back(nested(codec.DEPTH_MAX, wrap))
    for levels in (codec.DEPTH_MAX + 1, 600, 5000):
        with pytest.raises(EncodingError, match="deeper than 128 levels, or contains itself"):
            dumps(nested(levels, wrap))


def test_a_value_that_the_callers_stack_has_no_room_for_is_an_encoding_error():
    def deep(frames: int) -> None:
        if frames:
            deep(frames - 1)
        else:
            dumps(nested(120, lambda v: (v,)))

    room = sys.getrecursionlimit() - len(inspect.stack())
    with pytest.raises(EncodingError, match="recursion"):
        deep(room - 60)


def test_a_value_that_contains_itself_twice_is_refused_at_once():
    ring: list[Any] = []
    ring += [ring, ring, (ring,)]
    with pytest.raises(EncodingError, match="contains itself"):
        dumps(ring)


# Dataclasses


def test_a_registered_dataclass_comes_back_field_by_field_without_running_its_init():
    sent = Box((1, 2), pixels=[Box((3, 4), numpy.arange(3))])
    seen = loads(dumps({"box": sent}))["box"]
    assert type(seen) is Box and seen.corner == (1, 2) and seen.area == 100
    assert seen.pixels[0].corner == (3, 4) and seen.pixels[0].pixels.tolist() == [0, 1, 2]


def test_a_frozen_dataclass_with_slots_comes_back_as_a_key_under_the_name_it_was_given():
    payload = dumps({Key("a"): 1})
    assert loads(payload) == {Key("a"): 1}
    assert b"unit.Key" in payload


def test_a_dataclass_that_is_not_registered_is_refused():
    @dataclasses.dataclass
    class Stranger:
        x: int

    with pytest.raises(EncodingError, match=r"Stranger cannot .* zmesh\.codec\.register it"):
        dumps(Stranger(1))


def test_a_name_can_be_registered_again_by_its_class_and_by_no_other():
    register(Key, name="unit.Key")
    with pytest.raises(ValueError, match=r"'unit\.Key' is already .*\.Key; register\(cls, name=…\)"):
        register(Box, name="unit.Key")


@pytest.mark.parametrize("thing", [int, Key("a"), len])
def test_what_is_no_dataclass_cannot_be_registered(thing):
    with pytest.raises(TypeError, match="register takes a dataclass"):
        register(thing)


@pytest.mark.parametrize("fields", [{}, {"name": "a", "more": 1}, {"other": 1}, {b"name": 1}])
def test_a_dataclass_with_other_fields_is_a_decoding_error(fields):
    with pytest.raises(DecodingError, match=r"'unit\.Key' is not registered in this stage with these fields"):
        loads(marked([mark("DATACLASS"), "unit.Key", fields]))


# numpy

NUMBER_DTYPES = [
    "?",
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    "f2",
    "f4",
    "f8",
    "c8",
    "c16",
    ">i4",
    ">f8",
    ">c8",
]
TIME_DTYPES = ["M8[ns]", "M8[D]", "m8[25s]", "M8[as]", ">M8[Y]", "m8"]


@pytest.mark.parametrize("dtype", NUMBER_DTYPES + TIME_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (2, 3, 4)])
def test_an_array_of_each_dtype_and_shape_comes_back_writable_and_aligned(dtype, shape):
    sent = numpy.random.default_rng(1).integers(0, 2, shape).astype("i8").astype(dtype.replace(">", "")).astype(dtype)
    seen = loads(dumps([b"odd", sent]))[1]
    assert same(sent, seen)
    assert seen.flags.writeable and seen.flags.aligned and seen.flags.c_contiguous


@pytest.mark.parametrize(
    "sent",
    [
        numpy.array(["a", "bé\0c", ""]),
        numpy.array([["\ud800"], ["☃☃"]], dtype=">U3"),
        numpy.array([b"a", b"\xff\0\xff"]),
        numpy.array([], dtype="U7"),
        numpy.array(["NaT", "2020-01-01"], "M8[ms]"),
        numpy.array([math.nan, -0.0, math.inf]),
    ],
)
def test_an_array_of_text_of_bytes_or_of_odd_values_comes_back_as_it_was(sent):
    assert_comes_back(sent)


def test_the_order_of_memory_is_kept_and_gaps_are_closed():
    whole = numpy.arange(24.0).reshape(2, 3, 4)
    for sent in (
        whole.T,
        whole[::-1],
        whole[:, ::2],
        whole[..., 1],
        numpy.broadcast_to(whole[0], (5, 3, 4)),
        whole[0][::-1, 2],
    ):
        assert (loads(dumps(sent)) == sent).all() and loads(dumps(sent)).shape == sent.shape
    assert loads(dumps(whole.T)).flags.f_contiguous
    assert loads(dumps(whole)).flags.c_contiguous


def test_an_array_that_came_out_shares_no_memory_with_the_payload():
    payload = bytearray(dumps([numpy.zeros(100), bytearray(100)]))
    array, raw = loads(memoryview(payload))
    array[:] = 1
    raw[:] = b"x" * 100
    again = loads(bytes(payload))
    assert again[0].sum() == 0 and again[1] == bytes(100)


def test_a_large_array_is_copied_once_on_the_way_in_and_once_on_the_way_out():
    sent = numpy.zeros(4_000_000, "u1")
    tracemalloc.start()
    try:
        payload = dumps({"x": sent})
        _, peak_in = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        loads(payload)
        peak_out = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak_in < 1.1 * sent.nbytes and peak_out < 1.1 * sent.nbytes


@pytest.mark.parametrize(
    "scalar",
    [numpy.dtype(dtype).type(1) for dtype in NUMBER_DTYPES]
    + [
        numpy.float16("nan"),
        numpy.float64(-0.0),
        numpy.bool_(True),
        numpy.datetime64("2020-01"),
        numpy.datetime64("NaT"),
    ]
    + [numpy.timedelta64(5, "s"), numpy.str_(""), numpy.str_("a\0"), numpy.bytes_(b""), numpy.bytes_(b"a\0")],
)
def test_a_numpy_scalar_comes_back_as_the_same_scalar(scalar):
    assert_comes_back(scalar)
    assert_comes_back({"score": (scalar, [scalar])})


@pytest.mark.parametrize(
    "value",
    [
        numpy.array([object()]),
        numpy.zeros(2, [("a", "i4")]),
        numpy.zeros(1, numpy.longdouble),
        numpy.longdouble(1),
        numpy.zeros(1, [("a", "i4")])[0],
        numpy.zeros(2, "V3"),
    ],
)
def test_an_array_or_scalar_of_another_dtype_is_refused(value):
    with pytest.raises(EncodingError, match=r"of dtype .* cannot be sent to the next stage"):
        dumps([value])


def test_numpy_is_not_imported_until_an_array_comes_in():
    code = (
        "import sys; from zmesh.codec import dumps, loads; loads(dumps((1, {2})))\n"
        "assert 'numpy' not in sys.modules\n"
        f"assert loads({dumps(numpy.arange(3))!r}).tolist() == [0, 1, 2]\n"
        "assert 'torch' not in sys.modules and 'pickle' in sys.modules  # by numpy itself"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# torch


def test_a_tensor_of_each_dtype_comes_back_with_its_shape():
    torch = pytest.importorskip("torch")
    names = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128"
    for name in names.split():
        whole = torch.arange(6).reshape(2, 3).to(getattr(torch, name))
        empty = whole.as_strided((0,), (0,))  # of which torch has no view as bytes
        for sent in (whole, whole.T, whole[:, 1], whole[0, 0], whole[:0], empty, whole.conj()):
            seen = loads(dumps({"x": sent}))["x"]
            assert (type(seen), seen.dtype, seen.shape) == (torch.Tensor, sent.dtype, sent.shape)
            assert torch.equal(seen, sent)
            seen.zero_()


def test_a_tensor_that_cannot_travel_is_refused_with_the_call_that_helps():
    torch = pytest.importorskip("torch")
    with pytest.raises(EncodingError, match=r"\.detach\(\) it"):
        dumps(torch.zeros(1, requires_grad=True))
    for tensor in (torch.zeros(1, device="meta"), torch.zeros(2, 2).to_sparse()):
        with pytest.raises(EncodingError, match=r"\.cpu\(\), \.to_dense\(\)"):
            dumps([tensor])
    with pytest.raises(EncodingError, match="Parameter cannot be sent"):
        dumps(torch.nn.Parameter(torch.zeros(1)))


# Bytes of strangers


def survives(payload: bytes | memoryview) -> None:
    """loads gives a value or a DecodingError; what it gives can be sent on, unless it is too deep."""
    try:
        value = loads(payload)
    except DecodingError:
        return
    try:
        dumps(value)
    except EncodingError as error:
        if "deeper than" not in str(error):
            raise


@given(payload=st.binary(max_size=100))
def test_any_bytes_are_a_value_or_a_decoding_error(payload):
    survives(payload)
    survives(b"\xc1\x01" + payload)


MARKS = st.sampled_from(list(codec._MARKS.values()))
FIELDS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.integers(-(2**63), 2**64 - 1) | st.floats()
    | st.binary(max_size=20) | st.just(msgpack.Timestamp(1)) | st.just(msgpack.ExtType(1, b"x"))
    | st.sampled_from(["C", "F", "U", "S", "<f8", "|b1", "<U1", "<U999999999", "|S0", "|O", "<M8[D]", "<M8[9q]", ">i4"])
    | st.sampled_from(["float32", "unit.Box", "unit.Key", "2020-01-01", "12:30", "Europe/Berlin", "../x"])
    | st.sampled_from(["name", "1e9", ""])
    | st.sampled_from([msgpack.ExtType(tag, b"") for tag in range(20)]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.builds(lambda mark, rest: [mark, *rest], MARKS, st.lists(inner, max_size=5))
        | st.dictionaries(st.sampled_from(["name", "a"]), inner, max_size=2)
    ),
    max_leaves=15,
)  # fmt: skip


@settings(max_examples=300, deadline=None)  # a first import of numpy or a zone takes its time
@given(body=FIELDS, buffer=st.binary(max_size=64))
@pytest.mark.slow
def test_marks_in_any_order_are_a_value_or_a_decoding_error(body, buffer):
    survives(marked(body))
    survives(marked(body, buffer))
    survives(msgpack.packb(body))


SAMPLE = dumps(
    [
        (1, {2}),
        numpy.arange(3),
        bytearray(b"abc"),
        2**70,
        Box((1, 2)),
        {(): Decimal("1.5")},
        uuid.UUID(int=1),
        {"k": numpy.str_("s")},
        datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        numpy.array(["ab"], order="F"),
        numpy.int8(1),
        1j,
    ]
)


@settings(max_examples=200)
@given(where=st.integers(0, len(SAMPLE) - 1), byte=st.integers(0, 255))
def test_a_payload_with_one_byte_changed_is_a_value_or_a_decoding_error(where, byte):
    survives(SAMPLE[:where] + bytes([byte]) + SAMPLE[where + 1 :])


def test_a_payload_cut_short_or_continued_is_a_decoding_error():
    for payload in (SAMPLE, dumps([1, "two", {"k": b"three"}])):
        for cut in range(len(payload)):
            with pytest.raises(DecodingError):
                loads(payload[:cut])
        with pytest.raises(DecodingError):
            loads(payload + b"\x00")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ([mark("ARRAY"), "|u1", "C", 2**40], "ends inside a buffer"),
        ([mark("ARRAY"), "<f8", "C", 9], "ends inside a buffer"),
        ([mark("ARRAY"), "|S999999999", "C", 10**9], "ends inside a buffer"),
        ([mark("ARRAY"), "|u1", "C", -1], "a shape that no array has"),
        ([mark("ARRAY"), "|u1", "C", True], "a shape that no array has"),
        ([mark("ARRAY"), "|u1", "C", *[1] * 65], "a shape that no array has"),
        ([mark("ARRAY"), "|u1", "C", 0, 2**62, 2**62], "not a payload"),
        ([mark("ARRAY"), "|O", "C", 1], "dtype '|O'"),
        ([mark("ARRAY"), "|u1", "A", 1], "order 'A'"),
        ([mark("ARRAY"), "<U1", "C", 1], "not a character"),
        ([mark("BYTEARRAY"), 2**63], "ends inside a buffer"),
        ([mark("TENSOR"), "Tensor", 1], "tensor of dtype 'Tensor'"),
        ([mark("SCALAR"), "<f8", b"1234"], "'<f8' in 4 bytes"),
        ([mark("DICT"), 1], "not a payload"),
        ([mark("DICT"), [], 1], "unhashable"),
        ([mark("SET"), [1]], "unhashable"),
        ([mark("COMPLEX"), "1", 2.0], "2 fields where float, float should be"),
        ([mark("DATACLASS"), "os.system", {}], "'os.system' is not registered"),
        ([1, mark("TUPLE")], "a mark that heads no array"),
        ({"k": mark("TUPLE")}, "a mark that heads no array"),
        (mark("TUPLE"), "a mark that heads no array"),
        ([mark("TUPLE"), mark("TUPLE")], "a mark that heads no array"),
        ([msgpack.ExtType(1, b"x")], "a mark has content"),
        ([msgpack.ExtType(99, b"")], "not a payload"),
        ([1], "bytes after the last buffer"),
    ],
)
def test_a_marked_payload_that_lies_is_a_decoding_error_that_says_where(body, text):
    with pytest.raises(DecodingError, match=text.replace("|", r"\|")):
        loads(marked(body, b"\xff" * 64))


def test_two_arrays_cannot_claim_the_same_memory():
    array = [mark("ARRAY"), "|u1", "C", 1000]
    assert loads(marked([mark("TUPLE"), array], b"x" * 1000))[0].size == 1000
    with pytest.raises(DecodingError, match="ends inside a buffer"):
        loads(marked([mark("TUPLE"), array, array], b"x" * 1000))


def test_a_mark_in_a_plain_payload_is_a_decoding_error():
    with pytest.raises(DecodingError, match="msgpack extension 1 in a plain payload"):
        loads(msgpack.packb([mark("TUPLE"), 1]))


def test_a_layout_of_the_future_is_a_decoding_error_that_names_both_versions():
    with pytest.raises(DecodingError, match="layout version 2, this host knows 1"):
        loads(marked(1, version=2))


def test_numbers_on_the_wire_do_not_move():
    names = "TUPLE SET FROZENSET DICT INT BYTEARRAY COMPLEX DATETIME DATE TIME TIMEDELTA DECIMAL UUID"
    assert {tag.name: tag.value for tag in codec._Tag} == {
        name: number for number, name in enumerate([*names.split(), "DATACLASS", "ARRAY", "SCALAR", "TENSOR"], 1)
    }
    assert dumps((1,)).hex() == "c101000000000000" + "0000000000000005" + "92" + "c70001" + "01"
