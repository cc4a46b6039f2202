"""The gateway: one program that speaks HTTP and owns each request until its answer.

`Inference` stands in front and answers the routes of the plan; behind it is a FastAPI app with the pages of an operator
(`/`, `/livez`, `/readyz`, `/mesh`, `/metrics`, `/openapi/…`) and whatever a user added to it. With a user's middleware
inference passes through the whole app, so that the middleware guards it. uvicorn carries the bytes; signals are not its
business: `start_drain` ends a gateway.

To drain is: not ready → stop accepting → connections finish → the end. What is left when time is up gets 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Generator, Mapping, MutableMapping
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, NoMatchFound, Route
from uvicorn.server import ServerState

from zmesh import lane, openapi
from zmesh.addresses import is_loopback
from zmesh.answers import DRAINING, VERSION, Answer, Refusal, failure, new_request_id, sane_token
from zmesh.asgi import Receive, Scope, Send
from zmesh.board import Board
from zmesh.calls import Calls
from zmesh.compression import inference_of
from zmesh.config import DRAIN_SAY_SECONDS, Plan, Settings
from zmesh.connection import Connection
from zmesh.errors import StartError
from zmesh.inference import Inference
from zmesh.linkage import BrokerLink, BrokerSilent, Port
from zmesh.telemetry import GatewayCounts, SharedCounts, render
from zmesh.turns import Turns

__all__ = ["Gateway", "Port", "make_app", "readiness"]

KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
ACCEPTED_PER_TURN = 64  # connections; between two such handfuls all others have their turn
LAST_WORDS_SECONDS = 0.5  # for the 503s of an expired drain to leave

Snapshot = Mapping[str, Any]
MakeConnection = Callable[[uvicorn.Config, ServerState, dict[str, Any]], Connection]

logger = logging.getLogger("zmesh.gateway")


def make_app() -> FastAPI:
    """An app for a user to add routes and middleware to. FastAPI's own docs and schema routes are off."""
    return FastAPI(title="zmesh", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)


def readiness(snapshot: Snapshot) -> tuple[bool, dict[str, Any]]:
    """Whether every stage of every route has a ready worker, and in words for `/readyz` what is missing."""
    routes: dict[str, list[str]] = {}
    for route in snapshot.get("routes", ()):
        for stage in route["stages"]:
            routes.setdefault(stage, []).append(route["path"])
    missing = [
        {"stage": stage["name"], "failing": stage.get("failing"), "routes": routes[stage["name"]]}
        for stage in snapshot.get("stages", ())
        if stage["name"] in routes and (stage.get("failing") or not stage["ready_workers"])
    ]
    is_draining = bool(snapshot.get("draining"))
    is_ready = not missing and not is_draining
    return is_ready, {"ready": is_ready, "draining": is_draining, "missing": missing}


