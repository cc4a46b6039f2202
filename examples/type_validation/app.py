"""Says what a colour is called. Requests and answers are msgpack, and checked against the types of `forward`.

Start it with  zmesh run examples/type_validation/app.py
and try it     python examples/type_validation/client.py
"""

from math import dist
from typing import Annotated, Literal

import msgspec

from zmesh import Server, Worker
from zmesh.mixins import TypedMsgPackMixin

Level = Annotated[int, msgspec.Meta(ge=0, le=255)]  # of red, green or blue light
Language = Literal["en", "de"]

NAMES: dict[tuple[int, int, int], dict[str, str]] = {
    (0, 0, 0): {"en": "black", "de": "schwarz"},
    (255, 255, 255): {"en": "white", "de": "weiß"},
    (128, 128, 128): {"en": "grey", "de": "grau"},
    (220, 20, 20): {"en": "red", "de": "rot"},
    (255, 140, 0): {"en": "orange", "de": "orange"},
    (255, 220, 0): {"en": "yellow", "de": "gelb"},
    (20, 150, 40): {"en": "green", "de": "grün"},
    (30, 80, 220): {"en": "blue", "de": "blau"},
    (130, 30, 160): {"en": "purple", "de": "lila"},
    (120, 70, 30): {"en": "brown", "de": "braun"},
}


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """A colour by its light, and the language to name it in."""

    light: tuple[Level, Level, Level]
    language: Language = "en"


class Answer(msgspec.Struct):
    """The nearest colour that has a name, and how far away it is."""

    name: str
    distance: float


class Name(TypedMsgPackMixin, Worker):
    """With batches `forward` takes a list, and each request is one of it."""

    example = [Question((250, 130, 10))] * 16  # the warm-up is a batch, which is what forward takes

    def forward(self, questions: list[Question]) -> list[Answer]:
        return [name(question) for question in questions]


def name(question: Question) -> Answer:
    nearest = min(NAMES, key=lambda light: dist(light, question.light))
    return Answer(NAMES[nearest][question.language], round(dist(nearest, question.light), 1))


if __name__ == "__main__":
    server = Server()
    server.append_worker(Name, max_batch_size=16, max_wait_time=1, route="/colour")
    server.run()
