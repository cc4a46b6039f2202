"""Routes with types of every kind; each refuses what is not of its type. For whoever reads our OpenAPI document."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic

from zmesh import DecodingError, Server, SSEWorker, ValidationError, Worker
from zmesh.mixins import MsgpackMixin, TypedMsgPackMixin


class Leaf(msgspec.Struct, tag="leaf"):
    value: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]


class Node(msgspec.Struct, tag="node"):
    parts: Annotated[list["Leaf | Node"], msgspec.Meta(max_length=4)] = []


class Total(msgspec.Struct):
    total: float
    leaves: Annotated[int, msgspec.Meta(ge=0)]


def total(tree: Leaf | Node) -> Total:
    if isinstance(tree, Leaf):
        return Total(tree.value, 1)
    parts = [total(part) for part in tree.parts]
    return Total(sum(part.total for part in parts), sum(part.leaves for part in parts))


class Sum(Worker):
    """msgspec, in batches."""

    example = [Node([Leaf(1.0), Node([Leaf(2.0)])])]

    def __init__(self) -> None:
        self.decoder = msgspec.json.Decoder(Leaf | Node)

    def deserialize(self, data: bytes) -> Leaf | Node:
        try:
            return self.decoder.decode(data)
        except msgspec.ValidationError as error:
            raise ValidationError(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodingError(str(error)) from error

    def forward(self, batch: list[Leaf | Node]) -> list[Total | ValidationError]:
        return [total(tree) for tree in batch]

    def serialize(self, data: Total) -> bytes:
        return msgspec.json.encode(data)


class Line(pydantic.BaseModel):
    article: str = pydantic.Field(min_length=1)
    amount: int = pydantic.Field(gt=0, le=1000)


class Order(pydantic.BaseModel):
    lines: list[Line]
    express: bool = False
    note: str | None = None


class Receipt(pydantic.BaseModel):
    articles: int
    express: Literal["yes", "no"]


class Sell(Worker):
    """pydantic, one at a time."""

    multi_examples = [Order(lines=[Line(article="lid", amount=2)]), Order(lines=[])]

    def deserialize(self, data: bytes) -> Order:
        try:
            return Order.model_validate_json(data)
        except pydantic.ValidationError as error:
            raise ValidationError(str(error)) from error

    def forward(self, order: Order) -> Receipt:
        return Receipt(articles=sum(line.amount for line in order.lines), express="yes" if order.express else "no")

    def serialize(self, data: Receipt) -> bytes:
        return data.model_dump_json().encode()


class Span(TypedDict):
    start: int
    end: int


class Length(Worker):
    """JSON as it comes."""

    example = {"start": 1, "end": 4}

    def forward(self, span: Span) -> int:
        start, end = (span.get(name) if isinstance(span, dict) else None for name in ("start", "end"))
        if type(start) is not int or type(end) is not int:
            raise ValidationError("send a start and an end")
        return end - start


class Square(MsgpackMixin, Worker):
    """msgpack, in batches."""

    def forward(self, batch: list[dict[str, int]]) -> list[dict[str, int] | ValidationError]:
        return [self.square(numbers) for numbers in batch]

    def square(self, numbers: Any) -> dict[str, int] | ValidationError:
        if not isinstance(numbers, dict) or not all(
            isinstance(name, str) and type(number) is int and abs(number) < 2**31 for name, number in numbers.items()
        ):
            return ValidationError("send names and numbers below 2**31")
        return {name: number * number for name, number in numbers.items()}


class Packed(TypedMsgPackMixin, Worker):
    """The same trees, in msgpack that the mixin checks."""

    def forward(self, batch: list[Leaf | Node]) -> list[Total]:
        return [total(tree) for tree in batch]


class Speak(SSEWorker):
    """Events."""

    example = {"text": "one two"}

    def forward(self, data: dict[str, str]) -> Iterator[str]:
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str) or not text:
            raise ValidationError("text is required")
        yield from text.split()


class Upper(Worker):
    """Bytes, in a type of its own."""

    resp_mime_type = "image/x-upper"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return data.upper()

    def serialize(self, data: bytes) -> bytes:
        return data


class Anything(Worker):
    """Whatever is JSON."""

    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Sum, max_batch_size=8, max_wait_time=1, route="/sum")
    server.append_worker(Sell, route="/sell")
    server.append_worker(Length, route="/v1/length")
    server.append_worker(Square, max_batch_size=8, max_wait_time=1, route="/square")
    server.append_worker(Packed, max_batch_size=8, max_wait_time=1, route="/packed")
    server.append_worker(Speak, route="/speak")
    server.append_worker(Upper, route="/upper")
    server.append_worker(Anything, max_batch_size=8, max_wait_time=1, route="/anything")
    server.run()
