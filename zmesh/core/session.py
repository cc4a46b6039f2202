"""The worker's half: leases held, results unacknowledged. And `Contact`, which it shares with the gateway's half.

A worker owns nothing. It runs one lease at a time, holds the next ones, and keeps every RESULTS until the broker says
that it has all rows of the lease. `Session` is a pure state machine: `handle(*events, now)` takes what happened and
says what must be done, `next_wakeup()` says when time alone is an event.

Credit. `total` in CREDIT is absolute since the HELLO of the session, so that repeating it changes nothing:

    total = used + room
    used  = leases which that HELLO listed (running, waiting, answered), if its epoch is the broker's, else 0
            + leases given in this session
    room  = prefetch - leases held now (running and waiting, of any epoch); 0 while draining

The broker counts `used` in the same way, whether it still knows a listed lease or not, and gives only while
total > used. It adds 1 to the total by itself when RESULTS complete a lease that it counted: room grows by 1 here at the
same moment. Where it may not have counted the lease (one of an earlier session) CREDIT follows the RESULTS at once. So
never more than `prefetch` leases are held, and a count that went wrong heals with the next CREDIT: every heartbeat
between two leases, which is also the sign of life.

A worker does not listen while it runs `forward`. The broker's silence counts only from the end of a lease, and a lease
starts only while there is a session, so that no HELLO waits behind a long batch.

A new epoch means that the broker's memory is gone and that the gateways submit their tasks again. Waiting leases are
then dropped. What runs goes on, since it is paid for; RESULTS of that lease, and those kept, go to the new broker with
their task ids, by which it can match them. They go once and are not kept: refused or lost, they cost time but no task.
"""

from __future__ import annotations

from enum import Enum

from zmesh.messages import RefuseCode

__all__ = ["OWN_FRAME_BYTES", "STEPS", "Contact", "ContactState", "Session", "Step"]

OWN_FRAME_BYTES = 64 * 1024  # a payload of this size or more has a frame of its own and does not count as inline
WAITING_SLACK = 2  # leases taken beyond what was asked for
KEPT_LEASES_MAX = 64  # leases whose results are kept at most; with a broker that acknowledges it is a handful
FATAL = frozenset({RefuseCode.VERSION, RefuseCode.STAGE, RefuseCode.FINGERPRINT, RefuseCode.KEY})

ContactState = Enum("ContactState", ["AWAY", "GREETING", "JOINED", "LEFT"])
