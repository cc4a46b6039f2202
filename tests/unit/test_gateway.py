"""The gateway: every row of the status table, the way to the broker, the operator's pages, and the drain."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pytest
import uvloop
from fastapi import Depends, FastAPI, Response

from zmesh import answers, asgi, calls, door, inference, linkage
from zmesh.answers import SERVER, VERSION, http_status_of, text_of
from zmesh.board import Board
from zmesh.config import Plan, RoutePlan, Settings, StagePlan
from zmesh.errors import StartError
from zmesh.gateway import ACCEPTED_PER_TURN, Gateway, make_app, readiness
from zmesh.linkage import BrokerSilent
from zmesh.messages import (
    Cancel,
    Drain,
    Hello,
    Message,
    PeerId,
    Refuse,
    RefuseCode,
    Reply,
    SessionId,
    Stats,
    Status,
    Submit,
    TaskId,
    Welcome,
)
from zmesh.telemetry import render

PLAN = Plan(
    stages=(StagePlan(name="Resize", worker="Resize"), StagePlan(name="Label", worker="Label", mime_type="text/csv")),
    routes=(
        RoutePlan(path="/inference", stages=("Resize", "Label")),
        RoutePlan(path="/label", stages=("Label",), mime_type="text/csv"),
    ),
)
READY = {
    "broker": "00",
    "draining": False,
    "stages": [
        {"name": "Resize", "ready_workers": 1, "failing": None, "counters": {"deaths": 2}},
        {"name": "Label", "ready_workers": 2, "failing": None},
    ],
    "routes": [
        {"path": "/inference", "stages": ["Resize", "Label"], "ready": True},
        {"path": "/label", "stages": ["Label"], "ready": True},
    ],
}

Outcome = tuple[int, bytes]


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeBroker:
    """A port whose broker welcomes everybody and answers each task as it was told; None keeps the task."""

    def __init__(self, outcome: Outcome | None = (Status.OK, b"result")) -> None:
        self.outcome = outcome
        self.snapshot: dict[str, Any] | None = READY
        self.welcomes = True
        self.opened = self.closed = self.asked = self.breathed = 0
        self.submits: list[Submit] = []
        self.cancelled: list[TaskId] = []
        self._hear: Callable[[SessionId, Message], None] = lambda session, message: None
        self._replies = 0

    def open(self, hear: Callable[[SessionId, Message], None], lost: Callable[[], None]) -> None:
        self.opened += 1
        self._hear = hear

    def close(self) -> None:
        self.closed += 1

    def breathe(self) -> None:
        self.breathed += 1

    def send(self, session: SessionId, message: Message) -> None:
        match message:
            case Hello() if self.welcomes:
                self.say(Welcome(1, PeerId(b"b" * 16), 1, SessionId(7), 1000, 5000, 1 << 26, 4096, 1 << 22, [], []))
            case Submit():
                self.submits.append(message)
                if self.outcome is not None:
                    self.reply(message.columns.ids, *self.outcome)
            case Cancel():
                self.cancelled += message.ids
            case Stats():
                self.asked += 1
                if self.snapshot is not None:
                    self.say(Stats(json.dumps(self.snapshot)))

    def say(self, message: Message) -> None:
        asyncio.get_running_loop().call_soon(self._hear, SessionId(7), message)

    def reply(self, ids: list[TaskId], status: int, payload: bytes) -> None:
        self._replies += 1
        zeros = [0] * len(ids)
        self.say(Reply(self._replies, ids, [status] * len(ids), zeros, [payload] * len(ids), zeros, zeros, zeros))

    @property
    def rows(self) -> list[tuple[str, bytes, Any, int]]:
        """Every task submitted: route, payload, context, remaining milliseconds."""
        return [
            (submit.route, payload, context, remaining)
            for submit in self.submits
            for payload, context, remaining in zip(
                submit.columns.payloads,
                submit.columns.contexts or [None] * len(submit.columns.ids),
                submit.columns.remaining_ms,
                strict=True,
            )
        ]


class Client:
    """One request, as an ASGI server would hand it over, and what was answered."""

    def __init__(
        self,
        *chunks: bytes,
        path: str = "/inference",
        method: str = "POST",
        headers: dict[str, str] | None = None,
        stays: bool = True,
        finishes: bool = True,
    ) -> None:
        pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "query_string": b"",
            "server": ("test", 80),
            "client": ("test", 1),
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode(),
            "headers": pairs,
        }
        last = len(chunks) - 1
        self.uploads = [
            {"type": "http.request", "body": chunk, "more_body": index < last or not finishes}
            for index, chunk in enumerate(chunks or (b"",))
        ]
        self.received = 0
        self.gone = asyncio.Event()
        if not stays:
            self.gone.set()
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if self.received < len(self.uploads):
            self.received += 1
            return self.uploads[self.received - 1]
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def ask(self, app: Any) -> Client:
        await app(self.scope, self.receive, self.send)
        return self

    def start(self, app: Any) -> asyncio.Task[Client]:
        return asyncio.get_running_loop().create_task(self.ask(app))

    @property
    def is_answered(self) -> bool:
        return bool(self.sent)

    @property
    def _start(self) -> Any:
        (start,) = [message for message in self.sent if message["type"] == "http.response.start"]
        ends = [message for message in self.sent[1:] if not message.get("more_body", False)]
        assert self.sent[0] is start, "the start comes first"
        assert len(ends) == 1, "one answer"
        return start

    @property
    def status(self) -> int:
        return int(self._start["status"])

    @property
    def headers(self) -> dict[str, str]:
        pairs = [(name.decode(), value.decode()) for name, value in self._start["headers"]]
        assert len(dict(pairs)) == len(pairs), "no header twice"
        return dict(pairs)

    @property
    def body(self) -> bytes:
        body = b"".join(message["body"] for message in self.sent[1:])
        assert self.headers.get("content-length") == str(len(body))
        return body

    @property
    def text(self) -> str:
        assert self.headers["content-type"] == "text/plain; charset=utf-8"
        return self.body.decode()


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


async def joined(
    broker: FakeBroker, settings: Settings | None = None, app: FastAPI | None = None, **keywords: Any
) -> Gateway:
    gateway = Gateway(PLAN, settings or Settings(), broker, app, **keywords)
    gateway.link.start()
    await until(lambda: gateway.link.joined)
    return gateway


async def until(condition: Callable[[], object]) -> None:
    """Turns of the loop until `condition` holds; the test's own limit is the deadline."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 there is no event for what is looked at here
            await asyncio.sleep(0)


def answer_to(
    client: Callable[[], Client], outcome: Outcome | None = (Status.OK, b"result"), **settings: Any
) -> tuple[Client, FakeBroker]:
    """What a client gets from a gateway whose broker gives every task this outcome."""
    broker = FakeBroker(outcome)

    async def main() -> Client:
        gateway = await joined(broker, Settings(**settings))
        asked = await client().ask(gateway.inference)
        assert gateway.counts.in_flight == len(gateway.calls) == gateway.link.pending == 0
        gateway.link.close()
        return asked

    return run(main()), broker


