"""The answer of a route that streams, from the mesh's words to ASGI's: order, endings, refusals, slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.test_gateway import PLAN, Client, Clock, FakeBroker, run, serving, until
from zmesh import streaming
from zmesh.config import RoutePlan, Settings, StagePlan
from zmesh.gateway import Gateway
from zmesh.messages import Chunk, LeaseId, Payload, Reply, Status, TaskId

SPEAK = "/speak"
STREAMS = replace(
    PLAN,
    stages=(*PLAN.stages, StagePlan(name="Speak", worker="Speak", mime_type="text/event-stream", sse=True)),
    routes=(*PLAN.routes, RoutePlan(path=SPEAK, stages=("Speak",), mime_type="text/event-stream", sse=True)),
)
ERROR = "event: error\ndata: SSE inference error: "


class Speaker(FakeBroker):
    """Answers nothing by itself; `says` and `ends` are for the test."""

    def __init__(self) -> None:
        super().__init__(None)
        self.numbers: dict[TaskId, int] = {}

    @property
    def id(self) -> TaskId:
        return self.submits[-1].columns.ids[0]

    def says(self, text: str | bytes, id: TaskId | None = None) -> None:
        id = self.id if id is None else id
        number = self.numbers.get(id, 0)
        self.numbers[id] = number + 1
        payloads: list[Payload] = [text.encode() if isinstance(text, str) else text]
        self.say(Chunk(1, LeaseId(4), [id], [number], payloads))

    def ends(self, status: int = Status.OK, payload: bytes = b"", id: TaskId | None = None) -> None:
        id = self.id if id is None else id
        self._replies += 1
        count = self.numbers.get(id, 0) if status == Status.OK else 0
        said: list[list[int]] = [[LeaseId(4)], [count]] if count else [None, None]  # type: ignore[list-item]
        self.say(Reply(self._replies, [id], [int(status)], [0], [payload], [1], [0], [0], *said))  # type: ignore[arg-type]


class Reader(Client):
    """A client of a stream. `takes` is cleared while it does not read."""

    def __init__(self, body: bytes = b"hello", **given: Any) -> None:
        super().__init__(*([body] if body else []), path=SPEAK, **given)
        self.takes = asyncio.Event()
        self.takes.set()

    async def send(self, message: Any) -> None:
        await self.takes.wait()
        await super().send(message)

    @property
    def said(self) -> str:
        return b"".join(message["body"] for message in self.sent[1:]).decode()

    @property
    def is_over(self) -> bool:
        return bool(self.sent[1:]) and not self.sent[-1].get("more_body", False)


class Scene:
    def __init__(self, gateway: Gateway, broker: Speaker, clock: Clock) -> None:
        self.gateway, self.broker, self.clock = gateway, broker, clock

    async def ask(self, reader: Reader | None = None) -> tuple[Reader, asyncio.Task[Any]]:
        """A request that has become a task."""
        reader = reader or Reader()
        before = len(self.broker.submits)
        task = reader.start(self.gateway.inference)
        await until(lambda: len(self.broker.submits) > before)
        return reader, task

    def counted(self) -> dict[int, int]:
        return {code: times for (code, path), times in self.gateway.counts.answers.items() if path == SPEAK}

    def look(self, seconds: float) -> None:
        """Time passes, and everybody is looked after."""
        self.clock.now += seconds
        self.gateway.calls.sweep()


def play(main: Callable[[Scene], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def whole() -> None:
        broker, clock = Speaker(), Clock()
        gateway = Gateway(STREAMS, Settings(timeout=600_000, **settings), broker, clock=clock)
        gateway.link.start()
        await until(lambda: gateway.link.joined)
        async with asyncio.timeout(20):
            await main(Scene(gateway, broker, clock))
        assert gateway.counts.in_flight == len(gateway.calls) == gateway.link.pending == gateway.calls._bytes == 0
        gateway.link.close()

    run(whole())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mesh of these tests lets everybody in at once."""
    monkeypatch.setattr(streaming, "ADMISSION_SECONDS", 0.002)


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_come_as_they_are_said_and_the_end_is_silent():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        scene.broker.says("Once")
        await until(lambda: reader.said == "data: Once\n\n")
        assert not reader.is_over
        scene.broker.says("upon\na time")
        await until(lambda: reader.said.endswith("data: upon\ndata: a time\n\n"))
        scene.broker.ends()
        await task
        assert reader.status == 200
        assert reader.headers["content-type"] == "text/event-stream"
        assert reader.headers["cache-control"] == "no-cache"
        assert reader.headers["server"].startswith("zmesh/")
        assert len(reader.headers["x-request-id"]) == 32
        assert "content-length" not in reader.headers
        assert reader.said == "data: Once\n\ndata: upon\ndata: a time\n\n"
        assert scene.counted() == {200: 1}

    play(main)


