"""Every invariant bites: whatever is put out of true by hand is found."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.core.world import SEGFAULT, World, stage
from zmesh.core import invariants
from zmesh.core.replies import KeptReplies
from zmesh.core.tasks import Task, TaskState
from zmesh.core.workers import Presence


class Busy(World):
    """w1 has lease 2 of the tasks 3 and 4 and credit for one more, w2 is idle, 5 and 6 wait at rank, 1 and 2 are
    suspects; 9 waits at embed."""

    def __init__(self) -> None:
        super().__init__(stage("embed", max_batch_size=2), stage("rank"), routes={"/e": ["embed"], "/r": ["rank"]})
        gateway, agent, victim = self.gateway(), self.agent(), self.worker("victim", credit=1)
        self.turn(gateway.submits(1, 2, route="/e"))
        self.w1 = self.record(self.worker("w1", credit=2))
        self.turn(gateway.submits(3, 4, route="/e"), gateway.submits(5, 6, route="/r"))
        self.turn(agent.reports(victim, SEGFAULT, lease=1), after=0.1)
        self.turn(gateway.submits(9, route="/e"), after=0.02)
        self.w2 = self.record(self.worker("w2", "rank"))
        self.gateway_peer = gateway

    def check(self) -> None:
        invariants.check(self.dispatcher)

    def first(self, state: TaskState) -> Task:
        return next(task for task in self.mesh.tasks.values() if task.state is state)


def test_a_sound_world_is_sound():
    world = Busy()
    world.check()
    states = {task.id: task.state for task in world.mesh.tasks.values()}
    assert states == {1: 1, 2: 1, 3: 2, 4: 2, 5: 0, 6: 0, 9: 0}
    assert world.w1.credit == 1 and not world.w2.leases


def forget_task(world: Busy) -> None:
    del world.mesh.tasks[world.first(TaskState.QUEUED).id]


def queue_twice(world: Busy) -> None:
    world.stage("rank").queue.push([world.first(TaskState.QUEUED)])


def count_waiting(world: Busy) -> None:
    world.stage("embed").queue.waiting += 1


def count_suspects(world: Busy) -> None:
    world.stage("embed").queue.suspects -= 1


def count_bytes(world: Busy) -> None:
    world.stage("embed").queue.bytes += 1


def fail_stage(world: Busy) -> None:
    world.stage("embed").failing = "it says"


def close_session(world: Busy) -> None:
    del world.mesh.directory.sessions[world.w1.session]


def be_gone(world: Busy) -> None:
    world.w1.presence = Presence.GONE


def overdraw(world: Busy) -> None:
    world.w1.used = world.w1.total + 1


def seem_idle(world: Busy) -> None:
    world.stage("rank").crew.idle[world.w2.session] = world.w2


def seem_free(world: Busy) -> None:
    del world.stage("embed").crew.busy[world.w1.session]


def seem_ahead(world: Busy) -> None:
    del world.stage("embed").crew.ahead[world.w1.session]


def lose_lease(world: Busy) -> None:
    del world.mesh.leases[next(iter(world.w1.leases))]


def miscount_rows(world: Busy) -> None:
    next(iter(world.w1.leases.values())).left -= 1


def finish_rows(world: Busy) -> None:
    lease = next(iter(world.w1.leases.values()))
    lease.left, lease.answered = 0, bytearray(b"\1\1")


def swell(world: Busy) -> None:
    lease = next(iter(world.w1.leases.values()))
    lease.tasks += lease.tasks[:1]
    lease.answered += b"\0"
    lease.left += 1


def give_company(world: Busy) -> None:
    world.turn(world.gateway_peer.cancels(1, 2), world.gateway_peer.submits(10, route="/e"))
    next(iter(world.w1.leases.values())).suspect = True
    world.stage("embed").crew.sort(world.w1)


def drop_from_hands(world: Busy) -> None:
    world.w1.leases.clear()
    world.stage("embed").crew.sort(world.w1)


def keep_open(world: Busy) -> None:
    next(iter(world.mesh.late_leases.values())).is_open = True


def keep_too_many(world: Busy) -> None:
    lease = next(iter(world.mesh.late_leases.values()))
    for number in range(world.limits.late_leases_max + 1):
        world.mesh.late_leases[10_000 + number] = lease


def end_in_place(world: Busy) -> None:
    task = world.first(TaskState.LEASED)
    task.state = TaskState.DONE


def keep_lease(world: Busy) -> None:
    world.first(TaskState.QUEUED).lease = next(iter(world.mesh.leases.values()))


def release_task(world: Busy) -> None:
    world.first(TaskState.LEASED).lease = None


def lease_elsewhere(world: Busy) -> None:
    world.first(TaskState.LEASED).route = world.mesh.routes["/r"]


def answer_row(world: Busy) -> None:
    lease = next(iter(world.w1.leases.values()))
    lease.answered[0] = 1
    lease.left -= 1


def count_leased(world: Busy) -> None:
    world.stage("embed").leased += 1


def hide(world: Busy) -> None:
    world.mesh.tasks[77] = Task(77, world.mesh.routes["/r"], world.first(TaskState.QUEUED).gateway, b"", 0, 9, 9, None)


def count_all_bytes(world: Busy) -> None:
    world.mesh.task_bytes -= 1


def settle_an_end(world: Busy) -> None:
    world.mesh.end_in(1.0, world.w1)


def put_off_a_probe(world: Busy) -> None:
    world.mesh.probes[1] = world.now + 1.0


def mix_ends(world: Busy) -> None:
    for number in (2.0, 1.0):
        world.mesh.exiting.append((number, world.w1))


def count_held(world: Busy) -> None:
    world.stage("embed").queue.held += 1


def count_held_bytes(world: Busy) -> None:
    world.stage("embed").queue.held_bytes += 1


def count_share(world: Busy) -> None:
    world.gateway_record(world.gateway_peer).shares[0].tasks += 1


def count_share_bytes(world: Busy) -> None:
    world.gateway_record(world.gateway_peer).shares[0].bytes += 1


def count_gateways(world: Busy) -> None:
    world.mesh.directory.gateway_count += 1


def count_beyond(world: Busy) -> None:
    world.mesh.midway.beyond[0] += 1


def count_a_lane(world: Busy) -> None:
    world.stage("rank").queue._order[0].waiting -= 1


def keep_answers(world: Busy) -> KeptReplies:
    """Two answers were said and not acknowledged."""
    world.turn(world.gateway_peer.submits(21, route="/nowhere"))
    world.turn(world.gateway_peer.submits(22, route="/nowhere"))
    return world.kept(world.gateway_peer)


def mix_answers(world: Busy) -> None:
    keep_answers(world).said.reverse()


def keep_what_was_never_said(world: Busy) -> None:
    kept = keep_answers(world).said[1]
    kept.reply = replace(kept.reply, number=99)


def count_answers(world: Busy) -> None:
    keep_answers(world).bytes += 1


def keep_too_many_bytes(world: Busy) -> None:
    kept = keep_answers(world)
    kept.said[0].bytes += world.limits.answer_bytes_max
    kept.bytes += world.limits.answer_bytes_max


def hold_for_nobody(world: Busy) -> None:
    world.mesh.held[99] = world.first(TaskState.QUEUED).gateway


def lease_for_the_full(world: Busy) -> None:
    world.mesh.held[world.gateway_peer.session] = world.first(TaskState.QUEUED).gateway


def hold_for_nothing(world: Busy) -> None:
    lease_for_the_full(world)
    world.mesh._hold(world.first(TaskState.QUEUED).gateway)
    world.mesh.held.clear()


@pytest.mark.parametrize(
    ("put_out_of_true", "complaint"),
    [
        (queue_twice, "rank: a task waits twice"),
        (count_waiting, "embed: waiting"),
        (count_suspects, "embed: suspects"),
        (count_bytes, "embed: queued bytes"),
        (forget_task, "rank: a waiting task is unknown"),
        (fail_stage, "embed: failing with workers that are ready"),
        (close_session, "embed/0: at work without a session"),
        (be_gone, "embed/0: gone and still at work"),
        (overdraw, "embed/0: above its credit"),
        (seem_idle, "rank/0: idle or not"),
        (seem_free, "embed/0: busy or not"),
        (seem_ahead, "embed/0: may be given work ahead or not"),
        (lose_lease, "embed/0: lease 2"),
        (miscount_rows, "embed/0: rows left of lease 2"),
        (finish_rows, "embed/0: lease 2 has no row left"),
        (swell, "embed/0: lease 2 is too large"),
        (give_company, "embed/0: a suspect has company"),
        (drop_from_hands, "lease 2 is in nobody's hands"),
        (keep_open, "a lease that ended is open"),
        (keep_too_many, "more ended leases than may be kept"),
        (end_in_place, "task 3 is done and still here: .*submitted to /e; .*leased to embed/0"),
        (keep_lease, "task 5 waits and has a lease"),
        (release_task, "task 3 is leased by nobody"),
        (lease_elsewhere, "task 3 is leased at another stage"),
        (answer_row, "task 3: its row is answered"),
        (count_leased, "embed: leased tasks"),
        (hide, "each task waits or is leased"),
        (count_all_bytes, "bytes of all tasks"),
        (settle_an_end, "embed/0: its end is settled or not"),
        (mix_ends, "ends out of order"),
        (put_off_a_probe, "a probe is put off"),
        (count_held, "embed: held$"),
        (count_held_bytes, "embed: held bytes"),
        (count_share, "gateway .* at embed: its share"),
        (count_share_bytes, "gateway .* at embed: its share"),
        (count_gateways, "gateways$"),
        (count_beyond, "bytes beyond step 0"),
        (count_a_lane, "rank: available"),
        (mix_answers, "kept answers out of order"),
        (keep_what_was_never_said, "an answer was never said"),
        (count_answers, "bytes of kept answers"),
        (keep_too_many_bytes, "too many answers, and its tasks are leased"),
        (hold_for_nobody, "held back for the gateway 63, which is gone"),
        (lease_for_the_full, "task 5 may be leased, its gateway is full"),
        (hold_for_nothing, "task 5 is held back for nothing"),
    ],
)
def test_what_is_out_of_true_is_found(put_out_of_true: Callable[[Busy], None], complaint: str):
    world = Busy()
    put_out_of_true(world)
    with pytest.raises(AssertionError, match=complaint):
        world.check()
