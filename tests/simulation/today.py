"""What the core does not do yet, in one flag: then it is not asked for.

Without it replies are not kept until they are handled, and not split; results of a former epoch are dropped; nobody
hears that a connection ended. So a once-only row may start twice when its gateway's connection broke meanwhile, and
limits of a message have to be large.
"""

from __future__ import annotations

from zmesh.core import events

__all__ = ["REPLIES_ARE_KEPT"]

REPLIES_ARE_KEPT = hasattr(events, "ConnectionLost")