# ── a result ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_is_200_with_the_content_type_of_its_route():
    asked, broker = answer_to(lambda: Client(b"image", path="/label"))
    assert (asked.status, asked.body) == (200, b"result")
    assert asked.headers["content-type"] == "text/csv"
    assert [(route, payload) for route, payload, *_ in broker.rows] == [("/label", b"image")]


def test_every_answer_carries_our_name_and_a_request_id():
    asked, _ = answer_to(lambda: Client(b"x"))
    assert asked.headers["server"] == f"zmesh/{VERSION}"
    assert len(asked.headers["x-request-id"]) == 32
    int(asked.headers["x-request-id"], 16)


def test_the_clients_request_id_comes_back_and_travels_with_the_task():
    asked, broker = answer_to(lambda: Client(b"x", headers={"x-request-id": "order-66", "traceparent": "00-ab-cd-01"}))
    assert asked.headers["x-request-id"] == "order-66"
    assert broker.rows[0][2] == {"request_id": "order-66", "traceparent": "00-ab-cd-01"}


@pytest.mark.parametrize("bad", ["", "x" * 129, "two words", "line\nbreak", "caf\xe9", "x\n"])
def test_a_request_id_that_is_not_sane_is_replaced(bad):
    asked, broker = answer_to(lambda: Client(b"x", headers={"x-request-id": bad, "traceparent": bad}))
    assert len(asked.headers["x-request-id"]) == 32
    assert broker.rows[0][2] == {"request_id": asked.headers["x-request-id"]}


def test_a_body_in_chunks_is_one_payload():
    asked, broker = answer_to(lambda: Client(b"one ", b"two ", b"", b"three"))
    assert asked.status == 200
    assert broker.rows[0][1] == b"one two three"


def test_an_empty_result_is_an_answer():
    asked, _ = answer_to(lambda: Client(b"x"), (Status.OK, b""))
    assert (asked.status, asked.body) == (200, b"")


def test_a_result_that_is_a_view_of_a_frame_is_sent_as_bytes():
    asked, _ = answer_to(lambda: Client(b"x"), (Status.OK, memoryview(b"result")))  # type: ignore[arg-type]
    assert asked.body == b"result"


# ── the status table ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_body_is_400_and_no_task():
    asked, broker = answer_to(Client)
    assert (asked.status, asked.text) == (400, "no data provided")
    assert broker.submits == []


@pytest.mark.parametrize(
    ("status", "payload", "http", "text"),
    [
        (Status.BAD_REQUEST, b"decoding error: not JSON", 400, "decoding error: not JSON"),
        (Status.BAD_REQUEST, b"bad request: no such model", 400, "bad request: no such model"),
        (Status.BAD_REQUEST, b"", 400, "bad request"),
        (Status.VALIDATION, b"request validation error: text is required", 422, None),
        (Status.TIMEOUT, b"request timeout: forward ran longer than 1 s", 408, None),
        (Status.TIMEOUT, b"no answer before the deadline", 408, "request timeout: no answer before the deadline"),
        (Status.TOO_LARGE, b"the result is too large", 413, "request is too large: the result is too large"),
        (Status.SHED, b"the queue of A is full (8 tasks)", 429, "too many requests: the queue of A is full (8 tasks)"),
        (Status.INTERNAL, b"inference internal error", 500, "inference internal error"),
        (Status.INTERNAL, b"encoding error: set", 500, "encoding error: set"),
        (Status.INTERNAL, b"outcome unknown", 500, "inference internal error: outcome unknown"),
        (Status.POISONED, b"worker died", 500, "inference internal error: worker died"),
        (Status.UNAVAILABLE, b"stage A does not start: OSError: x", 503, None),
        (Status.CANCELLED, b"cancelled", 499, "request cancelled: cancelled"),
        (77, b"from the future", 500, "inference internal error: from the future"),
    ],
)
def test_an_outcome_is_answered_with_its_status_and_a_readable_text(status, payload, http, text):
    asked, _ = answer_to(lambda: Client(b"x"), (status, payload))
    expected = text or payload.decode()
    if status == Status.UNAVAILABLE:
        expected = "service unavailable: " + expected
    assert (asked.status, asked.text) == (http, expected)


def test_every_status_that_reaches_a_client_has_words():
    for status in set(Status) - {Status.OK, Status.AGAIN}:
        assert text_of(status, b"")
        assert http_status_of(status) >= 400


def test_a_text_that_is_not_utf_8_or_endless_is_still_a_text():
    assert text_of(Status.BAD_REQUEST, b"bad request: \xff") == "bad request: \N{REPLACEMENT CHARACTER}"
    assert len(text_of(Status.INTERNAL, b"e: " + b"x" * 100_000)) == answers.TEXT_CHARS_MAX


def test_429_and_503_say_when_to_come_again():
    assert answer_to(lambda: Client(b"x"), (Status.SHED, b""))[0].headers["retry-after"] == "1"
    assert answer_to(lambda: Client(b"x"), (Status.UNAVAILABLE, b""))[0].headers["retry-after"] == "30"
    assert "retry-after" not in answer_to(lambda: Client(b"x"), (Status.INTERNAL, b""))[0].headers


async def overloaded(broker: FakeBroker, clock: Clock, waiting: int = 9, **settings: Any) -> Gateway:
    """A gateway that has just been told that /inference is full: so many wait there, and 2 are answered a second."""
    gateway = await joined(broker, Settings(timeout=600_000, **settings), clock=clock)
    await keep_waiting(gateway, broker, 1)
    gateway.calls.sweep()
    broker.outcome = (Status.OK, b"result")
    for _ in range(4):
        await Client(b"x").ask(gateway.inference)
    clock.now += 2
    gateway.calls.sweep()
    await keep_waiting(gateway, broker, waiting - 1)
    broker.outcome = (Status.SHED, b"the queue of Resize is full (8 tasks)")
    assert (await Client(b"x").ask(gateway.inference)).status == 429
    return gateway


async def keep_waiting(gateway: Gateway, broker: FakeBroker, count: int) -> None:
    broker.outcome, before = None, len(broker.rows)
    ASKING.extend(Client(b"x").start(gateway.inference) for _ in range(count))
    await until(lambda: len(broker.rows) == before + count)


ASKING: list[asyncio.Task[Client]] = []  # of this test


@pytest.fixture(autouse=True)
def nobody_asks_yet() -> None:
    ASKING.clear()


async def closed(gateway: Gateway) -> None:
    """Whoever still waits gets its answer, and then it is over."""
    gateway.calls.expire()
    await asyncio.gather(*ASKING)
    ASKING.clear()
    gateway.link.close()


