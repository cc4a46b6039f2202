"""TypedMsgPackMixin: what a client sends is checked against the annotation of `forward`, whatever that is."""

from __future__ import annotations

import dataclasses
import enum
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict  # noqa: F401  (some are named in text)

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmesh.annotations import item_type
from zmesh.errors import DeclarationError, DecodingError, EncodingError, ValidationError, describe
from zmesh.mixins import TypedMsgPackMixin
from zmesh.stage import Stage
from zmesh.worker import MOSEC_REF_TEMPLATE, ParseTarget, Worker

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]

pack = msgspec.msgpack.encode


class Box(msgspec.Struct):
    corner: tuple[int, int]
    size: Annotated[int, msgspec.Meta(ge=1)] = 1


class Area(msgspec.Struct):
    area: int
    of: Box


class Measure(TypedMsgPackMixin, Worker):
    def forward(self, data: Box) -> Area:
        return Area(data.size**2, data)


class MeasureAll(TypedMsgPackMixin, Worker):
    max_batch_size = 8

    def forward(self, data: list[Box]) -> list[Area]:
        return [Area(box.size**2, box) for box in data]


def worker(taken: Any, **settings: Any) -> TypedMsgPackMixin:
    """One whose `forward` is annotated with `taken`."""

    class Made(TypedMsgPackMixin):
        def forward(self, data: Any) -> Any:
            return data

    Made.forward.__annotations__["data"] = taken
    made = Made()
    vars(made).update(settings)
    return made


# ── what comes in ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cls", [Measure, MeasureAll])
def test_a_request_is_what_forward_is_annotated_with_and_one_of_a_batch_is_one_of_its_list(cls: type[Worker]):
    item = cls().deserialize(pack({"corner": [1, 2], "size": 3}))
    assert item == Box((1, 2), 3)
    assert cls().deserialize(pack({"corner": [1, 2]})).size == 1
    assert cls.resp_mime_type == "application/msgpack"


def test_without_batches_a_list_is_a_list():
    assert worker("list[int]").deserialize(pack([1, 2])) == [1, 2]
    assert worker("list[list[int]]", max_batch_size=2).deserialize(pack([1, 2])) == [1, 2]
    assert worker("list[int]", max_batch_size=2).deserialize(pack(3)) == 3


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


class Named(NamedTuple):
    x: int


class Keyed(TypedDict):
    x: int


@pytest.mark.parametrize(
    ("taken", "good", "read", "bad"),
    [
        ("int", 3, 3, "3"),
        ("int | None", None, None, "3"),
        ("dict[str, int]", {"a": 1}, {"a": 1}, {"a": "1"}),
        ("tuple[int, ...]", [1, 2], (1, 2), [1, "2"]),
        ("set[str]", ["a"], {"a"}, [1]),
        ("Literal['a', 'b']", "a", "a", "c"),
        ("Annotated[str, msgspec.Meta(min_length=1)]", "a", "a", ""),
        ("Colour", "red", Colour.RED, "blue"),
        ("Point", {"x": 1}, Point(1), {"x": "1"}),
        ("Named", [1], Named(1), ["1"]),
        ("Keyed", {"x": 1}, {"x": 1}, {}),
        ("Point | None", None, None, []),
        ("dict[str, list['Box']]", {"a": [{"corner": [0, 0]}]}, {"a": [Box((0, 0))]}, {"a": [{}]}),
        ("bytes", b"\x00", b"\x00", 1),
    ],
)
@pytest.mark.parametrize("in_batch", [False, True])
def test_every_annotation_is_checked_also_one_that_is_text(taken: str, good: Any, read: Any, bad: Any, in_batch: bool):
    made = worker(f"list[{taken}]", max_batch_size=4) if in_batch else worker(taken)
    assert made.deserialize(pack(good)) == read
    with pytest.raises(ValidationError, match=r"^(Expected|Invalid|Object missing)"):
        made.deserialize(pack(bad))


def test_without_an_annotation_anything_is_taken():
    for taken in (Any, list):
        assert worker(taken, max_batch_size=4).deserialize(pack({"a": [1]})) == {"a": [1]}


