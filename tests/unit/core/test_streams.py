"""Streams in the dispatcher: one lease speaks to a client, and what has spoken is never run again."""

from __future__ import annotations

import pytest

from tests.unit.core.world import GO, KILLED, SEGFAULT, WorkerPeer, World, stage
from zmesh.core.effects import Send
from zmesh.core.events import SendFailed
from zmesh.core.tasks import TaskState
from zmesh.messages import EVENT_BYTES_MAX, Chunk, Phase, Reply, SessionId, Status, TaskId

BROKEN = "INTERNAL 'its worker was lost in the middle of the stream'"


@pytest.fixture(name="world")
def world_fixture() -> World:
    return World(stage("speak", max_batch_size=4))


def test_events_are_passed_on_at_once_and_the_reply_knows_how_many_there_were(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    assert world.turn(w.streams(1, 1, 2, text="a")) == ["g ← CHUNK 1: 1#0 'a', 2#0 'a'"]
    assert world.turn(w.streams(1, 2, seq=1, text="b")) == ["g ← CHUNK 1: 2#1 'b'"]
    assert world.turn(w.finishes(1, chunks=[1, 2])) == ["g ← REPLY 1 ok after 1 events, 2 ok after 2 events"]
    (reply,) = world.messages(Reply)
    assert isinstance(reply, Reply) and (reply.leases, reply.chunks) == ([1, 1], [1, 2])


def test_without_a_stream_a_reply_says_nothing_about_them(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1), w.finishes(1))
    world.turn(w.finishes(1))
    (reply,) = world.messages(Reply)
    assert isinstance(reply, Reply) and (reply.leases, reply.chunks) == (None, None)


def test_beside_a_stream_an_answer_without_one_counts_nothing(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.turn(w.streams(1, 1))
    assert world.turn(w.finishes(1, chunks=[1, 0])) == ["g ← REPLY 1 ok after 1 events, 2 ok"]
    (reply,) = world.messages(Reply)
    assert isinstance(reply, Reply) and (reply.leases, reply.chunks) == ([1, 0], [1, 0])


def test_each_gateway_hears_of_its_own_tasks_only(world: World):
    g1, g2, w = world.gateway("g1"), world.gateway("g2"), world.worker(credit=1)
    world.turn(g1.submits(1), g2.submits(2, 3))
    assert world.turn(w.streams(1, 1, 2, 3, text="a")) == ["g1 ← CHUNK 1: 1#0 'a'", "g2 ← CHUNK 1: 2#0 'a', 3#0 'a'"]


@pytest.mark.parametrize("why", ["another lease", "another worker", "another epoch", "nobody's task", "one that waits"])
def test_what_another_lease_says_is_dropped(world: World, why: str):
    g, w, other = world.gateway(), world.worker(credit=1), world.worker("w2")
    world.turn(g.submits(1))
    world.turn(g.submits(2))
    said = {
        "another lease": w.streams(9, 1),
        "another worker": other.streams(1, 1),
        "another epoch": w.streams(1, 1, epoch=7),
        "nobody's task": w.streams(1, 8),
        "one that waits": w.streams(1, 2),
    }[why]
    late = world.mesh.late
    assert world.turn(said) == []
    assert world.mesh.late == late + 1
    assert world.mesh.leases[1].streamed is None


def test_a_stage_that_is_not_the_last_of_a_route_has_nothing_to_say():
    world = World(stage("draft"), stage("speak"), routes={"/all": ["draft", "speak"], "/draft": ["draft"]})
    g, w = world.gateway(), world.worker(of="draft", credit=2)
    world.turn(g.submits(1, route="/all"), g.submits(2, route="/draft"))
    assert world.turn(w.streams(1, 1), w.streams(1, 2)) == ["g ← CHUNK 1: 2#0 'x'"]


def test_a_stranger_is_told_to_say_hello_and_one_who_is_no_worker_is_struck(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1))
    assert world.turn(w.streams(1, 1, session=SessionId(5))) == ["w1 ← REFUSE UNKNOWN_PEER: say HELLO again"]
    world.turn(WorkerPeer.streams(g, 1, 1))  # type: ignore[arg-type]
    assert world.mesh.directory.malformed == 1


