"""Answers are kept until they are acknowledged, nobody can want them, or their gateway is gone."""

from collections.abc import Iterable
from random import Random

import pytest

from tests.unit.core.world import GO, KILLED, Gateway, WorkerPeer, World, stage
from zmesh.config import Limits
from zmesh.core import events
from zmesh.core.effects import Send, Transmit
from zmesh.core.events import DispatcherEvent, LinkEvent
from zmesh.core.link import Link
from zmesh.core.peers import Gateway as GatewayRecord
from zmesh.core.replies import ROW_BYTES, KeptReplies, Outcomes, reply_bytes
from zmesh.messages import Heartbeat, Hello, Message, PeerId, Reply, SessionId, Status, Submit, TaskId, Tasks


def a_reply(number: int, *ids: int, status: Status = Status.OK, payload: bytes = b"") -> Reply:
    none = [0] * len(ids)
    return Reply(
        number, [TaskId(id) for id in ids], [int(status)] * len(ids), none, [payload] * len(ids), none, none, none
    )


def kept(*deadlines: float) -> KeptReplies:
    """REPLY 1 answers task 10, REPLY 2 task 20, …; each has the deadline given."""
    found = KeptReplies()
    for number, deadline in enumerate(deadlines, 1):
        found.keep(a_reply(number, 10 * number, payload=b"x" * number), deadline)
    return found


def numbers(found: Iterable) -> list[int]:
    return [one.reply.number for one in found]


# The account


def test_what_is_acknowledged_is_let_go_of_up_to_that_number():
    found = kept(9, 9, 9)
    assert found.bytes == 6 + 3 * ROW_BYTES and len(found) == 3
    found.acknowledge(0)
    assert numbers(found.said) == [1, 2, 3]
    found.acknowledge(2)
    assert numbers(found.said) == [3] and found.bytes == 3 + ROW_BYTES
    found.acknowledge(99)
    assert (len(found), found.bytes) == (0, 0)


def test_what_nobody_can_want_any_more_is_let_go_of_wherever_it_stands():
    found = kept(9, 5, 9)
    lost = found.said[2].reply
    found.lose(lost)
    found.expire(4.9)
    assert len(found) == 3
    found.expire(5.0)
    assert numbers(found.said) == [1] and numbers(found.unsaid) == [3]
    assert found.bytes == 4 + 2 * ROW_BYTES
    found.expire(9.0)
    assert (len(found), found.bytes) == (0, 0)


def test_what_was_not_sent_is_no_longer_acknowledged_by_a_number():
    found = kept(9, 9, 9)
    found.lose(found.said[1].reply)
    found.lose(a_reply(3, 30))  # not the very message: of an earlier session
    found.acknowledge(3)
    assert numbers(found.unsaid) == [2] and not found.said and found.bytes == 2 + ROW_BYTES
    assert numbers(found.take_unsaid()) == [2] and found.bytes == 0


def test_answers_are_found_by_task_and_again_is_none():
    found = kept(9, 9)
    found.keep(a_reply(3, 30, status=Status.AGAIN), 9)
    found.lose(found.said[0].reply)
    assert found.answered() == {10, 20}
    found.lose_session()
    assert numbers(found.unsaid) == [1, 2] and not found.said and found.bytes == 3 + 2 * ROW_BYTES


def test_the_deadline_of_a_reply_is_the_latest_of_its_tasks():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(1, ms=9000), gateway.submits(2, ms=2000))
    outcomes = Outcomes()
    outcomes.add(world.task(1), 0, b"", 0)
    outcomes.add(world.task(2), 0, b"", 0)
    outcomes.refuse(TaskId(3), 5, "full", 5.0)
    assert outcomes.deadline == world.now + 9.0
    outcomes.refuse(TaskId(4), 5, "full", world.now + 10.0)
    assert outcomes.deadline == world.now + 10.0
    assert [reply.number for reply in outcomes.replies(6, Limits())] == [7]


def test_a_row_costs_something_even_if_it_is_empty():
    assert reply_bytes([b"", b"abc"]) == 3 + 2 * ROW_BYTES


# In the broker


