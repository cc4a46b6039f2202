import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from zmesh import server as server_module
from zmesh import serving
from zmesh.config import Plan, Settings
from zmesh.errors import StartError, UsageError
from zmesh.loader import AppError, current_verb
from zmesh.mixins import MsgpackMixin
from zmesh.pipe import Pipe, pipe_pair
from zmesh.server import Server
from zmesh.stage import Stage
from zmesh.worker import ParseTarget, SSEWorker, Worker


class Decode(Worker):
    resp_mime_type = "image/png"

    def forward(self, data: Any) -> Any:
        return data


class Classify(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Classify_2(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Talk(SSEWorker):
    def forward(self, data: Any) -> Any:
        return data


class TalkOfMsgpack(MsgpackMixin, Talk):
    pass


class Agent:
    """Stands in for zmesh.agent: remembers what it was asked to run."""

    def __init__(self) -> None:
        self.code = 0
        self.ran: list[tuple[Plan, Settings, str]] = []

    def run(self, verb: str, plan: Plan, settings: Settings, app_path: str, example: bytes | None, daemons: Any) -> int:
        assert verb == "run" and daemons is None
        self.ran.append((plan, settings, app_path))
        return self.code


@pytest.fixture(autouse=True)
def _nobody_said_anything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(server_module.os, "environ", {})
    current_verb.become("")
    yield
    current_verb.become("")


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    import zmesh

    agent = Agent()
    monkeypatch.setitem(sys.modules, "zmesh.agent", agent)
    monkeypatch.setattr(zmesh, "agent", agent, raising=False)
    monkeypatch.setattr(server_module.logs, "setup", lambda level, role, form: None)
    monkeypatch.setattr(server_module.logs, "join_in", lambda: None)
    return agent


def server_with(*workers: type[Worker], **settings: Any) -> Server:
    server = Server(**settings)
    for worker in workers or (Classify,):
        server.append_worker(worker)
    return server


def names_of(server: Server) -> dict[str, tuple[str, ...]]:
    return {route.path: route.stages for route in server.plan(Settings()).routes}


# ── declaring ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_worker_on_a_route_is_its_next_stage():
    server = server_with(Decode, Classify)
    plan = server.plan(Settings())
    assert names_of(server) == {"/inference": ("Decode", "Classify")}
    assert [stage.worker for stage in plan.stages] == [f"{__name__}:Decode", f"{__name__}:Classify"]


def test_a_list_of_routes_shares_one_stage():
    server = Server()
    server.append_worker(Decode, route=["/a", "/b"])
    server.append_worker(Classify, route="/a")
    assert names_of(server) == {"/a": ("Decode", "Classify"), "/b": ("Decode",)}
    assert [stage.name for stage in server.plan(Settings()).stages] == ["Decode", "Classify"]


def test_a_repeated_class_gets_a_number_that_nobody_has():
    server = server_with(Classify, Classify_2, Classify, Classify)
    assert names_of(server) == {"/inference": ("Classify", "Classify_2", "Classify_3", "Classify_4")}


def test_the_settings_of_a_stage_arrive_in_the_plan_in_mosecs_order():
    server = Server()
    server.append_worker(Decode, 2, 8, 5, "spawn", [{"A": "1"}, {"A": "2"}], 1.5, "/x", spread=True, retry=False)
    server.append_worker(Classify, batching="greedy")
    decode, classify = server.plan(Settings(wait=7)).stages
    assert (decode.num, decode.max_batch_size, decode.max_wait_ms, decode.timeout_seconds) == (2, 8, 5.0, 1.5)
    assert (decode.env, decode.spread, decode.retry, decode.batching) == (
        ({"A": "1"}, {"A": "2"}),
        True,
        False,
        "crowd",
    )
    assert (classify.max_wait_ms, classify.batching) == (7.0, "greedy")


def test_a_route_answers_with_the_type_of_its_last_stage():
    server = Server()
    server.append_worker(Classify, route=["/talk", "/png"])
    server.append_worker(Talk, route="/talk")
    server.append_worker(Decode, route="/png")
    server.append_worker(TalkOfMsgpack, route="/msgpack")
    talk, png, msgpack = server.plan(Settings()).routes
    assert (talk.mime_type, talk.sse) == (msgpack.mime_type, msgpack.sse) == ("text/event-stream", True)
    assert (png.mime_type, png.sse) == ("image/png", False)


@pytest.mark.parametrize(
    ("declared", "kind", "why"),
    [
        ({"route": "/metrics"}, ValueError, "'/metrics' is reserved, try another one"),
        ({"route": ["/a", "/a"]}, ValueError, "'/a' stands twice in one list"),
        ({"route": []}, ValueError, "needs a route"),
        ({"route": 5}, TypeError, "a route is text, or a list of it, not 5"),
        ({"num": 0}, ValueError, "num must be at least 1"),
        ({"batching": "no"}, ValueError, "batching must be one of"),
    ],
)
def test_a_bad_declaration_is_refused_and_nothing_is_added(declared: dict[str, Any], kind: type[Exception], why: str):
    server = Server()
    with pytest.raises(kind, match=why):
        server.append_worker(Classify, **declared)
    with pytest.raises(ValueError, match="no worker is registered"):
        server.plan(Settings())


def test_register_runtime_shares_the_same_stage_between_routes():
    decode, classify = Stage(Decode), Stage(Classify, num=2)
    server = Server()
    server.register_runtime({"/d": [decode], "/c": [decode, classify]})
    assert names_of(server) == {"/d": ("Decode",), "/c": ("Decode", "Classify")}
    server.append_worker(Talk, route="/d")
    assert names_of(server)["/d"] == ("Decode", "Talk")


def test_register_runtime_is_for_an_empty_server():
    server = server_with(Classify)
    with pytest.raises(ValueError, match="register_runtime works on a Server without stages only"):
        server.register_runtime({"/d": [Stage(Decode)]})


def test_register_runtime_refuses_what_cannot_be_a_route():
    decode, server = Stage(Decode), Server()
    with pytest.raises(ValueError, match="stage 'Decode' stands twice in route '/d'"):
        server.register_runtime({"/d": [decode, decode]})
    with pytest.raises(ValueError, match="'/mesh' is reserved"):
        server.register_runtime({"/mesh": [decode]})
    with pytest.raises(ValueError, match="route '/d' has no stage"):
        server.register_runtime({"/d": []})
    for wrong in (decode, [Decode], None):
        with pytest.raises(TypeError, match="route '/d' needs a list of Stage objects"):
            server.register_runtime({"/d": wrong})  # type: ignore[dict-item]
    server.register_runtime({"/d": [decode]})


def test_a_stage_keeps_the_name_it_was_given():
    server = Server()
    server.register_runtime({"/d": [Stage(Classify), Stage(Decode, name="Classify")]})
    assert names_of(server) == {"/d": ("Classify_2", "Classify")}
    with pytest.raises(ValueError, match="two stages are named 'same'"):
        Server().register_runtime({"/d": [Stage(Decode, name="same"), Stage(Classify, name="same")]})


def test_a_class_that_no_worker_process_could_find_is_refused():
    class Hidden(Classify):
        pass

    with pytest.raises(AppError, match=r"class Hidden is made inside a function of test_server.py"):
        server_with(Hidden).plan(Settings())


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "kind", "why"),
    [
        ({"prot": 1}, ValueError, r"Server\(\) has no keyword 'prot'; did you mean port\?"),
        ({"colour": 1}, TypeError, r"Server\(\) has no keyword 'colour'; known are host, port"),
        ({"user_args": ()}, ValueError, "no keyword 'user_args'"),
        ({"port": 99999}, ValueError, "port must be at most 65535"),
        ({"gateways": 0}, ValueError, "gateways must be at least 1, not 0"),
        ({"gateways": 65}, ValueError, "gateways must be at most 64, not 65"),
        ({"timeout": 2**63}, ValueError, "timeout must be at most 1000000000000"),
        ({"port": "80"}, TypeError, r"Server\(port=…\) must be a whole number, not '80'"),
        ({"timeout": True}, TypeError, "must be a whole number"),
        ({"host": None}, TypeError, "must be text, not None"),
        ({"log_level": "loud"}, ValueError, "log-level must be one of"),
        ({"stage": "A"}, TypeError, "must be a list of text"),
    ],
)
def test_a_wrong_keyword_is_found_where_the_server_is_made(settings: dict[str, Any], kind: type[Exception], why: str):
    with pytest.raises(kind, match=why):
        Server(**settings)