def test_an_event_that_is_too_large_is_a_strike(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1))
    assert world.turn(w.streams(1, 1, text="x" * EVENT_BYTES_MAX)) != []
    text = "warning: a peer broke the protocol: an event of 1048577 bytes, at most 1048576"
    assert world.turn(w.streams(1, 1, seq=1, text="x" * (EVENT_BYTES_MAX + 1))) == [text]
    assert world.mesh.directory.malformed == 1


# ── never again after the first event ─────────────────────────────────────────────────────────────────────────────


def test_a_death_ends_the_stream_and_returns_the_others(world: World):
    g, a, w, other = world.gateway(), world.agent(), world.worker(credit=1), world.worker("w2")
    world.turn(g.submits(1, 2))
    world.turn(w.streams(1, 1))
    world.turn(a.reports(w, KILLED, lease=1))
    assert world.turn(after=0.1) == ["forget w1", f"g ← REPLY 1 {BROKEN}"]
    assert world.turn(other.credits(1)) == ["w2 ← TASKS 2: 2"]
    assert world.stage().counts.tasks_error == 1


def test_a_stream_that_died_is_not_suspected_and_its_neighbour_is(world: World):
    g, a, w = world.gateway(), world.agent(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.turn(w.streams(1, 1))
    world.turn(a.reports(w, SEGFAULT, lease=1))
    world.turn(after=0.1)
    assert world.stage().counts.deaths == 1
    assert world.stage().queue.suspects == 1
    assert 1 not in world.mesh.tasks


def test_a_lost_connection_ends_it_as_well(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1))
    world.turn(w.streams(1, 1))
    world.turn(w.is_unreachable())
    assert world.wait(1.5, silent=[w]) == ["forget w1", f"g ← REPLY 1 {BROKEN}"]


def test_it_lives_on_when_its_worker_comes_back_with_the_lease(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1))
    world.turn(w.streams(1, 1))
    world.turn(w.is_unreachable())
    w.reconnects()
    world.turn(w.greets(running=[1], epoch=world.mesh.directory.epoch))
    assert world.turn(w.streams(1, 1, seq=1)) == ["g ← CHUNK 1: 1#1 'x'"]


