"""Server: the stages of an app file, the routes through them, and `run()`, the only place where anything starts.

What `run()` does depends on why the file runs (`loader.current_verb`): the command line says run, worker, broker,
gateway or check, `python app.py` means run, and in a worker process, which only wants a class of the file, it does
nothing.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zmesh import logs
from zmesh.config import OPTIONS, Option, Plan, RoutePlan, Settings, StagePlan, notices, settings_from
from zmesh.core.routes import build, check_paths
from zmesh.declaring import declaration, unknown_name
from zmesh.errors import DeclarationError, StartError, UsageError
from zmesh.loader import current_verb, qualified, refuse_optimized, remind_to_run, stop_reminding
from zmesh.signals import ending_early
from zmesh.worker import SSEWorker

if TYPE_CHECKING:
    from fastapi import FastAPI

    from zmesh.daemons import DaemonProcess, Daemons
    from zmesh.schemas import RouteSchema
    from zmesh.stage import Stage
    from zmesh.worker import Worker

__all__ = ["Server"]

DOCUMENT_SECONDS = 30.0  # for the agent to say how a gateway begins

log = logging.getLogger("zmesh.server")


class Server:
    """Declare stages with `append_worker` (or `register_runtime`), then `run()`.

    Keywords are settings (`Server(port=9000, timeout=5000)`); a variable `ZMESH_PORT` is stronger, and so is a flag.
    """

    @declaration
    def __init__(self, **settings: Any) -> None:
        known = {option.name: option for option in OPTIONS}
        for name, value in settings.items():
            if name not in known:
                raise unknown_name("Server() has no keyword", name, known)
            _check_kind(known[name], value)
        if "stage" in settings:
            settings["stage"] = tuple(settings["stage"])
        try:
            settings_from(settings, {})  # out of range is found here, in the line that says it
        except ValueError as error:
            raise DeclarationError(str(error)) from None
        self._declared = settings
        self._routes: dict[str, list[Stage]] = {}
        self._app: FastAPI | None = None
        self._daemons: Daemons | None = None
        remind_to_run()

    # Declaring.

    @declaration
    def append_worker(
        self,
        worker: type[Worker],
        num: int = 1,
        max_batch_size: int = 1,
        max_wait_time: float = 0,
        start_method: str = "spawn",
        env: Sequence[Mapping[str, str]] | None = None,
        timeout: float = 0,
        route: str | Sequence[str] = "/inference",
        *,
        batching: str = "crowd",
        spread: bool = False,
        retry: bool = True,
    ) -> None:
        """Make `worker` the next stage of `route`; of a list of routes it is one stage that they share.

        The settings are those of `Stage`. Raises DeclarationError, and then nothing was added.
        """
        from zmesh.stage import Stage

        if not isinstance(route, str | list | tuple):
            raise DeclarationError(f"a route is text, or a list of it, not {route!r}")
        paths = check_paths((route,) if isinstance(route, str) else route)
        stage = Stage(
            worker,
            num,
            max_batch_size,
            max_wait_time,
            timeout,
            start_method,
            env,
            batching=batching,
            spread=spread,
            retry=retry,
        )
        for path in paths:
            self._routes.setdefault(path, []).append(stage)

    @declaration
    def register_runtime(self, routes: Mapping[str, Sequence[Stage]]) -> None:
        """All routes at once. The same Stage in several of them is one stage that they share.

        Raises DeclarationError, and then nothing was added.
        """
        from zmesh.stage import Stage

        if self._routes:
            text = "register_runtime works on a Server without stages only; use append_worker to add one"
            raise DeclarationError(text)
        for path, stages in routes.items():
            if not isinstance(stages, list | tuple) or not all(isinstance(stage, Stage) for stage in stages):
                text = f"route {path!r} needs a list of Stage objects, such as [Stage(YourWorker)], not {stages!r}"
                raise DeclarationError(text)
        declared = {path: list(stages) for path, stages in routes.items()}
        names = _names(declared)
        build({path: [names[id(stage)] for stage in stages] for path, stages in declared.items()})
        self._routes = declared

    @declaration
    def register_daemon(self, name: str, proc: DaemonProcess) -> None:
        """When this process ends, however it ends, so does the server; and when the server ends, it is told to.

        `proc` is one that the app file has started, or a command (a list of text), which is started for it once. Raises
        DeclarationError.
        """
        from zmesh.daemons import Daemons

        if self._daemons is None:
            self._daemons = Daemons()
        self._daemons.register(name, proc)

    def plan(self, settings: Settings) -> Plan:
        """What was declared, for other processes. Raises ValueError when nothing was, AppError for a hidden class."""
        if not self._routes:
            raise ValueError("no worker is registered; call server.append_worker(YourWorker) before server.run()")
        names = _names(self._routes)
        stages = {id(stage): stage for route in self._routes.values() for stage in route}
        planned = {
            key: replace(stage.plan(names[key], settings.wait), worker=qualified(stage.worker))
            for key, stage in stages.items()
        }
        paths = build({path: [names[id(stage)] for stage in route] for path, route in self._routes.items()})
        last = {path: planned[id(route[-1])] for path, route in self._routes.items()}
        return Plan(
            stages=tuple(planned.values()),
            routes=tuple(
                RoutePlan(path=path, stages=through, mime_type=_answers_with(last[path]), sse=last[path].sse)
                for path, through in paths.items()
            ),
        )

    @property
    def app(self) -> FastAPI:
        """The FastAPI application, to add routes and middleware to. Made when it is first asked for."""
        if self._app is None:
            from zmesh.gateway import make_app

            self._app = make_app()
        return self._app

    def _schemas(self) -> dict[str, RouteSchema]:
        """What the workers know of requests and results."""
        from zmesh.schemas import RouteSchema, request_of, response_of

        return {
            path: RouteSchema(
                request_of(path, stages[0].worker, in_batch=stages[0].max_batch_size > 1),
                response_of(path, stages[-1].worker, in_batch=stages[-1].max_batch_size > 1),
            )
            for path, stages in self._routes.items()
        }

    # Running.

    def run(self) -> None:
        """Do what this process is here for, and come back when it is done; exits when that failed.

        Raises StartError (one line) under `zmesh`; under `python app.py` prints it and exits.
        """
        asked_by = sys._getframe(1).f_globals.get("__name__")
        if asked_by == "__mp_main__":
            return  # a child made by multiprocessing, which only wants what the file defines
        if current_verb.name == "import" or current_verb.pipe is not None:
            self._end_daemons()  # copies: the file has run in the agent too, and those count
        if current_verb.name == "import":
            return  # a worker, which wants a class of the file
        stop_reminding()
        try:
            if current_verb.name:
                code = self._perform()
            else:
                code = self._perform_by_hand()
        finally:
            self._end_daemons()  # an agent has done so; what else came to its end has not
        if code:
            sys.exit(code)

    def _perform_by_hand(self) -> int:
        try:
            with ending_early():
                _read_command_line()
                return self._perform()
        except StartError as error:
            print(f"{getattr(error, 'detail', '')}zmesh: {error}", file=sys.stderr)
            return error.exit_code

    def _end_daemons(self) -> None:
        if self._daemons is not None:
            self._daemons.end()

    def _perform(self) -> int:
        if current_verb.has_started:
            raise StartError("run() was called twice in one process; one Server runs per app file")
        refuse_optimized()
        pipe = current_verb.pipe
        document = pipe.receive_first(DOCUMENT_SECONDS) if pipe else {}
        if document:  # the agent's word, so that all processes of a host agree
            settings = Settings.from_json(str(document["settings"]))
        else:
            settings = self._settings(os.environ)
        try:
            plan = self.plan(settings)
        except ValueError as error:
            raise StartError(str(error)) from error
        current_verb.has_started = True
        if pipe is not None:
            from zmesh.serving import serve_gateway

            logs.setup(settings.log_level, str(document.get("name", "gateway")), settings.log_format)
            logs.join_in()
            return serve_gateway(plan, settings, pipe, document, self._app, self._schemas())
        if current_verb.name == "check" and not current_verb.given.get("dry_run"):
            from zmesh.cli import show_plan

            show_plan(plan, current_verb.output)
            return 0
        if current_verb.name == "check" or (current_verb.name == "run" and settings.dry_run):
            from zmesh.dryrun import dry_run

            if self._daemons is not None:
                self._daemons.start()
            dry_run(plan, settings, current_verb.app_path, current_verb.output)
            return 0
        from zmesh import agent

        logs.setup(settings.log_level, "agent", settings.log_format)
        if settings.compression and current_verb.name in ("run", "gateway"):
            _say_codings()
        for stage in (stage for route in self._routes.values() for stage in route if stage.start_method == "fork"):
            log.info("%s: start_method='fork' has no effect: each worker is a fresh process", stage.worker.__name__)
        return agent.run(
            current_verb.name, plan, settings, current_verb.app_path, self._example(), daemons=self._daemons
        )

    def _example(self) -> bytes | None:
        """A body for the first route, from its first worker's example; None when only its author knows one."""
        from zmesh.worker import Worker

        stage = next(iter(self._routes.values()))[0]
        worker = stage.worker
        example = worker.multi_examples[0] if worker.multi_examples else worker.example
        if stage.max_batch_size > 1 and isinstance(example, list) and example:
            example = example[0]
        if worker.deserialize is not Worker.deserialize:
            return bytes(example) if isinstance(example, bytes | bytearray) else None
        try:
            return json.dumps({"key": "value"} if example is None else example).encode()
        except (TypeError, ValueError):
            return None

    def _settings(self, environ: Mapping[str, str]) -> Settings:
        """A flag is stronger than a variable, a variable than a keyword of `Server()`. Raises UsageError."""
        try:
            settings = settings_from(current_verb.given, environ, self._declared)
        except ValueError as error:
            raise UsageError(str(error)) from error
        for notice in notices(current_verb.given, environ):
            print(f"zmesh: {notice}", file=sys.stderr)
        return replace(settings, user_args=current_verb.user_args)


