"""Which stores of payloads a worker has: what its class asks for, of what there is on this host."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from zmesh.config import Plan, Settings
from zmesh.embedded import user_of_redis
from zmesh.payloads import Store, Stores
from zmesh.segments import LEAST_BYTES, SharedMemory
from zmesh.worker import Worker

if TYPE_CHECKING:
    from zmesh.mixins.redis_ipc import RedisStore

__all__ = ["open_stores"]

log = logging.getLogger("zmesh.worker")


def open_stores(
    worker: Worker, directory: str, plan: Plan, settings: Settings, *, hands_on: bool
) -> tuple[Stores, str]:
    """The stores, and the name of the shared memory among them for HELLO, empty without one.

    `directory` is the agent's for shared memory, or empty; `hands_on`: there is a next stage on some route. `plan` and
    `settings` say whether any stage hands on through Redis, and where that is.
    """
    memory = _shared_memory(directory, worker.shared_memory_bytes or LEAST_BYTES)
    redis = _redis(worker, plan, settings)
    known = [store for store in (memory, redis) if store is not None]
    putting: list[Store] = [redis] if redis is not None and worker.needs_redis else []
    putting += worker.payload_stores(memory)
    return Stores(putting if hands_on else (), known), "" if memory is None else memory.name


def _redis(worker: Worker, plan: Plan, settings: Settings) -> RedisStore | None:
    """None where no stage hands on through Redis, whatever address there may be."""
    if not user_of_redis(plan):
        return None
    from zmesh.mixins.redis_ipc import RedisStore  # most workers have no use for it

    return RedisStore.of(settings, plan.fingerprint, type(worker))


def _shared_memory(directory: str, least_bytes: int) -> SharedMemory | None:
    if not directory:
        return None
    try:
        return SharedMemory(Path(directory), least_bytes)
    except OSError as error:
        log.warning("there is no shared memory for this worker: %s", error)
        return None
