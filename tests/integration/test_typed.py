"""TypedMsgPackMixin in a real mesh, in a batch: who is refused has no company, and the document says what is taken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from tests.harness import REPOSITORY, running

APP = REPOSITORY / "examples" / "type_validation" / "app.py"

pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode
BODIES = {
    pack({"light": [0, 0, 0]}): 200,
    pack({"light": [0, 0, 256]}): 422,
    pack({"light": [0, 0]}): 422,
    pack({"light": [0, 0, 0], "more": 1}): 422,
    pack([1]): 422,
    b"\xc1": 400,
    pack({"light": [0, 0, 0]})[:-1]: 400,
}


def test_each_request_of_a_batch_is_checked_by_itself() -> None:
    with running(APP, "--wait", "50") as mesh:
        bodies = [*BODIES] * 8
        with ThreadPoolExecutor(len(bodies)) as clients:
            answers = list(clients.map(lambda body: mesh.post("/colour", body), bodies))
        assert [answer.status for answer in answers] == [BODIES[body] for body in bodies]
        assert {answer.headers["content-type"] for answer in answers if answer.status == 200} == {"application/msgpack"}
        assert unpack(answers[0].body) == {"name": "black", "distance": 0.0}
        assert answers[5].body.startswith(b"decoding error: the body is not valid msgpack: ")
        document = mesh.get("/openapi/metadata.json").json()
        operation = document["paths"]["/colour"]["post"]
        assert operation["requestBody"]["content"]["application/msgpack"]["schema"] == {
            "$ref": "#/components/schemas/Question"
        }
        assert operation["responses"]["200"]["content"] == {
            "application/msgpack": {"schema": {"$ref": "#/components/schemas/Answer"}}
        }
        assert set(document["components"]["schemas"]) >= {"Question", "Answer"}