def test_retry_after_is_what_waits_divided_by_the_rate_of_answers():
    async def main() -> None:
        broker, clock = FakeBroker(), Clock()
        gateway = await overloaded(broker, clock)

        async def retry_after() -> str:
            clock.now += 0.1
            return (await Client(b"x").ask(gateway.inference)).headers["retry-after"]

        assert await retry_after() == "5"
        clock.now += 9
        gateway.calls.sweep()
        assert await retry_after() == "5", "a slow model may answer nothing for a while"
        clock.now += 1
        gateway.calls.sweep()
        assert await retry_after() == "60", "nothing is answered any more"
        await closed(gateway)

    run(main())


# A full route is refused for a moment without asking.


def an_upload(size: int, **headers: str) -> Client:
    client = Client(bytes(size), headers={"content-length": str(size), **headers})
    client.gone.set()
    return client


def test_after_a_429_its_route_is_refused_unread_for_a_moment_with_the_same_words():
    async def main() -> None:
        broker, clock = FakeBroker(), Clock()
        gateway = await overloaded(broker, clock)
        broker.outcome, before = (Status.OK, b"result"), len(broker.rows)
        refused = await an_upload(100).ask(gateway.inference)
        assert (refused.status, refused.text) == (429, "too many requests: the queue of Resize is full (8 tasks)")
        assert refused.headers["retry-after"] == "5"
        assert refused.received == 0, "its body is not read"
        assert "connection" not in refused.headers, "so small a body is dropped as it comes"
        clock.now += 0.099
        assert (await an_upload(100).ask(gateway.inference)).status == 429
        assert len(broker.rows) == before
        clock.now += 0.002
        assert (await an_upload(100).ask(gateway.inference)).status == 200
        assert gateway.counts.answers[429, "/inference"] == 3
        await closed(gateway)

    run(main())


def test_a_429_of_user_code_is_about_its_request_alone():
    async def main() -> None:
        broker, clock = FakeBroker(), Clock()
        gateway = await overloaded(broker, clock)
        clock.now += 1
        broker.outcome = (Status.SHED, b"quota: come back tomorrow")
        for _ in range(4):
            assert (await an_upload(100).ask(gateway.inference)).text == "quota: come back tomorrow"
        broker.outcome = (Status.OK, b"result")
        assert (await an_upload(100).ask(gateway.inference)).status == 200, "the route is open"
        gateway.calls.sweep()
        broker.outcome = (Status.SHED, b"full")
        assert (await an_upload(100).ask(gateway.inference)).headers["retry-after"] == "2", "5 were answered in 1 s"
        await closed(gateway)

    run(main())


def test_clients_that_leave_do_not_make_a_route_look_fast():
    async def main() -> None:
        broker, clock = FakeBroker(), Clock()
        gateway = await overloaded(broker, clock)
        clock.now += 1
        broker.outcome = None
        leaving = [Client(b"x") for _ in range(40)]
        asking, before = [client.start(gateway.inference) for client in leaving], len(broker.rows)
        await until(lambda: len(broker.rows) == before + 40)
        gateway.calls.sweep()
        clock.now += 1
        gateway.calls.sweep()  # they are watched from now on
        for client in leaving:
            client.gone.set()
        await asyncio.gather(*asking)
        clock.now += 1
        gateway.calls.sweep()
        broker.outcome = (Status.SHED, b"full")
        assert (await an_upload(100).ask(gateway.inference)).headers["retry-after"] == "5", "9 wait, 2 a second"
        await closed(gateway)

    run(main())


def test_other_routes_are_not_refused_with_it():
    async def main() -> None:
        broker, clock = FakeBroker(), Clock()
        gateway = await overloaded(broker, clock)
        broker.outcome = (Status.OK, b"result")
        assert (await Client(b"x", path="/label", headers={"content-length": "1"}).ask(gateway.inference)).status == 200
        await closed(gateway)

    run(main())


@pytest.mark.parametrize(
    "client",
    [
        lambda: an_upload(inference.DROPPED_BYTES_MAX + 1),
        lambda: an_upload(5, expect="100-continue"),
    ],
)
def test_after_a_large_body_or_one_that_was_asked_about_the_connection_ends(client: Callable[[], Client]):
    async def main() -> None:
        gateway = await overloaded(FakeBroker(), Clock())
        refused = await client().ask(gateway.inference)
        assert (refused.status, refused.headers["connection"]) == (429, "close")
        assert refused.received == 1, "dropped after the answer"
        await closed(gateway)

    run(main())


def test_a_body_of_unknown_length_is_read_before_it_is_refused():
    async def main() -> None:
        broker = FakeBroker()
        gateway = await overloaded(broker, Clock())
        before = len(broker.rows)
        refused = await Client(b"one ", b"two").ask(gateway.inference)
        assert (refused.status, refused.received) == (429, 2)
        assert "connection" not in refused.headers
        assert len(broker.rows) == before
        await closed(gateway)

    run(main())


def test_before_a_rate_was_measured_every_request_is_asked_about():
    async def main() -> None:
        broker = FakeBroker((Status.SHED, b"full"))
        gateway = await joined(broker)
        for _ in range(3):
            assert (await an_upload(1).ask(gateway.inference)).status == 429
        assert len(broker.rows) == 3
        gateway.link.close()

    run(main())


def test_the_broker_is_let_in_between_many_requests_of_one_turn_of_the_loop():
    async def main() -> None:
        broker, clock = FakeBroker(None), Clock()
        gateway = await joined(broker, clock=clock)

        def slow() -> float:
            clock.now += 0.002  # each look at the clock, and there are two in a request
            return clock.now

        gateway.calls.clock = slow
        ASKING.extend(an_upload(1).start(gateway.inference) for _ in range(8))
        await asyncio.sleep(0)
        assert len(ASKING) == 8
        assert broker.breathed == 3
        assert len(broker.rows) == 6, "what came before it was submitted already"
        await until(lambda: len(broker.rows) == 8)
        for _ in range(8):
            ASKING.append(an_upload(1).start(gateway.inference))
            await until(lambda: len(broker.rows) == len(ASKING))
        assert broker.breathed == 3, "turns of one request each need no pause"
        gateway.calls.clock = clock
        await closed(gateway)

    run(main())


# What a gateway holds is bounded.


def bounded(monkeypatch: pytest.MonkeyPatch, **bounds: int) -> None:
    limits = Settings.limits
    monkeypatch.setattr(Settings, "limits", lambda settings: replace(limits(settings), **bounds))


@pytest.mark.parametrize("welcomes", [True, False])
def test_more_requests_than_a_mesh_may_hold_are_refused_though_no_broker_is_there(monkeypatch, welcomes: bool):
    bounded(monkeypatch, mesh_tasks_max=2)

    async def main() -> None:
        broker = FakeBroker(None)
        broker.welcomes = welcomes
        gateway = Gateway(PLAN, Settings(), broker)
        gateway.link.start()
        ASKING.extend(Client(b"x").start(gateway.inference) for _ in range(2))
        await until(lambda: gateway.link.pending == 2)
        for client in (an_upload(1), Client(b"x")):
            refused = await client.ask(gateway.inference)
            assert (refused.status, refused.text) == (429, "too many requests: the gateway is full (2 requests)")
            assert refused.headers["retry-after"] == "1"
        await closed(gateway)
        assert gateway.calls._bytes == 0

    run(main())


