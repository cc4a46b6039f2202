"""One model behind two routes: /inference takes a text as it is and answers in JSON, /v1/inference speaks msgpack.

Start it with  zmesh run examples/multi_route/app.py
and try it     curl -d 'how long is this' http://127.0.0.1:8000/inference
"""

from typing import Any

from zmesh import DecodingError, Server, ValidationError, Worker
from zmesh.mixins import MsgpackMixin


class Text(Worker):
    """The first stage of /inference: any bytes that are a text."""

    def deserialize(self, data: bytes) -> str:
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as error:
            raise DecodingError("send a text in UTF-8") from error

    def forward(self, data: str) -> str:
        return data


class Message(MsgpackMixin, Worker):
    """The first stage of /v1/inference."""

    def forward(self, data: Any) -> str:
        if not isinstance(data, dict) or not isinstance(data.get("text"), str):
            raise ValidationError('send {"text": "…"}')
        return data["text"]


class Measure(Worker):
    """The stage of both: one queue, one set of workers, and batches in which requests of both routes are together."""

    def forward(self, texts: list[str]) -> list[dict[str, int]]:
        return [{"characters": len(text), "words": len(text.split()), "batch": len(texts)} for text in texts]


class Packed(MsgpackMixin, Worker):
    """The last stage of /v1/inference, which is there to answer in msgpack."""

    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Text, route="/inference")
    server.append_worker(Message, route="/v1/inference")
    server.append_worker(Measure, max_batch_size=16, max_wait_time=20, route=["/inference", "/v1/inference"])
    server.append_worker(Packed, route="/v1/inference")
    server.run()
