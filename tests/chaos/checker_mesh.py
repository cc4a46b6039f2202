"""What must hold of the mesh as a whole: its size, its speed, its workers. The other half of `checker.py`.

* **I6** no more tasks in the mesh than there are requests without an answer (and what the last half second brought); no
  queue of a first stage above its capacity (twice that with two gateways, each has a share above it) by more than what
  its workers gave back, except for 2 s after something that makes gateways submit again; no more than 64 MiB of answers
  kept. After the load no process has grown by more than 64 MiB and half since before the faults, nor kept more than 32
  more files open.
* **I7** within 10 s after the last fault some 3 s are as fast as 95 % of before the faults; where the profile gives a
  share, so much of it was left during the faults. What other programs of this machine took from ours meanwhile is
  allowed for: samples say how much that was. When the load is over all tables are empty, and every program that is
  told to stop ends with code 0.
* **I12** no worker that is ready, holds nothing and begins nothing in three samples in a row, while tasks wait at its
  stage in each of them (more than suspects, which only some workers may run).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from tests.chaos.checker import TWICE, Times, Violation
from tests.chaos.history import History, Record

RATE_SHARE = 0.95
RATE_SHARE_SHORT = 0.7  # of a run below a minute: 5 s before and 10 s after differ by +-20 % by themselves, as measured
RECOVERED_IN_SECONDS, BEST_OF_SECONDS = 10.0, 3
GROWTH_KIB, GROWTH_SHARE, GROWTH_FILES = 64 * 1024, 0.5, 32
KEPT_BYTES_MAX = 64 * 1024 * 1024
SAMPLES_IN_A_ROW = 3
LEASES_PER_WORKER = 2
LATER_STAGES = frozenset({"Second"})  # moving on to them is never refused
SUBMITTED_AGAIN = TWICE  # what comes to a broker for the second time is never refused either
SLACK_SECONDS = 0.5


def check_mesh(history: History) -> Iterator[Violation]:
    yield from bounds(history)
    yield from growth(history)
    yield from recovery(history)
    yield from emptiness(history)
    yield from endings(history)
    yield from idleness(history)


def bounds(history: History) -> Iterator[Violation]:
    sent = sorted(request.sent for request in history.requests.values())
    settings, times = history.settings, Times(history)
    done = sorted(times.heard_by_all(request.done) for request in history.requests.values())
    capacity = settings.get("capacity", 1024) * (2 if settings.get("layout") == "gateways" else 1)
    returned = LEASES_PER_WORKER * settings.get("workers", 0) * settings.get("batch", 0)
    for sample in history.samples:
        if "stages" not in sample:
            continue
        at = sample["t"]
        open_now = bisect_right(sent, at) - bisect_right(done, at - SLACK_SECONDS)
        if sample["tasks"] > open_now:
            text = f"{sample['tasks']} tasks in the mesh, but {open_now} requests without an answer"
            yield Violation("I6", at, at, text)
        if sample["kept_bytes"] > KEPT_BYTES_MAX:
            yield Violation("I6", at, at, f"{sample['kept_bytes']} bytes of answers are kept")
        if times.any(SUBMITTED_AGAIN, at, at):
            continue
        for stage in sample["stages"]:
            if stage["name"] not in LATER_STAGES and stage["queued"] > capacity + returned:
                yield Violation("I6", at, at, f"{stage['queued']} tasks wait at {stage['name']}")


def growth(history: History) -> Iterator[Violation]:
    before, after = history.phases.get("nemesis"), history.phases.get("drain")
    if before is None or after is None or not history.samples:
        return
    first = next((sample for sample in reversed(history.samples) if sample["t"] <= before), None)
    last = history.samples[-1]
    if first is None:
        return
    usual: dict[str, tuple[int, int]] = {}
    for role, _, rss, files in first["processes"]:
        usual[role] = max(usual.get(role, (0, 0)), (rss, files))
    for role, pid, rss, files in last["processes"]:
        if role not in usual:
            continue
        rss_before, files_before = usual[role]
        if rss > rss_before * (1 + GROWTH_SHARE) + GROWTH_KIB:
            yield Violation("I6", before, last["t"], f"{role} {pid} grew from {rss_before} to {rss} KiB")
        if files > files_before + GROWTH_FILES:
            yield Violation("I6", before, last["t"], f"{role} {pid} has {files} files open, {files_before} before")


def rates(history: History, since: float, until: float) -> list[int]:
    """Answers with 200 in each whole second between the two."""
    seconds: Counter[int] = Counter()
    for request in history.requests.values():
        for answer in request.answers[:1]:
            if answer.status == 200 and since <= answer.at < until:
                seconds[int(answer.at - since)] += 1
    return [seconds[second] for second in range(int(until - since))]


def baseline(history: History) -> float:
    phases = history.phases
    return float(median(rates(history, phases["baseline"], phases["nemesis"]) or [0]))


def recovery(history: History) -> Iterator[Violation]:
    phases = history.phases
    if not {"baseline", "nemesis", "recovery", "drain"} <= phases.keys():
        return
    before = baseline(history)
    if not before:
        yield Violation("I7", phases["baseline"], phases["nemesis"], "nobody was answered before the faults")
    share = history.settings.get("during_share", 0.0)
    counts = rates(history, phases["nemesis"], phases["recovery"])
    during, room = sum(counts) / max(1, len(counts)), room_for(history, phases["nemesis"], phases["recovery"])
    if during < share * before * room:
        text = f"{during:.0f} answers a second during the faults, less than {share:.0%} of {before:.0f}{_had(room)}"
        yield Violation("I7", phases["nemesis"], phases["recovery"], text)
    over = max([phases["nemesis"], *(fault.over for fault in history.faults)])
    until = min(over + RECOVERED_IN_SECONDS, phases["drain"])
    room = room_for(history, over, until)
    best = best_of(rates(history, over, until), BEST_OF_SECONDS)
    enough = RATE_SHARE if history.settings.get("seconds", 60.0) >= 60 else RATE_SHARE_SHORT
    if best < enough * before * room:
        after = f"in {until - over:.0f} s after the last fault"
        text = f"at best {best:.0f} answers a second {after}, {before:.0f} before{_had(room)}"
        yield Violation("I7", over, until, text)


def _had(room: float) -> str:
    return f", with {room:.0%} of the machine of then" if room < 1 else ""


def room_for(history: History, since: float, until: float) -> float:
    """How much of the machine we could have then, of what we could have before the faults; 1 at most."""
    usual = 1 - foreign(history, history.phases["baseline"], history.phases["nemesis"])
    return min(1.0, (1 - foreign(history, since, until)) / usual) if usual > 0 else 1.0


def foreign(history: History, since: float, until: float) -> float:
    """The share of all CPUs that went to programs that are none of ours; 0 when the samples do not say."""
    known = [sample["cpu"] for sample in history.samples if "cpu" in sample and since <= sample["t"] <= until]
    if len(known) < 2:
        return 0.0
    total, idle, ours = (last - first for first, last in zip(known[0], known[-1], strict=True))
    return min(1.0, max(0.0, (total - idle - ours) / total)) if total > 0 else 0.0


def best_of(seconds: Sequence[int], width: int) -> float:
    return max((sum(seconds[i : i + width]) / width for i in range(len(seconds) - width + 1)), default=0.0)


def emptiness(history: History) -> Iterator[Violation]:
    if "over" not in history.phases:
        return
    known = [sample for sample in history.samples if "stages" in sample]
    if not known or known[-1]["t"] < history.phases["drain"]:
        at = history.phases["drain"]
        yield Violation("I7", at, at, "the mesh did not say how it was after the load")
        return
    last = known[-1]
    left = {"tasks": last["tasks"], "kept answers": last["kept"]}
    for stage in last["stages"]:
        for what in ("queued", "suspects", "leased"):
            left[f"{what} at {stage['name']}"] = stage[what]
    if left := {what: count for what, count in left.items() if count}:
        yield Violation("I7", history.phases["drain"], last["t"], f"left when the load was over: {left}")


def endings(history: History) -> Iterator[Violation]:
    at = history.phases.get("over", 0.0)
    for name, code in history.exits.items():
        if code:
            yield Violation("I7", at, at, f"{name} ended with {code} when it was told to stop")


def idleness(history: History) -> Iterator[Violation]:
    reported: set[tuple[object, ...]] = set()
    known = history.samples
    for index in range(len(known) - SAMPLES_IN_A_ROW + 1):
        row = known[index : index + SAMPLES_IN_A_ROW]
        if any("stages" not in sample or sample["epoch"] != row[0]["epoch"] for sample in row):
            continue
        for idle in set.intersection(*(set(_idle(sample)) for sample in row)) - reported:
            reported.add(idle)
            stage, worker_id, pid, _ = idle
            text = f"{stage}/{worker_id} ({pid}) did nothing while tasks waited there"
            yield Violation("I12", row[0]["t"], row[-1]["t"], text)


def _idle(sample: Record) -> Iterator[tuple[object, ...]]:
    """Workers with nothing to do at a stage where something waits; and how many batches each has had."""
    for stage in sample["stages"]:
        if stage["queued"] > stage["suspects"]:
            for worker_id, pid, state, leases, batches in stage["workers"]:
                if state == "ready" and not leases:
                    yield stage["name"], worker_id, pid, batches
