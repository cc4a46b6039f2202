"""More than can be done: by the clock, ten times over; through a stage that makes much of little; in circles."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from time import monotonic

from tests.chaos.layouts import role_of
from tests.chaos.nemesis import cpu_seconds, size_of, spent_by
from tests.chaos.openloop import Driven, Load, drive
from tests.chaos.proofs.few import lonely
from tests.chaos.proofs.findings import Findings
from tests.harness import RunningMesh, wait_until
from tests.hosts import children
from zmesh.config import Limits

TIMES = 10
CLIENTS = 64  # enough to keep the model busy
SPARE = 400  # connections that an open loop needs beside those of requests in the queue
GOODPUT_SHARE, RECOVERED_SHARE = 0.8, 0.95
GROWTH_BYTES = 20_000_000
RECOVERED_IN_SECONDS = 10.0
START_SECONDS = 1.0  # of the process that sends
LATE_SECONDS = 0.25
MB = 1_000_000
SLACK_BYTES = 300 * MB  # beside what waits midway: batches in the hands of workers, and what the allocator keeps
HOPELESS_BYTES = 6_000 * MB


class Sizes:
    """Resident bytes of the processes that hold the gateway and the broker, in all, as time goes by."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._pids = [pid for pid in children(mesh.process.pid) if role_of(pid) in ("gateway", "broker")]
        self.before = self.now()
        self._at: list[float] = []
        self._bytes: list[int] = []

    def now(self) -> int:
        return sum(size_of(pid)[0] * 1024 for pid in self._pids)

    def look(self, seconds: float) -> None:
        self._at.append(seconds)
        self._bytes.append(self.now())
        assert self._bytes[-1] < HOPELESS_BYTES, f"it has grown to {self._bytes[-1] / MB:.0f} MB; broken off"

    def at(self, seconds: float) -> int:
        return self._bytes[max(0, bisect_right(self._at, seconds) - 1)]

    @property
    def most(self) -> int:
        return max(self._bytes)


