"""What must be done, in the imperative. Perform effects in the order given; a failure comes back as an event.

The Dispatcher asks for `Send`, `Forget` and `Report`; a Link and a Session for `Transmit`, `Reconnect`, `Leave` and
`Report`, a Link also for `Deliver` and `Answer`, a Session also for `Run` and `Settled`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from zmesh.core.events import Address
from zmesh.messages import Columns, LeaseId, Message, Payload, SessionId, value

if TYPE_CHECKING:
    from zmesh.core.requests import Request

__all__ = [
    "Answer",
    "Deliver",
    "DispatcherEffect",
    "Forget",
    "Leave",
    "LinkEffect",
    "Reconnect",
    "Report",
    "Run",
    "Send",
    "SessionEffect",
    "Settled",
    "Transmit",
]


@value
class Send:
    """Send `message` to the peer at `address`, without waiting."""

    address: Address
    session: SessionId
    message: Message


@value
class Forget:
    """Drop whatever is parked for this address; its session is closed."""

    address: Address


@value
class Report:
    """Log one readable line; `level` is debug, info, warning or error."""

    level: str
    text: str


@value
class Transmit:
    """Send `message` to the broker, without waiting; keep the order."""

    session: SessionId
    message: Message


@value
class Reconnect:
    """Close the socket and make a new one after `after_seconds`, then say `Started`."""

    after_seconds: float


@value
class Leave:
    """Everything is done: close the socket and end, with this reason for the log and this exit code."""

    reason: str
    exit_code: int = 0


@value
class Deliver:
    """Events for the clients of streams, in order: `payloads[i]` belongs to `requests[i]`."""

    requests: list[Request]
    payloads: list[Payload]


@value
class Answer:
    """Terminal outcomes: row `i` of every list belongs to `requests[i]`."""

    requests: list[Request]
    statuses: list[int]
    payloads: list[Payload]


@value
class Run:
    """Run this lease now. `deadlines` are on the listener's clock; a row in `skipped` was cancelled while it waited.

    With `is_near`, whoever is given its results can open the shared memory of this worker."""

    lease: LeaseId
    columns: Columns
    deadlines: list[float]
    skipped: frozenset[int]
    is_near: bool = False


@value
class Settled:
    """Nobody needs what these references stand for any more: the broker has the results that were made of it."""

    kinds: list[int]
    references: list[bytes]


DispatcherEffect: TypeAlias = Send | Forget | Report
LinkEffect: TypeAlias = Transmit | Reconnect | Leave | Report | Deliver | Answer
SessionEffect: TypeAlias = Transmit | Reconnect | Leave | Report | Run | Settled
