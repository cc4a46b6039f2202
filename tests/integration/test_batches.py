"""One bad item never fails its neighbours, in batches that 48 clients share."""

import json
import time
from pathlib import Path

from tests.harness import all_at_once, closed_loop, running

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


def test_bodies_that_do_not_fit_into_one_message_together_are_all_answered() -> None:
    """128 bodies of 60 kB are more than a TASKS message may carry inline; 200 kB travel in frames of their own."""
    with running(APPS / "large.py", "--timeout", "20000") as mesh:
        end = time.monotonic() + 2
        answers = closed_loop(
            mesh.port,
            100,
            lambda client, number: ("/size", bytes(60_000 if client % 4 else 200_000)),
            lambda: time.monotonic() > end,
        )
        assert mesh.post("/size", b"x").json() == {"size": 1, "batch": 1}
    assert {answer.status for _, _, answer in answers} == {200}
    assert all(answer.json()["size"] == (60_000 if client % 4 else 200_000) for client, _, answer in answers)
    assert len(answers) >= 200


def test_a_result_longer_than_a_message_fails_alone_and_the_worker_stays_connected() -> None:
    """1.1 times the largest frame, in a batch of eight."""
    largest = 64 * 1024 * 1024
    bodies = [b"short"] * 7 + [str(largest * 11 // 10).encode()]
    with running(APPS / "sized.py", "--isolate-broker", "--timeout", "30000") as mesh:
        pids = mesh.worker_pids()
        with all_at_once(mesh.port, "/long", bodies) as answers:
            pass
        again = mesh.post("/long", b"again")
        assert mesh.worker_pids() == pids
        log = mesh.log()
    assert [answer.status for answer in answers] == [200] * 7 + [413], log
    assert answers[-1].body == b"request is too large: the result is larger than a message may be"
    assert {answer.body for answer in answers[:7]} == {b"8"}, "all eight shared one batch"
    assert (again.status, again.body) == (200, b"1")
    assert "connect" not in log and "no word" not in log, log