def _say_codings() -> None:
    from zmesh.codings import known

    if len(known()) == 1:
        log.warning("--compression speaks gzip only; zstd needs a package: pip install backports.zstd")


def _answers_with(last: StagePlan) -> str:
    """A stream is a stream, whatever a mixin for its requests says."""
    return SSEWorker.resp_mime_type if last.sse else last.mime_type


def _check_kind(option: Option, value: object) -> None:
    right: tuple[type, ...]
    match option.kind:
        case "int":
            right, wanted = (int,), "a whole number"
        case "list":
            right, wanted = (list, tuple), "a list of text"
        case "flag":
            right, wanted = (bool,), "True or False"
        case _:
            right, wanted = (str,), "text"
    if not isinstance(value, right) or (isinstance(value, bool) and option.kind != "flag"):
        raise DeclarationError(f"Server({option.name}=…) must be {wanted}, not {value!r}")


def _names(routes: Mapping[str, Sequence[Stage]]) -> dict[int, str]:
    """The name of every stage, by the stage's id: its own, or else its class's, with _2, _3 when that is taken."""
    stages = {id(stage): stage for route in routes.values() for stage in route}
    taken: dict[str, int] = {}
    for key, stage in stages.items():
        if stage.name is not None and taken.setdefault(stage.name, key) != key:
            raise DeclarationError(f"two stages are named {stage.name!r}")
    for key, stage in stages.items():
        if stage.name is None:
            name, count = stage.worker.__name__, 1
            while taken.setdefault(name, key) != key:
                count += 1
                name = f"{stage.worker.__name__}_{count}"
    return {key: name for name, key in taken.items()}


def _read_command_line() -> None:
    """`python app.py --port 9000 …`: our options are taken, all others stay the app file's own."""
    from zmesh.cli import parse_known

    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None:
        raise StartError("run() needs an app file that worker processes can import; start it with: python app.py")
    given, user_args = parse_known(sys.argv[1:], os.path.basename(file))
    current_verb.become("run", app_path=os.path.abspath(file), given=given, user_args=user_args)
