"""Serializers of its own: plain text in, plain text out, and its own bytes between the stages."""

import json

from zmesh import Server, Worker
from zmesh.errors import DecodingError, EncodingError


class Split(Worker):
    def deserialize(self, data: bytes) -> str:
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as err:
            raise DecodingError("this is not UTF-8") from err

    def forward(self, data: str) -> list:
        return data.split()

    def serialize_ipc(self, data) -> bytes:
        return json.dumps(data).encode()


class Join(Worker):
    resp_mime_type = "text/plain"

    def deserialize_ipc(self, data) -> list:
        return json.loads(bytes(data))

    def forward(self, data: list) -> str:
        return "-".join(data)

    def serialize(self, data: str) -> bytes:
        if "nothing" in data:
            raise EncodingError("it cannot be said")
        return data.encode()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Split)
    server.append_worker(Join)
    server.run()
