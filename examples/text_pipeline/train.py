"""Trains the network of this example in plain numpy on sentences.tsv and writes weights.npz.

    python examples/text_pipeline/train.py

Under a minute on one core. The seed is fixed: the same numpy on the same kind of processor writes the same bytes.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from app import BUCKETS, WEIGHTS, Model, grams, numpy_model  # noqa: E402  # what is served is what is trained

NAMES = dict(
    de="German", en="English", es="Spanish", fr="French", it="Italian",
    nl="Dutch", pl="Polish", pt="Portuguese", sv="Swedish", tr="Turkish",
)  # fmt: skip
SEED = 7
HELD_OUT = 5  # every fifth message, in all its languages
SIZE, EPOCHS, BATCH, RATE = 16, 12, 64, 5e-3
PIECES = 2  # of each sentence, besides the whole: people send short texts too

Parameters = dict[str, np.ndarray]
Texts = list[tuple[str, int]]


def split() -> tuple[Texts, Texts]:
    """(text, number of its language): to train on, and held out."""
    order = list(NAMES)
    sides: tuple[Texts, Texts] = ([], [])
    for line in (HERE / "sentences.tsv").read_text(encoding="utf-8").splitlines():
        number, language, text = line.split("\t")
        sides[int(number) % HELD_OUT == 0].append((text, order.index(language)))
    return sides


def with_pieces(texts: Texts, random: np.random.Generator) -> Texts:
    """The texts, and of each some words in a row."""
    found = list(texts)
    for text, language in texts:
        words = text.split()
        for _ in range(PIECES):
            start = int(random.integers(len(words) - 1))
            found.append((" ".join(words[start : start + int(random.integers(2, 5))]), language))
    return [(text, language) for text, language in found if any(map(str.isalpha, text))]


def as_rows(texts: Texts) -> np.ndarray:
    """How often each bucket is in each text, as shares."""
    rows = np.zeros((len(texts), BUCKETS), np.float32)
    for row, (text, _) in zip(rows, texts, strict=True):
        numbers = np.frombuffer(grams(text), np.uint16)
        np.add.at(row, numbers, np.float32(1 / len(numbers)))
    return rows


def gradients(parameters: Parameters, rows: np.ndarray, labels: np.ndarray) -> Parameters:
    """Of the mean cross-entropy, by hand: two products are short enough to write out."""
    means = rows @ parameters["vectors"]
    scores = means @ parameters["matrix"] + parameters["bias"]
    error = np.exp(scores - scores.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    return {
        "vectors": rows.T @ (error @ parameters["matrix"].T),
        "matrix": means.T @ error,
        "bias": error.sum(axis=0),
    }


def train(rows: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> Parameters:
    parameters: Parameters = {
        "vectors": random.normal(0, 0.1, (BUCKETS, SIZE)).astype(np.float32),
        "matrix": random.normal(0, 0.5, (SIZE, len(NAMES))).astype(np.float32),
        "bias": np.zeros(len(NAMES), np.float32),
    }
    # Adam: running means of each gradient and of its square.
    mean = {name: np.zeros_like(value) for name, value in parameters.items()}
    square = {name: np.zeros_like(value) for name, value in parameters.items()}
    step = 0
    for _ in range(EPOCHS):
        for chosen in np.array_split(random.permutation(len(labels)), len(labels) // BATCH):
            step += 1
            for name, slope in gradients(parameters, rows[chosen], labels[chosen]).items():
                mean[name] += 0.1 * (slope - mean[name])
                square[name] += 0.001 * (slope**2 - square[name])
                unbiased = mean[name] / (1 - 0.9**step), square[name] / (1 - 0.999**step)
                parameters[name] -= RATE * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return parameters


def right(model: Model, texts: Texts) -> int:
    """How many of the texts the model knows the language of."""
    numbers = [np.frombuffer(grams(text), np.uint16).astype(np.int64) for text, _ in texts]
    lengths = np.array([len(one) for one in numbers])
    found = model(np.concatenate(numbers), np.cumsum(lengths) - lengths).argmax(axis=1)
    return int((found == [language for _, language in texts]).sum())


def main() -> None:
    random = np.random.default_rng(SEED)
    learned, held_out = split()
    texts = with_pieces(learned, random)
    parameters = train(as_rows(texts), np.array([language for _, language in texts]), random)
    halved = {name: value.astype(np.float16) for name, value in parameters.items()}
    np.savez_compressed(WEIGHTS, names=np.array(list(NAMES.values())), **halved)

    model = numpy_model(**{name: value.astype(np.float32) for name, value in halved.items()})
    short = with_pieces(held_out, random)[len(held_out) :]
    for words, rows in (("trained on", learned), ("held out", held_out), ("2 to 4 words of these", short)):
        count = right(model, rows)
        print(f"{words:<22} {len(rows):>5} texts, {count:>5} right = {count / len(rows):.1%}")


if __name__ == "__main__":
    main()
