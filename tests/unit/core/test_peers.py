"""What a gateway is owed: outcomes column by column, in one numbered reply a turn."""

from tests.unit.core.world import World
from zmesh.config import Limits
from zmesh.core.peers import Gateway
from zmesh.messages import Kind, Status, TaskId

LIMITS = Limits(message_rows_max=3, message_inline_bytes_max=100)


def a_gateway() -> tuple[World, Gateway]:
    world = World()
    peer = world.mesh.directory.sessions[world.gateway().session]
    assert isinstance(peer, Gateway)
    return world, peer


def test_a_gateway_that_is_owed_nothing_is_told_nothing():
    _, gateway = a_gateway()
    assert gateway.settle(LIMITS) == [] and gateway.number == 0


def test_outcomes_of_a_turn_are_told_together_and_once():
    world, gateway = a_gateway()
    world.turn(world.peers[0].submits(1))
    task = world.task(1)
    task.attempt, task.queue_us, task.compute_us = 3, 40, 50
    gateway.owed.add(task, int(Status.OK), b"result", int(Kind.REFERENCE))
    gateway.refuse(TaskId(2), Status.SHED, "full", 9.0)
    (reply,) = gateway.settle(LIMITS)
    assert (reply.number, reply.ids, reply.statuses) == (1, [1, 2], [Status.OK, Status.SHED])
    assert (reply.kinds, reply.payloads) == ([Kind.REFERENCE, Kind.INLINE], [b"result", b"full"])
    assert (reply.attempts, reply.queue_us, reply.compute_us) == ([3, 0], [40, 0], [50, 0])
    assert gateway.settle(LIMITS) == []


def test_replies_are_numbered_in_the_order_they_are_told():
    _, gateway = a_gateway()
    numbers = []
    for id in (1, 2, 3):
        gateway.refuse(TaskId(id), Status.SHED, "full", 9.0)
        (reply,) = gateway.settle(LIMITS)
        numbers.append(reply.number)
    assert numbers == [1, 2, 3]


def test_a_peer_is_what_it_said_in_its_hello():
    world, gateway = a_gateway()
    assert (gateway.host, gateway.pid, gateway.connection) == ("here", 17, 1)
    assert (gateway.heard, gateway.told, gateway.lost_at) == (world.now, world.now, None)


def test_outcomes_are_split_like_any_message():
    _, gateway = a_gateway()
    for id in range(7):
        gateway.refuse(TaskId(id), Status.SHED, "x" * (60 if id >= 5 else 1), 9.0)
    replies = gateway.settle(LIMITS)
    assert [(reply.number, reply.ids) for reply in replies] == [(1, [0, 1, 2]), (2, [3, 4, 5]), (3, [6])]
    assert all(len(reply.payloads) == len(reply.attempts) == len(reply.ids) for reply in replies)
    assert [kept.reply for kept in gateway.kept.said] == replies and gateway.number == 3


def test_again_is_told_apart_from_answers():
    _, gateway = a_gateway()
    gateway.refuse(TaskId(1), Status.AGAIN, "100", 9.0)
    gateway.refuse(TaskId(2), Status.SHED, "full", 9.0)
    assert [reply.statuses for reply in gateway.settle(LIMITS)] == [[Status.SHED], [Status.AGAIN]]
    assert gateway.kept.answered() == {2}


def test_a_gateway_that_comes_back_is_told_again_what_it_did_not_acknowledge_under_new_numbers():
    _, former = a_gateway()
    _, back = a_gateway()
    for id in (1, 2):
        former.refuse(TaskId(id), Status.SHED, "full", 9.0)
        former.settle(LIMITS)
    former.kept.acknowledge(1)
    former.refuse(TaskId(3), Status.SHED, "not told yet", 9.0)
    former.refuse(TaskId(4), Status.AGAIN, "100", 9.0)
    back.succeed(former, LIMITS)
    replies = back.say_again()
    assert [(reply.number, reply.ids) for reply in replies] == [(1, [2]), (2, [3])], "AGAIN is submitted again anyhow"
    assert [kept.reply for kept in back.kept.said] == replies and back.number == 2
    assert back.say_again() == []