def served(**limits: object) -> tuple[World, Gateway, WorkerPeer]:
    """Task 1 was answered by REPLY 1, task 2 by REPLY 2."""
    world = World(stage(max_batch_size=1), **limits)
    gateway, worker = world.gateway(), world.worker(credit=3)
    for id in (1, 2):
        world.turn(gateway.submits(id))
        assert world.turn(worker.finishes(id, payload=b"42"))[-1] == f"g ← REPLY {id} ok '42'"
    assert len(world.kept(gateway)) == 2
    return world, gateway, worker


@pytest.mark.parametrize("how", ["submits", "cancels", "beats"])
def test_whatever_a_gateway_says_acknowledges(how: str):
    world, gateway, _ = served()
    said = gateway.beats(1) if how == "beats" else getattr(gateway, how)(9, handled=1)
    world.turn(said)
    assert numbers(world.kept(gateway).said) == [2]


def test_in_a_new_session_what_was_not_acknowledged_is_said_again_and_is_not_run_again():
    world, gateway, _ = served()
    world.turn(gateway.submits(3))
    world.turn(gateway.beats(1))
    gateway.reconnects()
    assert world.turn(gateway.greets()) == ["g ← WELCOME", "g ← REPLY 2 ok '42'"]
    assert world.messages(Reply)[0].number == 1
    assert world.turn(gateway.submits(2, 3, again=True)) == [], "2 is answered and 3 is with a worker"
    world.turn(gateway.beats(1))
    assert len(world.kept(gateway)) == 0
    assert world.turn(gateway.submits(2, again=True)) == ["w1 ← TASKS 4: 2"], "acknowledged, and asked anew"


def test_what_is_answered_in_the_turn_that_asks_again_is_not_run_again():
    world, gateway, worker = served()
    world.turn(gateway.submits(3))
    gateway.reconnects()
    world.turn(gateway.greets())
    assert world.turn(worker.finishes(3), gateway.submits(3, again=True)) == ["g ← REPLY 3 ok"]
    assert not world.mesh.tasks


def test_what_was_decided_in_the_turn_of_the_hello_is_not_lost():
    world, gateway, worker = served()
    world.turn(gateway.submits(3), gateway.beats(2))
    old = gateway.address
    done = worker.finishes(3, payload=b"7")
    gateway.reconnects()
    assert world.turn(done, gateway.greets()) == ["g ← WELCOME", "g ← REPLY 3 ok '7'"]
    assert all(effect.address != old for effect in world.effects)


def test_a_gateway_that_comes_back_in_the_turn_that_fills_it_is_full():
    world, gateway, worker = served(answer_bytes_max=3 * ROW_BYTES)
    world.turn(gateway.submits(3))
    done = worker.finishes(3, payload=b"42")
    gateway.reconnects()
    told = world.turn(done, gateway.greets())
    assert told == ["g ← WELCOME", "g ← REPLY 1 ok '42'", "g ← REPLY 2 ok '42'", "g ← REPLY 3 ok '42'"]
    assert list(world.mesh.held) == [gateway.session]


def test_a_kept_answer_comes_before_any_refusal():
    world, gateway, worker = served()
    agent = world.agent()
    gateway.reconnects()
    world.turn(gateway.greets())
    assert world.turn(gateway.submits(2, route="/nowhere", again=True)) == []
    world.turn(worker.leaves())
    world.turn(agent.reports(worker, 1, reason="boom", failing=True))
    assert world.turn(gateway.submits(1, 5, again=True)) == [
        "g ← REPLY 5 UNAVAILABLE 'stage embed does not start: boom'"
    ]


def test_answers_that_nobody_can_want_are_let_go_of_with_the_sweep():
    world, gateway, _ = served()
    world.wait(59.0)
    assert len(world.kept(gateway)) == 2
    world.wait(2.0)
    assert len(world.kept(gateway)) == 0


def test_a_reply_that_was_not_sent_is_said_again_with_the_next_sweep():
    world, gateway, _ = served()
    (unsent,) = world.messages(Reply)
    assert world.turn(events.SendFailed(gateway.address, unsent), gateway.beats(1)) == []
    assert world.turn(gateway.beats(), after=1.0)[0] == "g ← REPLY 2 ok '42'"
    assert world.messages(Reply)[0].number == 3


