"""Sorts documents by how near they are to a query: POST /v1/rerank as Cohere and Jina have it, and the same on /rerank.

Start it with  zmesh run examples/rerank/app.py
and try it     python examples/rerank/client.py
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from zmesh import DecodingError, Server, ValidationError, Worker

MODEL = "wordllama"

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=20_000)]


class Document(msgspec.Struct):
    text: Text


class RerankRequest(msgspec.Struct):
    query: Text
    documents: Annotated[list[Text | Document], msgspec.Meta(min_length=1, max_length=1000)]
    model: Literal["wordllama"] = MODEL
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None  # None: all of them
    return_documents: bool = False

    @property
    def texts(self) -> list[str]:
        """The query, then the documents."""
        return [self.query, *(one if isinstance(one, str) else one.text for one in self.documents)]


class Result(msgspec.Struct, omit_defaults=True):
    index: int
    relevance_score: float
    document: Document | None = None


class Usage(msgspec.Struct):
    total_tokens: int


class RerankResponse(msgspec.Struct):
    results: list[Result]  # the nearest first
    usage: Usage
    model: Literal["wordllama"] = MODEL


class Rerank(Worker):
    """All texts of all requests of a batch are read in one go; each query is then compared with its own documents."""

    example = [RerankRequest(query="a cat", documents=["a kitten", Document("the stock market")])]

    def __init__(self) -> None:
        self.tokenizer, self.table = load()
        self.decoder = msgspec.json.Decoder(RerankRequest)

    def deserialize(self, data: bytes) -> RerankRequest:
        try:
            return self.decoder.decode(data)
        except msgspec.ValidationError as error:
            raise ValidationError(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodingError(str(error)) from error

    def forward(self, batch: list[RerankRequest]) -> list[RerankResponse]:
        texts = [text for request in batch for text in request.texts]
        tokens = [text.ids for text in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        rest = iter(tokens)
        return [self.rank(request, [next(rest) for _ in request.texts]) for request in batch]

    def rank(self, request: RerankRequest, tokens: list[list[int]]) -> RerankResponse:
        vectors = np.stack([self.vector(ids) for ids in tokens])
        scores = vectors[1:] @ vectors[0]
        best = np.argsort(-scores, kind="stable")[: request.top_n].tolist()
        results = [
            Result(
                index,
                round(float(scores[index]), 6),
                Document(request.texts[1 + index]) if request.return_documents else None,
            )
            for index in best
        ]
        return RerankResponse(results, Usage(sum(map(len, tokens))))

    def vector(self, ids: list[int]) -> np.ndarray:
        """The mean of what the table has for each token, with the length 1; zeros for a text that has no token."""
        mean = self.table[ids].mean(axis=0) if ids else np.zeros(self.table.shape[1], np.float32)
        return mean / max(np.linalg.norm(mean), 1e-9)

    def serialize(self, data: RerankResponse) -> bytes:
        return msgspec.json.encode(data)


def load() -> tuple[Any, np.ndarray]:
    """The tokenizer, and a vector for each token, from the files in the package: nothing is downloaded."""
    import wordllama  # here and not above: gateway, agent and `zmesh check` read this file too, and do without

    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    model.tokenizer.no_padding()
    return model.tokenizer, model.embedding


if __name__ == "__main__":
    server = Server()
    server.append_worker(Rerank, max_batch_size=16, max_wait_time=5, route=["/v1/rerank", "/rerank"])
    server.run()
