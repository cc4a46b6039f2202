"""What the core does not do yet, as flags: what one of them names is not asked for while it is False."""

from __future__ import annotations

from zmesh.core import events

__all__ = ["KEEPS_REPLIES", "SURVIVES_NO_ROOM"]

# Replies are kept until they are handled, and split; results of a former epoch are taken; a broker hears that a
# connection ended. Without it a once-only row may start twice when its gateway's connection broke meanwhile.
KEEPS_REPLIES = hasattr(events, "ConnectionLost")

# What a broker had no room to keep is said again: not an ACK today, so that a worker keeps its results for ever, and
# TASKS are given to the same worker again at once until their rows have come back too often.
SURVIVES_NO_ROOM = False
