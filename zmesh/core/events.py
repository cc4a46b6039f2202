"""What can happen, in the past tense: one event per message that arrived, never one per task.

Three machines listen. The `Dispatcher` (broker's half) hears every event that names an `Address`; the `Link` (gateway's
half) and the `Session` (worker's half) hear `Heard`, and the few things their own programs tell them. All hear `Tick`.
An event carries the message as it was decoded; whether its sender may say such a thing is the listener's decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from zmesh.messages import (
    Cancel,
    Chunk,
    Credit,
    Drain,
    Exited,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Payload,
    Results,
    SessionId,
    Stats,
    Submit,
    TaskId,
    value,
)

if TYPE_CHECKING:
    from zmesh.core.requests import Request

__all__ = [
    "Address",
    "BatchFinished",
    "ChunkArrived",
    "ConnectionLost",
    "CreditGranted",
    "DispatcherEvent",
    "DrainAsked",
    "Heard",
    "LinkEvent",
    "LinkLost",
    "LoopLagged",
    "MessageBroken",
    "PeerBeat",
    "PeerGreeted",
    "PeerLeft",
    "PeerUnreachable",
    "RequestsAbandoned",
    "RequestsAccepted",
    "RowsFinished",
    "RowsStreamed",
    "SendFailed",
    "SessionEvent",
    "Stalled",
    "Started",
    "StatsAsked",
    "TasksCancelled",
    "TasksSubmitted",
    "Tick",
    "WorkerExited",
]

Address: TypeAlias = tuple[int, bytes]
"""Where a peer is heard: (socket, routing id). Socket 0 is the front, i + 1 stage i, -1 a gateway in this process."""


@value
class PeerGreeted:
    address: Address
    message: Hello


@value
class CreditGranted:
    address: Address
    session: SessionId
    message: Credit


@value
class TasksSubmitted:
    address: Address
    session: SessionId
    message: Submit


@value
class BatchFinished:
    """Some or all rows of a lease have a status."""

    address: Address
    session: SessionId
    message: Results


@value
class ChunkArrived:
    """Some rows of a lease have something to say before their result."""

    address: Address
    session: SessionId
    message: Chunk


@value
class TasksCancelled:
    address: Address
    session: SessionId
    message: Cancel


@value
class PeerBeat:
    address: Address
    session: SessionId
    message: Heartbeat


@value
class WorkerExited:
    address: Address
    session: SessionId
    message: Exited


@value
class DrainAsked:
    address: Address
    session: SessionId
    message: Drain


@value
class PeerLeft:
    address: Address
    session: SessionId
    message: Goodbye


@value
class StatsAsked:
    address: Address
    session: SessionId
    message: Stats


@value
class MessageBroken:
    """Something arrived that is not a message, or not one a broker may be told."""

    address: Address
    reason: str


@value
class PeerUnreachable:
    """A send found nobody there (EHOSTUNREACH): the connection is gone, the process perhaps not."""

    address: Address


@value
class ConnectionLost:
    """One of the connections of this socket (numbered as in `Address`) ended, and nobody can say whose it was."""

    socket: int


@value
class SendFailed:
    """This message was parked for a peer that does not read, and given up."""

    address: Address
    message: Message


@value
class Stalled:
    """The listener itself did not run for `gap_seconds`; silence in that time proves nothing about others."""

    gap_seconds: float


@value
class LoopLagged:
    """The listener's event loop was looked at, and ran so many seconds late."""

    seconds: float


@value
class Tick:
    """Nothing happened but time."""


@value
class Heard:
    """To a Link or a Session: the broker said something."""

    session: SessionId
    message: Message


@value
class Started:
    """To a Link or a Session: a fresh socket is connected, introduce yourself."""


@value
class RequestsAccepted:
    """To a Link: requests that the gateway accepted in one turn of its loop."""

    requests: list[Request]


@value
class RequestsAbandoned:
    """To a Link: nobody waits for these any more."""

    ids: list[TaskId]
    reason: str


@value
class LinkLost:
    """To a Link or a Session: the socket to the broker is gone."""


@value
class RowsFinished:
    """To a Session: rows of the running lease have a status. The lease ends with its last row."""

    rows: list[int]
    statuses: list[int]
    kinds: list[int]
    payloads: list[Payload]
    compute_us: int
    sizes: list[int] | None = None  # bytes that each payload stands for, when any is a reference


@value
class RowsStreamed:
    """To a Session: rows of the running lease, each at most once, have an event for their clients."""

    rows: list[int]
    payloads: list[Payload]


DispatcherEvent: TypeAlias = (
    PeerGreeted
    | CreditGranted
    | TasksSubmitted
    | BatchFinished
    | ChunkArrived
    | TasksCancelled
    | PeerBeat
    | WorkerExited
    | DrainAsked
    | PeerLeft
    | StatsAsked
    | MessageBroken
    | PeerUnreachable
    | ConnectionLost
    | SendFailed
    | Stalled
    | LoopLagged
    | Tick
)
LinkEvent: TypeAlias = Started | Heard | RequestsAccepted | RequestsAbandoned | LinkLost | Tick
SessionEvent: TypeAlias = Started | Heard | RowsFinished | RowsStreamed | DrainAsked | LinkLost | Tick