def test_what_is_said_together_with_the_end_is_read_before_it():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        for text in ("a", "b", "c"):
            scene.broker.says(text)
        scene.broker.ends(Status.VALIDATION, b"request validation error: text is required")
        await task
        said = ERROR + "422: Unprocessable Content: request validation error: text is required\n\n"
        assert reader.said == "data: a\n\ndata: b\n\ndata: c\n\n" + said
        assert scene.counted() == {422: 1}

    play(main)


def test_200_is_said_before_there_is_anything_to_say():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        await until(lambda: reader.is_answered)
        assert reader.sent == [reader.sent[0]]
        assert reader.sent[0]["status"] == 200
        scene.broker.ends()
        await task
        assert reader.said == ""

    play(main)


def test_while_nothing_is_said_a_comment_keeps_the_connection(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.01)

    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        await until(lambda: reader.said.startswith(":\n\n:\n\n"))
        scene.broker.says("x")
        await until(lambda: "data" in reader.said)
        scene.broker.ends()
        await task
        assert set(reader.said.split("\n\n")) == {":", "data: x", ""}

    play(main)


# ── endings ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first", ["", "x"], ids=["before the first event", "after it"])
@pytest.mark.parametrize(
    ("status", "payload", "http", "said"),
    [
        (Status.BAD_REQUEST, b"bad request: no", 400, "400: Bad Request: bad request: no"),
        (Status.VALIDATION, b"request validation error: no", 422,
         "422: Unprocessable Content: request validation error: no"),
        (Status.TIMEOUT, b"no answer before the deadline", 408,
         "408: Request Timeout: request timeout: no answer before the deadline"),
        (Status.INTERNAL, b"inference internal error", 500, "500: Internal Server Error: inference internal error"),
        (Status.INTERNAL, b"its worker was lost in the middle of the stream", 500,
         "500: Internal Server Error: inference internal error: its worker was lost in the middle of the stream"),
        (Status.SHED, b"quota: come back tomorrow", 429, "429: Too Many Requests: quota: come back tomorrow"),
    ],
    ids=["400", "422", "408", "500", "death", "a worker's own 429"],
)  # fmt: skip
def test_whatever_goes_wrong_in_a_worker_is_an_event(first: str, status: Status, payload: bytes, http: int, said: str):
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        if first:
            scene.broker.says(first)
        scene.broker.ends(status, payload)
        await task
        assert reader.status == 200
        assert reader.said == ("data: x\n\n" if first else "") + ERROR + said + "\n\n"
        assert scene.counted() == {http: 1}

    play(main)


def test_its_deadline_ends_a_stream_with_an_error():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask(Reader(headers={"x-request-timeout": "2"}))
        scene.broker.says("x")
        await until(lambda: reader.said)
        scene.clock.now += 3
        scene.broker.says("the clock is looked at")
        await task
        assert reader.said.endswith(ERROR + "408: Request Timeout: request timeout: no answer before the deadline\n\n")
        assert scene.broker.cancelled == [scene.broker.id]

    play(main)


def test_a_gap_is_an_error_and_stops_the_worker():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        scene.broker.says("a")
        await until(lambda: reader.said)
        scene.broker.numbers[scene.broker.id] += 1
        scene.broker.says("c")
        await task
        assert reader.said.endswith("inference internal error: events of the stream were lost\n\n")
        await until(lambda: scene.broker.cancelled == [scene.broker.id])

    play(main)


def test_a_drain_that_expires_ends_a_stream_with_an_error():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        scene.broker.says("a")
        await until(lambda: reader.said)
        scene.gateway.calls.is_draining = True
        assert scene.gateway.calls.expire() == 1
        await task
        assert reader.said.endswith(
            ERROR + "503: Service Unavailable: service unavailable: gracefully shutting down\n\n"
        )

    play(main)


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "payload", "http"),
    [
        (Status.SHED, b"the queue of Speak is full (8 tasks)", 429),
        (Status.UNAVAILABLE, b"stage Speak does not start: RuntimeError: no weights", 503),
    ],
)
def test_what_the_mesh_does_not_let_in_gets_a_status_of_its_own(status: Status, payload: bytes, http: int):
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        scene.broker.ends(status, payload)
        await task
        assert reader.status == http
        assert "retry-after" in reader.headers
        assert payload.decode() in reader.text
        assert scene.counted() == {http: 1}

    play(main)


