"""What is said between the processes, read by a person: whole lines, bounded, and nobody else pays for them."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from zmesh.broker import Broker
from zmesh.config import Limits, Plan, RoutePlan, StagePlan
from zmesh.conversation import SHOWN_MAX, Conversation, task_name, words
from zmesh.core.events import Heard, LinkLost
from zmesh.line import Line, line_class
from zmesh.messages import (
    Ack,
    Cancel,
    Chunk,
    Columns,
    Context,
    Credit,
    Drain,
    Exited,
    Goodbye,
    Heartbeat,
    Hello,
    Kill,
    LeaseId,
    Message,
    PeerId,
    Phase,
    Refuse,
    RefuseCode,
    Reply,
    Results,
    Role,
    SessionId,
    Stats,
    Submit,
    TaskId,
    Tasks,
    Welcome,
    WorkerState,
)
from zmesh.overhearing import TalkingBroker, TalkingPort, broker_class, overheard
from zmesh.transport import Context as Sockets
from zmesh.transport import Poller, stage_endpoint
from zmesh.wire import encode

PEER = PeerId(b"\x5f\x3a\x0c\x1b" + b"p" * 12)
FIRST = 0x5F3A0C1B << 32
LEASE = LeaseId(7)


def columns(*numbers: int, requests: bool = False, payload: bytes = b"secret") -> Columns:
    ids = [TaskId(FIRST + number) for number in numbers]
    count = len(ids)
    contexts: list[Context | None] | None = [{"request_id": f"r{number}"} for number in numbers] if requests else None
    return Columns(ids, [3] * count, [9] * count, [0] * count, [0] * count, [payload] * count, contexts)


def results(*statuses: int, payload: bytes = b"secret") -> Results:
    count = len(statuses)
    return Results(1, LEASE, list(range(count)), list(statuses), [0] * count, [payload] * count, 1500)


def reply(*numbers: int) -> Reply:
    count = len(numbers)
    ids = columns(*numbers).ids
    return Reply(3, ids, [0] * count, [0] * count, [b"secret"] * count, [0] * count, [0] * count, [0] * count)


HELLO = Hello([1], Role.WORKER, PEER, 1, "here", 12, stage="Echo", worker_id=2, running=[LEASE], waiting=[LeaseId(8)])
WELCOME = Welcome(1, PEER, 0xABC, SessionId(5), 1000, 5000, 1, 1, 1, ["Echo"], [])

SAID: list[tuple[Message, str]] = [
    (HELLO, "HELLO from Echo/2 (pid 12), holding lease 7 8"),
    (Hello([1], Role.GATEWAY, PEER, 1, "here", 12), "HELLO from gateway 5f3a0c1b (pid 12)"),
    (Hello([1], Role.AGENT, PEER, 1, "here", 12), "HELLO from agent here (pid 12)"),
    (Hello([1], Role.ADMIN, PEER, 1, "here", 12), "HELLO from admin (pid 12)"),
    (WELCOME, "WELCOME to epoch abc"),
    (Refuse(RefuseCode.STAGE, "not here"), "REFUSE STAGE: not here"),
    (Credit(2, WorkerState.READY), "CREDIT 2 in all, READY"),
    (Submit("/words", columns(12)), "SUBMIT /words: 1 task 5f3a0c1b.12"),
    (Submit("/words", columns(0, requests=True)), "SUBMIT /words: 1 task 5f3a0c1b.0 (r0)"),
    (Submit("/words", columns(0), again=True), "SUBMIT again /words: 1 task 5f3a0c1b.0"),
    (Tasks(LEASE, columns(0, 1, 2, 5, 7, 8), []), "TASKS lease 7: 6 tasks 5f3a0c1b.0-2 5f3a0c1b.5 5f3a0c1b.7-8"),
    (Tasks(LEASE, columns(1), [LeaseId(5)]), "TASKS lease 7: 1 task 5f3a0c1b.1; ACK lease 5"),
    (results(0, 0, 2, 0, 99), "RESULTS lease 7: 3 OK, 1 TIMEOUT, 1 status 99 in 1.5 ms"),
    (results(), "RESULTS lease 7: nothing in 1.5 ms"),
    (reply(4, 5), "REPLY 3: 2 OK: 2 tasks 5f3a0c1b.4-5"),
    (Cancel(columns(4).ids, "the client is gone"), "CANCEL 1 task 5f3a0c1b.4: the client is gone"),
    (Chunk(1, LEASE, columns(0, 1).ids, [0, 0], [b"secret"] * 2), "CHUNK lease 7: EVENT of 2 tasks 5f3a0c1b.0-1"),
    (Ack([LEASE], []), "ACK lease 7"),
    (Ack([], [PEER]), "ACK 1 exit"),
    (Exited(PEER, "Echo", 2, -9, LEASE, Phase.FORWARD, 0, False, "a\nb"), "EXITED Echo/2, in FORWARD of lease 7: b"),
    (Exited(PEER, "Echo", 2, 0, LeaseId(0), Phase.IDLE, 0, False, ""), "EXITED Echo/2, idle: no reason given"),
    (Kill(PEER, LEASE, "it is stuck"), "KILL lease 7: it is stuck"),
    (Kill(PEER, LEASE, "unwanted", interrupt=True), "INTERRUPT lease 7: unwanted"),
    (Drain(1500, "SIGTERM"), "DRAIN within 1.5 s: SIGTERM"),
    (Goodbye([]), "GOODBYE"),
    (Goodbye([LEASE]), "GOODBYE, unfinished: lease 7"),
    (Stats(), "STATS?"),
    (Stats("{}"), "STATS, 2 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "expected"), SAID, ids=lambda value: value if isinstance(value, str) else "")
def test_a_message_in_one_line(message: Message, expected: str) -> None:
    assert words(message) == expected


def test_every_message_but_the_sign_of_life_has_its_words() -> None:
    assert {type(message) for message, _ in SAID} | {Heartbeat} == set(Message.__args__)


def test_a_line_is_bounded_and_has_no_payload() -> None:
    many, payload = range(0, 8192, 2), b"secret" * 1000
    for requests in (False, True):
        for message in (Submit("/x", columns(*many, requests=requests, payload=payload)), reply(*many)):
            assert len(words(message)) < 60 * SHOWN_MAX and "secret" not in words(message)
            assert words(message).endswith(" …")
    acks = Ack([LeaseId(number) for number in range(4096)], [])
    assert words(acks) == "ACK lease 0 1 2 3 4 5 6 7 and 4088 more"


# ── one end of it ─────────────────────────────────────────────────────────────────────────────────────────────────

Lines = Callable[[], list[str]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.DEBUG, "zmesh")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_conversation_leaves_out_what_is_said_every_second(lines: Lines) -> None:
    talk = Conversation(logging.getLogger("zmesh.test"))
    for _ in range(3):
        talk.heard("Echo/1", Heartbeat(1, 0, []))
        talk.heard("Echo/1", Credit(2, WorkerState.READY))
    talk.heard("Echo/2", Credit(2, WorkerState.READY))
    talk.heard("Echo/1", Credit(2, WorkerState.DRAINING))
    talk.said("Echo/1", Goodbye([]))
    talk.became("Echo/1 gone")
    assert lines() == [
        "< Echo/1 CREDIT 2 in all, READY",
        "< Echo/2 CREDIT 2 in all, READY",
        "< Echo/1 CREDIT 2 in all, DRAINING",
        "> Echo/1 GOODBYE",
        "= Echo/1 gone",
    ]


def test_a_record_can_be_found_by_its_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "zmesh")
    Conversation(logging.getLogger("zmesh.test")).said("broker", Submit("/x", columns(1, 2, requests=True)))
    assert [record.__dict__["request_id"] for record in caplog.records] == [["r1", "r2"]]


def test_nobody_who_does_not_debug_pays() -> None:
    class Way:
        def open(self, hear: object, lost: object) -> None: ...

        def send(self, session: SessionId, message: Message) -> None: ...

        def breathe(self) -> None: ...

        def close(self) -> None: ...

    way = Way()
    for level in ("info", "warning", "error"):
        assert (line_class(level), broker_class(level)) == (Line, Broker)
        assert overheard(way, level) is way
    assert issubclass(line_class("debug"), Line) and line_class("debug") is not Line
    assert broker_class("debug") is TalkingBroker
    assert isinstance(overheard(way, "debug"), TalkingPort)


# ── a broker, a gateway and a worker ──────────────────────────────────────────────────────────────────────────────

PLAN = Plan(stages=(StagePlan(name="Echo", worker="Echo"),), routes=(RoutePlan(path="/x", stages=("Echo",)),))


def hello(role: Role, peer: bytes, stage: str = "") -> Hello:
    return Hello([1], role, PeerId(peer * 16), 1, "here", 1, PLAN.fingerprint, stage=stage, worker_id=len(stage) // 4)


def sessions_of(events: Sequence[Heard | LinkLost]) -> list[SessionId]:
    return [event.session for event in events if isinstance(event, Heard)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 there is no event for it
            await asyncio.sleep(0)


def test_the_log_of_a_broker_and_its_peers_reads_like_a_conversation(tmp_path: Path, lines: Lines) -> None:
    async def talk() -> None:
        sockets, front = Sockets(), f"ipc://{tmp_path}/front.s"
        broker = TalkingBroker(PLAN, Limits(), sockets, [front], asyncio.get_running_loop())
        broker.start()
        held.callback(sockets.close)
        held.callback(broker.close)
        sessions: list[SessionId] = []
        port = TalkingPort(broker.local_port())
        port.open(lambda session, message: sessions.append(session), lambda: None)
        port.send(SessionId(0), hello(Role.GATEWAY, b"g"))
        await until(lambda: bool(sessions))
        line = line_class("debug")(sockets, stage_endpoint(front, 0), Poller(), Limits(), "worker")
        line.connect()
        held.callback(line.disconnect)
        line.send(SessionId(0), hello(Role.WORKER, b"w", "Echo"))
        heard: list[SessionId] = []

        def hears() -> bool:
            line.flush()  # it may have been parked until there was a connection
            heard.extend(sessions_of(line.receive()))
            return bool(heard)

        await until(hears)
        line.send(heard[0], Credit(1, WorkerState.READY))
        await until(lambda: "= Echo/1 (pid 1) ready" in lines())
        port.send(sessions[0], Submit("/x", columns(0, requests=True)))
        await until(lambda: bool(line.receive()))
        stranger = sockets.dealer(front)
        held.callback(stranger.close)
        await until(lambda: stranger.send(encode(Goodbye([]), SessionId(99))))  # not before there is a connection
        await until(lambda: "> a stranger REFUSE UNKNOWN_PEER: say HELLO again" in lines())
        port.close()

    with ExitStack() as held:
        asyncio.run(talk())
    said = lines()
    assert (said[0], said[1][:22]) == ("= looking for the broker", "> broker HELLO from ga")
    expected = [
        "< gateway 67676767 HELLO from gateway 67676767 (pid 1)",
        "> gateway 67676767 WELCOME to epoch …",
        "< broker WELCOME to epoch …",
        "= joined the broker",
        "= gateway 67676767 (pid 1) joined",
        f"= looking for the broker at ipc://{tmp_path}/0.s",
        "> broker HELLO from Echo/1 (pid 1)",
        "< Echo/1 HELLO from Echo/1 (pid 1)",
        "> Echo/1 WELCOME to epoch …",
        "= Echo/1 (pid 1) starting",
        "< broker WELCOME to epoch …",
        "= joined the broker",
        "> broker CREDIT 1 in all, READY",
        "< Echo/1 CREDIT 1 in all, READY",
        "= Echo/1 (pid 1) ready",
        "> broker SUBMIT /x: 1 task 5f3a0c1b.0 (r0)",
        "< gateway 67676767 SUBMIT /x: 1 task 5f3a0c1b.0 (r0)",
        "> Echo/1 TASKS lease 1: 1 task 5f3a0c1b.0 (r0)",
        "< broker TASKS lease 1: 1 task 5f3a0c1b.0 (r0)",
    ]
    found = [line.partition("epoch ")[0] + "epoch …" if "WELCOME" in line else line for line in said[2:]]
    assert found[: len(expected)] == expected
    assert "< a stranger GOODBYE" in found


def test_a_task_has_one_name_everywhere() -> None:
    assert task_name(TaskId(FIRST + 12)) == "5f3a0c1b.12"
