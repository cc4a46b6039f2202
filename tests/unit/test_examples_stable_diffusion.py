"""examples/stable_diffusion with something that draws in the place of the model, which would have to be downloaded."""

from __future__ import annotations

import sys
from io import BytesIO
from types import ModuleType, SimpleNamespace
from typing import Any

import msgpack
import pytest
from PIL import Image

from tests.readme import load_example
from zmesh import ValidationError


class Pipe:
    """Draws a plain colour, and withholds what is red."""

    asked: list[dict[str, Any]]

    @classmethod
    def from_pretrained(cls, model: str, torch_dtype: object) -> Pipe:
        made = cls()
        made.asked = []
        return made

    def to(self, device: str) -> Pipe:
        return self

    def set_progress_bar_config(self, **_: object) -> None: ...

    def __call__(self, prompts: list[str], **settings: Any) -> SimpleNamespace:
        self.asked.append({"prompts": prompts, **settings})
        images = [Image.new("RGB", (64, 64), prompt) for prompt in prompts]
        return SimpleNamespace(images=images, nsfw_content_detected=[prompt == "red" for prompt in prompts])


class Generator:
    def __init__(self, device: str) -> None: ...

    def manual_seed(self, seed: int) -> int:
        return seed


@pytest.fixture(name="app")
def app_fixture(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: False), float16="half", float32="single", Generator=Generator
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(StableDiffusionPipeline=Pipe))
    return load_example("stable_diffusion")


def test_every_prompt_gets_its_own_picture_and_what_is_withheld_is_refused_alone(app: ModuleType):
    draw = app.Draw()
    blue, red, green = draw.forward([{"prompt": prompt, "seed": 7} for prompt in ("blue", "red", "lime")])
    assert isinstance(red, ValidationError)
    colours = [Image.open(BytesIO(picture)).getpixel((32, 32)) for picture in (blue, green)]
    assert [max(range(3), key=colour.__getitem__) for colour in colours] == [2, 1]
    assert draw.pipe.asked[-1]["generator"] == [7, 7, 7]
    assert Image.open(BytesIO(msgpack.unpackb(draw.serialize(blue)))).format == "JPEG"


def test_a_prompt_is_read_from_msgpack_and_has_a_seed(app: ModuleType):
    prompt = app.Prompt()
    body = msgpack.packb({"prompt": "a fox", "seed": -1})
    assert prompt.forward(prompt.deserialize(body)) == {"prompt": "a fox", "seed": 2**63 - 1}
    assert prompt.forward({"prompt": "a fox"}) == {"prompt": "a fox", "seed": 0}


@pytest.mark.parametrize("data", [None, "a fox", {}, {"prompt": ""}, {"prompt": 5}, {"prompt": "x" * 1001},
                                  {"prompt": "a fox", "seed": 1.5}, {"prompt": "a fox", "seed": True}])  # fmt: skip
def test_what_is_no_prompt_never_reaches_the_gpu(app: ModuleType, data: object):
    with pytest.raises(ValidationError):
        app.Prompt().forward(data)


def test_the_warm_up_is_what_the_stage_takes(app: ModuleType):
    (picture,) = app.Draw().forward([{**order, "prompt": "blue"} for order in app.Draw.example])
    assert isinstance(picture, bytes)
