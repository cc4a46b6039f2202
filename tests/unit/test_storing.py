"""Which stores a worker has, of what its class asks for and what there is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from zmesh.mixins import ShmIPCMixin
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


@pytest.mark.parametrize(("worker", "least"), [(Echo, 1 << 20), (Eager, 1 << 16), (Never, None), (Own, 7)])
def test_from_which_size_on_results_go_through_shared_memory(tmp_path: Path, worker: type[Worker], least: int | None):
    stores, name = open_stores(worker(), str(tmp_path), hands_on=True)
    assert stores.least_bytes == least and name, "whoever puts nothing there can still read what others have"


def test_who_has_nobody_behind_puts_nothing_anywhere(tmp_path: Path):
    stores, name = open_stores(Echo(), str(tmp_path), hands_on=False)
    assert stores.least_bytes is None and name


def test_without_memory_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for directory in ("", str(tmp_path / "gone" / "gone")):
        stores, name = open_stores(Echo(), directory, hands_on=True)
        assert (stores.least_bytes, name) == (None, "")
    assert caplog.text.count("there is no shared memory for this worker") == 1
