"""What peers say to each other: the messages of zmesh/1, the ids they use, and the words inside them.

A message is a value without behaviour that nobody changes. `wire.py` turns it into frames and back, the core decides
with it, programs carry it. Many tasks travel in one message, in *columns*: one list per field, all of the same length,
so that a batch is packed and unpacked by one call in C.

The words inside that are numbers on the wire are in `words.py`, and can be had from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType, TypeAlias, TypeVar, dataclass_transform

from zmesh.words import HTTP_STATUS, ChunkKind, Kind, Phase, RefuseCode, Role, State, Status, WorkerState

__all__ = [
    "EVENT_BYTES_MAX",
    "HTTP_STATUS",
    "LIST_ITEMS_MAX",
    "LONG_TEXT_BYTES_MAX",
    "OWN_FRAME_BYTES",
    "PROTOCOL_VERSION",
    "TEXT_BYTES_MAX",
    "Ack",
    "Cancel",
    "Chunk",
    "ChunkKind",
    "Columns",
    "Context",
    "Credit",
    "Drain",
    "Exited",
    "Goodbye",
    "Heartbeat",
    "Hello",
    "Kill",
    "Kind",
    "LeaseId",
    "Message",
    "Payload",
    "PeerId",
    "Phase",
    "Refuse",
    "RefuseCode",
    "Reply",
    "Results",
    "Role",
    "SessionId",
    "State",
    "Stats",
    "Status",
    "Submit",
    "TaskId",
    "Tasks",
    "Welcome",
    "WorkerBeat",
    "WorkerState",
    "value",
]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(kind: type[T]) -> type[T]:
    """A dataclass that nobody changes. The type checker sees to that: `frozen=True` has Python do it, and takes six
    times as long to make one, which every batch does a dozen times."""
    return dataclass(slots=True, unsafe_hash=True)(kind)


PROTOCOL_VERSION = 1

# Fixed for all who speak this version; what can be chosen is in `config.Limits` and told by WELCOME.
OWN_FRAME_BYTES = 64 * 1024  # a payload of this size or more has a frame of its own and is not inline
LIST_ITEMS_MAX = 4096  # of a list that is not a column: leases, peers, stages
TEXT_BYTES_MAX = 64 * 1024
LONG_TEXT_BYTES_MAX = 1024 * 1024  # a traceback, a snapshot
EVENT_BYTES_MAX = 1024 * 1024  # one payload of CHUNK

TaskId = NewType("TaskId", int)
"""64 bits: the high 32 are random per gateway process, the low 32 count from 0."""
LeaseId = NewType("LeaseId", int)
"""Counts from 1 within one epoch of a broker; fences late answers."""
SessionId = NewType("SessionId", int)
"""Random 64 bits, given by WELCOME; 0 before it."""
PeerId = NewType("PeerId", bytes)
"""16 random bytes, drawn at process start and never stored."""

Payload: TypeAlias = bytes | memoryview
Context: TypeAlias = Mapping[str, str]
"""What travels beside a task and is never interpreted: `request_id`, `traceparent`, allowed headers."""


@value
class Columns:
    """Tasks side by side: row `i` of every column belongs to the task `ids[i]`.

    `remaining_ms` is what was left of each deadline when the message was made; `contexts` is None when no row has one.
    """

    ids: list[TaskId]
    states: list[int]
    remaining_ms: list[int]
    attempts: list[int]
    kinds: list[int]
    payloads: list[Payload]
    contexts: list[Context | None] | None = None


@value
class Hello:
    """Any peer to the broker, until WELCOME or REFUSE. A worker's HELLO also lists the leases it still holds."""

    versions: list[int]
    role: Role
    peer: PeerId
    connection: int
    host: str
    pid: int
    fingerprint: str = ""
    stage: str = ""
    worker_id: int = 0
    max_batch_size: int = 1
    concurrency: int = 1
    running: list[LeaseId] = field(default_factory=list)
    waiting: list[LeaseId] = field(default_factory=list)
    answered: list[LeaseId] = field(default_factory=list)
    epoch: int = 0  # the epoch those leases belong to
    shape: str = ""  # what the fingerprint was made of, so that a refusal can name the difference
    memory: str = ""  # a worker's: names the shared memory that it can open, equal for two that share it


