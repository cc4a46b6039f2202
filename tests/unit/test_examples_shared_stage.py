"""examples/shared_stage without a mesh; that batches hold both routes is shown by its client, which the README runs."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests.readme import load_example
from zmesh import ValidationError


@pytest.fixture(name="app", scope="module")
def app_fixture() -> ModuleType:
    return load_example("shared_stage")


def test_each_answer_is_nearest_to_itself_and_to_questions_with_its_words(app: ModuleType):
    search = app.Search()
    for answer in app.ANSWERS:
        assert search.forward(app.encode(answer))["answers"][0] == answer
    assert "guarantee" in search.forward(app.encode("How long is the guarantee?"))["answers"][0]
    assert len(search.forward(app.encode("x"))["answers"]) == app.BEST


def test_vectors_have_the_length_one_and_do_not_depend_on_the_company(app: ModuleType):
    texts = ["Can I send it back?", "x", "ß" * 1000]
    vectors = app.Encode().forward([{"text": text, "route": "embed"} for text in texts])
    assert [vector.shape for vector in vectors] == [(app.SIZE,)] * 3
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1])
    assert all((app.encode(text) == vector).all() for text, vector in zip(texts, vectors, strict=True))
    assert app.Vector().forward(vectors[0])["vector"] == pytest.approx(vectors[0].tolist(), abs=1e-4)


def test_a_batch_is_counted_by_the_routes_in_it(app: ModuleType):
    encode = app.Encode()
    search, embed = app.Question().forward({"question": "why"}), app.Text().forward({"text": "why"})
    for batch in ([search], [embed, search], [search, embed, search], [embed]):
        encode.forward(batch)
    counted = {routes: encode.batches.labels(routes).value for routes in ("search", "embed", "embed+search")}
    assert counted == {"search": 1, "embed": 1, "embed+search": 2}


@pytest.mark.parametrize("data", [{}, [], None, {"question": ""}, {"question": " "}, {"question": 5}, {"text": "why"}])
def test_what_is_no_question_is_refused(app: ModuleType, data: object):
    with pytest.raises(ValidationError, match=r'send \{"question"'):
        app.Question().forward(data)