def test_a_reply_to_a_gateway_that_is_out_of_reach_waits_for_its_next_session():
    world, gateway, _ = served()
    (unsent,) = world.messages(Reply)
    world.turn(events.SendFailed(gateway.address, unsent), gateway.is_unreachable())
    assert world.turn(after=1.0) == ["w1 ← ACK 2"]
    gateway.reconnects()
    assert world.turn(gateway.greets()) == ["g ← WELCOME", "g ← REPLY 2 ok '42'", "g ← REPLY 1 ok '42'"]


def test_a_gateway_that_is_gone_leaves_no_answers_behind():
    world, gateway, other, _ = full()
    assert world.mesh.held
    world.turn(gateway.leaves())
    assert not world.mesh.held and world.kept(other).bytes == 0 and list(world.mesh.tasks) == [5]


def test_a_gateway_that_is_gone_in_the_turn_that_fills_it_is_told_nothing_and_not_held():
    world, gateway, worker = served(answer_bytes_max=3 * ROW_BYTES)
    world.turn(gateway.submits(3))
    assert world.turn(worker.finishes(3, payload=b"42"), gateway.leaves()) == ["forget g"]
    assert not world.mesh.held


# Above the bound


def full(**limits: object) -> tuple[World, Gateway, Gateway, WorkerPeer]:
    """The gateway g has taken no answer and may have no more; 3, 4 are its own, 5 is another's."""
    world, gateway, worker = served(answer_bytes_max=2 * ROW_BYTES, **limits)
    other = world.gateway("other")
    assert world.turn(gateway.submits(3, 4), other.submits(5)) == ["w1 ← TASKS 3: 5, ACK 2"]
    return world, gateway, other, worker


def test_tasks_of_a_gateway_that_takes_no_answers_are_not_leased_and_others_are():
    world, gateway, other, worker = full()
    assert (world.stage().queue.held, world.stage().queue.held_bytes, world.stage().queue.waiting) == (2, 2, 0)
    assert world.turn(worker.finishes(3), other.submits(6)) == ["w1 ← TASKS 4: 6, ACK 3", "other ← REPLY 5 ok"]
    assert world.turn(gateway.beats(1)) == [], "more than half the room is still taken"
    assert world.turn(gateway.beats(2)) == ["w1 ← TASKS 5: 3", "w1 ← TASKS 6: 4"]
    assert not world.mesh.held and world.stage().queue.held == 0


def test_what_waits_when_the_room_is_used_up_is_held_back_and_goes_on_before_others():
    world = World(stage(max_batch_size=1), answer_bytes_max=ROW_BYTES)
    gateway, other, worker = world.gateway(), world.gateway("other"), world.worker(credit=1)
    world.turn(gateway.submits(1, 2), other.submits(3), gateway.submits(4))
    assert world.turn(worker.finishes(1, payload=b"42")) == ["w1 ← TASKS 2: 2, ACK 1", "g ← REPLY 1 ok '42'"]
    assert world.stage().queue.held == 1, "4 waits, 2 was leased in the same turn and is finished"
    assert world.turn(worker.finishes(2)) == ["w1 ← TASKS 3: 3, ACK 2", "g ← REPLY 2 ok"]
    assert world.turn(other.submits(5)) == []
    assert world.turn(gateway.beats(2)) == []
    assert world.turn(worker.finishes(3)) == ["w1 ← TASKS 4: 4, ACK 3", "other ← REPLY 3 ok"]


def test_what_is_held_back_takes_no_room_from_other_gateways():
    world, gateway, other, _ = full(queue_tasks_max=2, queue_bytes_max=2)
    shed = ["g ← REPLY 6 SHED 'the queue of embed is full (2 tasks)'"]
    assert world.turn(gateway.submits(6), other.submits(7)) == ["w1 ← TASKS 4: 7", *shed]


def test_what_comes_back_from_a_worker_or_from_the_stage_before_is_held_back():
    world = World(stage("embed", max_batch_size=1), stage("rank"), answer_bytes_max=ROW_BYTES)
    gateway, agent = world.gateway(), world.agent()
    w1, w2, r = world.worker("w1", credit=1), world.worker("w2", credit=1), world.worker("r", "rank", credit=1)
    world.turn(gateway.submits(1, 2))
    world.turn(gateway.submits(9, route="/nowhere"))
    assert world.mesh.held
    assert world.turn(w1.finishes(1)) == []
    assert world.stage("rank").queue.held == 1
    world.turn(agent.reports(w2, KILLED, lease=2))
    world.turn(after=0.02)
    assert world.stage("embed").queue.held == 1
    assert world.turn(gateway.beats(1)) == ["w1 ← TASKS 3: 2, ACK 1", "r ← TASKS 4: 1"]
    assert world.turn(r.finishes(4)) == ["g ← REPLY 1 ok"]


