"""`--compression` through a gateway: bombs, broken bodies, which answers are packed, and what stays as it is."""

from __future__ import annotations

import asyncio
import gzip
import threading
import tracemalloc
from typing import Any

import pytest
from fastapi.responses import PlainTextResponse, StreamingResponse

from tests.unit.test_codings import EITHER, called
from tests.unit.test_gateway import PLAN, Client, FakeBroker, answer_to, joined, run, until
from zmesh import compression, inference
from zmesh.codings import PACKED_BYTES_MIN, Unpacking
from zmesh.config import Settings
from zmesh.gateway import make_app
from zmesh.messages import Status
from zmesh.openapi import metadata

MIB = 1024 * 1024
LIMIT = 3 * MIB
LONG = b"a long answer, and the same again " * 100
ON = {"compression": True, "max_request_size": LIMIT}


def sending(name: str, *chunks: bytes, **more: Any) -> Any:
    """A client that sends packed chunks."""
    return lambda: Client(*chunks, headers={"content-encoding": name, **more.pop("headers", {})}, **more)


def accepting(said: str, **more: Any) -> Any:
    return lambda: Client(b"x", headers={"accept-encoding": said}, **more)


def in_pieces(whole: bytes, size: int = 1000) -> list[bytes]:
    return [whole[start : start + size] for start in range(0, len(whole), size)]


# ── bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", EITHER)
@pytest.mark.parametrize("size", [10, compression.AT_ONCE_BYTES, 200_000, LIMIT])
@pytest.mark.parametrize("pieces", ["one", "many"])
def test_a_packed_body_is_one_payload_unpacked(name: str, size: int, pieces: str):
    body = (b"0123456789abcdef%d" % size * (size // 16 + 1))[:size]
    packed = called(name).pack(body)
    asked, broker = answer_to(sending(name, *([packed] if pieces == "one" else in_pieces(packed))), **ON)
    assert asked.status == 200
    assert broker.rows[0][1] == body


@pytest.mark.parametrize("name", EITHER)
@pytest.mark.parametrize("over", [1, 40 * MIB])
def test_a_bomb_is_413_and_never_in_memory(name: str, over: int):
    packed = called(name).pack(bytes(LIMIT + over))
    tracemalloc.start()
    try:
        asked, broker = answer_to(sending(name, *in_pieces(packed)), **ON)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (asked.status, asked.text) == (413, f"request body is too large: at most {LIMIT} bytes, packed or unpacked")
    assert broker.submits == []
    assert peak < LIMIT + 3 * compression.PIECE_BYTES


def test_a_body_that_is_too_large_packed_is_413_though_it_unpacks_to_nothing():
    empty = gzip.compress(b"")
    asked, _ = answer_to(sending("gzip", *[empty * 100] * 10), compression=True, max_request_size=10_000)
    assert asked.status == 413


def test_bombs_wait_for_one_another_and_not_the_loop(monkeypatch: pytest.MonkeyPatch):
    """So many at a time have a thread, and the loop goes on meanwhile."""
    running, most, go = 0, 0, threading.Event()
    before = Unpacking.more

    def more(self: Unpacking, size: int) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert go.wait(20)
        try:
            return before(self, size)
        finally:
            running -= 1

    monkeypatch.setattr(Unpacking, "more", more)
    bomb = gzip.compress(bytes(2 * LIMIT))

    async def main() -> None:
        gateway = await joined(FakeBroker(), Settings(**ON))
        bombs = [sending("gzip", bomb)().start(gateway.inference) for _ in range(10)]
        await until(lambda: running == compression.THREADS)
        assert (await Client(b"x").ask(gateway.inference)).status == 200, "the loop is free"
        go.set()
        assert {asked.status for asked in await asyncio.gather(*bombs)} == {413}
        assert len(gateway.calls) == gateway.counts.in_flight == 0
        gateway.link.close()

    run(main())
    assert most == compression.THREADS


@pytest.mark.parametrize("name", EITHER)
def test_many_bombs_take_no_more_memory_than_those_that_have_a_thread(name: str):
    bomb, count = called(name).pack(bytes(10 * LIMIT)), 20

    async def main() -> int:
        gateway = await joined(FakeBroker(), Settings(**ON))
        tracemalloc.start()
        try:
            bombs = [sending(name, bomb)().start(gateway.inference) for _ in range(count)]
            assert {asked.status for asked in await asyncio.gather(*bombs)} == {413}
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            gateway.link.close()

    at_once = compression.THREADS * (LIMIT + 3 * compression.PIECE_BYTES)
    assert run(main()) < at_once + count * (len(bomb) + 2 * compression.AT_ONCE_BYTES)


def test_who_leaves_while_its_body_is_unpacked_and_who_is_too_slow_get_what_they_always_get():
    async def main() -> None:
        gateway = await joined(FakeBroker(), Settings(**ON))
        packed = gzip.compress(b"some body")
        left = await sending("gzip", packed[:5], finishes=False, stays=False)().ask(gateway.inference)
        assert not left.is_answered
        slow = sending("gzip", packed[:5], finishes=False)()
        asking = slow.start(gateway.inference)
        await until(lambda: slow.received == 1)
        (call,) = gateway.calls._held
        call.look(call.since + inference.BODY_SECONDS + 1)
        assert (await asking).status == 408
        gateway.link.close()

    run(main())


@pytest.mark.parametrize("name", EITHER)
@pytest.mark.parametrize("how", ["cut", "broken", "plain"])
def test_a_broken_body_is_400_and_its_connection_goes_on(name: str, how: str):
    packed = called(name).pack(b"something to pack " * 10)
    body = {"cut": packed[:-3], "broken": b"\xff" + packed[1:], "plain": b'{"x": 1}'}[how]
    asked, broker = answer_to(sending(name, body), **ON)
    words = "ends too early" if how == "cut" else f"is not valid {name}"
    assert asked.status == 400 and asked.text.startswith("bad request: the ") and words in asked.text
    assert broker.submits == []
    assert "connection" not in asked.headers


def test_a_body_that_breaks_while_more_of_it_comes_closes_its_connection():
    asked, _ = answer_to(sending("gzip", b"no such", b"thing", b"at all"), **ON)
    assert (asked.status, asked.headers["connection"]) == (400, "close")
    assert asked.received == 3, "read and dropped, or a reset would outrun the answer"


@pytest.mark.parametrize("name", EITHER)
@pytest.mark.parametrize("body", ["nothing", "packed"])
def test_an_empty_body_is_400_packed_or_not(name: str, body: str):
    asked, _ = answer_to(sending(name, b"" if body == "nothing" else called(name).pack(b"")), **ON)
    assert (asked.status, asked.text) == (400, "no data provided")


def test_an_unknown_encoding_is_415_and_says_which_are_known():
    asked, broker = answer_to(sending("br", b"x"), **ON)
    assert asked.status == 415
    assert asked.text.startswith("unsupported content-encoding 'br': send ")
    assert asked.headers["accept-encoding"].endswith("gzip")
    assert broker.submits == []


def test_an_encoding_that_is_said_twice_is_two():
    client = Client(b"x")
    client.scope["headers"] = [(b"content-encoding", b"gzip"), (b"content-encoding", b"gzip")]
    assert answer_to(lambda: client, **ON)[0].status == 415


def test_a_wrong_method_comes_before_a_wrong_encoding():
    assert answer_to(sending("br", b"x", method="PUT"), **ON)[0].status == 405


def test_without_the_setting_a_packed_body_is_handed_on_as_it_is():
    packed = gzip.compress(b"body")
    asked, broker = answer_to(
        sending("gzip", packed, headers={"accept-encoding": "gzip"}), (Status.OK, LONG), max_request_size=LIMIT
    )
    assert broker.rows[0][1] == packed
    assert asked.body == LONG
    assert not {"vary", "content-encoding"} & set(asked.headers)


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def unpacked(asked: Client) -> bytes:
    unpacking = Unpacking(called(asked.headers["content-encoding"]))
    body = unpacking.some(asked.body, 100 * MIB)
    unpacking.end()
    return body


@pytest.mark.parametrize("name", EITHER)
@pytest.mark.parametrize("size", [PACKED_BYTES_MIN, compression.PACKED_AT_ONCE_BYTES + 1, 2 * MIB])
def test_an_answer_is_packed_for_who_accepts_it(name: str, size: int):
    answer = (LONG * (size // len(LONG) + 1))[:size]
    asked, _ = answer_to(accepting(name), (Status.OK, answer), **ON)
    assert (asked.status, asked.headers["content-encoding"], asked.headers["vary"]) == (200, name, "accept-encoding")
    assert unpacked(asked) == answer and len(asked.body) < size / 2
    assert asked.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("said", "answer"),
    [("gzip", LONG[: PACKED_BYTES_MIN - 1]), ("gzip", b""), ("br", LONG), ("", LONG), ("identity;q=0, gzip", b"")],
)
def test_an_answer_that_is_small_or_not_wanted_so_is_plain(said: str, answer: bytes):
    asked, _ = answer_to(accepting(said), (Status.OK, answer), **ON)
    assert asked.body == answer
    assert "content-encoding" not in asked.headers
    assert asked.headers["vary"] == "accept-encoding"


def test_who_takes_nothing_plain_gets_even_a_small_answer_packed():
    asked, _ = answer_to(accepting("gzip, identity;q=0"), (Status.OK, b"small"), **ON)
    assert unpacked(asked) == b"small"


def test_who_takes_nothing_that_we_have_is_told_so_before_any_work():
    asked, broker = answer_to(accepting("br, identity;q=0"), (Status.OK, LONG), **ON)
    assert asked.status == 406 and asked.text.startswith("not acceptable: an answer may be in ")
    assert broker.submits == []


def test_an_error_is_plain():
    asked, _ = answer_to(accepting("gzip"), (Status.VALIDATION, b"validation error: " + LONG[:3000]), **ON)
    assert asked.status == 422 and "content-encoding" not in asked.headers
    assert asked.text.startswith("validation error: a long")


def asked_of(app: Any, path: str, said: str = "gzip", method: str = "GET") -> Client:
    async def main() -> Client:
        gateway = await joined(FakeBroker(), Settings(**ON), app)
        asked = await Client(path=path, method=method, headers={"accept-encoding": said}).ask(gateway.inference)
        gateway.link.close()
        return asked

    return run(main())


def test_pages_are_packed_too_and_never_refused_for_it():
    asked = asked_of(None, "/metrics")
    assert asked.headers["content-encoding"] == "gzip" and b"# HELP zmesh_" in unpacked(asked)
    assert asked.headers["vary"] == "accept-encoding"
    assert asked_of(None, "/metrics", "identity;q=0").body.startswith(b"# HELP")
    assert "content-encoding" not in asked_of(None, "/openapi/swagger/favicon-32x32.png").headers


def test_an_app_of_the_users_is_packed_unless_it_streams_or_speaks_of_it_itself():
    app = make_app()
    app.get("/text")(lambda: PlainTextResponse(LONG))
    app.get("/origins")(lambda: PlainTextResponse(LONG, headers={"vary": "origin"}))
    app.get("/etag")(lambda: PlainTextResponse(LONG, headers={"etag": '"1"'}))
    app.get("/own")(lambda: PlainTextResponse(LONG, headers={"content-encoding": "br"}))
    app.get("/stream")(lambda: StreamingResponse(iter([LONG, LONG]), media_type="text/plain"))
    app.get("/parts")(lambda: StreamingResponse(iter([LONG, LONG]), headers={"content-length": str(2 * len(LONG))}))
    assert unpacked(asked_of(app, "/text")) == LONG
    headers = asked_of(app, "/origins").sent[0]["headers"]
    assert [value for name, value in headers if name == b"vary"] == [b"origin", b"accept-encoding"]
    for path, coding in (("/etag", None), ("/own", "br"), ("/stream", None), ("/parts", None)):
        asked = asked_of(app, path)
        assert asked.headers.get("content-encoding") == coding, path
        assert b"".join(message.get("body", b"") for message in asked.sent[1:]).startswith(LONG[:100]), path


def test_the_start_of_a_stream_is_not_held_back():
    app = make_app()
    has_started = asyncio.Event()

    async def pieces() -> Any:
        await asyncio.wait_for(has_started.wait(), 5)
        yield LONG

    app.get("/stream")(lambda: StreamingResponse(pieces(), media_type="text/plain"))
    client = Client(path="/stream", method="GET", headers={"accept-encoding": "gzip"})

    async def send(message: Any) -> None:
        has_started.set()
        await Client.send(client, message)

    async def main() -> None:
        gateway = await joined(FakeBroker(), Settings(**ON), app)
        await gateway.inference(client.scope, client.receive, send)
        gateway.link.close()

    run(main())
    assert client.status == 200 and client.sent[1]["body"] == LONG


def test_behind_a_users_middleware_it_is_all_the_same():
    app = make_app()
    seen: list[str] = []

    @app.middleware("http")
    async def look(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        seen.append(response.headers.get("content-encoding", "plain"))
        return response

    async def main() -> Client:
        broker = FakeBroker((Status.OK, LONG))
        gateway = await joined(broker, Settings(**ON), app)
        headers = {"content-encoding": "gzip", "accept-encoding": "gzip"}
        asked = await Client(gzip.compress(b"body"), headers=headers).ask(gateway.inference)
        gateway.link.close()
        assert broker.rows[0][1] == b"body"
        return asked

    asked = run(main())
    assert unpacked(asked) == LONG and seen == ["plain"]


def test_the_document_lists_what_a_client_can_get_more():
    for is_on in (True, False):
        responses = metadata(PLAN, compression=is_on)["paths"]["/inference"]["post"]["responses"]
        assert ({"406", "415"} <= set(responses)) is is_on
