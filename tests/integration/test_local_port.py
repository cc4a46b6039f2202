"""A gateway in the process of its broker: they share an event loop."""

import asyncio
import select
from pathlib import Path

import pytest

from tests.harness import wait_until
from zmesh.broker import Broker
from zmesh.config import Limits, Plan, RoutePlan, StagePlan
from zmesh.core.effects import DispatcherEffect
from zmesh.core.events import DispatcherEvent
from zmesh.messages import (
    PROTOCOL_VERSION,
    Columns,
    Credit,
    Hello,
    Message,
    PeerId,
    Reply,
    Results,
    Role,
    SessionId,
    Submit,
    TaskId,
    Tasks,
    Welcome,
    WorkerState,
)
from zmesh.transport import Context, Dealer, stage_endpoint
from zmesh.wire import decode, encode

PLAN = Plan(
    stages=(StagePlan(name="Only", worker="Only"),),
    routes=(RoutePlan(path="/inference", stages=("Only",)),),
)


@pytest.mark.parametrize("breathes", [True, False])
def test_a_broker_that_is_let_in_answers_within_one_turn_of_the_loop(tmp_path: Path, breathes: bool) -> None:
    async def talk() -> list[Message]:
        context, heard = Context(), []
        broker = Broker(PLAN, Limits(), context, [f"ipc://{tmp_path}/front.s"], asyncio.get_running_loop())
        broker.start()
        port = broker.local_port()
        port.open(lambda session, message: heard.append(message), lambda: None)
        peer = PeerId(b"p" * 16)
        port.send(SessionId(0), Hello([PROTOCOL_VERSION], Role.GATEWAY, peer, 1, "here", 1, PLAN.fingerprint))
        if breathes:
            port.breathe()
        heard_at_once = list(heard)
        broker.close()
        context.close()
        return heard_at_once

    heard = asyncio.run(talk())
    assert [type(message) for message in heard] == ([Welcome] if breathes else [])


def test_a_broker_that_was_let_in_takes_no_turn_for_what_it_has_done(tmp_path: Path) -> None:
    """One for what came before it was let in, one for what came after, and no third one."""

    async def talk() -> list[int]:
        context, heard, told = Context(), [], []
        broker = Broker(PLAN, Limits(), context, [f"ipc://{tmp_path}/front.s"], asyncio.get_running_loop())
        broker.start()
        await asyncio.sleep(0.05)
        handle = broker.dispatcher.handle

        def counted(*happened: DispatcherEvent, now: float) -> list[DispatcherEffect]:
            told.append(len(happened))
            return handle(*happened, now=now)

        broker.dispatcher.handle = counted
        port = broker.local_port()
        port.open(lambda session, message: heard.append(session), lambda: None)
        port.send(SessionId(0), _hello(Role.GATEWAY))
        port.breathe()
        port.send(heard.pop(), _submit(1))
        for _ in range(5):
            await asyncio.sleep(0)
        broker.close()
        context.close()
        return told

    assert asyncio.run(talk()) == [1, 1]


def test_what_arrives_while_a_turn_sends_is_read_in_the_next_one(tmp_path: Path) -> None:
    """Sending uses the descriptor's signal up, so nothing but the broker itself can know that a result lies there."""

    async def talk() -> list[Message]:
        context, heard, front = Context(), [], f"ipc://{tmp_path}/front.s"
        broker = Broker(PLAN, Limits(), context, [front], asyncio.get_running_loop())
        broker.start()
        port, worker = broker.local_port(), context.dealer(stage_endpoint(front, 0))
        port.open(lambda session, message: heard.append((session, message)), lambda: None)
        port.send(SessionId(0), _hello(Role.GATEWAY))
        port.breathe()
        (gateway, _), session = heard.pop(), _join(broker, worker)
        assert worker.send(encode(Credit(2, WorkerState.READY), session))
        port.send(gateway, _submit(1))
        tasks = _next(broker, worker, Tasks)
        assert worker.send(
            encode(Results(broker.dispatcher.mesh.directory.epoch, tasks.lease, [0], [0], [0], [b""]), session)
        )
        _await_sign(broker)
        port.send(gateway, _submit(2))
        broker._turn()  # hears of the task alone, and sends it to the same worker
        assert heard == []
        async with asyncio.timeout(10):
            while not heard:  # noqa: ASYNC110 there is no event for it
                await asyncio.sleep(0)
        assert broker.missed_edges == 0, "nobody had to look because time had passed"
        broker.close()
        worker.close()
        context.close()
        return [message for _, message in heard]

    (reply,) = asyncio.run(talk())
    assert isinstance(reply, Reply) and reply.ids == [1]


def _hello(role: Role) -> Hello:
    stage = "Only" if role is Role.WORKER else ""
    return Hello([PROTOCOL_VERSION], role, PeerId(bytes([role]) * 16), 1, "here", 1, PLAN.fingerprint, stage)


def _submit(id: int) -> Submit:
    return Submit("/inference", Columns([TaskId(id)], [3], [60_000], [0], [0], [b"x"]))


def _await_sign(broker: Broker) -> None:
    """Until the descriptor of the stage's socket tells of something; nothing is used up by asking. Mostly that is the
    message that was sent last, and else the test is easier to pass."""
    ready, _, _ = select.select([broker._routers[1].fd], [], [], 10)
    assert ready, "what was sent arrives"


def _next(broker: Broker, worker: Dealer, kind: type[Message]) -> Message:
    """The first of its kind that the worker hears, while the broker looks again and again."""
    found: list[Message] = []

    def heard() -> bool:
        broker.breathe()
        while (frames := worker.receive()) is not None:
            found.append(decode(frames, Limits())[1])
        return any(isinstance(message, kind) for message in found)

    wait_until(heard, 10, kind.__name__)
    return next(message for message in found if isinstance(message, kind))


def _join(broker: Broker, worker: Dealer) -> SessionId:
    wait_until(lambda: worker.send(encode(_hello(Role.WORKER))), 10, "the worker to reach the broker")
    return _next(broker, worker, Welcome).session
