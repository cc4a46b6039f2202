"""A gateway in the process of its broker: they share an event loop."""

import asyncio
from pathlib import Path

import pytest

from zmesh.broker import Broker
from zmesh.config import Limits, Plan, RoutePlan, StagePlan
from zmesh.messages import PROTOCOL_VERSION, Hello, Message, PeerId, Role, SessionId, Welcome
from zmesh.transport import Context

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
