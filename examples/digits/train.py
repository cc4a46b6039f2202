"""Trains the network of this example in plain numpy and writes what app.py and client.py need.

    python examples/digits/train.py

weights.npz           the network, about 20 kB
samples/NN_is_D.png   pictures the training never saw, for client.py and curl
samples/labels.json   {file name: digit}

Two seconds on one core. The seed is fixed: the same numpy on the same processor writes the same bytes.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
SEED = 7
HELD_OUT = 360  # of 1797 pictures
SAMPLES_PER_DIGIT = 4
HIDDEN, EPOCHS, BATCH, RATE, DECAY = 64, 60, 32, 2e-3, 1e-4
BLOCK = 8  # pixels per point: 8 x 8 points become a 64 x 64 picture

Parameters = dict[str, np.ndarray]


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pictures and labels to train on, then those held out; a picture is a row of 64 points in 0..1."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.data))
    pictures, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    return pictures[HELD_OUT:], labels[HELD_OUT:], pictures[:HELD_OUT], labels[:HELD_OUT]


def choose_samples(labels: np.ndarray) -> list[int]:
    """The first four of each digit as they come: chosen by label, never by what the network says."""
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:SAMPLES_PER_DIGIT] for digit in range(10)])
    return sorted(chosen.tolist())


def predict(parameters: Parameters, pictures: np.ndarray) -> np.ndarray:
    hidden = np.maximum(pictures @ parameters["w1"] + parameters["b1"], 0)
    return (hidden @ parameters["w2"] + parameters["b2"]).argmax(axis=1)


def gradients(parameters: Parameters, pictures: np.ndarray, labels: np.ndarray) -> Parameters:
    """Of the mean cross-entropy, by hand: two layers are short enough to write out."""
    hidden = np.maximum(pictures @ parameters["w1"] + parameters["b1"], 0)
    scores = hidden @ parameters["w2"] + parameters["b2"]
    error = np.exp(scores - scores.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    back = (error @ parameters["w2"].T) * (hidden > 0)
    return {
        "w1": pictures.T @ back + DECAY * parameters["w1"],
        "b1": back.sum(axis=0),
        "w2": hidden.T @ error + DECAY * parameters["w2"],
        "b2": error.sum(axis=0),
    }


def train(pictures: np.ndarray, labels: np.ndarray) -> Parameters:
    random = np.random.default_rng(SEED)
    parameters: Parameters = {
        "w1": random.normal(0, np.sqrt(2 / 64), (64, HIDDEN)).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": random.normal(0, np.sqrt(2 / HIDDEN), (HIDDEN, 10)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    # Adam: running means of each gradient and of its square.
    mean = {name: np.zeros_like(value) for name, value in parameters.items()}
    square = {name: np.zeros_like(value) for name, value in parameters.items()}
    step = 0
    for _ in range(EPOCHS):
        for rows in np.array_split(random.permutation(len(labels)), len(labels) // BATCH):
            step += 1
            for name, slope in gradients(parameters, pictures[rows], labels[rows]).items():
                mean[name] += 0.1 * (slope - mean[name])
                square[name] += 0.001 * (slope**2 - square[name])
                unbiased = mean[name] / (1 - 0.9**step), square[name] / (1 - 0.999**step)
                parameters[name] -= RATE * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return parameters


def draw(points: np.ndarray) -> Image.Image:
    """Dark ink on white paper, each point a plain block, so that the mean of a block is the point again."""
    gray = np.rint(255 * (1 - points.reshape(8, 8))).astype(np.uint8)
    return Image.fromarray(np.kron(gray, np.ones((BLOCK, BLOCK), np.uint8)))


def main() -> None:
    pictures, labels, held_out, answers = split()
    parameters = train(pictures, labels)
    np.savez(HERE / "weights.npz", **parameters)

    folder = HERE / "samples"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    chosen = choose_samples(answers)
    names = {f"{number:02}_is_{answers[row]}.png": row for number, row in enumerate(chosen)}
    for name, row in names.items():
        draw(held_out[row]).save(folder / name, optimize=True)
    listing = {name: int(answers[row]) for name, row in names.items()}
    (folder / "labels.json").write_text(json.dumps(listing, indent=2) + "\n")

    for words, rows, truth in (
        ("trained on", pictures, labels),
        ("held out", held_out, answers),
        ("samples", held_out[chosen], answers[chosen]),
    ):
        right = int((predict(parameters, rows) == truth).sum())
        print(f"{words:<10} {len(rows):>4} pictures, {right:>4} right = {right / len(rows):.1%}")


if __name__ == "__main__":
    main()
