"""examples/embedding and examples/rerank without a mesh: what they compute, and what they refuse."""

from __future__ import annotations

import base64
import importlib.util
import json
import socket
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.conftest import need
from tests.readme import load_example
from zmesh import ClientError, DecodingError, ValidationError, Worker


@pytest.fixture(scope="module", name="embedding")
def embedding_fixture() -> ModuleType:
    need(importlib.util.find_spec("wordllama"), "wordllama is not installed")
    return load_example("embedding")


@pytest.fixture(scope="module", name="rerank")
def rerank_fixture() -> ModuleType:
    need(importlib.util.find_spec("wordllama"), "wordllama is not installed")
    return load_example("rerank")


@pytest.fixture(scope="module", name="embed")
def embed_fixture(embedding: ModuleType) -> Worker:
    return embedding.Embed()


@pytest.fixture(scope="module", name="ranker")
def ranker_fixture(rerank: ModuleType) -> Worker:
    return rerank.Rerank()


def answers(worker: Worker, *requests: dict[str, Any]) -> list[Any]:
    """As they go through one batch."""
    taken = [worker.deserialize(json.dumps(request).encode()) for request in requests]
    return [json.loads(worker.serialize(one)) for one in worker.forward(taken)]


def test_the_model_is_in_the_package(embedding: ModuleType, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("it asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    tokenizer, table = embedding.load()
    assert table.shape == (32_000, embedding.SIZE) and table.dtype == np.float32
    assert tokenizer.encode("a cat", add_special_tokens=False).ids


def test_requests_of_a_batch_get_their_own_vectors_in_their_order(embed: Worker):
    two, one = answers(embed, dict(model="wordllama", input=["cat", "bank"]), dict(model="wordllama", input="cat"))
    assert [item["index"] for item in two["data"]] == [0, 1]
    assert two["data"][0]["embedding"] == one["data"][0]["embedding"] != two["data"][1]["embedding"]
    assert two["usage"]["total_tokens"] > one["usage"]["total_tokens"] > 0
    assert (one["object"], one["data"][0]["object"], one["model"]) == ("list", "embedding", "wordllama")


@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_vector_has_the_length_1_in_either_encoding(embed: Worker, size: int):
    asked = dict(model="wordllama", input="a cat", dimensions=size)
    numbers, packed = answers(embed, asked, asked | dict(encoding_format="base64"))
    vector = np.array(numbers["data"][0]["embedding"])
    assert vector.shape == (size,) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
    assert np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4") == pytest.approx(vector, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "truncated"),
        (b"\xff", "malformed"),
        (b'{"input": "a"}', "model"),
        (b'{"model": "gpt", "input": "a"}', "gpt"),
        (b'{"model": "wordllama", "input": ""}', "input"),
        (b'{"model": "wordllama", "input": []}', "input"),
        (b'{"model": "wordllama", "input": [1, 2]}', "input"),
        (b'{"model": "wordllama", "input": "a", "dimensions": 65}', "dimensions"),
        (b'{"model": "wordllama", "input": "a", "encoding_format": "hex"}', "encoding_format"),
        (b"[" * 100_000, "Expected `object`"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_request_for_vectors_is_refused(embed: Worker, body: bytes, reason: str):
    with pytest.raises(ClientError, match=reason) as refused:
        embed.deserialize(body)
    assert (refused.value.http_status, refused.value.prefix) == (400, "invalid_request_error")


def test_documents_come_by_their_nearness_to_their_own_query(ranker: Worker):
    documents = ["the stock market", {"text": "a kitten"}, "a dog"]
    cat, money = answers(ranker, dict(query="a cat", documents=documents), dict(query="shares", documents=documents))
    assert [result["index"] for result in cat["results"]] == [1, 2, 0]
    assert money["results"][0]["index"] == 0
    scores = [result["relevance_score"] for result in cat["results"]]
    assert scores == sorted(scores, reverse=True) and "document" not in cat["results"][0]


def test_only_the_best_are_named_with_their_text_if_that_is_wanted(ranker: Worker):
    asked = dict(query="a cat", documents=["a dog", {"text": "a kitten"}])
    (best,) = answers(ranker, asked | dict(top_n=1, return_documents=True))
    assert [(result["index"], result["document"]) for result in best["results"]] == [(1, {"text": "a kitten"})]
    (all_of_them,) = answers(ranker, asked | dict(top_n=100))
    assert len(all_of_them["results"]) == 2


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", DecodingError),
        (b"[" * 100_000, ValidationError),
        (b'{"query": "a", "documents": ' + b"[" * 100_000, ValidationError),
        (b'{"query": "a", "more": ' + b"[" * 100_000, DecodingError),
        (b'{"query": "a"}', ValidationError),
        (b'{"query": "a", "documents": []}', ValidationError),
        (b'{"query": "", "documents": ["a"]}', ValidationError),
        (b'{"query": "a", "documents": [{"title": "a"}]}', ValidationError),
        (b'{"query": "a", "documents": ["a"], "top_n": 0}', ValidationError),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_sorted_is_refused(ranker: Worker, body: bytes, error: type[Exception]):
    with pytest.raises(error):
        ranker.deserialize(body)
