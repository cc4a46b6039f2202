"""Components of several routes in one document."""

from __future__ import annotations

import pytest

from zmesh.components import PREFIX, Components, closed


def to(name: str) -> dict[str, str]:
    return {"$ref": PREFIX + name}


BOX = {"type": "object", "properties": {"lid": to("Lid")}}
TREE = {"type": "object", "properties": {"left": to("Tree"), "right": to("Tree")}}


def test_a_schema_brings_all_it_refers_to_and_nothing_else():
    there = Components()
    assert there.add(to("Box"), {"Box": BOX, "Lid": {"type": "string"}, "Other": {}}) == to("Box")
    assert there.schemas == {"Box": BOX, "Lid": {"type": "string"}}


def test_the_same_twice_is_there_once():
    there = Components()
    for _ in range(2):
        assert there.add({"items": to("Tree")}, {"Tree": TREE}) == {"items": to("Tree")}
    assert there.schemas == {"Tree": TREE}


def test_two_that_have_one_name_are_told_apart_and_so_is_who_refers_to_them():
    there = Components()
    there.add(to("Box"), {"Box": BOX, "Lid": {"type": "string"}})
    for _ in range(2):  # the third route means what the second one means
        assert there.add(to("Box"), {"Box": BOX, "Lid": {"type": "null"}}) == to("Box_2")
    assert there.add(to("Lid"), {"Lid": {"type": "number"}}) == to("Lid_3")
    assert there.schemas == {
        "Box": BOX,
        "Lid": {"type": "string"},
        "Box_2": {"type": "object", "properties": {"lid": to("Lid_2")}},
        "Lid_2": {"type": "null"},
        "Lid_3": {"type": "number"},
    }


def test_two_that_refer_to_themselves_are_told_apart():
    there = Components()
    there.add(to("Tree"), {"Tree": TREE})
    assert there.add(to("Tree"), {"Tree": {"items": to("Tree")}}) == to("Tree_2")
    assert there.schemas["Tree_2"] == {"items": to("Tree_2")}


def test_a_number_that_somebody_has_as_a_name_is_passed_over():
    there = Components()
    there.add(to("Box_2"), {"Box_2": {"type": "null"}})
    there.add(to("Box"), {"Box": {"type": "string"}})
    assert there.add(to("Box"), {"Box": {"type": "integer"}}) == to("Box_3")


def test_the_mapping_of_a_discriminator_follows():
    there = Components()
    there.add(to("Cat"), {"Cat": {"type": "null"}})
    kinds = {"Cat": {"type": "object"}, "Dog": {"type": "object"}}
    pet = {"discriminator": {"propertyName": "kind", "mapping": {"cat": PREFIX + "Cat", "dog": PREFIX + "Dog"}}}
    added = there.add(pet, kinds)
    assert added["discriminator"] == {
        "propertyName": "kind",
        "mapping": {"cat": PREFIX + "Cat_2", "dog": PREFIX + "Dog"},
    }
    assert pet["discriminator"]["mapping"]["cat"] == PREFIX + "Cat", "what was given is left as it was"


def test_names_are_those_that_openapi_allows():
    there = Components()
    assert there.add(to("Box[int]"), {"Box[int]": {}}) == to("Box_int_")
    assert there.add(to("Box(int)"), {"Box(int)": {"type": "null"}}) == to("Box_int__2")


@pytest.mark.parametrize("reference", [PREFIX + "Lid", "#/$defs/Box", "#"])
def test_a_reference_that_leads_nowhere_is_said(reference: str):
    with pytest.raises(ValueError, match="which is not among its components"):
        closed({"properties": {"box": {"$ref": reference}}}, {"Box": {}})


def test_a_property_that_is_called_ref_is_none():
    schema = {"properties": {"$ref": {"type": "string"}, "discriminator": {"type": "string"}}}
    assert closed(schema, {}) == {}
    assert Components().add(schema, {}) == schema


def test_another_document_is_left_alone():
    schema = {"$ref": "https://example.com/box.json"}
    assert Components().add(schema, {}) == schema