def test_more_bytes_than_a_mesh_may_hold_are_refused_unread_or_as_soon_as_they_are_too_many(monkeypatch):
    bounded(monkeypatch, mesh_bytes_max=10)
    full = "too many requests: the gateway is full (10 bytes)"

    async def main() -> None:
        broker = FakeBroker(None)
        gateway = await joined(broker)
        large = Client(bytes(20), headers={"content-length": "20"})
        ASKING.append(large.start(gateway.inference))
        await until(lambda: len(broker.rows) == 1)
        assert not large.is_answered, "one is taken whatever its size: its body was bounded already"
        broker.reply(broker.submits[0].columns.ids, Status.OK, b"result")
        await asyncio.gather(*ASKING)
        ASKING.append(Client(bytes(6)).start(gateway.inference))
        await until(lambda: len(broker.rows) == 2)
        refused = await an_upload(5).ask(gateway.inference)
        assert (refused.status, refused.text, refused.received) == (429, full, 0)
        refused = await Client(b"abc", b"de", b"f").ask(gateway.inference)
        assert (refused.status, refused.text, refused.headers["connection"]) == (429, full, "close")
        assert refused.received == 3, "the rest is dropped"
        ASKING.append(Client(b"abcd", headers={"content-length": "4"}).start(gateway.inference))
        await until(lambda: len(broker.rows) == 3)
        await closed(gateway)
        assert gateway.calls._bytes == 0

    run(main())


# A body that ended workers is not tried again for a while.


POISONED = (Status.POISONED, b"worker died")


def test_a_body_that_ended_workers_gets_the_same_answer_again_without_being_tried(caplog):
    async def main() -> None:
        broker, clock = FakeBroker(POISONED), Clock()
        gateway = await joined(broker, clock=clock)
        first = await Client(b"poison").ask(gateway.inference)
        again = await Client(b"poison").ask(gateway.inference)
        assert (first.status, first.text) == (again.status, again.text)
        assert (again.status, again.text) == (500, "inference internal error: worker died")
        assert len(broker.rows) == 1
        assert hashlib.sha256(b"poison").hexdigest() in caplog.text
        broker.outcome = (Status.OK, b"result")
        assert (await Client(b"poisof").ask(gateway.inference)).status == 200, "another body"
        assert (await Client(b"poison", path="/label").ask(gateway.inference)).status == 200, "another route"
        clock.now += door.DENIED_SECONDS
        assert (await Client(b"poison").ask(gateway.inference)).status == 200, "its time is over"
        gateway.link.close()

    run(main())


def test_an_answer_from_the_list_is_no_news(caplog):
    """It neither renews its own entry, nor is logged again, nor counts as work that was done."""

    async def main() -> None:
        broker, clock = FakeBroker(POISONED), Clock()
        gateway = await joined(broker, clock=clock)
        await Client(b"poison").ask(gateway.inference)
        answered = gateway.calls.doors["/inference"].answered
        clock.now += door.DENIED_SECONDS - 1
        assert (await Client(b"poison").ask(gateway.inference)).status == 500
        assert len(broker.rows) == 1
        assert caplog.text.count("workers die of its body") == 1
        assert gateway.calls.doors["/inference"].answered == answered
        clock.now += 1
        broker.outcome = (Status.OK, b"result")
        assert (await Client(b"poison").ask(gateway.inference)).status == 200
        gateway.link.close()

    run(main())


def test_a_stage_that_fails_clears_those_it_blamed():
    async def main() -> None:
        broker = FakeBroker(POISONED)
        gateway = await joined(broker)
        await Client(b"poison").ask(gateway.inference)
        await Client(b"poison", path="/label").ask(gateway.inference)
        broker.outcome = (Status.UNAVAILABLE, b"stage Resize does not start: no GPU")
        assert (await Client(b"x").ask(gateway.inference)).status == 503
        broker.outcome = (Status.OK, b"result")
        assert (await Client(b"poison").ask(gateway.inference)).status == 200
        assert (await Client(b"poison", path="/label").ask(gateway.inference)).status == 500, "a route by itself"
        gateway.link.close()

    run(main())


def test_idle_time_does_not_count_as_a_low_rate():
    async def main() -> None:
        broker, clock = FakeBroker(), Clock()
        gateway = await joined(broker, clock=clock)
        await Client(b"x").ask(gateway.inference)
        gateway.calls._swept()  # nobody is here: the sweep ends
        assert sum(gateway.counts.lag_counts) == 1, "a sweep also sees how late the loop is"
        clock.now += 3600
        asking = Client(b"x").start(gateway.inference)
        await until(lambda: len(broker.rows) == 2)
        gateway.calls.sweep()
        await asking
        broker.outcome = (Status.SHED, b"full")
        assert (await Client(b"x").ask(gateway.inference)).headers["retry-after"] == "1"
        gateway.link.close()

    run(main())


def test_a_body_over_the_limit_by_its_length_is_413_before_it_is_read():
    client = Client(b"12345", headers={"content-length": "5"})
    client.uploads[0]["more_body"] = True

    async def main() -> None:
        gateway = await joined(FakeBroker(), Settings(max_request_size=4))
        read_when_answered = -1

        async def send(message: Any) -> None:
            nonlocal read_when_answered
            await Client.send(client, message)
            if message.get("body"):
                read_when_answered = client.received
                client.gone.set()

        await gateway.inference(client.scope, client.receive, send)
        assert read_when_answered == 0
        gateway.link.close()

    client.gone = asyncio.Event()
    run(main())
    assert (client.status, client.text) == (413, "request body is too large: at most 4 bytes")
    assert client.headers["connection"] == "close"


def test_a_body_over_the_limit_without_a_length_is_413_and_the_rest_is_dropped():
    asked, broker = answer_to(lambda: Client(b"123", b"45", b"6", b"7"), max_request_size=4)
    assert asked.status == 413
    assert asked.headers["connection"] == "close"
    assert asked.received == 4  # read and dropped, or a reset would outrun the answer
    assert broker.submits == []


def test_a_body_of_just_the_limit_is_taken():
    asked, broker = answer_to(lambda: Client(b"12", b"34", headers={"content-length": "4"}), max_request_size=4)
    assert asked.status == 200
    assert broker.rows[0][1] == b"1234"


def test_the_rest_of_a_refused_upload_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(asgi, "LINGER_SECONDS", 0.01)
    asked, _ = answer_to(lambda: Client(b"12345", finishes=False), max_request_size=4)
    assert asked.status == 413


