"""The state and its primitive changes: counts stay true, the story of a task is told, the dead are told nothing."""

from tests.unit.core.world import World, stage
from zmesh.core.effects import Report, Send
from zmesh.core.tasks import Step
from zmesh.messages import Heartbeat, Status


def test_stages_and_routes_are_those_of_the_plan_in_their_order():
    world = World(stage("a"), stage("b"), stage("c"), routes={"/ab": ["a", "b"], "/ca": ["c", "a"]})
    assert [one.plan.name for one in world.mesh.stages] == ["a", "b", "c"]
    assert {path: route.stages for path, route in world.mesh.routes.items()} == {"/ab": (0, 1), "/ca": (2, 0)}


def test_what_is_told_to_a_peer_is_an_effect_and_remembered_as_a_sign_of_life():
    world = World()
    peer = world.mesh.directory.sessions[world.gateway().session]
    world.mesh.now += 3.0
    message = Heartbeat(1, 0, [])
    world.mesh.tell(peer, message)
    world.mesh.report("error", "bad news")
    assert world.mesh.effects == [Send(peer.address, peer.session, message), Report("error", "bad news")]
    assert peer.told == world.mesh.now


def test_the_story_of_a_task_says_where_it_has_been():
    world = World(stage("embed"), stage("rank"))
    gateway = world.gateway()
    embed, rank = world.worker("w1", credit=1), world.worker("w2", "rank", credit=1)
    world.turn(gateway.submits(1, 2))
    world.turn(embed.finishes(1), after=0.5)
    world.turn(rank.finishes(2, 0), after=0.5)
    assert world.dispatcher.story(world.task(2).id) == [
        "100.000000 submitted to /go",
        "100.000000 leased to embed/0",
        "100.500000 results of embed/0",
        "100.500000 leased to rank/0",
        "101.000000 results of rank/0",
    ]


def test_a_story_is_as_long_as_its_limit():
    world = World(story_steps_max=2)
    gateway = world.gateway()
    for id in (1, 2, 3):
        world.turn(gateway.submits(id))
    assert [bool(world.dispatcher.story(world.task(id).id)) for id in (1, 2, 3)] == [False, True, True]


def test_a_task_that_ends_leaves_every_count():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(1, payload=b"12345"))
    assert (world.mesh.task_bytes, world.stage().queue.waiting) == (5, 1)
    world.mesh.close(world.task(1), Step.FAIL, int(Status.INTERNAL), b"oh")
    assert (world.mesh.task_bytes, world.stage().queue.waiting, len(world.mesh.tasks)) == (0, 0, 0)
    assert world.turn() == ["g ← REPLY 1 INTERNAL 'oh'"]


def test_a_task_that_ended_keeps_no_payload_for_whoever_remembers_it():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1, payload=bytes(1000)))
    world.turn(gateway.is_unreachable(), worker.is_unreachable())
    world.wait(2.0, silent=[gateway, worker])
    (lease,) = world.mesh.late_leases.values()
    task = world.task(1)
    assert lease.tasks == [task] and len(task.payload) == 1000
    world.wait(4.0, silent=[gateway, worker])
    assert not world.mesh.tasks
    assert list(world.mesh.late_leases.values()) == [lease] and lease.tasks[0].payload == b""


def test_a_leased_task_that_ends_is_leased_no_more():
    world = World()
    gateway = world.gateway()
    world.worker(credit=1)
    world.turn(gateway.submits(1, 2))
    world.mesh.close(world.task(1), Step.CANCEL)
    assert world.stage().leased == 1
    assert world.turn() == []


def test_a_gateway_that_is_gone_is_told_nothing():
    world = World()
    gateway = world.gateway()
    world.turn(gateway.submits(1))
    task = world.task(1)
    world.mesh.directory.close(task.gateway)
    world.mesh.close(task, Step.FAIL, int(Status.INTERNAL), b"oh")
    assert not world.mesh.owed and world.turn() == []


def test_a_mesh_is_finished_when_every_answer_is_acknowledged_that_can_be():
    world = World(stage(max_batch_size=1))
    near, far, worker = world.gateway("near"), world.gateway("far"), world.worker(credit=2)
    assert world.mesh.is_finished
    world.turn(near.submits(1))
    world.turn(far.submits(2))
    assert not world.mesh.is_finished
    world.turn(worker.finishes(1), worker.finishes(2))
    assert not world.mesh.is_finished, "the answers may be on their way"
    world.turn(near.beats(handled=1))
    assert not world.mesh.is_finished
    world.turn(far.is_unreachable())
    assert world.mesh.is_finished, "who is gone cannot acknowledge"


def test_nobody_is_owed_what_nobody_is_there_to_hear():
    world = World()
    gateway = world.gateway()
    world.worker("w1", credit=1)
    world.turn(gateway.submits(1))
    task = world.task(1)
    world.mesh.directory.close(world.gateway_record(gateway))
    world.mesh.finish([task], [b"result"], [0])
    assert (world.mesh.owed, world.mesh.tasks, world.mesh.task_bytes) == ({}, {}, 0)


def test_when_the_bytes_midway_fall_every_stage_where_somebody_waits_is_looked_at():
    world = World(stage("embed"), stage("rank"))
    world.turn(world.gateway().submits(1))
    world.mesh.midway.fell = True
    assert world.mesh.next_awake() is world.stage("embed")
    assert world.mesh.next_awake() is None and not world.mesh.midway.fell
