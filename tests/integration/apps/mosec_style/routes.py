"""Several routes that share a stage, whose clients speak different formats."""

from typing import Any

from zmesh import Runtime, Server, Worker
from zmesh.mixin import MsgpackMixin
from zmesh.utils import ParseTarget


class Read(MsgpackMixin, Worker):
    def forward(self, data: dict) -> bytes:
        return data["bin"]


class Length(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return bytes(data)

    def forward(self, data: list[bytes]) -> list[dict]:
        return [{"length": len(item)} for item in data]


class Write(MsgpackMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


class Tell(Worker):
    @classmethod
    def get_forward_json_schema(cls, target: ParseTarget, ref_template: str):
        if target is ParseTarget.RETURN:
            return {}, {}
        question = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
        return {"$ref": ref_template.format(name="Question")}, {"Question": question}

    def forward(self, data: dict) -> dict:
        return {"stage": self.stage, **data}


if __name__ == "__main__":
    server = Server()
    length = Runtime(Length, max_batch_size=4)
    server.register_runtime({"/inference": [length], "/v1/inference": [Runtime(Read), length, Runtime(Write)]})
    server.append_worker(Tell, route=["/tell", "/v1/tell"])
    server.run()