def test_who_expects_a_word_before_its_body_is_refused_and_may_send_it_all_the_same():
    headers = {"expect": "100-continue", "content-length": "5"}
    asked, _ = answer_to(lambda: Client(b"12345", headers=headers), max_request_size=4)
    # Read and dropped after the answer, when that is no leave to send any more: some do not wait for a word.
    assert (asked.status, asked.received) == (413, 1)


def test_a_path_has_one_spelling():
    asked, broker = answer_to(lambda: Client(b"x", path="/%69nference"))
    assert (asked.status, asked.text) == (404, "not found")
    assert broker.submits == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_a_wrong_method_is_405_and_names_the_right_one(method):
    asked, broker = answer_to(lambda: Client(b"x", method=method))
    assert (asked.status, asked.headers["allow"]) == (405, "POST")
    assert asked.text == "method not allowed: use POST"
    assert broker.submits == []


@pytest.mark.parametrize("path", ["/nowhere", "/inference/", "/inference/x", "/docs", "/openapi.json", "/Inference"])
def test_an_unknown_route_is_404_in_plain_text(path):
    asked, broker = answer_to(lambda: Client(b"x", path=path, headers={"x-request-id": "mine"}))
    assert (asked.status, asked.text) == (404, "not found")
    assert asked.headers["x-request-id"] == "mine"
    assert asked.headers["server"] == SERVER[1].decode()
    assert broker.submits == []


def test_no_answer_before_the_deadline_is_408_and_the_broker_is_told():
    async def main() -> tuple[Client, FakeBroker]:
        broker = FakeBroker(None)
        gateway = await joined(broker)
        asked = await Client(b"x", headers={"x-request-timeout": "0.01"}).ask(gateway.inference)
        await until(lambda: broker.cancelled)
        gateway.link.close()
        return asked, broker

    asked, broker = run(main())
    assert (asked.status, asked.text) == (408, "request timeout: no answer before the deadline")
    assert broker.cancelled == broker.submits[0].columns.ids


def test_a_client_may_ask_for_less_time_than_the_server_gives():
    _, broker = answer_to(lambda: Client(b"x", headers={"x-request-timeout": "1.5"}), timeout=60_000)
    assert 1000 < broker.rows[0][3] <= 1500


@pytest.mark.parametrize("wanted", ["90", "inf", "1e9"])
def test_a_client_may_not_ask_for_more(wanted):
    _, broker = answer_to(lambda: Client(b"x", headers={"x-request-timeout": wanted}), timeout=60_000)
    assert 50_000 < broker.rows[0][3] <= 60_000


@pytest.mark.parametrize("bad", ["", "soon", "-1", "0", "nan", "1s", "1_0"])
def test_a_request_timeout_that_is_no_number_is_400_and_says_so(bad):
    asked, broker = answer_to(lambda: Client(b"x", headers={"x-request-timeout": bad}))
    assert asked.status == 400
    assert asked.text == f"bad request: x-request-timeout must be a number of seconds above 0, not {bad!r}"
    assert broker.submits == []


def test_a_body_that_does_not_come_is_408_and_no_task():
    async def main() -> Client:
        broker = FakeBroker()
        clock = Clock()
        gateway = await joined(broker, clock=clock)
        client = Client(b"first", finishes=False)
        asking = client.start(gateway.inference)
        await until(lambda: client.received == 1)
        clock.now += inference.BODY_SECONDS
        gateway.calls.sweep()
        assert not asking.cancelling()
        clock.now += 1
        gateway.calls.sweep()
        gateway.calls.sweep()  # cut short once
        asked = await asking
        assert broker.submits == []
        assert asking.cancelling() == 0
        gateway.link.close()
        return asked

    asked = run(main())
    assert (asked.status, asked.text) == (408, "request timeout: the body did not arrive within 30 s")
    assert asked.headers["connection"] == "close"


def test_an_upload_that_is_broken_off_submits_nothing_and_gets_no_answer():
    asked, broker = answer_to(lambda: Client(b"half of", finishes=False, stays=False))
    assert not asked.is_answered
    assert broker.submits == []


def test_a_client_that_leaves_while_its_task_waits_takes_the_task_with_it():
    async def main() -> None:
        broker = FakeBroker(None)
        clock = Clock()
        gateway = await joined(broker, clock=clock)
        client = Client(b"x")
        asking = client.start(gateway.inference)
        await until(lambda: broker.submits)
        clock.now += 1
        gateway.calls.sweep()
        gateway.calls.sweep()  # watched once
        client.gone.set()
        assert not (await asking).is_answered
        await until(lambda: broker.cancelled)
        assert broker.cancelled == broker.submits[0].columns.ids
        assert gateway.counts.answers == {(499, "/inference"): 1}
        assert gateway.link.pending == gateway.counts.in_flight == 0
        gateway.link.close()

    run(main())


def test_the_sweep_runs_by_itself_while_somebody_is_here(monkeypatch):
    monkeypatch.setattr(calls, "SWEEP_SECONDS", 0.001)
    monkeypatch.setattr(inference, "WATCH_SECONDS", 0.0)

    async def main() -> None:
        broker = FakeBroker(None)
        gateway = await joined(broker)
        client = Client(b"x")
        asking = client.start(gateway.inference)
        await until(lambda: broker.submits)
        client.gone.set()
        assert not (await asking).is_answered
        await until(lambda: gateway.calls._sweeping is None)
        gateway.link.close()

    run(main())


def test_a_slow_request_is_answered_though_it_is_watched():
    async def main() -> None:
        broker = FakeBroker(None)
        clock = Clock()
        gateway = await joined(broker, clock=clock)
        client = Client(b"x")
        asking = client.start(gateway.inference)
        await until(lambda: broker.submits)
        clock.now += 1
        gateway.calls.sweep()
        await asyncio.sleep(0)
        broker.reply(broker.submits[0].columns.ids, Status.OK, b"at last")
        assert (await asking).body == b"at last"
        gateway.link.close()

    run(main())


def test_a_mistake_of_ours_is_500_and_is_logged(caplog):
    async def main() -> Client:
        gateway = await joined(FakeBroker())
        client = Client(b"x")
        client.uploads[0] = {"body": b"a message without a type"}
        asked = await client.ask(gateway.inference)
        gateway.link.close()
        return asked

    asked = run(main())
    assert (asked.status, asked.text) == (500, "inference internal error")
    assert asked.headers["x-request-id"] in caplog.text


def test_a_request_that_the_server_gives_up_is_cancelled():
    async def main() -> None:
        broker = FakeBroker(None)
        gateway = await joined(broker)
        waiting, reading = Client(b"x"), Client(b"x", finishes=False)
        tasks = [waiting.start(gateway.inference), reading.start(gateway.inference)]
        await until(lambda: broker.submits and reading.received)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await until(lambda: broker.cancelled)
        assert len(gateway.calls) == gateway.link.pending == 0
        gateway.link.close()

    run(main())