@value
class Welcome:
    version: int
    broker: PeerId
    epoch: int
    session: SessionId
    heartbeat_ms: int
    dead_ms: int
    frame_bytes_max: int
    message_rows_max: int
    message_inline_bytes_max: int
    stages: list[str]
    once_routes: list[str]


@value
class Refuse:
    code: RefuseCode
    text: str
    retry_after_ms: int = 0


@value
class Credit:
    """How many leases a worker wants in total since its HELLO: absolute, so that repeating it changes nothing."""

    total: int
    state: WorkerState
    text: str = ""
    metrics: str | None = None  # of user code, see `zmesh.metrics`


@value
class Submit:
    """A gateway's tasks for one route. Idempotent by task id; `again` is exempt from the queue's bounds."""

    route: str
    columns: Columns
    again: bool = False
    all: bool = False
    handled: int = 0  # the highest REPLY number this gateway has dealt with


@value
class Tasks:
    """A batch under one lease; `acks` as in ACK. `near`: whoever is given the results can open this worker's memory."""

    lease: LeaseId
    columns: Columns
    acks: list[LeaseId]
    near: bool = False


@value
class Results:
    """What became of some rows of a lease. `ids` is set only when the epoch has changed since the lease was given."""

    epoch: int
    lease: LeaseId
    rows: list[int]
    statuses: list[int]
    kinds: list[int]
    payloads: list[Payload]
    compute_us: int = 0
    ids: list[TaskId] | None = None
    chunks: list[int] | None = None  # how many CHUNKs each row said, when any did
    metrics: str | None = None  # of user code, see `zmesh.metrics`
    sizes: list[int] | None = None  # bytes that each payload stands for, when any is a reference


@value
class Ack:
    """Leases of which the broker has every row; and, to an agent, the peers whose EXITED was taken."""

    leases: list[LeaseId]
    peers: list[PeerId]


@value
class Reply:
    """Outcomes for a gateway, numbered so that it can say up to where it has dealt with them."""

    number: int
    ids: list[TaskId]
    statuses: list[int]
    kinds: list[int]
    payloads: list[Payload]
    attempts: list[int]
    queue_us: list[int]
    compute_us: list[int]
    leases: list[LeaseId] | None = None  # of streams, else 0; None when there are none
    chunks: list[int] | None = None  # how many CHUNKs that lease said, in all


@value
class Chunk:
    """What a lease has to say before its results: of the task `ids[i]` this is number `seqs[i]`, from 0.

    Said by a worker and passed on to gateways; never kept, and never said again.
    """

    epoch: int
    lease: LeaseId
    ids: list[TaskId]
    seqs: list[int]
    payloads: list[Payload]
    kind: ChunkKind = ChunkKind.EVENT


@value
class Cancel:
    ids: list[TaskId]
    reason: str
    handled: int = 0


@value
class WorkerBeat:
    """What an agent says of one of its workers: pid, slate and resident memory."""

    peer: PeerId
    stage: str
    worker_id: int
    pid: int
    lease: LeaseId
    phase: Phase
    rss_bytes: int


@value
class Heartbeat:
    epoch: int
    handled: int
    workers: list[WorkerBeat]


@value
class Exited:
    """A worker process is gone. `code` is its exit code, or minus the signal; lease, phase and row are its slate's."""

    peer: PeerId
    stage: str
    worker_id: int
    code: int
    lease: LeaseId
    phase: Phase
    row: int
    oom: bool
    reason: str
    failing: bool = False  # this stage has failed to start too often; `reason` is the traceback


@value
class Kill:
    """To an agent: end this process (or interrupt its `forward`) if `lease` is still what it runs."""

    peer: PeerId
    lease: LeaseId
    reason: str
    interrupt: bool = False


@value
class Drain:
    """Finish and go, or to a broker: have that done. With `host` it is for the agents of that host alone."""

    deadline_ms: int
    reason: str
    host: str = ""


@value
class Goodbye:
    """The last word of a peer; `leases` are those it leaves unfinished."""

    leases: list[LeaseId]


@value
class Stats:
    """A question (`snapshot` is empty) or its answer: the broker's snapshot as JSON text."""

    snapshot: str = ""


Message: TypeAlias = (
    Hello
    | Welcome
    | Refuse
    | Credit
    | Submit
    | Tasks
    | Results
    | Ack
    | Reply
    | Cancel
    | Chunk
    | Heartbeat
    | Exited
    | Kill
    | Drain
    | Goodbye
    | Stats
)
