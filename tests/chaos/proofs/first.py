"""First batches that take long, as those of a model that is compiled when it is first used."""

from __future__ import annotations

from time import monotonic

from tests.chaos.history import History
from tests.chaos.proofs.findings import Findings, Loaded, hold_all_right, loaded
from tests.harness import wait_until

FIRST_SECONDS = 120.0


def first_batch(found: Findings) -> None:
    """Every worker's first batch takes 20 s, the deadline is 60 s: every request is answered, nothing is charged."""
    seconds, timeout = (2.0, 6.0) if found.is_short else (20.0, 60.0)
    with loaded("run", route="whole", workers=4, timeout=timeout, slow_first=seconds) as it:
        pids = wait_all_have_begun(it, 4)
        it.wait_served(2000)
        same, deaths = pids == all_pids(it), it.deaths()
        history = it.finish(2 * timeout)
    found.note(f"first batches of {seconds:g} s against a deadline of {timeout:g} s")
    hold_all_right(found, history)
    hold_slow(found, history, 4, seconds)
    found.hold(same and deaths == 0, f"{deaths} deaths charged, all workers live on")


def blackout(found: Findings) -> None:
    """First batches of 10 s against a timeout of 3 s: late at first, and then the stage serves as if nothing was."""
    seconds, timeout = (3.0, 1.0) if found.is_short else (10.0, 3.0)
    with loaded("run", route="whole", workers=2, timeout=timeout, slow_first=seconds, clients=32) as it:
        began = monotonic()
        pids = wait_all_have_begun(it, 2)
        it.wait_served(2000)
        same, deaths = pids == all_pids(it), it.deaths()
        history = it.finish()
    hold_slow(found, history, 2, seconds)
    firsts = first_batches(history)
    after = max((end for end, _ in firsts.values()), default=began)
    late = [request for request in history.requests.values() if request.sent <= after]
    normal = [request for request in history.requests.values() if request.sent > after]
    refused = sum(request.answers[0].status == 408 for request in late if request.answers)
    found.note(f"a timeout of {timeout:g} s: {refused} requests got 408 in the first {after - began:.1f} s")
    before = History(requests={request.nonce: request for request in normal})
    hold_all_right(found, before)
    lasted = max((request.done for request in normal), default=after) - after
    found.note(f"that is {len(normal) / max(lasted, 0.001):.0f} a second from the end of the last first batch on")
    found.hold(same and deaths == 0, f"{deaths} deaths charged, all workers live on")


def wait_all_have_begun(it: Loaded, number: int) -> list[int]:
    """Until every worker has finished a batch; their pids."""

    def have() -> bool:
        it.load.check_alive()
        workers = [worker for stage in it.mesh.snapshot()["stages"] for worker in stage["workers"]]
        return all(worker["batches"] for worker in workers)

    wait_until(lambda: len(all_pids(it)) == number, FIRST_SECONDS, "every worker to be there")
    pids = all_pids(it)
    wait_until(have, FIRST_SECONDS, "every worker to have had its first batch")
    return pids


def all_pids(it: Loaded) -> list[int]:
    return sorted(worker["pid"] for stage in it.mesh.snapshot()["stages"] for worker in stage["workers"])


def first_batches(history: History) -> dict[int, tuple[float, float]]:
    """By process, when its first batch ended and how long it took."""
    firsts: dict[int, tuple[float, float]] = {}
    for batch in sorted(history.batches, key=lambda batch: batch.begin):
        end = batch.end if batch.end is not None else batch.begin
        firsts.setdefault(batch.pid, (end, end - batch.begin))
    return firsts


def hold_slow(found: Findings, history: History, workers: int, seconds: float) -> None:
    took = [took for _, took in first_batches(history).values()]
    is_so = len(took) == workers and min(took, default=0.0) >= seconds
    shown = ", ".join(f"{one:.1f}" for one in took)
    found.hold(is_so, f"{len(took)} first batches, none broken off: {shown} s")
