"""Two stages that hand on objects of a class of this file, which no codec but pickle knows."""

from typing import Any

from zmesh import Server, Worker
from zmesh.mixins import PickleIPCMixin


class Sentence:
    def __init__(self, text: str) -> None:
        self.words = text.split()


class Split(PickleIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return (word for word in data) if isinstance(data, list) else Sentence(data)


class Count(PickleIPCMixin, Worker):
    def forward(self, data: Sentence) -> dict[str, int]:
        return {"words": len(data.words)}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Split)
    server.append_worker(Count)
    server.run()
