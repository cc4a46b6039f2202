"""One HTTP request as the gateway's half of the dialogue knows it, and many of them as the columns of a message."""

from __future__ import annotations

from dataclasses import dataclass

from zmesh.messages import Columns, Context, Kind, Payload, TaskId

__all__ = ["Request", "again_seconds", "columns_of"]

AGAIN_MS = 100  # until an AGAIN that names no time is submitted again
AGAIN_MS_MAX = 60_000
INLINE = int(Kind.INLINE)


@dataclass(slots=True, eq=False)
class Request:
    """One HTTP request in the mesh; the only thing that is allocated per request.

    `deadline` is in seconds on the clock of `now`. `ticket` is the gateway's: by it, it finds who waits.
    """

    id: TaskId
    route: str
    payload: Payload
    context: Context | None
    deadline: float
    ticket: object
    submissions: int = 0
    sent_epoch: int = 0  # of the broker that holds it; 0 when none does
    losses: int = 0  # brokers that died holding it
    returns: int = 0  # times it was given back because what a stage had made of it was lost

    def give_back(self, tries: int) -> int:
        """No broker holds it any more. A task that was tried was lost midway; how often that was."""
        self.sent_epoch = 0
        self.returns += tries > 0
        return self.returns


def columns_of(rows: list[Request], state: int, epoch: int, now: float) -> Columns:
    """These rows side by side, from now on with the broker of this epoch."""
    for row in rows:
        row.sent_epoch = epoch
        row.submissions += 1
    contexts = [row.context for row in rows]
    return Columns(
        ids=[row.id for row in rows],
        states=[state] * len(rows),
        remaining_ms=[ms if (ms := int((row.deadline - now) * 1000)) > 0 else 1 for row in rows],
        attempts=[0] * len(rows),
        kinds=[INLINE] * len(rows),
        payloads=[row.payload for row in rows],
        contexts=contexts if any(contexts) else None,
    )


def again_seconds(payload: Payload) -> float:
    """How long to wait, as the broker said it: milliseconds in decimal."""
    text = bytes(payload[:9])
    return min(max(int(text) if text.isdigit() else AGAIN_MS, 1), AGAIN_MS_MAX) / 1000
