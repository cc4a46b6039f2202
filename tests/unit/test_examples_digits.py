"""examples/digits without a server: the committed network, the pictures it may be shown, what the client prints."""

import importlib.util
import io
import json
import struct
import zlib
from collections import Counter
from http.client import RemoteDisconnected
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from zmesh import DecodingError, ValidationError

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SAMPLES = DIGITS / "samples"
LABELS: dict[str, int] = json.loads((SAMPLES / "labels.json").read_text())


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_digits_{name}", DIGITS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def app() -> ModuleType:
    return load("app")


@pytest.fixture(scope="module")
def client() -> ModuleType:
    return load("client")


def decode(app: ModuleType, body: bytes) -> np.ndarray:
    worker = app.Decode()
    return worker.forward(worker.deserialize(body))


def answers(app: ModuleType, bodies: list[bytes]) -> list[dict[str, Any]]:
    """What a client would get for these bodies, had they all travelled in one batch."""
    label = app.Label()
    return [label.forward(guess) for guess in app.Classify().forward([decode(app, body) for body in bodies])]


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def header_only(width: int, height: int) -> bytes:
    """A tiny file that promises a picture of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# The samples and the network


def test_samples_are_four_of_each_digit_and_named_after_their_label():
    assert sorted(LABELS) == sorted(path.name for path in SAMPLES.glob("*.png"))
    assert all(name.endswith(f"_is_{digit}.png") for name, digit in LABELS.items())
    assert Counter(LABELS.values()) == dict.fromkeys(range(10), 4)


def test_the_network_reads_at_least_95_percent_of_the_samples(app: ModuleType):
    found = answers(app, [(SAMPLES / name).read_bytes() for name in LABELS])
    right = sum(answer["digit"] == digit for answer, digit in zip(found, LABELS.values(), strict=True))
    assert right >= 0.95 * len(LABELS)


def test_shrinking_a_sample_recovers_the_sixteen_levels_it_was_drawn_from(app: ModuleType):
    for name in LABELS:
        levels = 16 * decode(app, (SAMPLES / name).read_bytes())
        assert levels.shape == (8, 8) and levels.dtype == np.float32
        assert np.abs(levels - np.rint(levels)).max() < 0.05
        assert levels.min() >= 0 and levels.max() <= 16


def test_the_answer_does_not_depend_on_the_company_in_the_batch(app: ModuleType):
    bodies = [(SAMPLES / name).read_bytes() for name in LABELS]
    for together, body in zip(answers(app, bodies), bodies, strict=True):
        (alone,) = answers(app, [body])
        assert alone["digit"] == together["digit"]
        assert alone["probability"] == pytest.approx(together["probability"], abs=1e-3)
        assert (alone["batch_size"], together["batch_size"]) == (1, len(bodies))


def test_an_answer_is_plain_json_with_the_best_guess_first(app: ModuleType):
    (answer,) = answers(app, [app.Decode.example])
    assert json.loads(json.dumps(answer)) == answer
    assert list(answer) == ["digit", "probability", "top3", "batch_size"]
    assert answer["top3"][0] == {"digit": answer["digit"], "probability": answer["probability"]}
    probabilities = [guess["probability"] for guess in answer["top3"]]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1.001  # each of them is rounded


def test_the_chances_of_a_picture_add_up_to_one(app: ModuleType):
    for guess in app.Classify().forward(app.Classify.example):
        assert len(guess["chances"]) == 10 and sum(guess["chances"]) == pytest.approx(1, abs=1e-5)


def test_the_warm_up_is_a_full_batch(app: ModuleType):
    assert isinstance(app.Classify.example, list) and len(app.Classify.example) == 32


# Decode


@pytest.mark.parametrize(
    "repaint",
    [
        pytest.param(lambda image: image.convert("RGB"), id="colour"),
        pytest.param(lambda image: image.convert("P"), id="palette"),
        pytest.param(lambda image: image.resize((28, 28)), id="28 pixels wide"),
        pytest.param(ImageOps.invert, id="white on black"),
        pytest.param(lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257), id="16 bits"),
        pytest.param(
            lambda image: Image.merge("LA", (Image.new("L", image.size), ImageOps.invert(image))),
            id="transparent paper",
        ),
    ],
)
def test_the_same_digit_painted_differently_is_the_same_digit(app: ModuleType, repaint):
    with Image.open(SAMPLES / "00_is_2.png") as image:
        (answer,) = answers(app, [as_png(repaint(image))])
    assert answer["digit"] == 2


def test_a_body_may_be_any_kind_of_bytes(app: ModuleType):
    body = (SAMPLES / "00_is_2.png").read_bytes()
    for kind in (bytearray, memoryview):
        assert np.array_equal(decode(app, kind(body)), decode(app, body))


@pytest.mark.parametrize("body", [b"", b"garbage", b'{"digit": 3}', b"\x89PNG\r\n\x1a\n", b"\0" * 1000])
def test_what_is_not_a_png_is_a_decoding_error(app: ModuleType, body: bytes):
    with pytest.raises(DecodingError, match="not a PNG"):
        decode(app, body)


def test_a_picture_of_another_format_is_a_decoding_error(app: ModuleType):
    buffer = io.BytesIO()
    Image.new("L", (64, 64), "white").save(buffer, "JPEG")
    with pytest.raises(DecodingError, match="not a PNG"):
        decode(app, buffer.getvalue())


def test_a_png_cut_anywhere_is_refused_or_has_all_its_pixels(app: ModuleType):
    body = (SAMPLES / "00_is_2.png").read_bytes()
    whole, refused = decode(app, body), 0
    for length in range(len(body)):
        try:
            assert np.array_equal(decode(app, body[:length]), whole)
        except DecodingError:
            refused += 1
    assert refused > len(body) - 32  # the last bytes are check sums and an end mark


@pytest.mark.parametrize("size", [(2049, 64), (64, 2049), (7, 64), (1, 1)])
def test_sides_out_of_range_are_a_validation_error_before_any_pixel_is_read(app: ModuleType, size: tuple[int, int]):
    # There are no pixels in the file: reading them would be a DecodingError.
    with pytest.raises(ValidationError, match="each side must be 8 to 2048"):
        decode(app, header_only(*size))


def test_a_decompression_bomb_is_a_validation_error(app: ModuleType):
    with pytest.raises(ValidationError, match="far too large"):
        decode(app, header_only(100_000, 100_000))


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_an_empty_sheet_is_a_validation_error(app: ModuleType, shade: int):
    with pytest.raises(ValidationError, match="nothing is drawn"):
        decode(app, as_png(Image.new("L", (64, 64), shade)))


# The client


class Connection:
    """Answers one request as told: a response, or an exception."""

    def __init__(self, status: int = 200, body: bytes = b"", error: Exception | None = None) -> None:
        self.response = SimpleNamespace(status=status, read=lambda: body)
        self.error = error
        self.closed = False

    def request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        assert method == "POST" and path == "/digits" and body.startswith(b"\x89PNG")

    def getresponse(self) -> SimpleNamespace:
        if self.error:
            raise self.error
        return self.response

    def close(self) -> None:
        self.closed = True


def ask(client: ModuleType, connection: Connection) -> Any:
    row = client.Row("00_is_2.png", 2)
    client.ask(connection, "/digits", row)
    return row


def test_client_reads_an_answer(client: ModuleType):
    row = ask(client, Connection(body=b'{"digit": 2, "probability": 0.975, "top3": [], "batch_size": 8}'))
    assert (row.answer, row.probability, row.batch_size, row.problem) == (2, 0.975, 8, "")
    assert row.right and row.milliseconds > 0


def test_client_shows_what_a_refusal_said(client: ModuleType):
    row = ask(client, Connection(429, b"too many requests: the queue is full\n"))
    assert row.problem == "429 too many requests: the queue is full" and not row.right


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b"{}", b"\xff", b'{"digit": 2, "probability": null}'])
def test_client_does_not_take_any_200_for_an_answer(client: ModuleType, body: bytes):
    row = ask(client, Connection(200, body))
    assert "not an answer" in row.problem and not row.right


def test_client_survives_a_lost_connection(client: ModuleType):
    connection = Connection(error=RemoteDisconnected("closed without response"))
    assert ask(client, connection).problem == "no answer: closed without response"
    assert connection.closed


def test_client_prints_an_aligned_table(client: ModuleType):
    rows = [
        client.Row("00_is_2.png", 2, 2, 1.0, 8.25, 8),
        client.Row("01_is_0.png", 0, 6, 0.5, 1234.5, 16),
        client.Row("02_is_7.png", 7, problem="503 draining"),
    ]
    assert client.table(rows).splitlines() == [
        "image        expected  answer  probability  latency ms  batch",
        "00_is_2.png         2       2       100.0%         8.2      8  right",
        "01_is_0.png         0       6        50.0%      1234.5     16  WRONG",
        "02_is_7.png         7  503 draining",
    ]
