"""A crew: who is idle, who may be given work ahead, who will be free first; and the steps of a worker's presence."""

import pytest

from tests.unit.core.world import WorkerPeer, World
from zmesh.core.tasks import Task
from zmesh.core.workers import PRESENCE_STEPS, RUNNING_LOOKED_AT_MAX, Crew, Lease, Presence, PresenceStep, Worker
from zmesh.messages import LeaseId, Role, SessionId


class Yard:
    """A crew of its own, with workers that never said anything to a broker."""

    def __init__(self) -> None:
        self.world, self.crew, self.leases = World(), Crew(), 0

    def worker(self, credit: int = 1, presence: Presence = Presence.READY) -> Worker:
        number = len(self.crew.workers) + 1
        hello = WorkerPeer(self.world, f"w{number}", Role.WORKER, 1).greets(worker_id=number).message
        worker = Worker(SessionId(number), (1, bytes([number])), hello, 0, 0.0)
        worker.presence, worker.total = presence, credit
        self.crew.join(worker)
        return worker

    def give(self, worker: Worker, now: float = 0.0, *, rows: int = 1, suspect: bool = False) -> Lease:
        self.leases += 1
        tasks: list[Task] = [None] * rows
        lease = Lease(LeaseId(self.leases), worker, tasks, suspect)
        self.crew.spend(worker, lease, now)
        return lease


def test_every_presence_is_in_the_table_and_only_gone_has_no_way_out():
    assert set(PRESENCE_STEPS) == set(Presence)
    assert [presence for presence, steps in PRESENCE_STEPS.items() if not steps] == [Presence.GONE]


@pytest.mark.parametrize("presence", Presence)
@pytest.mark.parametrize("step", PresenceStep)
def test_a_worker_takes_the_steps_of_the_table_and_no_other(presence: Presence, step: PresenceStep):
    worker = Yard().worker(presence=presence)
    following = PRESENCE_STEPS[presence].get(step)
    if following is None:
        with pytest.raises(AssertionError, match=f"no {step.name} from {presence.name}"):
            worker.take(step)
    else:
        worker.take(step)
        assert worker.presence is following


def test_a_lease_takes_one_credit_and_a_finished_one_grants_one():
    yard = Yard()
    worker = yard.worker(credit=2)
    first = yard.give(worker)
    assert (worker.total, worker.used, worker.credit) == (2, 1, 1)
    yard.crew.release(worker, first, 1.0, grant=True)
    assert (worker.total, worker.used, worker.credit) == (3, 1, 2)
    assert not first.is_open


def test_a_lease_that_ended_otherwise_grants_nothing():
    yard = Yard()
    worker = yard.worker()
    yard.crew.release(worker, yard.give(worker), 1.0, grant=False)
    assert worker.credit == 0 and worker.session not in yard.crew.idle


def test_a_lease_that_was_answered_before_the_hello_grants_nothing():
    yard = Yard()
    worker = yard.worker()
    lease = yard.give(worker)
    lease.is_free = True
    yard.crew.release(worker, lease, 1.0, grant=True)
    assert worker.credit == 0


def test_nobody_is_given_more_than_the_credit():
    yard = Yard()
    worker = yard.worker(credit=1)
    yard.give(worker)
    with pytest.raises(AssertionError, match="never above credit"):
        yard.give(worker)


def test_the_longest_idle_comes_first():
    yard = Yard()
    first, second = yard.worker(), yard.worker()
    assert yard.crew.longest_idle() is first
    yard.crew.release(first, yard.give(first), 1.0, grant=True)
    assert yard.crew.longest_idle() is second
    assert first.idle_since == 1.0


@pytest.mark.parametrize(
    ("credit", "presence"), [(0, Presence.READY), (1, Presence.STARTING), (1, Presence.DRAINING), (1, Presence.LOST)]
)
def test_without_credit_or_readiness_a_worker_is_not_idle(credit: int, presence: Presence):
    yard = Yard()
    yard.worker(credit, presence)
    assert yard.crew.longest_idle() is None
    assert yard.crew.ready() == (presence is Presence.READY)


def test_an_idle_worker_that_loses_its_credit_is_idle_no_more():
    yard = Yard()
    worker = yard.worker()
    worker.take(PresenceStep.DRAIN)
    yard.crew.sort(worker)
    assert yard.crew.longest_idle() is None


def test_a_busy_worker_with_credit_left_may_be_given_work_ahead():
    yard = Yard()
    one, two = yard.worker(credit=1), yard.worker(credit=2)
    yard.give(one, 0.0)
    assert yard.crew.next_free(0.0, 0.0) is None
    yard.give(two, 0.5)
    assert yard.crew.next_free(0.5, 0.0) is two
    yard.give(two, 0.6)
    assert yard.crew.next_free(0.6, 0.0) is None


def test_behind_a_suspect_nothing_is_given_ahead():
    yard = Yard()
    worker = yard.worker(credit=2)
    yard.give(worker, suspect=True)
    assert yard.crew.next_free(0.0, 0.0) is None and worker.session in yard.crew.busy


def test_an_overdue_worker_is_given_nothing_ahead_but_the_next_one_may_be():
    yard = Yard()
    slow, quick = yard.worker(credit=2), yard.worker(credit=2)
    yard.give(slow, 0.0)
    yard.give(quick, 1.0)
    assert yard.crew.next_free(1.5, service=1.0) is slow
    assert yard.crew.next_free(1.6, service=1.0) is quick
    assert yard.crew.next_free(9.0, service=1.0) is None


def test_the_clock_of_a_lease_starts_when_it_becomes_the_oldest():
    yard = Yard()
    worker = yard.worker(credit=3)
    first, second, third = yard.give(worker, 1.0), yard.give(worker, 2.0), yard.give(worker, 3.0)
    assert (first.started, second.started) == (1.0, 2.0)
    yard.crew.release(worker, third, 4.0, grant=True)
    assert worker.oldest() is first and second.started == 2.0
    yard.crew.release(worker, first, 5.0, grant=True)
    assert worker.oldest() is second and second.started == 5.0


def test_a_few_of_those_who_run_longest_are_looked_at_with_what_they_run():
    yard = Yard()
    one, two = yard.worker(credit=2), yard.worker()
    assert list(yard.crew.longest_running()) == []
    first, ahead = yard.give(one, 1.0), yard.give(one, 1.1)
    second = yard.give(two, 2.0)
    assert list(yard.crew.longest_running()) == [(one, first), (two, second)]
    yard.crew.release(one, first, 3.0, grant=True)
    assert list(yard.crew.longest_running()) == [(two, second), (one, ahead)]
    for _ in range(2 * RUNNING_LOOKED_AT_MAX):
        yard.give(yard.worker(), 4.0)
    assert len(list(yard.crew.longest_running())) == RUNNING_LOOKED_AT_MAX


def test_a_worker_that_parts_is_in_no_order_any_more():
    yard = Yard()
    idle, busy = yard.worker(), yard.worker(credit=2)
    yard.crew.idle.pop(idle.session)
    yard.give(busy)
    yard.crew.sort(idle)
    yard.crew.part(idle)
    yard.crew.part(busy)
    crew = yard.crew
    assert not crew.workers and not crew.idle and not crew.busy and not crew.ahead
    crew.part(busy)  # twice is once