class Gateway:
    """`serve` on a listening socket until `start_drain` has run its course. One gateway serves once. Several that share
    a socket have a `board`."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        port: Port,
        app: FastAPI | None = None,
        schemas: Mapping[str, openapi.RouteSchema] | None = None,
        *,
        board: Board | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        app = make_app() if app is None else app
        if app.router.dependencies:
            raise StartError(
                "global dependencies of the app would not guard inference: use middleware instead of dependencies=[…]"
            )
        self.board = board
        self.counts = SharedCounts(board, [route.path for route in plan.routes]) if board else GatewayCounts()
        self.link = BrokerLink(plan, settings.limits(), port, clock=clock)
        is_guarded = bool(app.user_middleware)
        self.calls = Calls(plan, settings, self.link, self.counts, clock=clock)
        self.inference = inference_of(self.calls, app, is_guarded=is_guarded)
        document = openapi.metadata(plan, schemas, version=VERSION, compression=settings.compression)
        _install(app, _Pages(self, settings, json.dumps(document).encode()))
        has_lane = not is_guarded and (settings.lane == "fast" or (settings.lane == "auto" and lane.is_known()))
        paths = {route.path.encode(): route.path for route in plan.routes if has_lane and not route.sse}
        self._server = _Server(self.inference, lane.Lane(self.calls, paths, KEEP_ALIVE_SECONDS).connection, board)
        self._timers: list[asyncio.TimerHandle] = []
        self._expired = False
        self._drained_by = math.inf  # on the clock of the event loop

    @property
    def started(self) -> asyncio.Event:
        """Set once connections are accepted."""
        return self._server.listening

    async def serve(self, sock: socket.socket) -> bool:
        """True when everything accepted was answered, False when the drain expired. Closes `sock`.

        Raises StartError when the app's lifespan fails.
        """
        self.link.start()
        try:
            await self._server.serve(sockets=[sock])
        finally:
            self.link.close()
            for timer in self._timers:
                timer.cancel()
            sock.close()
        return not self._expired

    def start_drain(self, seconds: float) -> None:
        """Take nothing new, finish what was accepted within `seconds`. Called again, the shorter time counts."""
        self.calls.is_draining = True
        self._server.should_exit = True
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(seconds, self._expire))
        if self._drained_by == math.inf:
            self._timers.append(loop.call_later(DRAIN_SAY_SECONDS, self._say_what_is_left))
        self._drained_by = min(self._drained_by, loop.time() + seconds)

    def _say_what_is_left(self) -> None:
        loop = asyncio.get_running_loop()
        tasks, seconds = self._server.server_state.tasks, max(0.0, self._drained_by - loop.time())
        requests = len(tasks) + self.calls.without_task()
        logger.info("requests left to answer: %d, for %.0f s at most", requests, seconds)
        self._timers.append(loop.call_later(DRAIN_SAY_SECONDS, self._say_what_is_left))

    def _expire(self) -> None:
        left = self.calls.expire()
        self._expired = self._expired or bool(left or self._server.server_state.tasks)
        self._timers.append(asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self._server.abort))


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the program that hosts it has its own.

    libuv takes one new connection in a turn of the loop (since 1.45), so that of a crowd that comes at once, beside
    others who ask, the last would wait for hundreds of turns. When it takes one, we take those that wait behind it.
    """

    def __init__(self, app: Inference, make: MakeConnection, board: Board | None) -> None:
        self._make = make
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=self._connection,  # type: ignore[arg-type]  # it is called like a class
                lifespan="auto",
                interface="asgi3",
                access_log=False,
                log_config=None,
                log_level="warning",
                server_header=False,
                date_header=True,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                backlog=BACKLOG,
            )
        )
        self.listening = asyncio.Event()
        self._listeners: list[socket.socket] = []
        self._arriving: set[asyncio.Task[Connection | None]] = set()
        self._is_accepting = False
        self._turns = Turns(board, self._arrive, self._arriving) if board else None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners = sockets or []
        for listener in self._listeners:
            listener.setblocking(False)
        with contextlib.suppress(SystemExit):  # what newer ones say; uvicorn has logged the traceback
            await super().startup(sockets=[] if self._turns else sockets)
        if not self.started:
            raise StartError("the startup of the app's lifespan failed; the log says why")
        if self._turns is not None:
            self._turns.open(self._listeners[0], self.server_state)
        self.listening.set()

    def _connection(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], _loop: None
    ) -> Connection:
        """The protocol of a connection that libuv took."""
        if not self._is_accepting:
            self._is_accepting = True
            asyncio.get_running_loop().call_soon(self._accept_more)
        return self._make(config, server_state, app_state)

    def _accept_more(self) -> None:
        self._is_accepting = False
        self._accept(ACCEPTED_PER_TURN)

    def _accept(self, most: int) -> None:
        """Accept who waits, at most so many."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):  # nobody waits any more, or there are no files left
                for _ in range(most):
                    self._arrive(listener.accept()[0])

    def _arrive(self, sock: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._welcome(sock))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _welcome(self, sock: socket.socket) -> Connection | None:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # the client may have left
            _, connection = await loop.connect_accepted_socket(
                lambda: self._make(self.config, self.server_state, self.lifespan.state), sock
            )
            return connection
        return None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What the kernel has already connected is answered too: a request may be on it."""
        if self._turns is not None:
            self._turns.close()
        self._accept(BACKLOG + 1)  # who comes in the meantime comes too late
        self._listeners = []
        late = [asyncio.ensure_future(self._say_goodbye(task)) for task in self._arriving]
        await super().shutdown(sockets)
        await asyncio.gather(*late, return_exceptions=True)

    async def _say_goodbye(self, arriving: asyncio.Task[Connection | None]) -> None:
        if (connection := await arriving) is not None:
            connection.shutdown()

    def abort(self) -> None:
        """Cut what is still connected."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()


# ── behind inference ──────────────────────────────────────────────────────────────────────────────────────────────


def _install(app: FastAPI, pages: _Pages) -> None:
    """Our pages come before the user's routes, our words for "not found" after all of them."""
    inner = app.router.default

    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await inner(scope, receive, send)
        else:
            await _response(Request(scope), Refusal(404, "not found"))(scope, receive, send)

    async def wrong_method(request: Request, error: Exception) -> Response:
        allow = (getattr(error, "headers", None) or {}).get("Allow", "")
        return _response(request, Refusal(405, "method not allowed", allow=allow.encode("latin-1")))

    app.router.default = not_found
    app.exception_handlers.setdefault(405, wrong_method)
    app.router.routes[:0] = pages.routes()


