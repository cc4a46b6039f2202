"""The sentence for the person whose program was refused for another app."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmesh.config import Plan, RoutePlan, StagePlan
from zmesh.core.difference import difference, shape_for_hello
from zmesh.messages import TEXT_BYTES_MAX, Role

MANY = [f"Stage{number}" for number in range(12)]


def shape(*stages: str, codecs: dict[str, str] | None = None, **routes: list[str]) -> str:
    """Of an app with these stages, in one route through all of them unless routes are given."""
    plans = tuple(StagePlan(name=name, worker=name, ipc_codec=(codecs or {}).get(name, "zmesh")) for name in stages)
    paths = routes or {"go": list(stages)}
    return Plan(
        stages=plans, routes=tuple(RoutePlan(path=f"/{path}", stages=tuple(names)) for path, names in paths.items())
    ).shape


def differences(head: str, yours: str) -> str:
    text = difference(head, yours, Role.WORKER)
    opening, end = "the head serves another app: ", "; start this worker with the same app file"
    assert text.startswith(opening) and text.endswith(end)
    return text.removeprefix(opening).removesuffix(end)


@pytest.mark.parametrize(
    ("head", "yours", "what"),
    [
        (
            shape("Parse", "Classify", go=["Parse"]),
            shape("Parse", "Label", go=["Parse"]),
            "its stages are Parse, Classify, yours Parse, Label",
        ),
        (shape("A", "B", go=["A"]), shape("B", "A", go=["A"]), "its stages are A, B, yours B, A"),
        (shape("A"), "[[],[]]", "its stages are A, yours none; you do not have its route /go"),
        (
            shape(*MANY, go=MANY[:1]),
            shape(*MANY[:10], "X", go=MANY[:1]),
            "you do not have its stages Stage10, Stage11; it does not have your stages X",
        ),
        (
            shape(*MANY, go=MANY[:1]),
            shape(*MANY[:9], go=MANY[:1]),
            "you do not have its stages Stage9, Stage10, Stage11",
        ),
        (
            shape(*MANY[:9], go=MANY[:1]),
            shape(*MANY, go=MANY[:1]),
            "it does not have your stages Stage9, Stage10, Stage11",
        ),
        (shape(*MANY, go=MANY[:1]), shape(*MANY[::-1], go=MANY[:1]), "its stages are yours in another order"),
        (
            shape("A", "B", codecs={"A": "msgpack"}),
            shape("A", "B"),
            "its stage A writes for the next stage in msgpack, yours in zmesh",
        ),
        (
            shape("Parse", "Classify", digits=["Parse", "Classify"]),
            shape("Parse", "Classify", digits=["Parse"]),
            "its route /digits goes through Parse → Classify, yours through Parse",
        ),
        (
            shape("A", one=["A"], two=["A"]),
            shape("A", one=["A"], three=["A"]),
            "you do not have its route /two; it does not have your route /three",
        ),
        (shape("A", one=["A"], two=["A"]), shape("A", two=["A"], one=["A"]), "its routes are yours in another order"),
        (
            shape("A", **{f"r{number}": ["A"] for number in range(6)}),
            shape("A", r0=["A"]),
            "you do not have its route /r1; you do not have its route /r2; you do not have its route /r3; and 2 more",
        ),
        (
            shape("A", "B", *MANY, go=["A", *MANY]),
            shape("A", "B", *MANY, go=["B"]),
            "its route /go goes through A → Stage0 → Stage1 → Stage2 → Stage3 → Stage4 → Stage5 → Stage6 → 5 more, "
            "yours through B",
        ),
    ],
)
def test_what_differs_is_said_in_the_words_of_the_app(head: str, yours: str, what: str):
    assert differences(head, yours) == what


def test_names_of_a_stranger_are_short_and_printable():
    said = differences(shape("x" * 60, go=["x" * 60]), shape("y" * 61 + "\n", "a\x1b[31mb", go=["x" * 60]))
    assert said == f"its stages are {'x' * 60}, yours {'y' * 60}…, a?[31mb"


@pytest.mark.parametrize(
    "yours",
    [
        "",
        "{",
        "null",
        "[]",
        "[1, 2]",
        "[[], [[1, []]]]",
        '[[["A", 1]], []]',
        "[" * 100_000,
        '[[["A"]], []]',
        "[[{}], {}]",
    ],
)
def test_a_shape_that_is_none_is_not_looked_into(yours: str):
    assert differences(shape("A"), yours) == "its stages, routes or codecs differ from yours"


@pytest.mark.parametrize(
    ("role", "what"),
    [
        (Role.WORKER, "this worker"),
        (Role.GATEWAY, "this gateway"),
        (Role.AGENT, "these workers"),
        (Role.ADMIN, "this program"),
    ],
)
def test_the_sentence_ends_with_what_to_do(role: Role, what: str):
    assert difference("", "", role).endswith(f"; start {what} with the same app file")


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=12))
def test_whatever_a_peer_sends_the_sentence_is_one_line_and_short(yours: object):
    said = difference(shape(*MANY), json.dumps(yours), Role.AGENT)
    assert "\n" not in said and len(said.encode()) < TEXT_BYTES_MAX


def test_a_shape_that_a_hello_cannot_carry_is_left_out():
    assert shape_for_hello("x" * TEXT_BYTES_MAX) == "x" * TEXT_BYTES_MAX
    assert shape_for_hello("x" * (TEXT_BYTES_MAX + 1)) == ""


def test_apps_with_one_fingerprint_have_one_shape():
    one, other = shape("A", "B"), shape("A", "B", codecs={"B": "numpy"})
    assert one == '[[["A", "zmesh"], ["B", "zmesh"]], [["/go", ["A", "B"]]]]' and other != one
