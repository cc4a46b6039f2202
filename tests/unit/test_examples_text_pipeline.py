"""examples/text_pipeline without a mesh: the committed network, its two devices, and what goes from stage to stage."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import numpy as np
import pytest

from tests.readme import EXAMPLES, load_example
from zmesh import DecodingError, ValidationError, Worker

FOLDER = EXAMPLES / "text_pipeline"
LINES = [line.split("\t") for line in (FOLDER / "sentences.tsv").read_text(encoding="utf-8").splitlines()]
HELD_OUT = [(language, text) for number, language, text in LINES if int(number) % 5 == 0]
NAMES = dict(
    de="German", en="English", es="Spanish", fr="French", it="Italian",
    nl="Dutch", pl="Polish", pt="Portuguese", sv="Swedish", tr="Turkish",
)  # fmt: skip


@pytest.fixture(name="app", scope="module")
def app_fixture() -> ModuleType:
    return load_example("text_pipeline")


def answers(app: ModuleType, texts: list[str]) -> list[str]:
    """As they go through the two stages, in one batch."""
    tokenize, classify = app.Tokenize(), app.Classify()
    passed = [tokenize.serialize_ipc(tokenize.forward(tokenize.deserialize(text.encode()))) for text in texts]
    return [classify.serialize(one).decode() for one in classify.forward([*map(classify.deserialize_ipc, passed)])]


def test_the_network_knows_of_the_held_out_sentences_what_the_readme_says(app: ModuleType):
    found = [answer.split()[0] for answer in answers(app, [text for _, text in HELD_OUT])]
    right = sum(name == NAMES[language] for name, (language, _) in zip(found, HELD_OUT, strict=True))
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    ((number, share),) = re.findall(r"^\| held out \| (\d+) \| ([\d.]+) % \|", readme, re.MULTILINE)
    assert len(HELD_OUT) == int(number)
    assert right / len(HELD_OUT) == pytest.approx(float(share) / 100, abs=0.002)


def test_the_train_script_holds_out_the_same_sentences():
    assert re.search(r"^HELD_OUT = 5 ", (FOLDER / "train.py").read_text(), re.MULTILINE)


def test_an_answer_does_not_depend_on_the_company_in_the_batch(app: ModuleType):
    texts = [text for _, text in HELD_OUT[:40]]
    assert [answer for text in texts for answer in answers(app, [text])] == answers(app, texts)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_says_what_numpy_says(app: ModuleType, device: str, monkeypatch: pytest.MonkeyPatch):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    if device == "cuda" and app.best_device() != "cuda":
        pytest.skip("torch finds no GPU")
    texts = [text for _, text in HELD_OUT[:100]]
    by_numpy = answers(app, texts)
    monkeypatch.setenv("LANGUAGE_DEVICE", device)
    by_torch = answers(app, texts)
    assert [answer.split()[0] for answer in by_torch] == [answer.split()[0] for answer in by_numpy]
    chances = [[float(answer.split()[1]) for answer in found] for found in (by_torch, by_numpy)]
    assert np.allclose(*chances, atol=0.011)  # they are rounded


def test_a_number_takes_two_bytes_between_the_stages_and_the_order_of_bytes_is_fixed(app: ModuleType):
    numbers = app.grams("Wie spät ist es?")
    passed = app.Tokenize().serialize_ipc(numbers)
    assert len(passed) == 2 * len(numbers) and passed == np.array(numbers, "<u2").tobytes()
    assert app.Classify().deserialize_ipc(passed).tolist() == list(numbers)
    ours = Worker.serialize_ipc(app.Tokenize(), list(numbers))
    assert len(passed) < 0.8 * len(ours), "as a list through the codec that zmesh takes by itself"


def test_pieces_are_of_one_to_four_characters_within_a_word(app: ModuleType):
    assert len(app.grams("ab")) == 4 + 3 + 2 + 1  # of " ab "
    assert app.grams("ab c") == app.grams("ab") + app.grams("c")
    assert app.grams("AB") == app.grams("ab")
    assert max(app.grams("any text of some length")) < app.BUCKETS


@pytest.mark.parametrize("text", ["", "12 34", "?!", "\n"])
def test_a_text_without_letters_is_refused(app: ModuleType, text: str):
    with pytest.raises(ValidationError, match="no letter"):
        app.Tokenize().forward(text)


def test_a_letter_beyond_what_is_read_does_not_count(app: ModuleType):
    with pytest.raises(ValidationError):
        app.Tokenize().forward("1" * app.CHARACTERS_MAX + "a")
    assert app.grams("a b " * app.CHARACTERS_MAX) == app.grams("a b " * (app.CHARACTERS_MAX // 4))


def test_bytes_that_are_no_text_are_refused(app: ModuleType):
    with pytest.raises(DecodingError, match="UTF-8"):
        app.Tokenize().deserialize(b"caf\xe9")


def test_the_warm_up_is_a_full_batch(app: ModuleType):
    assert len(app.Classify.example) == 32 and len(app.Classify().forward(app.Classify.example)) == 32
