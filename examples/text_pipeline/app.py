"""Says in which language a text is: text in, text out; n-grams on processors, the network on a GPU if there is one.

Start it with  zmesh run examples/text_pipeline/app.py
and try it     curl -d 'Wie spät ist es?' http://127.0.0.1:8000/language
"""

import os
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zmesh import DecodingError, Server, ValidationError, Worker

WEIGHTS = Path(__file__).parent / "weights.npz"
BUCKETS = 4096  # every n-gram falls into one of them, and so do others
LONGEST_GRAM = 4
CHARACTERS_MAX = 2000  # of a text; what follows says nothing new about its language

Model = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The n-grams of all texts one after the other, and where each text begins -> chances, a row for each text."""


def grams(text: str) -> array:  # type: ignore[type-arg]  # array is generic in stubs only
    """The numbers of all pieces of 1 to 4 characters of each word; two bytes for each number."""
    found = array("H")
    for word in text[:CHARACTERS_MAX].casefold().split():
        bounded = f" {word} "
        for length in range(1, LONGEST_GRAM + 1):
            for start in range(len(bounded) - length + 1):
                found.append(zlib.crc32(bounded[start : start + length].encode()) % BUCKETS)
    return found


class Numbers:
    """What goes from stage to stage: the bytes of the array and nothing else. Both ends of it, so for both stages."""

    def serialize_ipc(self, data: array) -> bytes:  # type: ignore[type-arg]
        return np.frombuffer(data, np.uint16).astype("<u2").tobytes()  # the other stage may be on another machine

    def deserialize_ipc(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, dtype="<u2")


class Tokenize(Numbers, Worker):
    """Text -> numbers of n-grams. Plain Python, so it takes processors: `num` of them."""

    example = "a text to warm up with"

    def deserialize(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise DecodingError("the body is not UTF-8; send the text as it is") from error

    def forward(self, text: str) -> array:  # type: ignore[type-arg]
        if not any(map(str.isalpha, text[:CHARACTERS_MAX])):
            raise ValidationError("there is no letter in this text")
        return grams(text)


class Classify(Numbers, Worker):
    """Numbers of n-grams -> the name of the language and how sure the network is. All that waits in one step."""

    resp_mime_type = "text/plain"
    example = [np.arange(100, dtype="<u2")] * 32

    def __init__(self) -> None:
        with np.load(WEIGHTS, allow_pickle=False) as file:
            self.names: list[str] = file["names"].tolist()
            weights = {name: file[name].astype(np.float32) for name in ("vectors", "matrix", "bias")}
        device = os.environ.get("LANGUAGE_DEVICE") or best_device()
        self.model = numpy_model(**weights) if device == "numpy" else torch_model(device, **weights)

    def forward(self, texts: list[np.ndarray]) -> list[str]:
        lengths = np.array([len(text) for text in texts])
        chances = self.model(np.concatenate(texts).astype(np.int64), np.cumsum(lengths) - lengths)
        best = chances.argmax(axis=1)
        return [f"{self.names[index]} {row[index]:.2f}\n" for index, row in zip(best, chances, strict=True)]

    def serialize(self, data: str) -> bytes:
        return data.encode()


def best_device() -> str:
    """`cuda` where torch is installed and finds a GPU. Without one numpy is as fast, and there in a moment."""
    try:
        import torch
    except ImportError:
        return "numpy"
    return "cuda" if torch.cuda.is_available() else "numpy"


def numpy_model(vectors: np.ndarray, matrix: np.ndarray, bias: np.ndarray) -> Model:
    def run(numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
        lengths = np.diff(starts, append=len(numbers))
        means = np.add.reduceat(vectors[numbers], starts) / lengths[:, None]
        scores = np.exp(means @ matrix + bias)  # a few units at most
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))

    return run


def torch_model(device: str, vectors: np.ndarray, matrix: np.ndarray, bias: np.ndarray) -> Model:
    import torch

    on_device = [torch.from_numpy(one).to(device) for one in (vectors, matrix, bias)]

    @torch.inference_mode()
    def run(numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
        inputs = [torch.from_numpy(one).to(device) for one in (numbers, starts)]
        means = torch.nn.functional.embedding_bag(inputs[0], on_device[0], inputs[1], mode="mean")
        return np.asarray(torch.softmax(means @ on_device[1] + on_device[2], dim=1).cpu().numpy())

    return run


if __name__ == "__main__":
    server = Server()
    server.append_worker(Tokenize, num=2, route="/language")
    server.append_worker(Classify, max_batch_size=32, max_wait_time=5, route="/language")
    server.run()