def test_it_ends_when_its_worker_comes_back_without_the_lease(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.turn(w.streams(1, 1))
    w.reconnects()
    assert world.turn(w.greets(epoch=world.mesh.directory.epoch)) == ["w1 ← WELCOME", f"g ← REPLY 1 {BROKEN}"]
    assert world.stage().queue.waiting == 1


def test_a_stage_that_runs_nothing_twice_says_the_same():
    world = World(stage("speak", retry=False))
    g, a, w = world.gateway(), world.agent(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.turn(w.streams(1, 1))
    world.turn(a.reports(w, KILLED, lease=1))
    assert world.turn(after=0.1)[1] == f"g ← REPLY 1 {BROKEN}, 2 INTERNAL 'outcome unknown'"


def test_a_batch_that_took_too_long_runs_only_those_again_that_said_nothing():
    world = World(stage("speak", timeout_seconds=1.0))
    g, a, w = world.gateway(), world.agent(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.turn(w.streams(1, 1), after=0.9)
    assert [str(effect) for effect in world.wait(1.2)] == [
        "agent ← KILL w1 while it runs 1: stage speak took longer than 1 s"
    ]
    world.turn(a.reports(w, KILLED, lease=1))
    (_, reply) = world.turn(after=0.1)
    assert reply == "g ← REPLY 1 TIMEOUT 'request timeout: the stage took longer than 1 s'"
    assert world.stage().queue.suspects == 1


def test_an_alarm_in_the_worker_does_not_set_it_apart_either():
    world = World(stage("speak", timeout_seconds=1.0))
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.turn(w.streams(1, 1))
    said = world.turn(w.finishes(1, statuses={0: Status.TIMEOUT, 1: Status.TIMEOUT}, chunks=[1, 0]))
    assert said == ["w1 ← TASKS 2: 2, ACK 1", "g ← REPLY 1 TIMEOUT after 1 events"]


def test_events_are_a_sign_of_life_for_a_lease(world: World):
    g, w, other = world.gateway(), world.worker(credit=1), world.worker("w2", credit=1)
    world.turn(g.submits(1))
    for number in range(4):
        world.wait(6)
        assert world.turn(w.streams(1, 1, seq=number)) == [f"g ← CHUNK 1: 1#{number} 'x'"]
    assert other.session in world.stage().crew.idle


def test_what_nobody_waits_for_is_no_sign_of_life(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.wait(6)
    world.turn(g.cancels(1))
    clock = world.mesh.leases[1].clock
    world.turn(w.streams(1, 1))
    assert world.mesh.leases[1].clock == clock


def test_a_silent_stream_is_not_run_elsewhere_as_well(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.turn(w.streams(1, 1))
    world.wait(12)
    assert world.turn(world.worker("w2").credits(1)) == ["w2 ← TASKS 2: 2"]
    assert world.turn(w.streams(1, 1, seq=1)) == ["g ← CHUNK 1: 1#1 'x'"]


def hedged(world: World) -> tuple[WorkerPeer, WorkerPeer]:
    """Task 1 runs at w1, which takes too long, and at w2 as well."""
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1))
    world.wait(12)
    other = world.worker("w2")
    assert world.turn(other.credits(1)) == ["w2 ← TASKS 2: 1"]
    return w, other


def test_of_two_workers_the_one_that_speaks_first_has_the_task(world: World):
    w, other = hedged(world)
    assert world.turn(other.streams(2, 1)) == ["g ← CHUNK 2: 1#0 'x'"]
    assert world.turn(w.streams(1, 1)) == []
    assert world.turn(w.finishes(1, chunks=[1])) == [], "its events were dropped, so it cannot be the answer"
    assert world.turn(other.finishes(2, chunks=[1])) == ["g ← REPLY 1 ok after 1 events"]


def test_if_that_is_the_first_one_the_second_is_told_to_stop(world: World):
    w, other = hedged(world)
    assert world.turn(w.streams(1, 1)) == [
        "w2 ← CANCEL 1: another worker has begun to answer",
        "g ← CHUNK 1: 1#0 'x'",
    ]
    assert world.turn(other.streams(2, 1)) == []
    assert world.turn(other.finishes(2, statuses={0: Status.CANCELLED})) == []
    assert world.turn(w.streams(1, 1, seq=1)) == ["g ← CHUNK 1: 1#1 'x'"]
    assert world.turn(w.finishes(1, chunks=[2])) == ["g ← REPLY 1 ok after 2 events"]
    assert not world.mesh.leases


def test_a_task_that_waits_to_be_run_elsewhere_goes_back_to_who_speaks(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.wait(12)
    assert world.stage().queue.waiting == 2
    assert world.turn(w.streams(1, 1)) == ["g ← CHUNK 1: 1#0 'x'"]
    assert (world.stage().queue.waiting, world.stage().leased) == (1, 1)
    assert world.turn(world.worker("w2").credits(1)) == ["w2 ← TASKS 2: 2"]
    assert world.turn(w.finishes(1, chunks=[1, 0])) == ["g ← REPLY 1 ok after 1 events, 2 ok"]


def test_a_task_whose_gateway_is_full_stays_where_it_is():
    world = World(stage("speak"), answer_bytes_max=200)
    g, w, other = world.gateway(), world.worker(credit=1), world.worker("w2", credit=0)
    world.turn(g.submits(1))
    world.turn(g.submits(2), other.credits(1))
    world.turn(other.finishes(2, payload=bytes(300)), after=0.1)
    world.wait(12)
    assert world.task(1).state is TaskState.HELD
    assert world.turn(w.streams(1, 1)) == []
    assert world.turn(w.finishes(1)) == ["g ← REPLY 1 ok"]


def test_a_row_that_was_answered_has_nothing_more_to_say():
    """Its task waits again: it was in a batch that took too long, and is to be run alone."""
    world = World(stage("speak", timeout_seconds=1.0))
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1, 2))
    world.turn(w.finishes(1, 0, statuses={0: Status.TIMEOUT}))
    assert world.turn(w.streams(1, 1)) == []
    assert world.turn(w.streams(1, 2)) == ["g ← CHUNK 1: 2#0 'x'"]


def test_what_has_moved_on_meanwhile_is_not_taken_back():
    world = World(stage("draft"), stage("speak"))
    g, w = world.gateway(), world.worker(of="draft", credit=1)
    world.turn(g.submits(1))
    world.wait(12)
    other = world.worker("w2", "draft")
    assert world.turn(other.credits(1)) == ["w2 ← TASKS 2: 1"]
    world.turn(other.finishes(2))
    assert world.task(1).is_last_hop
    assert world.turn(w.streams(1, 1)) == []
    assert world.task(1).lease is None


def test_what_the_other_one_finishes_without_a_word_counts_until_a_stream_has_begun(world: World):
    w, _ = hedged(world)
    assert world.turn(w.finishes(1)) == ["g ← REPLY 1 ok"]


def test_once_a_stream_has_begun_nobody_else_can_end_it(world: World):
    w, other = hedged(world)
    world.turn(other.streams(2, 1))
    assert world.turn(w.finishes(1)) == []
    assert world.turn(other.finishes(2, chunks=[1])) == ["g ← REPLY 1 ok after 1 events"]


def test_a_success_whose_events_were_all_lost_does_not_end_what_another_has(world: World):
    w, other = hedged(world)
    assert world.turn(w.finishes(1, chunks=[3])) == []
    assert world.turn(other.finishes(2)) == ["g ← REPLY 1 ok"]


def test_events_for_a_former_broker_do_not_end_a_stream(world: World):
    g, w, other = world.gateway(), world.worker(credit=1), world.worker("w2")
    world.turn(g.submits(1, 2, 3))
    world.turn(w.streams(1, 1))
    assert world.turn(other.finishes_of_old(1, 2, 3, chunks=[0, 2, 0])) == ["g ← REPLY 3 ok"]
    assert world.turn(w.finishes(1, chunks=[1, 0, 0])) == ["g ← REPLY 1 ok after 1 events, 2 ok"]


def test_a_task_that_is_cancelled_hears_nothing_more(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1))
    world.turn(w.streams(1, 1))
    assert world.turn(g.cancels(1)) == ["w1 ← CANCEL 1: client gone"]
    assert world.turn(w.streams(1, 1, seq=1)) == []
    assert world.turn(w.finishes(1, chunks=[2])) == []


def test_a_chunk_that_cannot_be_sent_is_lost(world: World):
    g, w = world.gateway(), world.worker(credit=1)
    world.turn(g.submits(1))
    world.turn(w.streams(1, 1))
    (sent,) = [effect for effect in world.effects if isinstance(effect, Send) and isinstance(effect.message, Chunk)]
    assert world.turn(SendFailed(g.address, sent.message)) == []
    assert world.mesh.tasks[TaskId(1)].lease is world.mesh.leases[1]


def test_a_death_in_decode_ends_a_stream_of_the_same_batch():
    """A once bisected batch: one row spoke, another is decoded anew and ends the process."""
    world = World(stage("speak"))
    g, a, w = world.gateway(), world.agent(), world.worker(credit=1)
    world.turn(g.submits(1, 2, route=GO))
    world.turn(w.streams(1, 1))
    world.turn(a.reports(w, SEGFAULT, lease=1, phase=Phase.DECODE, row=1))
    assert world.turn(after=0.1)[1] == f"g ← REPLY 1 {BROKEN}"
    assert world.stage().queue.suspects == 1
