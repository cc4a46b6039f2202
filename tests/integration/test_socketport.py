"""A gateway's socket to a broker in another process: what it hears, and that it notices when nobody is there."""

import asyncio
import select
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest
import uvloop

from tests.harness import wait_until
from zmesh.config import Limits
from zmesh.messages import Heartbeat, Message, SessionId, Stats
from zmesh.socketport import SocketPort
from zmesh.transport import Context, Frames, Router
from zmesh.wire import decode, encode

Run = Callable[[Coroutine[object, object, None]], None]
SECONDS = 10.0
LIMITS = Limits()


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    yield made
    made.close()


def bound(context: Context, endpoint: str) -> Router:
    router = context.router(LIMITS.frame_bytes_max, endpoint)
    router.bind()
    return router


def heard_by(router: Router) -> Frames:
    found: list[Frames] = []

    def has_come() -> bool:
        if (frames := router.receive()) is not None:
            found.append(frames)
        return bool(found)

    wait_until(has_come)
    return found[0]


def test_a_monitor_wakes_whoever_waits_for_it(context: Context, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    router = bound(context, endpoint)
    dealer, monitor = context.dealer(endpoint), router.monitor()
    wait_until(lambda: dealer.send([b"x"]))
    heard_by(router)
    assert monitor.take() == 0
    dealer.close()
    assert select.select([monitor.fd], [], [], SECONDS)[0]
    assert monitor.take() == 1
    router.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_it_says_hears_and_notices_that_the_broker_is_gone(context: Context, tmp_path: Path, run: Run) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    before = bound(context, endpoint)

    async def talk() -> None:
        heard: asyncio.Queue[Message] = asyncio.Queue()
        lost = asyncio.Event()
        port = SocketPort(context, endpoint, LIMITS, asyncio.get_running_loop())
        port.open(lambda session, message: heard.put_nowait(message), lost.set)
        port.send(SessionId(7), Stats())
        routing_id, *frames = await asyncio.to_thread(heard_by, before)
        assert decode(frames, LIMITS) == (7, Stats())
        before.send(bytes(routing_id), encode(Heartbeat(1, 2, []), SessionId(7)))
        assert await asyncio.wait_for(heard.get(), SECONDS) == Heartbeat(1, 2, [])
        assert not lost.is_set()
        before.close()
        await asyncio.wait_for(lost.wait(), SECONDS)
        port.close()
        port.send(SessionId(7), Stats())  # harmless: who closes forgets

    run(talk())


def test_what_is_said_while_nobody_is_there_is_heard_when_somebody_comes(context: Context, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/s"

    async def talk() -> None:
        port = SocketPort(context, endpoint, LIMITS, asyncio.get_running_loop())
        port.open(lambda session, message: None, lambda: None)
        for number in range(3):
            port.send(SessionId(number), Stats())
        router = bound(context, endpoint)
        said = [decode((await asyncio.to_thread(heard_by, router))[1:], LIMITS)[0] for _ in range(3)]
        assert said == [0, 1, 2]
        port.close()
        router.close()

    asyncio.run(talk())