def test_who_accepts_problem_details_gets_them():
    asked, _ = answer_to(
        lambda: Client(b"x", headers={"accept": "application/json, Application/Problem+JSON", "x-request-id": "r1"}),
        (Status.VALIDATION, "request validation error: zu groß".encode()),
    )
    assert asked.headers["content-type"] == "application/problem+json"
    assert json.loads(asked.body) == {
        "type": "about:blank",
        "title": answers._TITLES[422],
        "status": 422,
        "detail": "request validation error: zu groß",
        "request_id": "r1",
    }


def test_an_unknown_route_has_problem_details_too():
    asked, _ = answer_to(lambda: Client(path="/nowhere", headers={"accept": "application/problem+json"}))
    assert json.loads(asked.body)["status"] == 404


def test_answers_are_counted_by_code_and_route_and_only_results_by_duration():
    async def main() -> None:
        broker = FakeBroker()
        gateway = await joined(broker)
        await Client(b"x").ask(gateway.inference)
        await Client(b"x", path="/label").ask(gateway.inference)
        await Client(b"").ask(gateway.inference)
        broker.outcome = (Status.SHED, b"")
        await Client(b"x").ask(gateway.inference)
        counts = gateway.counts
        assert counts.answers == {
            (200, "/inference"): 1,
            (200, "/label"): 1,
            (400, "/inference"): 1,
            (429, "/inference"): 1,
        }
        assert sum(counts.duration_counts) == 2
        gateway.link.close()

    run(main())


def test_several_gateways_show_the_sum_and_who_is_there():
    async def main() -> None:
        board = Board.make(2, len(PLAN.routes))
        other = board.rows[1]
        other.enter(77)
        other.connections = 3
        other.answered(1, 200)
        gateway = await joined(broker := FakeBroker(), board=board)
        await Client(b"x", path="/label").ask(gateway.inference)
        asked = await Client(method="GET", path="/metrics").ask(gateway.inference)
        assert b'zmesh_throughput_total{code="200",endpoint="/label"} 2.0' in asked.body
        shown = json.loads((await Client(method="GET", path="/mesh").ask(gateway.inference)).body)
        assert shown["gateways"] == [{"number": 2, "pid": 77, "requests": 0, "connections": 3}], "nobody serves here"
        assert shown["stages"] == READY["stages"]
        broker.snapshot = None
        gateway.link.close()
        board.close()

    run(main())


# ── draining ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_while_draining_a_new_request_is_503_and_an_accepted_one_finishes():
    async def main() -> tuple[Client, Client]:
        broker = FakeBroker(None)
        gateway = await joined(broker)
        asking = Client(b"accepted").start(gateway.inference)
        await until(lambda: broker.submits)
        gateway.start_drain(60)
        refused = await Client(b"new").ask(gateway.inference)
        broker.reply(broker.submits[0].columns.ids, Status.OK, b"finished")
        accepted = await asking
        assert len(broker.rows) == 1
        gateway.link.close()
        return refused, accepted

    refused, accepted = run(main())
    assert (refused.status, refused.text) == (503, "gracefully shutting down")
    assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
    assert (accepted.status, accepted.body) == (200, b"finished")


def test_what_is_left_when_the_drain_expires_gets_503():
    async def main() -> None:
        broker = FakeBroker(None)
        gateway = await joined(broker)
        waiting, reading = Client(b"x"), Client(b"x", finishes=False)
        asking = [waiting.start(gateway.inference), reading.start(gateway.inference)]
        await until(lambda: broker.submits and reading.received)
        gateway.calls.is_draining = True
        assert gateway.calls.expire() == 2
        for asked in await asyncio.gather(*asking):
            assert (asked.status, asked.headers["retry-after"], asked.headers["connection"]) == (503, "1", "close")
            assert "gracefully shutting down" in asked.text
        await until(lambda: broker.cancelled)
        broker.reply(broker.submits[0].columns.ids, Status.OK, b"too late")
        await asyncio.sleep(0)
        assert gateway.link.pending == 0
        gateway.link.close()

    run(main())


async def http(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


POST = b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx"


async def serving(gateway: Gateway) -> tuple[asyncio.Task[bool], int]:
    """uvicorn takes nothing but a real socket."""
    listen = socket.create_server(("127.0.0.1", 0))
    port = listen.getsockname()[1]
    task = asyncio.get_running_loop().create_task(gateway.serve(listen))
    started = asyncio.get_running_loop().create_task(gateway.started.wait())
    await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    return task, port


@pytest.mark.slow
def test_a_gateway_that_drains_in_time_answers_everything_and_says_so():
    async def main() -> None:
        broker = FakeBroker(None)
        gateway = Gateway(PLAN, Settings(), broker)
        task, port = await serving(gateway)
        asking = asyncio.get_running_loop().create_task(http(port, POST))
        await until(lambda: broker.submits)
        gateway.start_drain(30)
        gateway.start_drain(60)
        broker.reply(broker.submits[0].columns.ids, Status.OK, b"finished")
        answer = await asking
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nfinished")
        assert answer.lower().count(b"server: ") == answer.lower().count(b"date: ") == 1
        assert await task is True
        assert broker.closed == 1

    run(main())


@pytest.mark.slow
def test_a_gateway_whose_drain_expires_says_so():
    async def main() -> None:
        broker = FakeBroker(None)
        gateway = Gateway(PLAN, Settings(timeout=60_000), broker)
        task, port = await serving(gateway)
        asking = asyncio.get_running_loop().create_task(http(port, POST))
        await until(lambda: broker.submits)
        gateway.start_drain(0.05)
        answer = await asking
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert await task is False

    run(main())


@pytest.mark.slow
def test_a_crowd_that_comes_at_once_does_not_wait_for_as_many_turns_of_the_loop():
    crowd = 4 * ACCEPTED_PER_TURN

    async def main() -> None:
        broker, loop, turns = FakeBroker(None), asyncio.get_running_loop(), 0
        gateway = Gateway(PLAN, Settings(), broker)
        task, port = await serving(gateway)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(crowd)]
        for client in clients:
            client.sendall(POST)
        while sum(len(submit.columns.ids) for submit in broker.submits) < crowd:
            await asyncio.sleep(0)
            turns += 1
        for submit in broker.submits:
            broker.reply(submit.columns.ids, Status.OK, b"finished")
        for client in clients:
            client.setblocking(False)
            assert b"finished" in await loop.sock_recv(client, 1000)
            client.close()
        gateway.start_drain(30)
        assert await task is True
        assert turns < crowd / 2

    uvloop.run(main())


class Listener(socket.socket):
    """A listening socket of a system that may have no free files."""

    is_poor = False

    def accept(self) -> tuple[socket.socket, Any]:
        if self.is_poor:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.mark.slow