class Others:
    """How much of the machine goes to programs that are none of ours, from now on."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._mesh = mesh
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        ours = [os.getpid(), self._mesh.process.pid, *children(self._mesh.process.pid)]
        return *cpu_seconds(), sum(map(spent_by, ours))

    def share(self) -> float:
        total, idle, ours = (now - before for before, now in zip(self._before, self._now(), strict=True))
        return min(1.0, max(0.0, (total - idle - ours) / total))


def overload(found: Findings) -> None:
    """Ten times capacity by the clock, 20 ms per batch of 8, for 60 s: goodput and size stay, and it recovers."""
    seconds, settled, measured = (5.0, 2.0, 3.0) if found.is_short else (60.0, 10.0, 3.0)
    # The short form runs beside other things, so its model is slower, and ten times as much is less for the gateway.
    ms, capacity = (50, 256) if found.is_short else (20, 1024)
    with lonely("sleep", "--timeout", "30000", "--capacity", str(capacity), MS=str(ms)) as (mesh, _):

        def speed() -> float:
            return drive(Load(mesh.port, ("/go",), measured, connections=CLIENTS)).rate(1, measured)

        peak = speed()
        sizes, others = Sizes(mesh), Others(mesh)
        load = Load(mesh.port, ("/go",), seconds, rate=TIMES * peak, connections=capacity + SPARE)
        driven = drive(load, sizes.look)
        foreign = others.share()
        ended = driven.began + seconds
        wait_until(lambda: mesh.mesh()["tasks"] == 0, 60.0, "the queues to be empty")
        empty = monotonic() - ended
        after = _recovered(mesh, peak, measured, ended + RECOVERED_IN_SECONDS)
    found.note(f"peak {peak:.0f}/s with {CLIENTS} clients in a closed loop, a batch of 8 takes {ms} ms")
    found.note(f"other programs had {foreign:.0%} of this machine meanwhile")
    hold_schedule(found, driven, load)
    goodput = driven.rate(1, seconds)
    at_least = f"at least {GOODPUT_SHARE:.0%}"
    found.hold(
        goodput >= GOODPUT_SHARE * peak, f"goodput {goodput:.0f}/s, {goodput / peak:.1%} of the peak ({at_least})"
    )
    hold_answered(found, driven, {"200", "429"})
    first, last = sizes.at(settled), sizes.at(seconds)
    found.hold(
        last <= first + GROWTH_BYTES,
        f"gateway and broker: {first / MB:.1f} MB at {settled:g} s, {last / MB:.1f} MB at {seconds:g} s, "
        f"at most {sizes.most / MB:.1f} MB (at most {GROWTH_BYTES / MB:g} MB more)",
    )
    found.hold(
        after >= RECOVERED_SHARE * peak,
        f"queues empty {empty:.1f} s after the overload; then up to {after:.0f}/s in {measured - 1:g} s before "
        f"{RECOVERED_IN_SECONDS:g} s are over, {after / peak:.1%} of the earlier speed "
        f"(at least {RECOVERED_SHARE:.0%})",
    )


def _recovered(mesh: RunningMesh, peak: float, measured: float, until: float) -> float:
    """The fastest seconds by then of a closed loop, which is over as soon as it is fast enough."""
    fastest, seconds = 0.0, measured
    while (left := until - monotonic() - START_SECONDS) > measured and fastest < RECOVERED_SHARE * peak:
        seconds = min(seconds, left)
        again = drive(Load(mesh.port, ("/go",), seconds, connections=CLIENTS))
        for start in range(int(seconds - measured) + 1):
            fastest = max(fastest, again.rate(start + 1, start + measured))
        seconds = RECOVERED_IN_SECONDS  # once more, for all that is left
    return fastest


def expanding(found: Findings) -> None:
    """A stage that makes 10 MB of 1 KB before a slow one, at ten times its speed: the size stays bounded."""
    seconds, service = (3.0, 0.05) if found.is_short else (30.0, 0.05)
    bound = Limits().midway_bytes_max + SLACK_BYTES
    with lonely("growing", "--timeout", "60000", "--capacity", "16", MS=str(service * 1000)) as (mesh, _):
        sizes = Sizes(mesh)
        load = Load(mesh.port, ("/go",), seconds, rate=TIMES / service, connections=200, pad=1000, patience=70)
        driven = drive(load, sizes.look, every=0.05)
        wait_until(lambda: mesh.mesh()["tasks"] == 0, 60.0, "the queues to be empty")
        after = sizes.now()
    hold_schedule(found, driven, load)
    hold_answered(found, driven, {"200", "429"})
    grown = sizes.most - sizes.before
    found.hold(
        grown <= bound,
        f"gateway and broker: {sizes.before / MB:.0f} MB before, at most {sizes.most / MB:.0f} MB, {after / MB:.0f} MB "
        f"after (may grow by midway_bytes_max + {SLACK_BYTES / MB:g} MB = {bound / MB:.0f} MB)",
    )
    found.note(f"{driven.rate(1, seconds):.1f} answers a second, of {1 / service:.0f} possible")


def crossing(found: Findings) -> None:
    """Routes A→B and B→A at three times capacity: nobody waits for anybody for ever."""
    seconds, measured = (3.0, 2.0) if found.is_short else (30.0, 5.0)
    most: Counter[str] = Counter()
    with lonely("crossing", "--timeout", "30000", "--capacity", "64") as (mesh, _):

        def look(_: float) -> None:
            for stage in mesh.mesh()["stages"]:
                most[stage["name"]] = max(most[stage["name"]], stage["queued"])

        paths = ("/there", "/back")
        peak = drive(Load(mesh.port, paths, measured, connections=CLIENTS)).rate(1, measured)
        load = Load(mesh.port, paths, seconds, rate=3 * peak, connections=SPARE)
        driven = drive(load, look)
        wait_until(lambda: mesh.mesh()["tasks"] == 0, 30.0, "the queues to be empty")
        stages = mesh.mesh()["stages"]
    left = sum(stage["queued"] + stage["leased"] for stage in stages)
    hold_schedule(found, driven, load)
    hold_answered(found, driven, {"200", "429"})
    waited = ", ".join(f"{count} at {name}" for name, count in most.items())
    last = driven.rate(seconds - 1, seconds)
    found.note(f"goodput {driven.rate(1, seconds):.0f}/s of {peak:.0f}/s; at most there waited {waited}")
    found.hold(last > 0 and not left, f"{last:.0f} answers in the last second, and {left} tasks left after it")


def hold_schedule(found: Findings, driven: Driven, load: Load) -> None:
    """An overload that did not come is none."""
    is_kept = driven.sent == driven.due == int(load.rate * load.seconds) and driven.late_p99 <= LATE_SECONDS
    found.hold(
        is_kept,
        f"the load kept its schedule: {driven.sent} of {driven.due} requests at {load.rate:.0f}/s for {load.seconds:g} "
        f"s, p99 {driven.late_p99 * 1000:.1f} ms late, worst {driven.late_max * 1000:.1f} ms; {driven.connections} "
        f"connections, {driven.cpu_seconds:.1f} s of CPU",
    )


def hold_answered(found: Findings, driven: Driven, allowed: set[str]) -> None:
    shown = ", ".join(
        f"{count} × {status} (longest {driven.longest[status]:.2f} s)"
        for status, count in sorted(driven.statuses.items())
    )
    lost = driven.broken + driven.unanswered + driven.wrong + driven.without_retry_after
    found.hold(
        not lost and set(driven.statuses) <= allowed,
        f"{shown}; {driven.broken} broken off, {driven.unanswered} unanswered, {driven.wrong} wrong, "
        f"{driven.without_retry_after} × 429 without retry-after",
    )