def _response(request: Request, refusal: Refusal) -> Response:
    given = request.headers.get("x-request-id", "").encode("latin-1")
    request_id = given if sane_token(given) else new_request_id()
    answer: Answer = failure(refusal, request_id, request.headers.get("accept", "").encode("latin-1"))
    response = Response(status_code=answer.status)
    response.body, response.raw_headers = answer.body, list(answer.headers)
    return response


class _InferenceRoute(BaseRoute):
    """Inference from within the app, by exact path: neither a mount nor a redirect for slashes gets in its way."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def matches(self, scope: MutableMapping[str, Any]) -> tuple[Match, MutableMapping[str, Any]]:
        # The router asks again with another path to see whether a slash is missing; it is not.
        asked = scope.setdefault("zmesh.path", scope["path"]) if scope["type"] == "http" else None
        is_ours = asked is not None and asked == scope["path"] and self._inference.is_route(scope)
        return (Match.FULL if is_ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._inference.answer(scope, receive, send)

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        raise NoMatchFound(name, path_params)


class _Pages:
    """What an operator may ask. The broker is asked anew for each answer that needs it."""

    def __init__(self, gateway: Gateway, settings: Settings, document: bytes) -> None:
        self._gateway, self._namespace, self._document = gateway, settings.namespace, document
        self._is_open = any(where and not is_loopback(where) for where in (settings.bind, settings.connect))

    def routes(self) -> list[BaseRoute]:
        pages = {
            "/": self.root,
            "/livez": self.livez,
            "/readyz": self.readyz,
            "/mesh": self.mesh,
            "/metrics": self.metrics,
            "/openapi/metadata.json": self.metadata,
            "/openapi/swagger": self.swagger_slash,
            "/openapi/swagger/": self.swagger,
            "/openapi/swagger/{name}": self.swagger,
        }
        routes: list[BaseRoute] = [_InferenceRoute(self._gateway.inference)]
        return routes + [Route(path, page, methods=["GET"], include_in_schema=False) for path, page in pages.items()]

    @property
    def _is_draining(self) -> bool:
        return self._gateway.calls.is_draining

    async def root(self, request: Request) -> Response:
        if self._is_draining:
            return PlainTextResponse(DRAINING, 503, {"retry-after": "1"})
        return PlainTextResponse(f"zmesh/{VERSION}")

    async def livez(self, request: Request) -> Response:
        return PlainTextResponse("alive")

    async def readyz(self, request: Request) -> Response:
        try:
            is_ready, body = readiness(await self._gateway.link.stats())
        except BrokerSilent as error:
            is_ready, body = False, {"ready": False, "draining": False, "missing": [], "broker": str(error)}
        if self._is_draining:
            is_ready, body = False, {**body, "ready": False, "draining": True}
        if self._is_open:
            body = {**body, "insecure": True}
        if is_ready:
            return JSONResponse(body)
        return JSONResponse(body, 503, {"retry-after": "1"})

    async def mesh(self, request: Request) -> Response:
        gateway = {
            "version": VERSION,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "requests": len(self._gateway.calls),
            "draining": self._is_draining,
        }
        board = self._gateway.board
        here = {"gateway": gateway, **({"gateways": board.summary()} if board else {})}
        try:
            return JSONResponse({**here, **await self._gateway.link.stats()})
        except BrokerSilent as error:
            return JSONResponse({**here, "error": str(error)}, 503)

    async def metrics(self, request: Request) -> Response:
        try:
            snapshot = await self._gateway.link.stats()
        except BrokerSilent:
            snapshot = None
        accept, counts = request.headers.get("accept", ""), self._gateway.counts.total()
        # A thread, since hundreds of workers make megabytes of text, and the loop has other things to do.
        text, content_type = await asyncio.to_thread(render, self._namespace, counts, snapshot, accept)
        return Response(text, headers={"content-type": content_type})

    async def metadata(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")

    async def swagger_slash(self, request: Request) -> Response:
        return Response(status_code=303, headers={"location": "swagger/"})

    async def swagger(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in openapi.PAGE_FILES:
            return _response(request, Refusal(404, "not found"))
        headers = {
            "content-type": openapi.PAGE_FILES[name],
            "content-security-policy": openapi.CONTENT_SECURITY_POLICY,
            "x-content-type-options": "nosniff",
            "cache-control": "no-cache" if name == "index.html" else "public, max-age=3600",
        }
        return Response(openapi.page_file(name), headers=headers)
