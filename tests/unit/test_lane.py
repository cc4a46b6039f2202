"""The fast lane gives the same answers as ASGI, byte for byte, and leaves the same counts; and it is taken at all."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.test_gateway import PLAN, Clock, FakeBroker, bounded, serving, until
from zmesh import asgi, codings, connection, lane
from zmesh.config import Settings
from zmesh.gateway import Gateway, make_app
from zmesh.lane import LANE_BODY_BYTES_MAX, LaneConnection
from zmesh.messages import Message, SessionId, Status, Submit, TaskId

pytestmark = pytest.mark.slow

BODY_BYTES_MAX = LANE_BODY_BYTES_MAX + 1000
LAST = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
OUTCOMES = {
    b"o": (Status.OK, b"result"),
    b"e": (Status.OK, b""),
    b"v": (Status.VALIDATION, b"validation error: no such field"),
    b"s": (Status.SHED, b"the queue of Resize is full (8 tasks)"),
    b"q": (Status.SHED, b"quota: come back tomorrow"),
    b"u": (Status.UNAVAILABLE, b"stage Resize is failing"),
    b"i": (Status.INTERNAL, "größer".encode()),
    b"p": (Status.POISONED, b"worker died"),
    b"t": (Status.TIMEOUT, b""),
    b"b": (Status.OK, b"a big result " * 2000),
}


class Judge(FakeBroker):
    """Answers each task by the first byte of its body."""

    def send(self, session: SessionId, message: Message) -> None:
        super().send(session, message)
        if isinstance(message, Submit):
            for id, payload in zip(message.columns.ids, message.columns.payloads, strict=True):
                self.judge(id, bytes(payload[:1]))

    def judge(self, id: TaskId, verdict: bytes) -> None:
        status, payload = OUTCOMES.get(verdict, OUTCOMES[b"o"])
        self.reply([id], status, memoryview(payload) if verdict == b"o" else payload)  # type: ignore[arg-type]


@dataclass
class Side:
    gateway: Gateway
    broker: FakeBroker
    task: asyncio.Task[bool]
    port: int

    @staticmethod
    async def start(lane: str, *, limit: int = BODY_BYTES_MAX, compression: bool = False, **given: Any) -> Side:
        broker = given.pop("broker", None) or Judge(None)
        settings = Settings(max_request_size=limit, lane=lane, compression=compression)
        gateway = Gateway(PLAN, settings, broker, clock=Clock(), **given)
        side = Side(gateway, broker, *await serving(gateway))
        SIDES.append(side)
        return side

    async def stop(self) -> None:
        self.gateway.start_drain(1)
        assert await self.task is True

    def counts(self) -> Any:
        """Since the last time."""
        counts = self.gateway.counts
        answers = dict(counts.answers)
        counts.answers.clear()
        return answers, counts.in_flight, len(self.gateway.calls)


SIDES: list[Side] = []  # of the test that runs


def play(main: Coroutine[Any, Any, None]) -> None:
    """Run a test that fails at once when it fails: a loop with an open server is not closed."""

    async def bounded() -> None:
        SIDES.clear()
        try:
            await main
        except BaseException:
            for side in SIDES:
                side.task.cancel()
                side.gateway._server.abort()
                for server in side.gateway._server.servers:
                    server.close()
            raise

    uvloop.run(bounded())


@contextmanager
def loop() -> Iterator[Callable[[Awaitable[Any]], Any]]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def limited(what: Awaitable[Any]) -> Any:
            return await asyncio.wait_for(what, 20)

        yield lambda what: runner.run(limited(what))


# ── both ways ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Asked:
    """One request as bytes, in pieces."""

    method: str = "POST"
    target: str = "/inference"
    version: str = "HTTP/1.1"
    headers: tuple[tuple[str, str], ...] = ()
    verdict: bytes = b"o"  # how the body begins
    size: int = 1  # of the body
    is_chunked: bool = False
    encoding: str = ""
    damage: str = ""  # done to a packed body
    cuts: tuple[float, ...] = field(default=())

    def pieces(self) -> list[bytes]:
        sent = self.body()
        framing = "content-length", str(len(sent))
        if self.is_chunked:
            framing = "transfer-encoding", "chunked"
            sent = (b"%x\r\n%s\r\n" % (len(sent), sent) if sent else b"") + b"0\r\n\r\n"
        encoding = [("content-encoding", self.encoding)] if self.encoding else []
        lines = [f"{self.method} {self.target} {self.version}", "Host: x"]
        lines += [f"{name}: {value}" for name, value in (*self.headers, *encoding, framing)]
        data = "\r\n".join([*lines, "", ""]).encode() + sent
        places = sorted({0, len(data), *(int(cut * len(data)) for cut in self.cuts)})
        return [data[start:end] for start, end in pairwise(places)]

    def body(self) -> bytes:
        body = self.verdict.ljust(self.size, b".")[: self.size]
        if self.damage == "bomb":
            body = bytes(100 * BODY_BYTES_MAX)
        for coding in codings.known():
            if coding.name == self.encoding:
                body = coding.pack(body)
        if self.damage == "cut":
            body = body[:-2]
        return body[:-1] + b"?" if self.damage == "broken" else body


HEADERS = st.sampled_from(
    [
        ("X-Request-Id", "mine"),
        ("x-request-id", "not a token"),
        ("x-request-timeout", "0.5"),
        ("x-request-timeout", "soon"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("accept", "application/problem+json"),
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("expect", "100-continue"),
        ("expect", "the best"),
        ("upgrade", "websocket"),
        *(
            ("accept-encoding", said)
            for said in ("gzip", "zstd", "gzip, br, zstd;q=0.5", "identity;q=0, gzip", "*;q=0")
        ),
    ]
)
ENCODINGS = st.sampled_from([""] * 6 + ["gzip", "zstd", "gzip", "zstd", "br", "gzip, zstd", "identity"])
SIZES = st.sampled_from(
    [1] * 6 + [0, 2, 100, LANE_BODY_BYTES_MAX, LANE_BODY_BYTES_MAX + 1, BODY_BYTES_MAX, BODY_BYTES_MAX + 1]
)
ASKED = st.builds(
    Asked,
    method=st.sampled_from(["POST"] * 6 + ["GET", "PUT", "HEAD"]),
    target=st.sampled_from(["/inference"] * 6 + ["/label", "/inference?x=1", "/inference/", "/%69nference", "/livez"]),
    version=st.sampled_from(["HTTP/1.1"] * 6 + ["HTTP/1.0"]),
    headers=st.lists(HEADERS, max_size=2, unique_by=lambda header: header[0].lower()).map(tuple),
    verdict=st.sampled_from([*OUTCOMES]),
    size=SIZES,
    is_chunked=st.sampled_from([False] * 4 + [True]),
    encoding=ENCODINGS,
    damage=st.sampled_from(["", "", "", "cut", "broken", "bomb"]),
    cuts=st.lists(st.floats(0, 1), max_size=2).map(tuple),
)


def alike(asked: Asked, others: list[tuple[int, bytes]]) -> list[Asked]:
    """Requests with the same headers but for the length."""
    return [asked, *(replace(asked, size=size, verdict=verdict) for size, verdict in others)]


AGAIN = st.builds(alike, ASKED, st.lists(st.tuples(SIZES, st.sampled_from([*OUTCOMES])), min_size=1, max_size=3))


def post(body: bytes) -> bytes:
    return b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


POST = post(b"x")


async def ask(port: int, *requests: list[bytes]) -> bytes:
    """Everything that is answered until the connection ends. A request is sent in pieces, and after it nothing before
    there is some answer."""
    loop, said = asyncio.get_running_loop(), bytearray()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):  # it may be closed before everything is sent, or read
            for pieces in requests:
                for piece in pieces:
                    await loop.sock_sendall(sock, piece)
                    await asyncio.sleep(0.001)  # another piece for the reader, most of the time
                said += await loop.sock_recv(sock, 1 << 16)
        with suppress(OSError):
            while data := await loop.sock_recv(sock, 1 << 16):
                said += data
    return bytes(said)


def without_chance(said: bytes) -> bytes:
    said = re.sub(rb"date: [^\r]*", b"date: today", said)
    return re.sub(rb"(x-request-id: |\"request_id\":\")[0-9a-f]{32}", rb"\1made", said)


def submitted(broker: FakeBroker) -> list[Any]:
    rows = [(route, bytes(payload), context, left) for route, payload, context, left in broker.rows]
    broker.submits.clear()
    named = [context["request_id"] if len(context["request_id"]) < 32 else "made" for _, _, context, _ in rows]
    return [
        (route, payload, {**context, "request_id": name}, left)
        for (route, payload, context, left), name in zip(rows, named, strict=True)
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("compression", [False, True], ids=["", "compression"])
def test_both_ways_give_the_same_answers_and_leave_the_same_counts(compression: bool, monkeypatch: pytest.MonkeyPatch):
    for module in (asgi, connection):
        monkeypatch.setattr(module, "LINGER_SECONDS", 0.05)
    with loop() as run:

        async def both() -> tuple[Side, Side]:
            sides = [await Side.start(lane=lane, compression=compression) for lane in ("fast", "asgi")]
            return sides[0], sides[1]

        fast, slow = run(both())

        @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(ASKED, min_size=1, max_size=3) | AGAIN, st.booleans())
        @example([Asked()], False)
        @example([Asked(verdict=b"p"), Asked(verdict=b"p"), Asked()], True)
        @example([Asked(cuts=(0.99,)), Asked()], False)
        @example([Asked(headers=(("connection", "close"),)), Asked()], True)
        @example([Asked(), Asked(size=70), Asked(verdict=b"p"), Asked(verdict=b"p"), Asked(size=0), Asked()], False)
        @example([Asked(), Asked(cuts=(0.5,)), Asked(), Asked(is_chunked=True), Asked(), Asked(size=2)], False)
        @example([Asked(), Asked(verdict=b"b", headers=(("accept-encoding", "gzip"),)), Asked(), Asked()], False)
        @example([Asked(encoding="gzip", size=9000), Asked(encoding="gzip", damage="bomb"), Asked()], False)
        @example([Asked(encoding="gzip", damage="broken"), Asked(encoding="zstd", damage="cut"), Asked()], False)
        def check(asked: list[Asked], is_pipelined: bool) -> None:
            requests = [*(one.pieces() for one in asked), [LAST]]
            if is_pipelined and sum(len(one.body()) for one in asked) < 1000:  # it is read in one piece
                requests = [[b"".join(piece for pieces in requests for piece in pieces)]]

            async def compare() -> None:
                answers = [without_chance(await ask(side.port, *requests)) for side in (fast, slow)]
                for side in (fast, slow):
                    await until(lambda side=side: not len(side.gateway.calls))
                rows, counts = [submitted(side.broker) for side in (fast, slow)], (fast.counts(), slow.counts())
                assert answers[0] == answers[1]
                assert rows[0] == rows[1]
                assert counts[0] == counts[1]

            run(compare())

        try:
            check()
        finally:
            for side in (fast, slow):
                run(side.stop())


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("lane", ["fast", "asgi"])
def test_a_body_of_just_the_limit_is_taken_and_a_byte_more_is_413(lane: str, is_chunked: bool, encoding: str):
    limit = 5000

    async def main() -> None:
        side = await Side.start(lane=lane, limit=limit, compression=True)
        for size, status in ((limit, b"200"), (limit + 1, b"413")):
            asked = Asked(size=size, encoding=encoding, is_chunked=is_chunked, cuts=(0.5, 0.9))
            assert (await ask(side.port, asked.pieces(), [LAST])).startswith(b"HTTP/1.1 " + status)
        await side.stop()

    play(main())


@pytest.mark.parametrize("before", [b"o", b"p", b"w"])
def test_what_cannot_be_a_request_ends_both_ways_alike(before: bytes):
    """Also behind a body that is refused at once."""

    async def main() -> None:
        said = []
        for how in ("fast", "asgi"):
            side = await Side.start(lane=how)
            await ask(side.port, [post(b"p") + LAST])
            said.append((without_chance(await ask(side.port, [post(before) + b"nonsense\r\n\r\n"])), side.counts()))
            await side.stop()
        assert said[0] == said[1]

    play(main())


@pytest.mark.timeout(20)
def test_both_ways_hold_as_many_requests(monkeypatch):
    bounded(monkeypatch, mesh_tasks_max=2)

    async def main(lane: str) -> None:
        side = await Side.start(lane=lane, broker=FakeBroker(None))
        asking = []
        for held in (1, 2):
            asking.append(asyncio.ensure_future(ask(side.port, [POST + LAST])))
            await until(lambda held=held: len(side.broker.rows) == held)
        assert (await ask(side.port, [POST + LAST])).startswith(b"HTTP/1.1 429 ")
        for submit in side.broker.submits:
            side.broker.reply(submit.columns.ids, Status.OK, b"finished")
        assert all(b"finished" in said for said in await asyncio.gather(*asking))
        await side.stop()

    for how in ("fast", "asgi"):
        play(main(how))


@pytest.mark.parametrize("lane", ["fast", "asgi"])
def test_a_mistake_of_ours_is_500_and_leaves_nothing(lane: str, monkeypatch):
    async def main() -> None:
        side = await Side.start(lane=lane)
        with monkeypatch.context() as patched:
            patched.setattr(side.gateway.link, "submit", lambda *given: 1 / 0)
            assert (await ask(side.port, [POST + LAST])).startswith(b"HTTP/1.1 500 ")
        assert side.counts()[1:] == (0, 0)
        await side.stop()

    play(main())


# ── the lane alone ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("compression", "header"), [(False, b""), (False, b"accept-encoding: gzip\r\n"), (True, b"accept: text/plain\r\n")]
)
def test_a_small_request_takes_the_lane_and_starts_no_task(compression: bool, header: bytes):
    async def main() -> None:
        side = await Side.start(lane="fast", compression=compression, broker=FakeBroker(None))
        reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
        writer.write(POST.replace(b"host", header + b"host"))
        await until(lambda: side.broker.submits)
        assert len(side.gateway.calls) == 1 and not side.gateway._server.server_state.tasks
        side.broker.reply(side.broker.submits[0].columns.ids, Status.OK, b"finished")
        assert (await reader.readuntil(b"finished")).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
        await side.stop()

    play(main())


def test_a_head_that_is_said_again_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch):
    parsed: list[bytes] = []
    monkeypatch.setattr(LaneConnection, "on_url", lambda self, url: parsed.append(url) or setattr(self, "url", url))

    async def main() -> None:
        side = await Side.start(lane="fast")
        assert (await ask(side.port, [POST], [post(b"longer")], [post(b"x" * 70)], [LAST])).count(b"result") == 3
        assert [bytes(row[1]) for row in side.broker.rows] == [b"x", b"longer", b"x" * 70]
        assert parsed == [b"/inference", b"/livez"]
        await side.stop()

    play(main())


def test_a_head_that_is_said_again_too_early_waits_for_its_turn():
    async def main() -> None:
        side = await Side.start(lane="fast", broker=FakeBroker(None))
        asking = asyncio.ensure_future(ask(side.port, [POST], [post(b"second")], [LAST]))
        reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
        writer.write(POST)
        await until(lambda: len(side.broker.rows) == 2)
        (early,) = [one for one in side.gateway._server.server_state.connections if one.client == peer(writer)]
        writer.write(post(b"second"))
        await until(lambda: early.pipeline)
        for submit in list(side.broker.submits):
            side.broker.reply(submit.columns.ids, Status.OK, b"finished")
        await until(lambda: len(side.broker.rows) == 4)
        for submit in side.broker.submits[-2:]:
            side.broker.reply(submit.columns.ids, Status.OK, b"and again")
        said = await reader.readuntil(b"and again")
        assert said.index(b"finished") < said.index(b"and again")
        assert (await asking).count(b"and again") == 1
        writer.close()
        await side.stop()

    play(main())


def peer(writer: asyncio.StreamWriter) -> Any:
    """As its server sees it."""
    return writer.get_extra_info("sockname")


def test_a_users_middleware_closes_the_lane():
    app = make_app()
    seen: list[str] = []

    @app.middleware("http")
    async def look(request: Any, call_next: Any) -> Any:
        seen.append(request.url.path)
        return await call_next(request)

    async def main() -> None:
        side = await Side.start(lane="fast", app=app)
        assert b"200 OK" in await ask(side.port, [POST + LAST])
        await side.stop()

    play(main())
    assert seen == ["/inference", "/livez"]


def test_a_client_that_leaves_takes_its_task_with_it():
    async def main() -> None:
        side = await Side.start(lane="fast", broker=FakeBroker(None))
        _, writer = await asyncio.open_connection("127.0.0.1", side.port)
        writer.write(POST)
        await until(lambda: side.broker.submits)
        writer.transport.abort()
        await until(lambda: side.broker.cancelled == side.broker.submits[0].columns.ids)
        assert side.counts() == ({(499, "/inference"): 1}, 0, 0)
        side.broker.reply(side.broker.submits[0].columns.ids, Status.OK, b"too late")
        await side.stop()

    play(main())


@pytest.mark.timeout(20)
def test_the_time_of_an_idle_connection_does_not_run_while_a_request_waits():
    """Also when one that was refused at once came before it in the same piece."""

    async def main() -> None:
        side = await Side.start(lane="fast", broker=Judge(None))
        await ask(side.port, [post(b"p") + LAST])
        side.broker.judge = lambda id, verdict: None  # type: ignore[attr-defined]
        _, writer = await asyncio.open_connection("127.0.0.1", side.port)
        writer.write(post(b"p") + POST)
        await until(lambda: len(side.broker.rows) == 2)
        (connection,) = side.gateway._server.server_state.connections
        assert connection.timeout_keep_alive_task is None
        writer.transport.abort()
        await until(lambda: not side.gateway._server.server_state.connections)
        side.gateway.start_drain(0)
        await side.task

    play(main())


def test_an_idle_connection_does_not_keep_the_body_of_its_last_request():
    async def main() -> None:
        side = await Side.start(lane="fast")
        reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
        writer.write(post(bytes(LANE_BODY_BYTES_MAX)))
        await reader.readuntil(b"result")
        (connection,) = side.gateway._server.server_state.connections
        assert connection.cycle.body == b""
        writer.close()
        await side.stop()

    play(main())


def test_a_request_whose_body_is_late_is_not_timed_like_an_idle_connection():
    async def main() -> None:
        side = await Side.start(lane="fast")
        reader, writer = await asyncio.open_connection("127.0.0.1", side.port)
        writer.write(POST)
        await reader.readuntil(b"result")
        writer.write(POST[:-1])
        await until(lambda: len(side.gateway.calls))
        (one,) = side.gateway._server.server_state.connections
        assert one.timeout_keep_alive_task is None
        writer.write(POST[-1:])
        await reader.readuntil(b"result")
        writer.close()
        await side.stop()

    play(main())


def test_a_drain_that_expires_answers_503_and_closes_whatever_another_client_pipelined():
    async def main() -> None:
        side = await Side.start(lane="fast", broker=FakeBroker(None))
        asking = asyncio.ensure_future(ask(side.port, [POST]))
        await until(lambda: len(side.broker.rows) == 1)
        assert await ask(side.port, [POST + POST + b"nonsense\r\n\r\n"]) == b""
        await until(lambda: len(side.gateway.calls) == 1)
        side.gateway.start_drain(0.05)
        said = await asking
        assert said.startswith(b"HTTP/1.1 503 ") and b"connection: close\r\n" in said
        assert await side.task is False

    play(main())


@pytest.mark.parametrize(
    ("version", "is_known"),
    [("0.54.0", True), ("0.53", True), ("0.52.9", False), ("0.55.0.dev0", False), ("1.0a1", False), ("local", False)],
)
def test_the_lane_is_for_a_uvicorn_that_it_was_tested_with(version: str, is_known: bool, monkeypatch, caplog):
    monkeypatch.setattr(lane.uvicorn, "__version__", version)
    assert lane.is_known() is is_known
    assert ("requests go through ASGI" in caplog.text) is not is_known