def test_a_gateway_without_free_files_still_drains():
    async def main() -> None:
        broker = FakeBroker(None)
        gateway = Gateway(PLAN, Settings(), broker)
        with Listener() as listen:
            listen.bind(("127.0.0.1", 0))
            serving = asyncio.get_running_loop().create_task(gateway.serve(listen))
            await gateway.started.wait()
            asking = asyncio.get_running_loop().create_task(http(listen.getsockname()[1], POST))
            await until(lambda: broker.submits)
            listen.is_poor = True
            gateway.start_drain(30)
            broker.reply(broker.submits[0].columns.ids, Status.OK, b"finished")
            assert await serving is True
            assert (await asking).endswith(b"\r\n\r\nfinished")

    run(main())


@pytest.mark.slow
def test_a_users_route_that_never_ends_does_not_hold_up_the_end(caplog):
    app = make_app()
    entered = asyncio.Event()

    @app.get("/forever")
    async def forever() -> None:
        entered.set()
        await asyncio.Event().wait()

    async def main() -> None:
        gateway = Gateway(PLAN, Settings(), FakeBroker(), app)
        task, port = await serving(gateway)
        asking = asyncio.get_running_loop().create_task(http(port, b"GET /forever HTTP/1.1\r\nhost: x\r\n\r\n"))
        await entered.wait()
        gateway.start_drain(0.01)
        assert await task is False
        assert await asking == b"", "cut off"

    with caplog.at_level(logging.CRITICAL):
        run(main())


@pytest.mark.slow
def test_an_app_whose_lifespan_fails_is_a_readable_start_error(caplog):
    class Broken(Exception):
        pass

    async def lifespan(app: FastAPI) -> Any:
        raise Broken
        yield

    app = make_app()
    app.router.lifespan_context = asynccontextmanager(lifespan)

    async def main() -> None:
        gateway = Gateway(PLAN, Settings(), FakeBroker(), app)
        task, _ = await serving(gateway)
        with pytest.raises(StartError, match="lifespan"):
            await task

    with caplog.at_level(logging.CRITICAL):
        run(main())


# ── the user's app ────────────────────────────────────────────────────────────────────────────────────────────────


def asked_of_app(app: FastAPI, *clients: Callable[[], Client], broker: FakeBroker | None = None) -> list[Client]:
    async def main() -> list[Client]:
        gateway = await joined(broker or FakeBroker(), None, app)
        answered = [await client().ask(gateway.inference) for client in clients]
        gateway.link.close()
        return answered

    return list(run(main()))


def test_a_users_route_is_served_with_our_headers():
    app = make_app()

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    (asked,) = asked_of_app(app, lambda: Client(path="/hello", method="GET", headers={"x-request-id": "mine"}))
    assert json.loads(asked.body) == {"hello": "world"}
    assert (asked.headers["server"], asked.headers["x-request-id"]) == (f"zmesh/{VERSION}", "mine")


