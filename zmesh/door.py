"""What a gateway refuses without asking the mesh: a full route for a moment, a deadly body for a while.

`Door` is that of one route. It measures how fast the route is answered, and when the mesh sheds a request of it, it is
closed for a tenth of the time that what waits will take, and a tenth of a second at most. So a flood costs little while
nobody can be let in, and what waits can never run out meanwhile. Only time in which something waits is measured:
otherwise the rate would be that of the clients.

`DenyList` remembers the bodies that ended workers. The same body on the same route gets the same answer again without
costing more workers, for a minute. It hashes nothing but what could be one of them by its route and length; the key of
the hash is random, so nobody can make a body that is taken for another.
"""

from __future__ import annotations

import math
import os
from collections import Counter, OrderedDict
from hashlib import blake2b
from typing import NamedTuple

from zmesh.messages import Payload

__all__ = ["DENIED_MAX", "DENIED_SECONDS", "DenyList", "Door"]

RATE_SECONDS = 1.0  # the rate is measured over at least this long,
STUCK_SECONDS = 10.0  # and this long, if nothing is answered
RETRY_SECONDS_MAX = 60
CLOSED_PART, CLOSED_SECONDS_MAX = 0.1, 0.1  # of the time that what waits will take; of a second

DENIED_SECONDS = 60.0
DENIED_MAX = 1000


class Door:
    """`pending` requests of one route wait for their answer, and workers `answered` so many; its owner counts both.
    Times are in seconds on one clock."""

    __slots__ = ("_before", "_rate", "_since", "_was_idle", "answered", "closed_until", "pending", "text")

    def __init__(self, now: float) -> None:
        self.pending = self.answered = 0
        self.closed_until = -math.inf
        self.text = ""  # why it is closed
        self._rate: float | None = None  # answers per second, lately
        self._since, self._before, self._was_idle = now, 0, True

    def leave(self) -> None:
        """One request less waits."""
        self.pending -= 1
        if not self.pending:
            self._was_idle = True

    def measure(self, now: float) -> None:
        """Look at the clock; to be called often while something waits."""
        age, answered = now - self._since, self.answered - self._before
        if self._was_idle:
            self._was_idle = not self.pending
            self._since, self._before = now, self.answered
        elif age >= (RATE_SECONDS if answered else STUCK_SECONDS):
            self._rate = answered / age
            self._since, self._before = now, self.answered

    def drain_seconds(self) -> float | None:
        """How long what waits now takes at the measured rate; None before anything was measured."""
        if self._rate is None:
            return None
        return self.pending / self._rate if self._rate else math.inf

    def retry_after(self) -> int:
        """The same in whole seconds, as a client is told."""
        seconds = self.drain_seconds()
        return 1 if seconds is None else math.ceil(min(RETRY_SECONDS_MAX, max(1.0, seconds)))

    def close(self, text: str, now: float) -> None:
        """The mesh shed a request, with these words. Without a rate nobody knows for how long that holds."""
        seconds = self.drain_seconds()
        if seconds is not None:
            self.text = text
            self.closed_until = now + min(CLOSED_SECONDS_MAX, CLOSED_PART * seconds)


class _Denied(NamedTuple):
    until: float
    path: str
    size: int
    answer: Payload


class DenyList:
    """At most `DENIED_MAX` bodies, each for `DENIED_SECONDS`; the oldest goes first."""

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self.bodies: OrderedDict[bytes, _Denied] = OrderedDict()  # by digest, in the order of their ends; for reading
        self._sizes: Counter[tuple[str, int]] = Counter()  # what is worth hashing

    def add(self, path: str, body: Payload, answer: Payload, now: float) -> None:
        """From now on this body gets this answer on this route."""
        digest = self._digest(path, body)
        if digest in self.bodies:
            self._drop(digest)
        self.bodies[digest] = _Denied(now + DENIED_SECONDS, path, len(body), answer)
        self._sizes[path, len(body)] += 1
        if len(self.bodies) > DENIED_MAX:
            self._drop(next(iter(self.bodies)))

    def answer(self, path: str, body: Payload, now: float) -> Payload | None:
        """What this body is answered without being tried; None when it is not denied."""
        while self.bodies and next(iter(self.bodies.values())).until <= now:
            self._drop(next(iter(self.bodies)))
        if (path, len(body)) not in self._sizes:
            return None
        found = self.bodies.get(self._digest(path, body))
        return None if found is None else found.answer

    def forget(self, path: str) -> None:
        """What was learned of this route does not hold."""
        for digest in [digest for digest, denied in self.bodies.items() if denied.path == path]:
            self._drop(digest)

    def _drop(self, digest: bytes) -> None:
        denied = self.bodies.pop(digest)
        self._sizes[denied.path, denied.size] -= 1
        if not self._sizes[denied.path, denied.size]:
            del self._sizes[denied.path, denied.size]

    def _digest(self, path: str, body: Payload) -> bytes:
        hashing = blake2b(path.encode() + b"\0", key=self._key, digest_size=16)
        hashing.update(body)
        return hashing.digest()
