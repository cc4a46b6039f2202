"""PickleIPCMixin: anything travels, and only where nobody else can hand a worker what it would run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import pytest

from zmesh.addresses import unpickling_problem
from zmesh.config import Plan, Settings
from zmesh.errors import EncodingError, UsageError
from zmesh.household import household
from zmesh.mixins import PickleIPCMixin, RedisShmIPCMixin
from zmesh.server import Server
from zmesh.stage import Stage
from zmesh.worker import Worker


class Pickled(PickleIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


class Wrapped(Pickled):
    def serialize_ipc(self, data: Any) -> bytes:
        return super().serialize_ipc([data])


class Kept(RedisShmIPCMixin, PickleIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


class Plain(Worker):
    def forward(self, data: Any) -> Any:
        return data


def plan(*workers: type[Worker]) -> Plan:
    server = Server()
    for worker in workers:
        server.append_worker(worker)
    return server.plan(Settings())


@pytest.mark.parametrize("value", [OrderedDict(a=1), {"a": {1, 2}}, 2**70, Pickled, ValueError("x").args])
def test_what_can_be_pickled_comes_back(value: Any):
    assert Pickled().deserialize_ipc(Pickled().serialize_ipc(value)) == value


@pytest.mark.parametrize("value", [threading.Lock(), lambda: 1])
def test_what_cannot_is_an_encoding_error_in_words(value: Any):
    with pytest.raises(EncodingError, match=r"^the value cannot be pickled: .+"):
        Pickled().serialize_ipc([value])


def test_a_stage_says_of_itself_that_it_unpickles_also_when_a_method_is_overridden():
    assert Stage(Pickled).plan("one", 10).unpickles and Stage(Wrapped).plan("one", 10).unpickles
    assert not Stage(Plain).plan("one", 10).unpickles
    assert Stage(Pickled).plan("one", 10).ipc_codec != "zmesh"


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:5555", "tcp://[::1]:5555", "tcp://10.0.0.1:5555"])
@pytest.mark.parametrize(
    ("verb", "flag"), [("run", "bind"), ("broker", "bind"), ("worker", "connect"), ("gateway", "connect")]
)
def test_on_tcp_it_is_refused_at_the_start_whatever_else_is_allowed(where: str, verb: str, flag: str):
    settings = Settings(**{flag: where}, insecure=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as refused:
        household(verb, plan(Plain, Wrapped), settings)
    assert str(refused.value) == (
        f"stage Wrapped unpickles what it is handed, and this version has no keys for {where}: whoever reaches that "
        "address could run code in it; take PickleIPCMixin out, or keep to one host without tcp"
    )
    assert household(verb, plan(Plain), settings)


def test_what_lies_in_a_redis_of_others_is_not_unpickled():
    elsewhere, stages = Settings(redis_url="redis://localhost:6379"), plan(Kept, Pickled)
    with pytest.raises(UsageError, match=r"others can write to the Redis that it lies in: .* leave --redis-url out"):
        household("run", stages, elsewhere)
    for stages in (plan(Plain, Pickled), plan(Pickled, Kept)):  # who is last hands nothing on
        assert household("run", stages, elsewhere).stages, "nothing of it goes through there"


def test_on_the_sockets_of_one_host_it_is_not():
    assert household("run", plan(Pickled), Settings()).stages
    assert household("worker", plan(Pickled), Settings(connect="ipc:///run/mesh/front.s")).stages
    assert unpickling_problem("Pickled", "ipc:///run/mesh/1.s") == ""