def test_what_is_imported_for_type_checkers_alone_does_no_harm_on_the_other_side():
    class Half(TypedMsgPackMixin):
        def forward(self, data: Box) -> Unknown:
            return data

    assert Half().deserialize(pack({"corner": [1, 2]})) == Box((1, 2))
    with pytest.raises(NameError, match="Unknown"):
        item_type(Half.forward, ParseTarget.RETURN, in_batch=False)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"corner": [1, "2"]}, "Expected `int`, got `str` - at `$.corner[1]`"),
        ({"corner": [1, 2], "size": 0}, "Expected `int` >= 1 - at `$.size`"),
        ({}, "Object missing required field `corner`"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_another_type_is_a_422_that_says_what_and_where(body: Any, text: str):
    with pytest.raises(ValidationError) as refused:
        Measure().deserialize(pack(body))
    assert describe(refused.value) == (422, f"request validation error: {text}")


@pytest.mark.parametrize(
    ("taken", "body"),
    [
        *((taken, body) for taken in ("Any", "Box", "list[int]") for body in (b"", b"\xc1")),
        *((taken, body) for taken in ("Any", "list[int]") for body in (b"\x92\x01", b"\xdd\xff\xff\xff\xff\x01")),
        ("Box", b"\x81\xa6cor"),
    ],
)
def test_bytes_that_are_no_msgpack_are_a_400_in_words(taken: str, body: bytes):
    with pytest.raises(DecodingError) as refused:
        worker(taken).deserialize(body)
    status, text = describe(refused.value)
    assert status == 400 and text.startswith("decoding error: the body is not valid msgpack: ")


@pytest.mark.parametrize(("body", "why"), [(b"\xa1\xff", "utf-8"), (b"\x91" * 5000, "nested too deeply")])
def test_what_msgspec_has_other_errors_for_is_a_400_too(body: bytes, why: str):
    with pytest.raises(DecodingError, match=f"^the body is not valid msgpack: .*{why}"):
        worker("Any").deserialize(body)


@given(body=st.binary(max_size=200), taken=st.sampled_from(["Any", "Box", "dict[str, Any]", "list[Box] | str"]))
def test_any_bytes_are_a_value_or_one_of_the_two_errors(body: bytes, taken: str):
    try:
        worker(taken).deserialize(body)
    except (DecodingError, ValidationError):
        pass


class Even(msgspec.Struct):
    x: int

    def __post_init__(self) -> None:
        if self.x % 2:
            raise ValueError(f"{self.x} is odd")


def test_a_check_of_ones_own_counts_as_validation():
    with pytest.raises(ValidationError, match="3 is odd"):
        worker("Even").deserialize(pack({"x": 3}))


# ── what goes out ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_is_written_as_msgpack():
    made = Measure()
    answer = made.serialize(made.forward(made.deserialize(pack({"corner": [0, 0], "size": 3}))))
    assert msgspec.msgpack.decode(answer) == {"area": 9, "of": {"corner": [0, 0], "size": 3}}


def test_between_stages_the_payload_codec_stays():
    assert Stage(Measure).plan("measure", 10).ipc_codec == "zmesh"


RING: list[Any] = []
RING.append(RING)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "objects of type object is unsupported"),
        (2**70, "ints"),
        ("\ud800", "surrogates"),
        (RING, "nested too deeply"),
        (numpy.float32(1), r"numpy: \.item\(\) or \.tolist\(\)"),
        (numpy.zeros(2), r"numpy: \.item\(\) or \.tolist\(\)"),
    ],
)
def test_a_result_that_msgpack_has_not_is_an_encoding_error_in_words(value: Any, why: str):
    with pytest.raises(EncodingError, match=f"^the result cannot be written as msgpack: .*{why}") as refused:
        Measure().serialize([value])
    assert describe(refused.value)[0] == 500


# ── the document of the routes ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cls", [Measure, MeasureAll])
def test_schemas_and_components_are_those_of_msgspec(cls: type[Worker]):
    schema, components = cls.get_forward_json_schema(ParseTarget.INPUT, MOSEC_REF_TEMPLATE)
    assert schema == {"$ref": "#/components/schemas/Box"}
    assert components["Box"]["required"] == ["corner"]
    schema, components = cls.get_forward_json_schema(ParseTarget.RETURN, MOSEC_REF_TEMPLATE)
    assert schema == {"$ref": "#/components/schemas/Area"}
    assert set(components) == {"Area", "Box"}


def test_nothing_said_is_no_schema():
    class Silent(TypedMsgPackMixin):
        def forward(self, data):  # type: ignore[no-untyped-def]
            return data

    for target in ParseTarget:
        assert Silent.get_forward_json_schema(target, MOSEC_REF_TEMPLATE) == ({}, {})


def test_a_type_without_a_schema_is_a_line_in_the_log_and_costs_the_other_side_nothing(
    caplog: pytest.LogCaptureFixture,
):
    class Pixels(TypedMsgPackMixin):
        def forward(self, data: Box) -> numpy.ndarray:
            return numpy.zeros(data.size)

    with caplog.at_level(logging.WARNING):
        assert Pixels.get_forward_json_schema(ParseTarget.RETURN, MOSEC_REF_TEMPLATE) == ({}, {})
    (line,) = caplog.messages
    assert line == "Pixels.forward has no schema of its RETURN: type <class 'numpy.ndarray'> is not supported"
    assert Pixels.get_forward_json_schema(ParseTarget.INPUT, MOSEC_REF_TEMPLATE)[0]


# ── without msgspec ───────────────────────────────────────────────────────────────────────────────────────────────


def test_msgspec_is_imported_when_it_is_needed_and_no_sooner():
    code = (
        "import sys; from zmesh import Worker; from zmesh.mixins import TypedMsgPackMixin\n"
        "class Mine(TypedMsgPackMixin, Worker):\n    def forward(self, data: int): return data\n"
        "assert not Mine.unfit() and 'msgspec' not in sys.modules\n"
        "assert Mine().deserialize(b'\\x01') == 1 and 'msgspec' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_msgspec_a_stage_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(DeclarationError) as refused:
        Stage(Measure)
    assert str(refused.value) == (
        "Measure: TypedMsgPackMixin needs msgspec, which is not installed; install it, or the extra [validation]"
    )
