"""One bad item never fails its neighbours, in batches that 48 clients share."""

import json
import time
from pathlib import Path

from tests.harness import closed_loop, running

APPS = Path(__file__).parent / "apps"
HOWS = ["fine", "fine", "undecodable", "fine", "invalid", "fine", "index", "fine", "guilty", "fine", "fine", "fine"]
EXPECTED = {"fine": 200, "undecodable": 400, "invalid": 422, "index": 500, "guilty": 500}


def test_every_kind_of_failure_in_shared_batches_hits_only_its_own_request() -> None:
    def how(client: int, number: int) -> str:
        return HOWS[(client + number) % len(HOWS)]

    def body(client: int, number: int) -> tuple[str, bytes]:
        kind = how(client, number)
        if kind == "undecodable":
            return "/mixed", b"{not json"
        return "/mixed", json.dumps({"nonce": client * 100_000 + number, "how": kind}).encode()

    with running(APPS / "mixed.py") as mesh:
        end = time.monotonic() + 4
        answers = closed_loop(mesh.port, 48, body, lambda: time.monotonic() > end)

    sizes = []
    for client, number, answer in answers:
        kind = how(client, number)
        assert answer.status == EXPECTED[kind], f"{kind}: {answer}"
        if kind == "fine":
            assert answer.json()["nonce"] == client * 100_000 + number
            sizes.append(answer.json()["size"])
        elif kind == "undecodable":
            assert answer.body.startswith(b"decoding error: ")
        elif kind == "invalid":
            assert answer.body == b"request validation error: nonce must be a number"
        else:
            assert answer.body == b"inference internal error"
    assert len(answers) > 1000
    assert max(sizes) > 4, "the batches were really shared"