@pytest.mark.parametrize(
    ("reader", "http"),
    [
        (lambda: Reader(b""), 400),
        (lambda: Reader(b"x" * 101, stays=False), 413),
        (lambda: Reader(method="GET"), 405),
        (lambda: Reader(headers={"x-request-timeout": "soon"}), 400),
    ],
    ids=["empty", "too large", "GET", "nonsense"],
)
def test_what_is_no_request_gets_a_status_of_its_own(reader: Callable[[], Reader], http: int):
    async def main(scene: Scene) -> None:
        asked = reader()
        await asked.ask(scene.gateway.inference)
        assert asked.status == http
        assert asked.headers["content-type"].startswith("text/plain")
        assert scene.broker.submits == []

    play(main, max_request_size=100)


def test_while_draining_it_is_503():
    async def main(scene: Scene) -> None:
        scene.gateway.calls.is_draining = True
        reader = Reader()
        await reader.ask(scene.gateway.inference)
        assert (reader.status, reader.headers["connection"]) == (503, "close")

    play(main)


# ── readers ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first", ["", "x"], ids=["before the first event", "after it"])
def test_a_client_that_leaves_takes_its_stream_along(first: str):
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        if first:
            scene.broker.says(first)
            await until(lambda: reader.said)
        reader.gone.set()
        await task
        await until(lambda: scene.broker.cancelled == [scene.broker.id])
        assert scene.counted() == {499: 1}
        assert not reader.is_over
        scene.broker.says("to nobody")
        await asyncio.sleep(0)

    play(main)


def test_a_slow_reader_costs_nobody_else_anything():
    async def main(scene: Scene) -> None:
        slow, slow_task = await scene.ask()
        slow_id = scene.broker.id
        quick, quick_task = await scene.ask()
        quick_id = scene.broker.id
        scene.broker.says("begins", slow_id)
        await until(lambda: slow.said)
        slow.takes.clear()
        for number in range(40):
            scene.broker.says("x" * 60_000, slow_id)
            scene.broker.says(str(number), quick_id)
        await until(lambda: quick.said.endswith("data: 39\n\n"))
        await until(lambda: scene.broker.cancelled == [slow_id])
        assert scene.gateway.calls._bytes <= 2 * len(b"hello"), "what was not read is dropped"
        scene.broker.ends(id=quick_id)
        await quick_task
        slow.takes.set()
        await slow_task
        text = "408: Request Timeout: request timeout: its reader is too slow: more than 1048576 bytes wait for it"
        assert slow.said.endswith(ERROR + text + "\n\n")
        assert slow.said.startswith("data: begins\n\n")
        assert len(slow.said) < 4 * streaming.WRITE_BYTES, "what waited is not sent after all"
        assert scene.counted() == {200: 1, 408: 1}

    play(main)


def test_one_event_may_be_as_large_as_all_that_may_wait():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        scene.broker.says(b"x" * streaming.BUFFER_BYTES_MAX)
        await until(lambda: len(reader.said) > streaming.BUFFER_BYTES_MAX)
        scene.broker.ends()
        await task

    play(main)


def test_what_waits_is_handed_over_in_pieces():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        await until(lambda: reader.is_answered)
        reader.takes.clear()
        for _ in range(20):
            scene.broker.says("x" * 20_000)
        await asyncio.sleep(0)
        scene.broker.ends()
        reader.takes.set()
        await task
        sizes = [len(message["body"]) for message in reader.sent[1:]]
        assert sum(sizes) == 20 * 20_008
        assert max(sizes) <= streaming.WRITE_BYTES + 20_008

    play(main)


async def wedged(scene: Scene, *, ends: bool) -> tuple[Reader, asyncio.Task[None], list[bool]]:
    """Somebody who was answered, and takes nothing of what is said then; the last says whether it was cut off."""
    aborted: list[bool] = []
    reader = Reader()
    reader.scope["zmesh.abort"] = lambda: aborted.append(True)
    _, task = await scene.ask(reader)
    await until(lambda: reader.is_answered)
    reader.takes.clear()
    scene.broker.says("x")
    if ends:
        scene.broker.ends()
    stream = next(iter(scene.gateway.calls._held)).stream  # type: ignore[attr-defined]
    await until(lambda: stream._writing_since is not None and stream._outcome.done() is ends)
    return reader, task, aborted


