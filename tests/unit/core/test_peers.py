"""What a gateway is owed: outcomes column by column, in one numbered reply a turn."""

from tests.unit.core.world import World
from zmesh.core.peers import Gateway
from zmesh.messages import Kind, Status, TaskId


def a_gateway() -> tuple[World, Gateway]:
    world = World()
    peer = world.mesh.directory.sessions[world.gateway().session]
    assert isinstance(peer, Gateway)
    return world, peer


def test_a_gateway_that_is_owed_nothing_is_told_nothing():
    _, gateway = a_gateway()
    assert gateway.settle() is None and gateway.number == 0


def test_outcomes_of_a_turn_are_told_together_and_once():
    world, gateway = a_gateway()
    world.turn(world.peers[0].submits(1))
    task = world.task(1)
    task.attempt, task.queue_us, task.compute_us = 3, 40, 50
    gateway.owe(task, int(Status.OK), b"result", int(Kind.REFERENCE))
    gateway.refuse(TaskId(2), Status.SHED, "full")
    reply = gateway.settle()
    assert reply is not None
    assert (reply.number, reply.ids, reply.statuses) == (1, [1, 2], [Status.OK, Status.SHED])
    assert (reply.kinds, reply.payloads) == ([Kind.REFERENCE, Kind.INLINE], [b"result", b"full"])
    assert (reply.attempts, reply.queue_us, reply.compute_us) == ([3, 0], [40, 0], [50, 0])
    assert gateway.settle() is None


def test_replies_are_numbered_in_the_order_they_are_told():
    _, gateway = a_gateway()
    numbers = []
    for id in (1, 2, 3):
        gateway.refuse(TaskId(id), Status.SHED, "full")
        reply = gateway.settle()
        assert reply is not None
        numbers.append(reply.number)
    assert numbers == [1, 2, 3]


def test_a_peer_is_what_it_said_in_its_hello():
    world, gateway = a_gateway()
    assert (gateway.host, gateway.pid, gateway.connection) == ("here", 17, 1)
    assert (gateway.heard, gateway.told, gateway.lost_at) == (world.now, world.now, None)
