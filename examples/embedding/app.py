"""Embeddings as OpenAI's API has them, from a small real model: POST /v1/embeddings, and the same on /embeddings.

Start it with  zmesh run examples/embedding/app.py
and try it     curl -d '{"model": "wordllama", "input": "a cat"}' http://127.0.0.1:8000/v1/embeddings
"""

import base64
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from zmesh import ClientError, Server, Worker

MODEL = "wordllama"
SIZE = 256  # numbers of a vector

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=20_000)]
Texts = Annotated[list[Text], msgspec.Meta(min_length=1, max_length=256)]


class EmbeddingRequest(msgspec.Struct):
    input: Text | Texts
    model: Literal["wordllama"]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[64, 128, 256] = SIZE  # the model was trained so that the first 64 or 128 do by themselves
    user: str = ""

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Embedding(msgspec.Struct):
    index: int
    embedding: list[float] | str  # text: base64 of float32, little-endian
    object: Literal["embedding"] = "embedding"


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(msgspec.Struct):
    data: list[Embedding]
    usage: Usage
    model: Literal["wordllama"] = MODEL
    object: Literal["list"] = "list"


class InvalidRequest(ClientError):
    """Status 400, as OpenAI answers; its client makes a BadRequestError of it."""

    prefix = "invalid_request_error"


class Embed(Worker):
    """All texts of all requests of a batch, one after the other."""

    example = [EmbeddingRequest(input="a cat", model=MODEL)]

    def __init__(self) -> None:
        self.tokenizer, self.table = load()
        self.decoder = msgspec.json.Decoder(EmbeddingRequest)

    def deserialize(self, data: bytes) -> EmbeddingRequest:
        try:
            return self.decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a ValidationError is one too
            raise InvalidRequest(str(error)) from error

    def forward(self, batch: list[EmbeddingRequest]) -> list[EmbeddingResponse]:
        texts = [text for request in batch for text in request.texts]
        tokens = [text.ids for text in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        rest = iter(tokens)
        return [self.answer(request, [next(rest) for _ in request.texts]) for request in batch]

    def answer(self, request: EmbeddingRequest, tokens: list[list[int]]) -> EmbeddingResponse:
        used = sum(map(len, tokens))
        vectors = [self.vector(ids)[: request.dimensions] for ids in tokens]
        data = [
            Embedding(index, written(vector / max(np.linalg.norm(vector), 1e-9), request.encoding_format))
            for index, vector in enumerate(vectors)
        ]
        return EmbeddingResponse(data, Usage(used, used))

    def vector(self, ids: list[int]) -> np.ndarray:
        """The mean of what the table has for each token; zeros for a text that has none."""
        return self.table[ids].mean(axis=0) if ids else np.zeros(SIZE, np.float32)

    def serialize(self, data: EmbeddingResponse) -> bytes:
        return msgspec.json.encode(data)


def load() -> tuple[Any, np.ndarray]:
    """The tokenizer, and a vector for each token, from the files in the package: nothing is downloaded."""
    import wordllama  # here and not above: gateway, agent and `zmesh check` read this file too, and do without

    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    model.tokenizer.no_padding()
    return model.tokenizer, model.embedding


def written(vector: np.ndarray, encoding_format: str) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [round(number, 6) for number in vector.tolist()]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Embed, max_batch_size=32, max_wait_time=5, route=["/v1/embeddings", "/embeddings"])
    server.run()