def test_a_flag_beats_a_variable_beats_a_keyword_beats_the_default(agent: Agent, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module.os, "environ", {"ZMESH_PORT": "2", "ZMESH_TIMEOUT": "2"})
    current_verb.become("run", app_path="app.py", given={"port": 3}, user_args=["--model", "x"])
    server_with(port=1, timeout=1, wait=1, stage=["Classify:2"]).run()
    (_, settings, _) = agent.ran[0]
    assert (settings.port, settings.timeout, settings.wait, settings.capacity) == (3, 2, 1, 1024)
    assert settings.stage == ("Classify:2",) and settings.user_args == ("--model", "x")


@pytest.mark.parametrize(
    ("keywords", "environ", "flags", "level"),
    [
        ({"debug": True}, {}, {"log_level": "error"}, "error"),
        ({"debug": True}, {"ZMESH_LOG_LEVEL": "error"}, {}, "error"),
        ({"log_level": "error"}, {"ZMESH_DEBUG": "1"}, {}, "debug"),
        ({"log_level": "error"}, {}, {"debug": True}, "debug"),
        ({"debug": True}, {}, {}, "debug"),
    ],
)
def test_debug_and_the_log_level_are_one_setting(
    agent: Agent,
    monkeypatch: pytest.MonkeyPatch,
    keywords: dict[str, Any],
    environ: dict[str, str],
    flags: dict[str, Any],
    level: str,
):
    monkeypatch.setattr(server_module.os, "environ", environ)
    current_verb.become("run", app_path="app.py", given=flags)
    server_with(Classify, **keywords).run()
    assert agent.ran[0][1].log_level == level


