"""The two programs that an agent starts beside its workers: a gateway, and a broker with a process of its own.

A gateway process holds the broker as well, unless its agent's document names another one to join. A lone broker gets
its plan as JSON and never runs the app file. Both live on one event loop until their agent says drain, and end at once
when it is gone: nobody would restart or drain them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import uvloop

from zmesh import logs
from zmesh.board import Board
from zmesh.broker import Broker
from zmesh.config import DRAIN_SAY_SECONDS, Plan, Settings
from zmesh.errors import DrainExpired, StartError
from zmesh.linkage import Port
from zmesh.messages import PeerId
from zmesh.overhearing import broker_class, overheard
from zmesh.pipe import Pipe, child_pipe
from zmesh.socketport import SocketPort
from zmesh.transport import Context, raise_file_limit

if TYPE_CHECKING:
    from fastapi import FastAPI

    from zmesh.schemas import RouteSchema

__all__ = ["heed", "main", "serve_gateway"]

COLLECT_AFTER_OBJECTS = 10_000  # a few MB, if all of it were garbage
DOCUMENT_SECONDS = 30.0  # for the agent to say how a lone broker begins

log = logging.getLogger("zmesh.broker")


def serve_gateway(
    plan: Plan,
    settings: Settings,
    pipe: Pipe,
    document: Mapping[str, object],
    app: FastAPI | None,
    schemas: Mapping[str, RouteSchema],
) -> int:
    """The life of a gateway process; its exit code. `document` is what its agent said first. Raises StartError."""
    from zmesh.gateway import Gateway

    listen, fronts = document["listen"], document["fronts"]
    assert isinstance(listen, int) and isinstance(fronts, list), document
    raise_file_limit()
    board = _board(plan, settings, document)

    async def serve(listener: socket.socket) -> int:
        loop, context = asyncio.get_running_loop(), Context()
        make = broker_class(settings.log_level)
        broker = make(plan, settings.limits(), context, fronts, loop, _agent(document)) if fronts else None
        try:
            if broker is not None:
                broker.start()
                port: Port = broker.local_port()
            else:
                port = SocketPort(context, str(document["front"]), settings.limits(), loop)
            port = overheard(port, settings.log_level)
            gateway = Gateway(plan, settings, port, app, schemas, board=board)
            _obey(pipe, loop, gateway.start_drain)
            serving = loop.create_task(gateway.serve(listener))
            starting = loop.create_task(gateway.started.wait())
            await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
            if not starting.cancel():
                _collect_seldom()
                pipe.send(say="ready")
            return 0 if await serving else DrainExpired.exit_code
        finally:
            loop.remove_reader(pipe.fd)
            if broker is not None:
                broker.close()
            context.close()

    with socket.socket(fileno=listen) as listener:
        os.set_inheritable(listen, False)
        return uvloop.run(serve(listener))


def _board(plan: Plan, settings: Settings, document: Mapping[str, object]) -> Board | None:
    """What it shares with other gateways. Raises StartError when the app is not theirs any more."""
    fd, number = document.get("board"), document.get("number")
    if fd is None:
        return None
    assert isinstance(fd, int) and isinstance(number, int), document
    if Plan.from_json(str(document["plan"])).fingerprint != plan.fingerprint:
        text = "the stages or routes of the app file have changed since zmesh started; stop it and start it again"
        raise StartError(text)
    return Board.open(fd, settings.gateways, len(plan.routes), number)


async def _serve_broker(plan: Plan, settings: Settings, pipe: Pipe, fronts: Sequence[str], agent: PeerId) -> int:
    """A broker alone; 0 when everything it held was answered before it left."""
    loop, context = asyncio.get_running_loop(), Context()
    broker = broker_class(settings.log_level)(plan, settings.limits(), context, fronts, loop, agent)
    told: asyncio.Future[float] = loop.create_future()
    try:
        broker.start()
        _obey(pipe, loop, lambda seconds: None if told.done() else told.set_result(seconds))
        _collect_seldom()
        pipe.send(say="ready")
        seconds = await told
        broker.drain(seconds, "the broker stops")
        return 0 if await _drained(broker, loop.time() + seconds) else DrainExpired.exit_code
    finally:
        loop.remove_reader(pipe.fd)
        broker.close()
        context.close()


def _collect_seldom() -> None:
    """What is there now stays, and what comes is rarely a circle: looked for every 700 objects, a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, *gc.get_threshold()[1:])


def _agent(document: Mapping[str, object]) -> PeerId:
    return PeerId(bytes.fromhex(str(document["agent"])))


async def _drained(broker: Broker, until: float) -> bool:
    """Whether nothing is left before that time, on the loop's clock; what is left is said once per second."""
    loop = asyncio.get_running_loop()
    while (left := until - loop.time()) > 0:
        try:
            async with asyncio.timeout(min(DRAIN_SAY_SECONDS, left)):
                await broker.drained.wait()
            return True
        except TimeoutError:
            tasks = len(broker.dispatcher.mesh.tasks)
            log.info("requests left to answer: %d, for %.0f s at most", tasks, max(0.0, until - loop.time()))
    return False


def _obey(pipe: Pipe, loop: asyncio.AbstractEventLoop, drain: Callable[[float], None]) -> None:
    """From now on do what the agent says."""
    loop.add_reader(pipe.fd, heed, pipe, drain)
    loop.call_soon(heed, pipe, drain)  # what came together with the document has no signal of its own


def heed(pipe: Pipe, drain: Callable[[float], None]) -> None:
    """What the agent has said: `drain` is called with seconds. When it is gone, so are we."""
    lines = pipe.receive()
    if lines is None:
        os._exit(1)
    for line in lines:
        seconds = line.get("seconds")
        if line.get("say") == "drain" and isinstance(seconds, int | float):
            drain(float(seconds))


def main() -> int:
    """The life of a lone broker's process; its exit code."""
    pipe = child_pipe()
    if pipe is None:
        sys.stderr.write("zmesh: a broker is started by its agent; start both with: zmesh broker app.py\n")
        return 2
    with closing(pipe):
        document = pipe.receive_first(DOCUMENT_SECONDS)
        plan, settings = Plan.from_json(str(document["plan"])), Settings.from_json(str(document["settings"]))
        logs.setup(settings.log_level, "broker", settings.log_format)
        raise_file_limit()
        fronts = document["fronts"]
        assert isinstance(fronts, list), document
        try:
            return uvloop.run(_serve_broker(plan, settings, pipe, fronts, _agent(document)))
        except StartError as error:
            pipe.send(say="failed", text="", line=str(error))
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
