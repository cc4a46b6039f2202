"""What must hold of a history of `scripts/chaos`. Pure: it reads a `History` and returns what was violated.

The invariants are those of the core as far as they can be seen from outside. A request is one that was sent and that
its client did not leave.

* **I1** it has an outcome: an answer. A connection that broke, or nothing until 10 s after the deadline, is none. The
  answer is 200, or one of these, each only where the history explains it:
  * 408 at its deadline, when the faults that overlap its life can cost as much time as it had: 3 s for faults that end
    a process or a connection, and for one that stops a process as long as it was stopped, at most 11 s for a worker
    (then its lease has ended and others run its batch);
  * 429 when, since 250 ms before it was sent, as many others were open at once as a queue may hold; one whose client
    left, or got its 408, is open until the mesh can know that;
  * 500 `outcome unknown` on a route that runs nothing twice, when something was killed, stopped or cut off in its life;
  * 500 `worker died` by I8. 503 never: no fault here makes a stage fail to start.
* **I2** it has one answer only, and no connection says anything that was not asked.
* **I3** the answer names this request, and the nonce and the result in it are right.
* **I4** the outcome comes by the deadline and 250 ms, and as much later as the client itself was late, or as the
  gateway was stopped across the deadline, or when the request was sent: it cannot know of one before it goes on.
* **I5** a stage that runs nothing twice began it once at most; others at most 9 times, and 9 more for each broker that
  was lost. Nobody runs it while another one runs it, nor 250 ms after its answer, unless a process was stopped, a link
  cut or a broker lost around that time: then leases are given twice on purpose. (Counted in the report, not held
  against anybody: `doubled executions`.)
* **I6**, **I7**, **I12**: see `checker_mesh.py`.
* **I8** a poison is answered 500 `worker died` (or as I1 allows), after it ended at most 3 + log2(group) processes.
  Nobody else is answered that, unless twice a batch of it alone was ended by SIGABRT. The broker charges no more
  deaths than there were aborts and poisoned batches.
* **I11** nothing begins 250 ms after its deadline, nor 1 s after its client left, unless a process was stopped
  between the two.
* **kin**: when an agent is killed its children are gone within 1 s.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from math import log2
from typing import NamedTuple

from tests.chaos.history import Answer, Batch, Fault, History, Request

INVARIANTS = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I11", "I12", "kin")
LATE_SECONDS = 0.25
LATE_EVERY_SECONDS = 1.5  # a client says once a second how late it was
LEFT_SECONDS = 1.0  # a gateway looks for clients that left after 0.1 s, each 0.1 s, once it has seen them at all
ENDING_COSTS_SECONDS = 3.0
WORKER_STOP_COSTS_SECONDS = 11.0
SHUT_SECONDS = 0.25  # a gateway that was told of a full queue refuses for 0.1 s without asking again, and is late
ECHO_SECONDS = 2.0  # after a fault is over what it caused may still come
ATTEMPTS_MAX = 9  # returns, charged deaths and a second lease for what is slow
POISON_KILLS = 3
GONE_SECONDS = 1.0

STOPS = frozenset({"stop-worker", "stop-agent", "stop-broker", "stop-gateway"})
BROKER_LOSSES = frozenset({"kill-broker", "restart-broker"})
TWICE = STOPS | BROKER_LOSSES | {"cut-links", "kill-agent"}  # what makes the broker give a lease twice
ENDINGS = BROKER_LOSSES | {
    "kill-worker",
    "kill-exponential",
    "abort-worker",
    "slow-first",
    "poison",
    "cut-links",
    "kill-agent",
}


class Violation(NamedTuple):
    """`at` and `until` are the time it is about: with its faults it is laid to those that overlap it."""

    invariant: str
    at: float
    until: float
    text: str


class Times:
    """Faults by time, how late the clients were, and how many requests were open."""

    def __init__(self, history: History) -> None:
        self._faults = history.faults
        self._starts = [fault.at for fault in history.faults]
        self._longest = max((fault.over - fault.at for fault in history.faults), default=0.0)
        self._lateness = sorted(history.lateness)
        self._late_at = [at for at, _ in self._lateness]
        self.crowd = Crowd(history, self.heard_by_all)

    def overlapping(self, since: float, until: float, echo: float = ECHO_SECONDS) -> list[Fault]:
        """Those that had an effect at some time between the two."""
        first = bisect_left(self._starts, since - self._longest - echo)
        last = bisect_left(self._starts, until)
        return [fault for fault in self._faults[first:last] if fault.over + echo >= since]

    def any(self, names: frozenset[str], since: float, until: float) -> bool:
        return any(fault.name in names for fault in self.overlapping(since, until))

    def late(self, at: float) -> float:
        """The worst lateness of the clients around then."""
        first, last = bisect_left(self._late_at, at), bisect_left(self._late_at, at + LATE_EVERY_SECONDS)
        return max((late for _, late in self._lateness[first:last]), default=0.0)

    def stopped_across(self, name: str, moment: float) -> float:
        """How long after `moment` what was stopped then went on."""
        faults = self.overlapping(moment, moment + 1e-9, echo=0.0)
        return max((fault.over - moment for fault in faults if fault.name == name), default=0.0)

    def heard_by_all(self, done: float) -> float:
        """When the mesh can know that a request is over: who hears that its client left may have stood still."""
        return done + max(self.stopped_across(name, done) for name in ("stop-gateway", "stop-broker"))

    def cost(self, request: Request) -> float:
        """Seconds that faults can have cost it."""
        cost = 0.0
        faults = self.overlapping(request.sent, request.done)
        if any(fault.name in ENDINGS for fault in faults):
            cost = ENDING_COSTS_SECONDS
        for fault in faults:
            if fault.name in STOPS:
                overlap = min(fault.over, request.done) - max(fault.at, request.sent)
                most = WORKER_STOP_COSTS_SECONDS if fault.name == "stop-worker" else float("inf")
                cost += max(0.0, min(overlap, most))
        return cost


class Crowd:
    """How many requests were open, moment by moment; and how many a queue may hold."""

    def __init__(self, history: History, heard_by_all: Callable[[float], float]) -> None:
        self._capacity = history.settings.get("capacity", 1024)
        steps: list[tuple[float, int]] = []
        for request in history.requests.values():
            status = request.answers[0].status if request.answers else 0
            if status == 429:
                continue  # nobody held it
            is_told = status and status != 408
            known = request.done if is_told else heard_by_all(request.done) + LEFT_SECONDS
            steps += ((request.sent, 1), (known, -1))
        steps.sort()
        self._at = [at for at, _ in steps]
        self._open = list(accumulate(step for _, step in steps))

    def was_full(self, since: float, until: float) -> bool:
        first, last = bisect_right(self._at, since), bisect_right(self._at, until)
        return max(self._open[max(0, first - 1) : last], default=0) >= self._capacity


def check(history: History) -> list[Violation]:
    """Everything that was violated, in the order of time."""
    from tests.chaos.checker_mesh import check_mesh

    times = Times(history)
    found = [violation for request in history.requests.values() for violation in check_request(request, times)]
    found += [Violation("I2", one["t"], one["t"], f"an answer that nobody asked for: {one}") for one in history.extras]
    found += [Violation("I3", one["t"], one["t"], f"about a nonce never sent: {one}") for one in history.strangers]
    found += check_charges(history)
    found += check_mesh(history)
    return sorted(found, key=lambda violation: violation.at)


def check_request(request: Request, times: Times) -> Iterator[Violation]:
    since, until = request.sent, request.done

    def violated(invariant: str, text: str) -> Violation:
        return Violation(invariant, since, until, f"request {request.nonce} to {request.route}: {text}")

    if request.left is None:
        yield from (violated(*words) for words in _outcome(request, times))
    for again in request.answers[1:]:
        yield violated("I2", f"another answer, {again.status}, {again.at - until:.3f} s after the first")
    if request.runs:
        yield from (violated("I5", text) for text in _runs(request, times))
    for batch in request.runs:
        stopped = times.any(STOPS, since, batch.begin)
        late = batch.begin - request.deadline
        if late > LATE_SECONDS and not stopped:
            yield violated("I11", f"began at {batch.stage} {late:.3f} s after its deadline")
        late = batch.begin - (request.left or batch.begin)
        if late > LEFT_SECONDS and not stopped:
            yield violated("I11", f"began at {batch.stage} {late:.3f} s after its client left")


def _outcome(request: Request, times: Times) -> Iterator[tuple[str, str]]:
    if not request.answers:
        how = "its connection broke" if request.broken is not None else "it has no answer"
        yield "I1", f"{how}, {request.done - request.sent:.3f} s after it was sent"
        return
    answer = request.answers[0]
    if answer.request_id != request.nonce:
        yield "I3", f"the answer names request {answer.request_id}"
    if answer.status == 200:
        if request.how == "poison":
            yield "I8", "a poison was answered 200"
        elif (answer.nonce, answer.answer) != (request.nonce, 2 * request.nonce + 1):
            yield "I3", f"the answer has nonce {answer.nonce} and result {answer.answer}"
    elif (invariant := _unexplained(request, answer, times)) is not None:
        yield invariant, f"{answer.status} {answer.text!r} after {answer.at - request.sent:.3f} s, unexplained"
    stopped = max(times.stopped_across("stop-gateway", moment) for moment in (request.sent, request.deadline))
    allowed = LATE_SECONDS + times.late(answer.at) + stopped
    if answer.at > request.deadline + allowed:
        yield "I4", f"answered {answer.at - request.deadline:.3f} s after its deadline"
    if request.how == "poison" and (kills := len(_ended(request, times, by_poison=True))):
        group = max(len(batch.nonces) for batch in request.runs)
        if kills > POISON_KILLS + log2(group):
            yield "I8", f"a poison in a group of {group} ended {kills} workers"


def _unexplained(request: Request, answer: Answer, times: Times) -> str | None:
    """The invariant that this answer violates, if it does."""
    since, until = request.sent, answer.at
    match answer.status:
        case 408:
            is_due = answer.at >= request.deadline - LATE_SECONDS
            return None if is_due and times.cost(request) >= request.timeout else "I1"
        case 429:
            return None if times.crowd.was_full(since - SHUT_SECONDS, until) else "I1"
        case 500 if "outcome unknown" in answer.text:
            is_known = request.route != "/once" or not times.any(STOPS | ENDINGS, since, until)
            return "I1" if is_known else None
        case 500 if "worker died" in answer.text:
            if request.how == "poison":
                return None
            alone = [batch for batch in _ended(request, times, by_poison=False) if len(batch.nonces) == 1]
            return None if len(alone) >= 2 else "I8"
    return "I1"


def _ended(request: Request, times: Times, by_poison: bool) -> list[Batch]:
    """Runs of it that a poison ended, that is, no signal of ours; or that an abort of ours did."""
    ended = [batch for batch in request.runs if batch.end is None]
    found = []
    for batch in ended:
        hits = [fault for fault in times.overlapping(batch.begin, batch.begin + ECHO_SECONDS) if fault.pid == batch.pid]
        fatal = {fault.name for fault in hits} - STOPS - {"terminate-worker"}
        if (by_poison and not fatal) or (not by_poison and "abort-worker" in fatal):
            found.append(batch)
    return found


def _runs(request: Request, times: Times) -> Iterator[str]:
    """What is wrong with how often it was run."""
    since = request.sent
    last = max(batch.begin for batch in request.runs)
    losses = sum(fault.name in BROKER_LOSSES for fault in times.overlapping(since, last))
    by_stage: dict[str, list[Batch]] = {}
    for batch in sorted(request.runs, key=lambda batch: batch.begin):
        by_stage.setdefault(batch.stage, []).append(batch)
    is_excused = times.any(TWICE, since, last)
    for stage, batches in by_stage.items():
        if stage == "Once" and len(batches) > 1:
            yield f"began {len(batches)} times at {stage}, which runs nothing twice"
        if len(batches) > ATTEMPTS_MAX * (1 + losses):
            yield f"began {len(batches)} times at {stage}"
        if is_excused:
            continue
        for one, other in pairwise(batches):
            if one.end is not None and other.begin < one.end:
                yield f"ran twice at the same time at {stage}, in {one.pid} and {other.pid}"
        if request.answers and batches[-1].begin > request.done + LATE_SECONDS:
            yield f"began at {stage} {batches[-1].begin - request.done:.3f} s after its answer"


def charged_deaths(history: History) -> int:
    """What all brokers of the run counted, as far as samples show."""
    charged, before = 0, Counter[str]()
    for sample in history.samples:
        for stage in sample.get("stages", ()):
            name = f"{sample['epoch']}/{stage['name']}"
            charged += max(0, stage["deaths"] - before[name])
            before[name] = max(before[name], stage["deaths"])
    return charged


def check_charges(history: History) -> Iterator[Violation]:
    """The broker charges no death that nobody is to blame for; and an agent's children go with it."""
    poisons = {request.nonce for request in history.requests.values() if request.how == "poison"}
    ended_by_poison = sum(batch.end is None and not poisons.isdisjoint(batch.nonces) for batch in history.batches)
    aborts = sum(fault.name == "abort-worker" for fault in history.faults)
    charged = charged_deaths(history)
    if charged > ended_by_poison + aborts:
        at = history.samples[-1]["t"]
        known = f"there were {aborts} aborts and {ended_by_poison} poisoned batches"
        yield Violation("I8", history.samples[0]["t"], at, f"{charged} deaths were charged, but {known}")
    for fault in history.faults:
        if fault.gone_in > GONE_SECONDS:
            yield Violation(
                "kin", fault.at, fault.over, f"children of a killed agent were gone after {fault.gone_in:.2f} s"
            )
