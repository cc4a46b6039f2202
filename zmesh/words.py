"""Words that travel as numbers: statuses, roles, states. They are part of the wire: append, never renumber."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, IntFlag

__all__ = [
    "HTTP_STATUS",
    "ChunkKind",
    "Kind",
    "Phase",
    "RefuseCode",
    "Role",
    "State",
    "Status",
    "WorkerState",
]


class State(IntFlag):
    """Where a task stands on its route; `INGRESS | EGRESS` is a route of one stage."""

    INGRESS = 1
    EGRESS = 2


class Status(IntEnum):
    """The outcome of one item."""

    OK = 0
    BAD_REQUEST = 1
    TIMEOUT = 2
    TOO_LARGE = 3
    VALIDATION = 4
    SHED = 5
    CANCELLED = 6
    INTERNAL = 7
    POISONED = 8
    UNAVAILABLE = 9
    AGAIN = 10  # never reaches a client: the gateway keeps the task and submits it again


HTTP_STATUS: Mapping[Status, int] = {
    Status.OK: 200,
    Status.BAD_REQUEST: 400,
    Status.TIMEOUT: 408,
    Status.TOO_LARGE: 413,
    Status.VALIDATION: 422,
    Status.SHED: 429,
    Status.CANCELLED: 499,
    Status.INTERNAL: 500,
    Status.POISONED: 500,
    Status.UNAVAILABLE: 503,
}


class Kind(IntEnum):
    """How a payload travels."""

    INLINE = 0
    REFERENCE = 1  # any host can open it
    HOST_BOUND = 2  # only the producer's host can


class Role(IntEnum):
    GATEWAY = 1
    AGENT = 2
    WORKER = 3
    ADMIN = 4


class WorkerState(IntEnum):
    """What a worker says of itself in CREDIT."""

    STARTING = 0
    READY = 1
    DRAINING = 2
    FAILED = 3


class Phase(IntEnum):
    """What a worker was doing, as its slate says."""

    STARTING = 0
    IDLE = 1
    DECODE = 2
    FORWARD = 3
    ENCODE = 4


class RefuseCode(IntEnum):
    """Why the broker said no."""

    VERSION = 1
    ROLE = 2
    STAGE = 3
    FINGERPRINT = 4
    KEY = 5
    UNKNOWN_PEER = 6  # say HELLO again
    ERROR = 7


class ChunkKind(IntEnum):
    """What comes before the result."""

    EVENT = 0  # for the client, at once
