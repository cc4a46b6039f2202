"""Which stores a worker has, of what its class asks for and what there is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from zmesh.config import Plan, RoutePlan, Settings, StagePlan
from zmesh.errors import StoreAway
from zmesh.messages import Kind
from zmesh.mixins import RedisShmIPCMixin, ShmIPCMixin
from zmesh.mixins.redis_ipc import MAGIC, REFERENCE
from zmesh.payloads import Store
from zmesh.storing import open_stores
from zmesh.worker import Worker


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Eager(ShmIPCMixin, Echo):
    pass


class Never(Echo):
    shared_memory_bytes = None


class Own(Echo):
    """As a mixin would do it."""

    def payload_stores(self, memory: Store | None) -> Sequence[Store]:
        assert memory is not None
        memory.least_bytes = 7
        return [memory]


class Through(RedisShmIPCMixin, Echo):
    redis_least_bytes = 100


REDIS = Settings(redis_url="unix:///nowhere")


def redis_plan(*, needs: bool, stages: tuple[str, ...] = ("a", "b")) -> Plan:
    planned = tuple(StagePlan(name=name, worker="app:X", needs_redis=needs) for name in stages)
    return Plan(stages=planned, routes=(RoutePlan(path="/x", stages=stages),))


def test_a_stage_with_the_mixin_puts_into_redis_first_and_who_has_it_not_can_read_there(tmp_path: Path):
    used, reference = (
        redis_plan(needs=True),
        REFERENCE.pack(MAGIC, 0, bytes(16), 0),
    )  # to nothing, which is not asked for
    stores, _ = open_stores(Through(), str(tmp_path), used, REDIS, hands_on=True)
    assert stores.least_bytes == 100
    stores, _ = open_stores(Echo(), str(tmp_path), used, REDIS, hands_on=True)
    assert stores.least_bytes == 1 << 20 and stores.fetch([int(Kind.REFERENCE)], [reference], [0]) == [b""]


@pytest.mark.parametrize(("plan", "settings"), [(redis_plan(needs=False), REDIS), (redis_plan(needs=True), Settings()),
                                                (redis_plan(needs=True, stages=("a",)), REDIS)])  # fmt: skip
def test_where_no_stage_hands_on_through_redis_nobody_opens_one(plan: Plan, settings: Settings):
    stores, _ = open_stores(Echo(), "", plan, settings, hands_on=True)
    (answer,) = stores.fetch([int(Kind.REFERENCE)], [b"x"], [0])
    assert isinstance(answer, StoreAway)


@pytest.mark.parametrize(("worker", "least"), [(Echo, 1 << 20), (Eager, 1 << 16), (Never, None), (Own, 7)])
def test_from_which_size_on_results_go_through_shared_memory(tmp_path: Path, worker: type[Worker], least: int | None):
    stores, name = open_stores(worker(), str(tmp_path), Plan(stages=(), routes=()), Settings(), hands_on=True)
    assert stores.least_bytes == least and name, "whoever puts nothing there can still read what others have"


def test_who_has_nobody_behind_puts_nothing_anywhere(tmp_path: Path):
    stores, name = open_stores(Echo(), str(tmp_path), Plan(stages=(), routes=()), Settings(), hands_on=False)
    assert stores.least_bytes is None and name


def test_without_memory_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for directory in ("", str(tmp_path / "gone" / "gone")):
        stores, name = open_stores(Echo(), directory, Plan(stages=(), routes=()), Settings(), hands_on=True)
        assert (stores.least_bytes, name) == (None, "")
    assert caplog.text.count("there is no shared memory for this worker") == 1
