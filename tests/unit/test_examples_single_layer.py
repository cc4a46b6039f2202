"""examples/jax_single_layer and examples/torch_single_layer: which arrays are taken, and that a wrong one is alone."""

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from tests.readme import load_example
from zmesh import ValidationError

LIBRARIES = ["jax", "torch"]


@pytest.fixture(params=LIBRARIES)
def app(request: pytest.FixtureRequest) -> ModuleType:
    return load_example(f"{request.param}_single_layer")


@pytest.mark.parametrize("array", [[1, 2, 3], [0, 0, 0], [-1.5, 1e29, 0]])
def test_three_numbers_are_an_array(app: ModuleType, array: list[Any]):
    assert app.array_of({"array": array, "more": 1}) == array


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"array": None}, *({"array": [1, 2, last]} for last in ("3", True, None, 1e30, float("nan")))],
)
def test_anything_else_is_none(app: ModuleType, data: Any):
    assert app.array_of(data) is None


def test_every_size_of_batch_is_tried_before_the_first_request(app: ModuleType):
    assert [len(example) for example in app.Classify.multi_examples] == list(range(1, app.BATCH_MAX + 1))


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_wrong_array_is_refused_alone(library: str):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    worker = load_example(f"{library}_single_layer").Classify()
    good, bad, again = worker.forward([{"array": [1, 2, 3]}, {"array": [1]}, {"array": [1, 2, 3]}])
    assert isinstance(bad, ValidationError)
    assert good == again and good["category"] in (0, 1)