def test_what_is_held_back_can_be_cancelled_answered_late_and_given_up():
    world, gateway, _, worker = full()
    world.turn(gateway.cancels(3))
    assert world.stage().queue.held == 1
    world.turn(worker.leaves())
    agent = world.agent()
    assert world.turn(agent.reports(worker, 1, reason="boom", failing=True))[-2:] == [
        "other ← REPLY 5 UNAVAILABLE 'stage embed does not start: boom'",
        "g ← REPLY 4 UNAVAILABLE 'stage embed does not start: boom'",
    ]
    assert not world.mesh.tasks


def test_a_gateway_that_comes_back_is_still_full_until_it_acknowledges():
    world, gateway, _, _ = full()
    gateway.reconnects()
    assert world.turn(gateway.greets()) == ["g ← WELCOME", "g ← REPLY 1 ok '42'", "g ← REPLY 2 ok '42'"]
    assert world.turn(gateway.submits(3, 4, again=True)) == []
    assert world.turn(gateway.submits(6, handled=2)) == ["w1 ← TASKS 4: 3", "w1 ← TASKS 5: 4"]


def test_a_full_gateway_is_free_again_when_the_deadlines_of_its_answers_have_passed():
    world, gateway, _, worker = full()
    world.turn(gateway.submits(7, ms=600_000), worker.finishes(3))
    assert world.wait(59.0) == ["w1 ← ACK 3"]
    assert "w1 ← TASKS 4: 7" in world.wait(2.0)
    assert not world.mesh.held


# A gateway in the broker's process


class Local:
    """A Link in the broker's process: what one says, the other hears in the same turn. All tasks are served at once."""

    def __init__(self, world: World) -> None:
        self.world, self.address, self.now = world, (-1, b"local"), world.now
        world.names[self.address] = "local"
        self.link = Link(PeerId(b"l" * 16), 7, "here", 1, world.plan.fingerprint, world.limits, Random(1), {GO: 1})
        self.worker = world.worker(credit=100)
        self.session = SessionId(0)
        self.turn(events.Started())
        self.turn(events.Tick())

    def turn(self, *happened: LinkEvent) -> None:
        said = [effect for effect in self.link.handle(*happened, now=self.now) if isinstance(effect, Transmit)]
        for effect in said:
            self.tell(self._event(effect.session, effect.message))

    def tell(self, event: DispatcherEvent) -> None:
        for effect in self.world.dispatcher.handle(event, now=self.now):
            if not isinstance(effect, Send):
                continue
            if effect.address == self.address:
                self.turn(events.Heard(effect.session, effect.message))
            elif isinstance(effect.message, Tasks):
                self.tell(self.worker.finishes(effect.message.lease, payload=b"x" * 1000))

    def _event(self, session: SessionId, message: Message) -> DispatcherEvent:
        match message:
            case Hello():
                return events.PeerGreeted(self.address, message)
            case Submit():
                return events.TasksSubmitted(self.address, session, message)
            case _:
                assert isinstance(message, Heartbeat)
                return events.PeerBeat(self.address, session, message)

    def kept(self) -> KeptReplies:
        found = self.world.mesh.directory.at(self.address)
        assert isinstance(found, GatewayRecord)
        return found.kept


def test_a_busy_gateway_in_the_brokers_process_has_few_answers_kept_and_an_idle_one_none():
    local = Local(World(stage(max_batch_size=1)))
    most = 0
    for _ in range(10_000):  # a second's worth
        local.now += 0.0001
        request = local.link.request(GO, b"x", None, local.now + 3.0, None)
        local.turn(events.RequestsAccepted([request]))
        most = max(most, len(local.kept()))
    assert local.link.pending == 0 and most <= 2
    assert len(local.kept()) == 1
    local.now += local.world.limits.heartbeat_seconds
    local.turn(events.Tick())
    assert (len(local.kept()), local.kept().bytes) == (0, 0)
