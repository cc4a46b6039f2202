"""What the annotations and examples of a class say in the OpenAPI document, and that the document is valid.

The classes of the bodies stand at module level, where annotations that are text find them.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import numpy as np
import pydantic
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from zmesh import SSEWorker, ValidationError, Worker
from zmesh.config import Plan, RoutePlan, StagePlan
from zmesh.mixins import MsgpackMixin, TypedMsgPackMixin
from zmesh.openapi import metadata
from zmesh.schemas import EXAMPLE_CHARACTERS, EXAMPLES, Body, RouteSchema, request_of, response_of
from zmesh.worker import ParseTarget

REF = "#/components/schemas/"


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Cat(msgspec.Struct, tag="cat"):
    lives: Annotated[int, msgspec.Meta(ge=0, le=9)] = 9


class Dog(msgspec.Struct, tag="dog"):
    barks: bool
    size: Size = Size.SMALL


class Litter(msgspec.Struct):
    """A family of pets."""

    members: list[Cat | Dog]
    litters: list[Litter] = []
    weight: float = math.inf


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0
    near: list[Point] = dataclasses.field(default_factory=list)


class Movie(TypedDict):
    title: str
    year: int


class Pair(NamedTuple):
    left: int
    right: str


class Order(pydantic.BaseModel):
    amount: int = pydantic.Field(gt=0)
    parts: list[Order] = []


@dataclasses.dataclass
class Parcel:
    """msgspec does not know a part of it, and pydantic knows all."""

    order: Order


class Described(NamedTuple):
    """What a document says of one route."""

    request: dict[str, Any]
    response: dict[str, Any]
    components: dict[str, Any]


def worker(taken: Any = Any, given: Any = Any, base: type = Worker, **attributes: Any) -> type[Worker]:
    def forward(self: Any, data: Any) -> Any:
        raise NotImplementedError

    forward.__annotations__ = {"data": taken, "return": given}
    return type("Made", (base,), {"forward": forward, **attributes})


def document_of(workers: dict[str, type[Worker]], *, in_batch: bool = False) -> dict[str, Any]:
    """The document of routes with one stage each, which is valid."""
    stages = tuple(
        StagePlan(name=f"Stage_{number}", worker="", mime_type=cls.resp_mime_type, sse=issubclass(cls, SSEWorker))
        for number, cls in enumerate(workers.values())
    )
    routes = tuple(
        RoutePlan(path=path, stages=(stage.name,), mime_type=stage.mime_type, sse=stage.sse)
        for path, stage in zip(workers, stages, strict=True)
    )
    schemas = {
        path: RouteSchema(request_of(path, cls, in_batch=in_batch), response_of(path, cls, in_batch=in_batch))
        for path, cls in workers.items()
    }
    document = json.loads(json.dumps(metadata(Plan(stages=stages, routes=routes), schemas), allow_nan=False))
    OpenAPIV31SpecValidator(document).validate()
    return dict(document)


def described(cls: type[Worker], *, in_batch: bool = False) -> Described:
    document = document_of({"/one": cls}, in_batch=in_batch)
    operation = document["paths"]["/one"]["post"]
    components = {name: part for name, part in document["components"]["schemas"].items() if name != "Problem"}
    return Described(operation["requestBody"]["content"], operation["responses"]["200"]["content"], components)


def json_schema(content: dict[str, Any]) -> Any:
    return content["application/json"].get("schema")


# ── annotations ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int, {"type": "integer"}),
        (str, {"type": "string"}),
        (list[float], {"type": "array", "items": {"type": "number"}}),
        (dict[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Annotated[int, msgspec.Meta(ge=1)], {"type": "integer", "minimum": 1}),
        (tuple[int, str], {"type": "array", "minItems": 2, "maxItems": 2,
                           "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}),
        (Size, {"$ref": f"{REF}Size"}),
        ("list[Point]", {"type": "array", "items": {"$ref": f"{REF}Point"}}),
        (Any, None),
    ],
    ids=str,
)  # fmt: skip
def test_an_annotation_is_a_schema_on_both_sides(annotation: Any, schema: Any):
    said = described(worker(annotation, annotation))
    assert json_schema(said.request) == json_schema(said.response) == schema


@pytest.mark.parametrize("kind", [Litter, Point, Movie, Pair, Order, Parcel], ids=lambda kind: kind.__name__)
def test_a_class_is_a_component_of_its_name_with_all_that_is_in_it(kind: type, caplog: pytest.LogCaptureFixture):
    said = described(worker(kind, kind))
    assert caplog.text == ""
    for content in (said.request, said.response):
        assert json_schema(content) in ({"$ref": f"{REF}{kind.__name__}"}, said.components.get(kind.__name__))


def test_what_is_nested_and_what_refers_to_itself_is_there():
    components = described(worker(Litter)).components
    assert set(components) == {"Litter", "Cat", "Dog", "Size"}
    assert components["Litter"]["properties"]["litters"]["items"] == {"$ref": f"{REF}Litter"}
    assert components["Litter"]["description"] == "A family of pets."
    assert components["Cat"]["properties"]["lives"] == {"type": "integer", "minimum": 0, "maximum": 9, "default": 9}
    assert "default" not in components["Litter"]["properties"]["weight"], "JSON has no infinity"
    assert described(worker(Order)).components["Order"]["properties"]["amount"]["exclusiveMinimum"] == 0
    assert set(described(worker(Parcel)).components) == {"Parcel", "Order"}


def test_a_batch_is_a_list_of_what_one_request_is():
    said = described(worker(list[Point], list[str]), in_batch=True)
    assert (json_schema(said.request), json_schema(said.response)) == ({"$ref": f"{REF}Point"}, {"type": "string"})
    said = described(worker(list[Point], list), in_batch=False)
    assert json_schema(said.request) == {"type": "array", "items": {"$ref": f"{REF}Point"}}
    assert json_schema(described(worker(list, list), in_batch=True).request) is None


def test_an_exception_among_the_results_is_no_result():
    said = described(worker(Any, list[Movie | ValidationError]), in_batch=True)
    assert json_schema(said.response) == {"$ref": f"{REF}Movie"}
    assert json_schema(described(worker(Any, ValidationError | ValueError)).response) is None
    said = described(worker(Any, int | str | ValidationError))
    assert json_schema(said.response) == {"anyOf": [{"type": "integer"}, {"type": "string"}]}


def test_a_hook_of_the_class_has_the_word():
    def hook(cls: Any, target: ParseTarget, ref_template: str) -> Any:
        if target is ParseTarget.RETURN:
            return {}, {}
        return {"$ref": ref_template.format(name="Mine")}, {"Mine": {"type": "integer"}}

    said = described(worker(Point, Point, get_forward_json_schema=classmethod(hook)))
    assert json_schema(said.request) == {"$ref": f"{REF}Mine"}
    assert json_schema(said.response) is None
    assert said.components == {"Mine": {"type": "integer"}}


def test_a_typed_request_that_is_a_list_is_one_without_batches():
    cls = worker(list[Point], list[int], base=TypedMsgPackMixin)
    listed = {"type": "array", "items": {"$ref": f"{REF}Point"}}
    assert described(cls).request["application/msgpack"]["schema"] == listed
    assert described(cls, in_batch=True).request["application/msgpack"]["schema"] == {"$ref": f"{REF}Point"}


def test_two_classes_of_one_name_are_two_components():
    class Box(msgspec.Struct):
        lid: bool

    first = worker(Box)

    class Box(msgspec.Struct):  # type: ignore[no-redef]
        wheels: int

    document = document_of({"/first": first, "/second": worker(Box), "/third": worker(Box, Box)})
    asked = {path: said["post"]["requestBody"]["content"] for path, said in document["paths"].items()}
    assert json_schema(asked["/first"]) == {"$ref": f"{REF}Box"}
    assert json_schema(asked["/second"]) == json_schema(asked["/third"]) == {"$ref": f"{REF}Box_2"}
    assert list(document["components"]["schemas"]["Box_2"]["properties"]) == ["wheels"]


def test_without_msgspec_pydantic_makes_the_schemas(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setitem(sys.modules, "msgspec", None)
    said = described(worker(Point, dict[str, int]))
    assert json_schema(said.request) == {"$ref": f"{REF}Point"}
    assert json_schema(said.response) == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert caplog.text == ""
    assert json_schema(described(worker(np.ndarray)).request) is None
    assert "numpy.ndarray" in caplog.text and "msgspec" not in caplog.text


# ── where an annotation says nothing ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (np.ndarray, "TypeError: type <class 'numpy.ndarray'> is not supported"),
        (list[Callable[..., int]], "is not supported"),
        ("NotThere", "NameError: name 'NotThere' is not defined"),
        (Iterator[int], "is not supported"),
    ],
    ids=str,
)
def test_what_has_no_schema_costs_one_line(annotation: Any, reason: str, caplog: pytest.LogCaptureFixture):
    assert json_schema(described(worker(annotation)).request) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("route /one has no schema of its request in /openapi, because of forward of")
    assert reason in record.getMessage() and "\n" not in record.getMessage()
    assert json_schema(described(worker(Any, annotation)).response) is None
    assert "schema of its result" in caplog.records[1].getMessage()


@pytest.mark.parametrize(
    "said",
    [
        ({"$ref": f"{REF}Nowhere"}, {}),
        ({"$ref": "#/$defs/Mine"}, {"Mine": {}}),
        ({"type": object()}, {}),
        ({"minimum": math.inf}, {}),
        None,
    ],
    ids=str,
)
def test_a_hook_that_says_nonsense_costs_one_line(said: Any, caplog: pytest.LogCaptureFixture):
    cls = worker(get_forward_json_schema=classmethod(lambda cls, target, template: said))
    assert request_of("/one", cls, in_batch=False) == Body(None, {}, "application/json")
    (record,) = caplog.records
    assert record.getMessage().startswith("route /one has no schema of its request")


def test_what_a_codec_of_ones_own_gives_to_forward_is_not_the_body(caplog: pytest.LogCaptureFixture):
    own = {"deserialize": lambda self, data: data, "serialize": lambda self, data: data}
    said = described(worker(bytes, np.ndarray, **own, resp_mime_type="image/png", example=b"\x89PNG"))
    assert said == ({"image/png": {}, "application/octet-stream": {}}, {"image/png": {}}, {})
    said = described(worker(Point, Point, **own))
    assert said == ({"application/json": {}, "application/octet-stream": {}}, {"application/json": {}}, {})
    assert caplog.text == ""


@pytest.mark.parametrize("kind", [Order, Cat])
def test_but_a_model_is_since_it_says_how_it_is_read(kind: type):
    own = {"deserialize": lambda self, data: data, "serialize": lambda self, data: data}
    said = described(worker(list[kind], kind | None, **own), in_batch=True)
    assert json_schema(said.request) == {"$ref": f"{REF}{kind.__name__}"}
    assert {"$ref": f"{REF}{kind.__name__}"} in json_schema(said.response)["anyOf"]


# ── media types ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_reads_json_and_draws_takes_json():
    said = described(worker(Point, resp_mime_type="image/png"))
    assert said.request == {"application/json": {"schema": {"$ref": f"{REF}Point"}}}
    assert said.response == {"image/png": {}}


def test_a_stream_has_a_request_like_any_other_and_events_as_its_answer():
    said = described(worker(Point, Iterator[str], SSEWorker))
    assert said.request == {"application/json": {"schema": {"$ref": f"{REF}Point"}}}
    assert said.response == {"text/event-stream": {}}
    said = described(worker(Point, None, SSEWorker, deserialize=lambda self, data: data))
    assert said.request == {"application/octet-stream": {}}


def test_msgpack_has_schemas_too():
    class Packed(MsgpackMixin, Worker):
        def forward(self, data: list[Point]) -> list[dict[str, int]]:
            raise NotImplementedError

    said = described(Packed, in_batch=True)
    assert said.request == {"application/msgpack": {"schema": {"$ref": f"{REF}Point"}}}
    assert said.response == {
        "application/msgpack": {"schema": {"type": "object", "additionalProperties": {"type": "integer"}}}
    }


# ── examples ──────────────────────────────────────────────────────────────────────────────────────────────────────


def examples_of(*, in_batch: bool = False, **attributes: Any) -> tuple[Any, ...]:
    return request_of("/one", worker(**attributes), in_batch=in_batch).examples


def test_examples_that_are_json_stand_in_the_document():
    assert described(worker(example={"x": 1})).request["application/json"] == {"example": {"x": 1}}
    assert examples_of(multi_examples=[1, 2, 1], example=3) == (1, 2)
    assert examples_of() == ()
    assert examples_of(example=b"\xff") == examples_of(example=np.zeros(3)) == examples_of(example=math.nan) == ()


def test_of_a_batch_each_item_is_an_example():
    assert examples_of(example=[1, 2, 2], in_batch=True) == (1, 2)
    assert examples_of(multi_examples=[[1], [1, 1], 2], in_batch=True) == (1, 2)
    assert examples_of(example=[1, 2]) == ([1, 2],)


def test_an_object_is_shown_as_a_client_would_send_it():
    assert examples_of(example=Point(1.0)) == ({"x": 1.0, "y": 0.0, "near": []},)
    assert examples_of(example=Cat(3)) == ({"type": "cat", "lives": 3},)
    assert examples_of(example=Order(amount=2)) == ({"amount": 2, "parts": []},)


def test_examples_are_few_and_small_and_a_property_of_the_objects_is_none():
    assert len(examples_of(multi_examples=list(range(100)))) == EXAMPLES
    assert examples_of(multi_examples=["x" * EXAMPLE_CHARACTERS, "x"]) == ("x",)
    assert examples_of(multi_examples=property(len), example=property(len)) == ()


def test_an_example_is_shown_only_where_it_is_the_body():
    own = {"deserialize": lambda self, data: data}
    assert examples_of(example="text", **own) == ()
    assert examples_of(taken=Order, example=Order(amount=2), **own) == ({"amount": 2, "parts": []},)
    packed = worker(base=type("Packed", (MsgpackMixin, Worker), {}), example={"x": 1})
    assert request_of("/one", packed, in_batch=False).examples == ()


# ── cost ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_neither_library_is_loaded_for_an_app_that_says_nothing():
    program = """
import sys
from zmesh import Worker
from zmesh.schemas import request_of
class Echo(Worker):
    def forward(self, data): return data
request_of("/", Echo, in_batch=False)
assert not {"msgspec", "pydantic"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
