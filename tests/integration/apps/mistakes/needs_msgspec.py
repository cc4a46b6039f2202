import sys

from zmesh import Server, Worker
from zmesh.mixins import TypedMsgPackMixin

sys.modules["msgspec"] = None  # as if it were not installed


class Parse(TypedMsgPackMixin, Worker):
    def forward(self, data: dict[str, int]) -> int:
        return len(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Parse)
    server.run()