def test_a_reader_that_takes_nothing_for_30_s_has_its_stream_ended_and_is_cut_off_after_30_more():
    async def main(scene: Scene) -> None:
        reader, task, aborted = await wedged(scene, ends=False)
        scene.look(30)
        await asyncio.sleep(0)
        assert scene.broker.cancelled == []
        scene.look(0.1)
        await until(lambda: scene.broker.cancelled == [scene.broker.id])
        scene.look(29)
        assert aborted == []
        scene.look(2)
        assert aborted == [True]
        reader.takes.set()
        await task
        assert "its reader is too slow: it took nothing for 30 s" in reader.said
        assert scene.counted() == {408: 1}

    play(main)


def test_who_does_not_read_the_end_is_cut_off():
    async def main(scene: Scene) -> None:
        reader, task, aborted = await wedged(scene, ends=True)
        scene.look(59)
        assert aborted == []
        scene.look(2)
        assert aborted == [True]
        reader.takes.set()
        await task
        assert scene.counted() == {200: 1}

    play(main)


def test_when_the_gateway_is_full_who_does_not_read_goes_first():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        await until(lambda: reader.is_answered)
        scene.gateway.calls._bytes_max = 1000
        reader.takes.clear()
        scene.broker.says("x" * 500)
        scene.broker.says("x" * 600)
        await until(lambda: scene.broker.cancelled)
        reader.takes.set()
        await task
        assert "its reader is too slow, and the gateway is full" in reader.said

    play(main)


def test_when_the_gateway_is_full_who_keeps_up_goes_on():
    async def main(scene: Scene) -> None:
        reader, task = await scene.ask()
        await until(lambda: reader.is_answered)
        scene.gateway.calls._bytes_max = 1
        scene.broker.says("keeps up")
        await until(lambda: "keeps up" in reader.said)
        scene.broker.ends()
        await task
        assert scene.broker.cancelled == [] and scene.counted() == {200: 1}

    play(main)


# ── through uvicorn ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["fast", "asgi"])
def test_the_bytes_of_a_stream_are_the_same_with_both_lanes(lane: str):
    async def main() -> None:
        broker = Speaker()
        gateway = Gateway(STREAMS, Settings(timeout=600_000, lane=lane), broker)
        task, port = await serving(gateway)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /speak HTTP/1.1\r\nhost: x\r\nx-request-id: r\r\ncontent-length: 5\r\n\r\nhello")
        await until(lambda: broker.submits)
        broker.says("Once")
        head = await reader.readuntil(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith((b"date:", b"server:"))]
        assert lines == [
            b"HTTP/1.1 200 OK",
            b"content-type: text/event-stream",
            b"cache-control: no-cache",
            b"x-request-id: r",
            b"transfer-encoding: chunked",
            b"",
            b"",
        ]
        assert await reader.readexactly(17) == b"c\r\ndata: Once\n\n\r\n"
        broker.ends()
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        writer.write(b"POST /label HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello")
        await until(lambda: len(broker.submits) == 2)
        broker.ends(payload=b"plain")
        assert b"content-type: text/csv" in await reader.readuntil(b"\r\n\r\n"), "the connection goes on"
        assert await reader.readexactly(5) == b"plain"
        writer.close()
        gateway.start_drain(1)
        assert await task is True

    run(main())


@pytest.mark.slow
def test_a_reader_that_is_cut_off_ends_its_connection():
    async def main() -> None:
        broker, clock = Speaker(), Clock()
        gateway = Gateway(STREAMS, Settings(timeout=600_000), broker, clock=clock)
        task, port = await serving(gateway)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"POST /speak HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello")
        await until(lambda: broker.submits)
        while not broker.cancelled:
            broker.says(b"x" * 500_000)
            await asyncio.sleep(0.001)
        (call,) = gateway.calls._held
        clock.now += 31
        gateway.calls.sweep()
        await until(lambda: not gateway.calls._held)
        assert call.stream._gave_up_at is not None  # type: ignore[attr-defined]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 30)
        writer.close()
        gateway.start_drain(1)
        assert await task is True
        assert gateway.counts.answers == {(408, SPEAK): 1}

    run(main())