def test_inference_comes_before_a_users_mount_that_swallows_everything():
    async def swallow(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("inference is not for a mounted app")

    app = make_app()
    app.mount("/", swallow)
    (asked,) = asked_of_app(app, lambda: Client(b"x"))
    assert asked.status == 200


def test_middleware_guards_inference():
    app = make_app()

    @app.middleware("http")
    async def guard(request: Any, call_next: Any) -> Any:
        if request.headers.get("authorization") != "secret":
            return Response("go away", 401)
        response = await call_next(request)
        response.headers["x-guarded"] = "yes"
        return response

    app.mount("/", lambda scope, receive, send: None)  # type: ignore[arg-type,return-value]
    broker = FakeBroker()
    refused, served = asked_of_app(
        app, lambda: Client(b"x"), lambda: Client(b"x", headers={"authorization": "secret"}), broker=broker
    )
    assert (refused.status, refused.body) == (401, b"go away")
    assert refused.headers["server"] == f"zmesh/{VERSION}"
    assert (served.status, served.body, served.headers["x-guarded"]) == (200, b"result", "yes")
    assert len(broker.rows) == 1


def test_behind_middleware_the_path_is_still_exact():
    app = make_app()

    @app.middleware("http")
    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    slash, method = asked_of_app(app, lambda: Client(b"x", path="/inference/"), lambda: Client(method="GET"))
    assert slash.status == 404
    assert (method.status, method.headers["allow"]) == (405, "POST")


def test_global_dependencies_are_refused_because_they_would_not_guard_inference():
    app = FastAPI(dependencies=[Depends(lambda: None)])
    with pytest.raises(StartError, match="middleware"):
        Gateway(PLAN, Settings(), FakeBroker(), app)


# ── the operator's pages ──────────────────────────────────────────────────────────────────────────────────────────


def page(path: str, *, snapshot: dict[str, Any] | None = READY, drains: bool = False, **client: Any) -> Client:
    async def main() -> Client:
        broker = FakeBroker()
        broker.snapshot = snapshot
        gateway = await joined(broker)
        gateway.calls.is_draining = drains
        asked = await Client(path=path, **{"method": "GET", **client}).ask(gateway.inference)
        gateway.link.close()
        return asked

    result: Client = run(main())
    assert "x-request-id" in result.headers
    assert result.headers["server"] == f"zmesh/{VERSION}"
    return result


def test_the_root_names_us_and_says_when_we_drain():
    assert page("/").text == f"zmesh/{VERSION}"
    draining = page("/", drains=True)
    assert (draining.status, draining.text) == (503, "gracefully shutting down")


def test_head_is_get_without_a_body():
    assert page("/", method="HEAD").status == 200


def test_a_process_that_answers_is_alive_even_while_draining():
    assert page("/livez").status == page("/livez", drains=True).status == 200


def test_a_wrong_method_on_a_page_is_405_in_plain_text():
    asked = page("/metrics", method="POST")
    assert asked.status == 405
    assert asked.text == "method not allowed"
    assert "GET" in asked.headers["allow"]


def test_ready_when_every_stage_of_every_route_has_a_ready_worker():
    asked = page("/readyz")
    assert asked.status == 200
    assert json.loads(asked.body) == {"ready": True, "draining": False, "missing": []}


def test_not_ready_says_which_stage_of_which_routes_is_missing_and_why():
    stages = [
        {"name": "Resize", "ready_workers": 0, "failing": "stage Resize does not start: ImportError: torch"},
        {"name": "Label", "ready_workers": 0, "failing": None},
        {"name": "Unused", "ready_workers": 0, "failing": None},
    ]
    asked = page("/readyz", snapshot={**READY, "stages": stages})
    assert asked.status == 503
    assert json.loads(asked.body) == {
        "ready": False,
        "draining": False,
        "missing": [
            {"stage": "Resize", "failing": "stage Resize does not start: ImportError: torch", "routes": ["/inference"]},
            {"stage": "Label", "failing": None, "routes": ["/inference", "/label"]},
        ],
    }


def test_not_ready_while_the_gateway_or_the_broker_drains():
    assert page("/readyz", drains=True).status == 503
    assert json.loads(page("/readyz", snapshot={**READY, "draining": True}).body)["draining"] is True


def test_readiness_of_an_empty_snapshot_has_nothing_missing():
    assert readiness({}) == (True, {"ready": True, "draining": False, "missing": []})


def test_pages_say_so_when_the_broker_is_silent(monkeypatch):
    monkeypatch.setattr(linkage, "STATS_SECONDS", 0.01)
    ready = page("/readyz", snapshot=None)
    assert ready.status == 503
    assert "did not answer" in json.loads(ready.body)["broker"]
    mesh = page("/mesh", snapshot=None)
    assert mesh.status == 503
    assert "did not answer" in json.loads(mesh.body)["error"]
    metrics = page("/metrics", snapshot=None)
    assert metrics.status == 200
    assert b"zmesh_broker_up 0.0" in metrics.body


def test_the_mesh_page_is_the_brokers_snapshot_and_the_gateway():
    shown = json.loads(page("/mesh").body)
    assert shown["stages"] == READY["stages"]
    assert shown["gateway"]["version"] == VERSION


def test_the_text_of_metrics_is_written_by_another_thread(monkeypatch):
    threads = []

    def slowly(*given):
        threads.append(threading.current_thread())
        return render(*given)

    monkeypatch.setattr("zmesh.gateway.render", slowly)
    assert page("/metrics").status == 200
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


def test_metrics_have_a_content_type_and_openmetrics_is_negotiated():
    classic = page("/metrics")
    assert classic.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'zmesh_deaths_total{stage="Resize"} 2.0' in classic.body
    modern = page("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.body.endswith(b"# EOF\n")


def test_the_openapi_document_names_the_routes_and_none_of_the_pages():
    document = json.loads(page("/openapi/metadata.json").body)
    assert document["openapi"] == "3.1.0"
    assert list(document["paths"]) == ["/inference", "/label"]


def test_the_swagger_page_and_its_files_are_served_by_us_under_a_strict_policy():
    moved = page("/openapi/swagger")
    assert (moved.status, moved.headers["location"]) == (303, "swagger/")
    index = page("/openapi/swagger/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in index.headers["content-security-policy"]
    assert page("/openapi/swagger/swagger-ui.css").headers["content-type"] == "text/css; charset=utf-8"
    for name in ("MANIFEST.json", "..%2fopenapi.py", "nothing"):
        assert page(f"/openapi/swagger/{name}").status == 404


# ── the link's shell ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_submitted_in_one_turn_travels_together():
    async def main() -> None:
        broker = FakeBroker()
        gateway = await joined(broker)
        await asyncio.gather(*(Client(b"%d" % n).ask(gateway.inference) for n in range(5)))
        assert [len(submit.columns.ids) for submit in broker.submits] == [5]
        gateway.link.close()

    run(main())


def test_requests_before_the_welcome_are_held_and_then_answered():
    async def main() -> None:
        broker = FakeBroker()
        broker.welcomes = False
        gateway = Gateway(PLAN, Settings(), broker)
        gateway.link.start()
        asking = Client(b"early").start(gateway.inference)
        await until(lambda: gateway.link.pending)
        with pytest.raises(BrokerSilent):
            await gateway.link.stats()
        broker.welcomes = True
        broker.send(SessionId(0), Hello([1], 1, PeerId(b""), 1, "", 1))  # type: ignore[arg-type]
        assert (await asking).status == 200
        gateway.link.close()

    run(main())


def test_a_broker_that_forgot_us_is_greeted_again_and_gets_the_task_again():
    async def main() -> None:
        broker = FakeBroker(None)
        gateway = await joined(broker)
        asking = Client(b"x").start(gateway.inference)
        await until(lambda: broker.submits)
        broker.outcome = (Status.OK, b"second time")
        broker.say(Refuse(RefuseCode.UNKNOWN_PEER, "who are you?"))
        assert (await asking).body == b"second time"
        assert (broker.opened, broker.closed) == (2, 1)
        gateway.link.close()

    run(main())


def test_a_port_that_raises_is_a_lost_link_and_nobody_stays_without_answer(caplog):
    async def main() -> None:
        broker = FakeBroker()
        gateway = await joined(broker)
        whole, broken = broker.send, True

        def send(session: SessionId, message: Message) -> None:
            nonlocal broken
            if isinstance(message, Submit) and broken:
                broken = False
                raise OSError("no such socket")
            whole(session, message)

        broker.send = send  # type: ignore[method-assign]
        assert (await Client(b"x").ask(gateway.inference)).status == 200
        assert broker.opened == 2
        gateway.link.close()

    run(main())
    assert "no such socket" in caplog.text


def test_one_ticket_that_raises_leaves_the_others_their_answers(caplog):
    async def main() -> None:
        broker = FakeBroker()
        gateway = await joined(broker)
        got: list[int] = []

        def broken(status: int, payload: Any) -> None:
            raise RuntimeError("my own fault")

        deadline = linkage.time.monotonic() + 60
        gateway.link.submit("/label", b"x", None, deadline, broken)
        gateway.link.submit("/label", b"x", None, deadline, lambda status, payload: got.append(status))
        await until(lambda: got)
        assert got == [0]
        gateway.link.close()

    run(main())
    assert "my own fault" in caplog.text


def test_who_asks_for_stats_at_the_same_time_shares_one_answer():
    async def main() -> None:
        broker = FakeBroker()
        gateway = await joined(broker)
        first, second = await asyncio.gather(gateway.link.stats(), gateway.link.stats())
        assert first == second == READY
        assert broker.asked == 1
        await gateway.link.stats()
        assert broker.asked == 2
        gateway.link.close()

    run(main())


def test_an_answer_to_stats_that_comes_too_late_is_ignored(monkeypatch):
    monkeypatch.setattr(linkage, "STATS_SECONDS", 0.01)

    async def main() -> None:
        broker = FakeBroker()
        broker.snapshot = None
        gateway = await joined(broker)
        with pytest.raises(BrokerSilent):
            await gateway.link.stats()
        broker.say(Stats("{}"))
        await asyncio.sleep(0)
        broker.snapshot = READY
        assert await gateway.link.stats() == READY
        gateway.link.close()

    run(main())


def test_what_the_link_reports_is_logged(caplog):
    async def main() -> None:
        broker = FakeBroker()
        gateway = await joined(broker)
        with caplog.at_level(logging.INFO, "zmesh.gateway"):
            broker.say(Drain(1000, "upgrade"))
            await until(lambda: "upgrade" in caplog.text)
        gateway.link.close()

    run(main())


def test_a_closed_link_hears_nothing():
    async def main() -> None:
        broker = FakeBroker(None)
        gateway = await joined(broker)
        gateway.link.close()
        broker.say(Drain(1000, "upgrade"))
        await asyncio.sleep(0)
        assert broker.closed == 1

    run(main())


def test_the_timer_is_rounded_up_to_whole_milliseconds():
    assert linkage._whole_ms(-1) == linkage._whole_ms(0.0001) == 0.001
    assert linkage._whole_ms(0.0021) == 0.003