def test_mosecs_variables_stand_in_for_ours_and_a_line_says_so(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    variables = {"MOSEC_ADDRESS": "0.0.0.0", "MOSEC_PORT": "1", "ZMESH_PORT": "2", "MOSEC_TIMEOUT": ""}
    monkeypatch.setattr(server_module.os, "environ", variables)
    current_verb.become("run", app_path="app.py")
    server_with(Classify).run()
    (_, settings, _) = agent.ran[0]
    assert (settings.host, settings.port, settings.timeout) == ("0.0.0.0", 2, 3000)
    assert capsys.readouterr().err == "zmesh: using MOSEC_ADDRESS=0.0.0.0; ZMESH_HOST is its name here\n"


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_hands_the_plan_to_the_agent_and_comes_back(agent: Agent):
    current_verb.become("run", app_path="some/app.py")
    server = server_with(Decode)
    server.run()
    ((plan, settings, path),) = agent.ran
    assert plan == server.plan(settings)
    assert path.endswith("some/app.py")


def test_a_start_method_that_has_no_effect_is_said(agent: Agent, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "zmesh.server")
    current_verb.become("run", app_path="app.py")
    server = Server()
    server.append_worker(Classify, start_method="fork")
    server.append_worker(Decode)
    server.run()
    assert [record.getMessage() for record in caplog.records if record.name == "zmesh.server"] == [
        "Classify: start_method='fork' has no effect: each worker is a fresh process"
    ]


def test_the_agents_exit_code_is_ours(agent: Agent):
    agent.code = 4
    current_verb.become("run", app_path="app.py")
    with pytest.raises(SystemExit, match="4"):
        server_with(Decode).run()


def test_run_twice_is_refused(agent: Agent):
    current_verb.become("run", app_path="app.py")
    server = server_with(Decode)
    server.run()
    with pytest.raises(StartError, match=r"run\(\) was called twice"):
        server.run()
    assert len(agent.ran) == 1


def test_run_without_a_worker_is_one_sentence(agent: Agent):
    current_verb.become("run", app_path="app.py")
    with pytest.raises(StartError, match=r"no worker is registered; call server.append_worker"):
        Server().run()


def test_a_variable_out_of_range_is_a_usage_error(agent: Agent, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module.os, "environ", {"ZMESH_PORT": "many"})
    current_verb.become("run", app_path="app.py")
    with pytest.raises(UsageError, match="ZMESH_PORT must be a whole number, not 'many'"):
        server_with(Decode).run()


def test_nothing_starts_in_a_worker_or_in_a_process_of_the_users_own(agent: Agent, monkeypatch: pytest.MonkeyPatch):
    current_verb.become("import", app_path="app.py")
    Server().run()
    current_verb.become("run", app_path="app.py")
    monkeypatch.setitem(globals(), "__name__", "__mp_main__")  # as multiprocessing runs the main file in its children
    Server().run()
    assert agent.ran == []


def test_python_with_assertions_off_is_refused(agent: Agent, monkeypatch: pytest.MonkeyPatch):
    class Flags:
        optimize = 1

    monkeypatch.setattr(sys, "flags", Flags())
    current_verb.become("run", app_path="app.py")
    with pytest.raises(StartError, match="python -O takes out the checks"):
        server_with(Decode).run()


def test_check_prints_the_plan_and_starts_nothing(agent: Agent, capsys: pytest.CaptureFixture[str]):
    current_verb.become("check", app_path="app.py", output="json")
    server = server_with(Decode)
    server.run()
    assert Plan.from_json(capsys.readouterr().out) == server.plan(Settings())
    assert agent.ran == []


# ── the gateway process ───────────────────────────────────────────────────────────────────────────────────────────


class SchoolWorker(Worker):
    def forward(self, data: Any) -> Any:
        return data

    @classmethod
    def get_forward_json_schema(cls, target: ParseTarget, ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
        name = target.value.title()
        return {"$ref": ref_template.format(name=name)}, {name: {"type": "object"}}


class BrokenSchema(Classify):
    @classmethod
    def get_forward_json_schema(cls, target: ParseTarget, ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
        raise TypeError("no schema for that")


def test_a_gateway_takes_the_settings_of_its_agent_and_the_schemas_of_the_workers(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    started: list[Any] = []
    monkeypatch.setattr(serving, "serve_gateway", lambda *told: started.append(told) or 0)
    agents, ours = pipe_pair()
    ours_pipe = Pipe(ours)
    agents.send(settings=Settings(wait=77, user_args=("-x",)).to_json(), front="ipc://front", listen=9)
    current_verb.become("gateway", app_path="app.py", given={"wait": 1}, pipe=ours_pipe)
    server = Server()
    server.append_worker(SchoolWorker, route="/school")
    server.append_worker(BrokenSchema, route="/broken")
    logging.getLogger("zmesh").propagate = True
    server.run()
    agents.close()
    ours_pipe.close()
    ((plan, settings, pipe, document, app, schemas),) = started
    assert pipe is ours_pipe
    assert settings.wait == 77 and plan.stages[0].max_wait_ms == 77 and app is None
    taken, given = schemas["/school"]
    assert (taken.schema, taken.components) == ({"$ref": "#/components/schemas/Input"}, {"Input": {"type": "object"}})
    assert (given.schema, given.components) == ({"$ref": "#/components/schemas/Return"}, {"Return": {"type": "object"}})
    assert schemas["/broken"].request.schema is schemas["/broken"].response.schema is None
    assert "route /broken has no schema" in caplog.text
    assert (document["front"], document["listen"]) == ("ipc://front", 9)


def test_the_app_is_made_when_it_is_first_asked_for():
    server = Server()
    assert server.app is server.app
    assert type(server.app).__name__ == "FastAPI"


# ── python app.py ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    main = ModuleType("__main__")
    main.__file__ = "folder/app.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    return main


def test_by_hand_our_options_are_taken_and_the_rest_stays_the_files_own(
    agent: Agent, by_hand: ModuleType, capsys: pytest.CaptureFixture[str]
):
    sys.argv += ["--model", "big", "--address", "0.0.0.0", "--port", "81", "--", "--port", "82"]
    server_with(Decode).run()
    ((_, settings, path),) = agent.ran
    assert (settings.host, settings.port) == ("0.0.0.0", 81)
    assert settings.user_args == ("--model", "big", "--port", "82")
    assert path.endswith("folder/app.py")
    assert capsys.readouterr().err == "zmesh: not options of zmesh, left to app.py: --model big\n"


def test_by_hand_mistakes_are_one_line_and_an_exit_code(
    agent: Agent, by_hand: ModuleType, capsys: pytest.CaptureFixture[str]
):
    sys.argv += ["--port", "many"]
    with pytest.raises(SystemExit, match="2"):
        server_with(Decode).run()
    assert capsys.readouterr().err.startswith("zmesh: invalid value for '--port': 'many' is not a valid integer; see")
    sys.argv[1:] = []
    with pytest.raises(SystemExit, match="1"):
        Server().run()
    assert capsys.readouterr().err.startswith("zmesh: no worker is registered")
    assert agent.ran == []


def test_by_hand_help_is_ours(agent: Agent, by_hand: ModuleType, capsys: pytest.CaptureFixture[str]):
    sys.argv += ["--help"]
    with pytest.raises(SystemExit, match="0"):
        server_with(Decode).run()
    assert "--max-request-size" in capsys.readouterr().out


def test_by_hand_there_must_be_a_file(agent: Agent, by_hand: ModuleType, capsys: pytest.CaptureFixture[str]):
    del by_hand.__file__
    with pytest.raises(SystemExit, match="1"):
        server_with(Decode).run()
    assert "run() needs an app file" in capsys.readouterr().err


def test_the_first_worker_says_by_its_example_what_to_try() -> None:
    class Pictures(Classify_2):
        example = b"\x89PNG"

        def deserialize(self, data: bytes) -> object:
            return data

    def body(worker: type[Worker], **settings: int) -> bytes | None:
        server = Server()
        server.append_worker(worker, **settings)
        return server._example()

    assert body(Classify_2) == b'{"key": "value"}'
    assert body(type("One", (Classify_2,), {"example": {"x": 1}})) == b'{"x": 1}'
    assert (
        body(type("Batch", (Classify_2,), {"multi_examples": [[{"x": 1}, {"x": 2}]]}), max_batch_size=2) == b'{"x": 1}'
    )
    assert body(type("Odd", (Classify_2,), {"example": {1, 2}})) is None
    assert body(Pictures) == b"\x89PNG"
    assert body(type("Unknown", (Pictures,), {"example": None})) is None
