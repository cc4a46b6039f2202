"""A connection that ended, and nobody knows whose: the peers of its socket are asked, and not too often."""

from tests.unit.core.world import Peer, World, stage
from zmesh.core.effects import Send
from zmesh.core.events import ConnectionLost
from zmesh.messages import Heartbeat


def asked(world: World) -> list[str]:
    """Who was told a HEARTBEAT in the last turn."""
    sent = [effect for effect in world.effects if isinstance(effect, Send) and isinstance(effect.message, Heartbeat)]
    return [world.names[effect.address] for effect in sent]


def crowd() -> tuple[World, Peer]:
    world = World(stage("embed"), stage("rank"))
    gateway = world.gateway()
    world.agent()
    world.worker("e1", "embed", credit=1)
    world.worker("e2", "embed")
    world.worker("r", "rank")
    return world, gateway


def test_the_peers_of_a_socket_that_lost_somebody_are_asked_at_once_and_nobody_else():
    world, _ = crowd()
    assert world.turn(ConnectionLost(1)) == []
    assert asked(world) == ["e1", "e2"]
    world.turn(ConnectionLost(0))
    assert asked(world) == ["g", "agent"]
    world.turn(ConnectionLost(9))
    assert asked(world) == []


def test_they_are_asked_at_most_every_100_ms_and_nothing_is_forgotten():
    world, _ = crowd()
    world.turn(ConnectionLost(1), ConnectionLost(1))
    assert asked(world) == ["e1", "e2"], "once a turn"
    world.turn(ConnectionLost(1), after=0.04)
    world.turn(ConnectionLost(1), ConnectionLost(2), after=0.04)
    assert asked(world) == ["r"], "each socket has its own clock"
    due = world.dispatcher.next_wakeup()
    assert 0.019 < due - world.now < 0.021
    world.now = due
    world.turn()
    assert asked(world) == ["e1", "e2"]
    world.turn(after=0.2)
    assert asked(world) == [] and world.dispatcher.next_wakeup() > world.now


def test_who_is_known_to_be_gone_is_not_asked():
    world, gateway = crowd()
    world.turn(gateway.is_unreachable())
    world.turn(ConnectionLost(0))
    assert asked(world) == ["agent"]


def test_a_probe_counts_as_a_word_so_that_no_heartbeat_follows():
    world, _ = crowd()
    world.turn(ConnectionLost(0), after=0.9)
    everybody = [peer.beats() for peer in world.peers]
    world.turn(*everybody, after=0.1)
    assert asked(world) == ["e1", "e2", "r"]
