"""What workers say of their batches: rows, leases and lateness."""

from dataclasses import replace

from tests.unit.core.world import KILLED, SEGFAULT, WorkerPeer, World, stage
from zmesh.config import Limits
from zmesh.messages import LIST_ITEMS_MAX, Ack, Kind, Reply, Results, SessionId, Status, Tasks
from zmesh.wire import decode, encode

# Rows


def test_one_guilty_row_does_not_touch_its_neighbours():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1, 2, 3))
    results = worker.finishes(1, statuses={1: Status.VALIDATION}, payload=b"r")
    assert world.turn(results) == ["g ← REPLY 1 ok 'r', 2 VALIDATION 'r', 3 ok 'r'"]
    assert (world.stage().counts.tasks_ok, world.stage().counts.tasks_error) == (2, 1)


def test_no_compute_time_makes_an_answer_that_its_gateway_cannot_read():
    world = World(stage("embed"), stage("rank"))
    gateway, one, two = world.gateway(), world.worker("w1", credit=1), world.worker("w2", of="rank", credit=1)
    world.turn(gateway.submits(1))
    for worker, lease in ((one, 1), (two, 2)):
        event = worker.finishes(lease)
        world.turn(replace(event, message=replace(event.message, compute_us=2**63 - 1)))
    (reply,) = world.messages(Reply)
    assert decode(encode(reply, SessionId(1)), Limits()) == (SessionId(1), reply)


def test_rows_that_are_finished_are_answered_before_the_rest_of_the_batch():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1, 2, 3))
    assert world.turn(worker.finishes(1, 2)) == ["g ← REPLY 3 ok"]
    assert world.turn(worker.finishes(1, 0)) == ["g ← REPLY 1 ok"]
    assert world.record(worker).credit == 0
    assert world.turn(worker.finishes(1, 1)) == ["g ← REPLY 2 ok"]
    assert world.record(worker).credit == 1


def test_a_success_moves_on_with_its_result_and_the_last_stage_answers():
    world = World(stage("embed"), stage("rank"))
    gateway, embed, rank = world.gateway(), world.worker("e", credit=1), world.worker("r", "rank", credit=1)
    world.turn(gateway.submits(1, payload=b"body"))
    assert world.turn(embed.finishes(1, payload=b"vector")) == ["r ← TASKS 2: 1"]
    assert world.task(1).payload == b"vector" and world.mesh.task_bytes == 6
    assert world.turn(rank.finishes(2, payload=b"score")) == ["g ← REPLY 1 ok 'score'"]
    (reply,) = world.messages(Reply)
    assert isinstance(reply, Reply) and reply.compute_us == [10] and world.mesh.task_bytes == 0


def test_an_error_in_the_middle_of_the_route_ends_the_task():
    world = World(stage("embed"), stage("rank"))
    gateway, embed = world.gateway(), world.worker("e", credit=1)
    world.worker("r", "rank", credit=1)
    world.turn(gateway.submits(1, 2))
    told = world.turn(embed.finishes(1, statuses={0: Status.BAD_REQUEST}))
    assert told == ["r ← TASKS 2: 2", "g ← REPLY 1 BAD_REQUEST"]


def test_routes_that_part_after_a_common_stage_each_go_their_way():
    world = World(stage("a"), stage("b"), stage("c"), routes={"/ab": ["a", "b"], "/ac": ["a", "c"], "/a": ["a"]})
    gateway, first = world.gateway(), world.worker("a1")
    world.worker("b1", "b", credit=1)
    world.worker("c1", "c", credit=1)
    for id, route in ((1, "/ab"), (2, "/ac"), (3, "/a"), (4, "/ab")):
        world.turn(gateway.submits(id, route=route))
    world.turn(first.credits(1))
    assert world.turn(first.finishes(1)) == ["b1 ← TASKS 2: 1 4", "c1 ← TASKS 3: 2", "g ← REPLY 3 ok"]


def test_routes_that_part_with_nobody_at_his_end_are_counted_as_well():
    world = World(stage("a"), stage("b"), stage("c"), routes={"/ab": ["a", "b"], "/ac": ["a", "c"]})
    gateway, first = world.gateway(), world.worker("a1")
    world.worker("b1", "b", credit=1)
    for id, route in ((1, "/ac"), (2, "/ab"), (3, "/ac")):
        world.turn(gateway.submits(id, route=route, payload=b"12345"))
    world.turn(first.credits(1))
    assert world.turn(first.finishes(1, payload=b"123")) == ["b1 ← TASKS 2: 2"]
    assert (world.mesh.task_bytes, world.stage("c").queue.waiting, world.stage("c").queue.bytes) == (9, 2, 6)


def test_the_kind_of_a_payload_travels_with_it():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    event = worker.finishes(1)
    event.message.kinds[0] = int(Kind.REFERENCE)
    world.turn(event)
    (reply,) = world.messages(Reply)
    assert isinstance(reply, Reply) and reply.kinds == [Kind.REFERENCE]


# Leases


def test_a_lease_that_is_finished_grants_credit_and_is_acknowledged_with_the_next_batch():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.turn(gateway.submits(2))
    assert world.turn(worker.finishes(1)) == ["w1 ← TASKS 2: 2, ACK 1", "g ← REPLY 1 ok"]
    record = world.record(worker)
    assert (record.batches, record.tasks, record.credit) == (1, 1, 0)


def test_without_a_next_batch_leases_are_acknowledged_at_the_heartbeat():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    for lease in (1, 2):
        world.turn(gateway.submits(lease))
        world.turn(worker.finishes(lease))
    assert world.wait(1.0) == ["w1 ← ACK 2"]
    assert world.wait(1.0) == []


def test_results_sent_twice_count_once_and_are_acknowledged_again():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1, 2))
    results = worker.finishes(1, 0)
    assert world.turn(results) == ["g ← REPLY 1 ok"]
    assert world.turn(results) == []
    assert world.record(worker).credit == 0
    world.turn(worker.finishes(1, 1))
    assert world.turn(results) == []
    assert world.record(worker).credit == 1 and world.stage().counts.tasks_ok == 2
    assert world.wait(1.0) == ["w1 ← ACK 1 1"]


def test_results_of_an_unknown_lease_are_late_and_the_worker_may_let_go_of_them():
    world = World()
    worker = world.worker(credit=1)
    assert world.turn(worker.finishes(77, 0, 1)) == []
    assert world.mesh.late == 2
    assert world.wait(1.0) == ["w1 ← ACK 77"]


def test_results_of_another_epoch_are_late_whatever_their_lease():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    assert world.turn(worker.finishes(1, epoch=4711)) == []
    assert world.mesh.late == 1 and len(world.mesh.tasks) == 1


def test_results_for_the_lease_of_another_worker_are_late():
    world = World()
    gateway = world.gateway()
    world.worker("w1", credit=1)
    world.turn(gateway.submits(1))
    thief = world.worker("thief", credit=1)
    assert world.turn(thief.finishes(1)) == []
    assert world.mesh.late == 1 and world.stage().leased == 1


def test_a_result_for_a_row_that_is_not_there_is_a_strike():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1, 2))
    told = world.turn(worker.finishes(1, 0, 2))
    assert told == ["warning: a peer broke the protocol: a result for row 2 of a batch of 2"]
    assert world.stage().leased == 2


def test_results_without_a_row_change_nothing():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    event = worker.finishes(1)
    empty = Results(event.message.epoch, event.message.lease, [], [], [], [])
    assert world.turn(type(event)(event.address, event.session, empty)) == []
    assert world.stage().leased == 1 and world.stage().batcher.service == 0.0


def test_a_stranger_has_no_results():
    world = World()
    stranger = world.stranger("w9", role=world.worker().role, socket=1)
    told = world.turn(stranger.finishes(1, 0))
    assert told == ["w9 ← REFUSE UNKNOWN_PEER: say HELLO again"]


# Lateness


def lost_with_lease(code: int = KILLED) -> tuple[World, WorkerPeer]:
    """w1 is gone with lease 1 of the tasks 1 and 2; they wait again."""
    world = World()
    gateway, agent, worker = world.gateway(), world.agent(), world.worker(credit=1)
    assert world.turn(gateway.submits(1, 2)) == ["w1 ← TASKS 1: 1 2"]
    world.turn(agent.reports(worker, code, lease=1))
    assert world.turn(after=0.02) == ["forget w1"]
    return world, worker


def test_a_late_success_counts_while_its_task_waits_again():
    world, worker = lost_with_lease()
    assert world.turn(worker.finishes(1, 0)) == ["g ← REPLY 1 ok"]
    assert world.stage().queue.waiting == 1


def test_a_late_success_takes_back_the_death_it_was_charged():
    world, worker = lost_with_lease(SEGFAULT)
    assert world.stage().queue.suspects == 2
    assert world.turn(worker.finishes(1)) == ["g ← REPLY 1 ok, 2 ok"]
    assert world.stage().queue.suspects == 0


def test_a_late_success_counts_while_its_task_runs_elsewhere_and_that_result_is_void():
    world, late = lost_with_lease()
    other = world.worker("w2", credit=0)
    assert world.turn(other.credits(1)) == ["w2 ← TASKS 2: 1 2"]
    assert world.turn(late.finishes(1, 0)) == ["g ← REPLY 1 ok"]
    assert world.turn(other.finishes(2)) == ["g ← REPLY 2 ok"]
    assert world.mesh.late == 1 and world.record(other).credit == 1


def test_the_death_of_a_worker_whose_row_is_void_does_not_touch_the_task():
    world = World(stage("embed"), stage("rank"))
    gateway, agent = world.gateway(), world.agent()
    first, second = world.worker("w1", credit=1), world.worker("w2")
    world.turn(gateway.submits(1))
    world.turn(agent.reports(first, KILLED, lease=1))
    world.turn(after=0.02)
    world.turn(second.credits(1))
    world.turn(first.finishes(1))
    assert world.task(1).hop == 1
    world.turn(agent.reports(second, SEGFAULT, lease=2))
    world.turn(after=0.02)
    assert world.task(1).deaths == 0 and world.stage("rank").queue.waiting == 1


def test_a_late_error_counts_for_nothing():
    world, worker = lost_with_lease()
    failed = worker.finishes(1, statuses={0: Status.INTERNAL, 1: Status.INTERNAL})
    assert world.turn(failed) == []
    assert world.stage().queue.waiting == 2 and world.mesh.late == 2


def test_a_late_success_for_a_stage_that_the_task_has_left_counts_for_nothing():
    world = World(stage("embed"), stage("rank"))
    gateway, agent = world.gateway(), world.agent()
    first, second = world.worker("w1", credit=1), world.worker("w2")
    world.turn(gateway.submits(1))
    world.turn(agent.reports(first, KILLED, lease=1))
    world.turn(after=0.02)
    world.turn(second.credits(1))
    world.turn(second.finishes(2, payload=b"second"))
    assert world.turn(first.finishes(1, payload=b"first")) == []
    assert world.task(1).payload == b"second" and world.mesh.late == 1


def test_who_speaks_in_a_session_that_was_closed_for_silence_is_told_to_say_hello_again_and_its_results_count():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    world.turn(worker.is_unreachable())
    assert world.wait(1.0, silent=[worker]) == ["forget w1"]
    assert world.turn(worker.finishes(1)) == ["w1 ← REFUSE UNKNOWN_PEER: say HELLO again", "g ← REPLY 1 ok"]


def test_results_that_come_after_the_end_of_their_process_are_not_acknowledged_and_grant_nothing():
    world, worker = lost_with_lease()
    world.turn(worker.finishes(1))
    assert world.wait(2.0) == []
    assert world.stage().tallies.of(0).running.sum == 0.0 and world.stage().batcher.service == 0.0


# Results of another epoch


def test_a_success_of_the_former_epoch_counts_for_a_task_that_waits_here_again():
    world = World(stage(max_batch_size=1))
    gateway, worker = world.gateway(), world.worker()
    world.turn(gateway.submits(1, 2, again=True))
    assert world.turn(worker.finishes_of_old(1, 9, payload=b"7")) == ["g ← REPLY 1 ok '7'"]
    assert world.mesh.late == 1 and list(world.mesh.tasks) == [2]
    assert world.stage().counts.tasks_ok == 1 and world.stage().queue.waiting == 1
    assert world.turn(worker.credits(1)) == ["w1 ← TASKS 1: 2"]


def test_a_success_of_the_former_epoch_moves_a_task_on_and_voids_the_lease_that_has_it():
    world = World(stage("embed"), stage("rank"))
    gateway, w1, w2 = world.gateway(), world.worker("w1", credit=1), world.worker("w2")
    rank = world.worker("rank", "rank", credit=1)
    world.turn(gateway.submits(1, 2, again=True))
    assert world.turn(w2.finishes_of_old(1, payload=b"half")) == ["rank ← TASKS 2: 1"]
    assert world.mesh.tasks[1].compute_us == 5
    assert world.turn(w2.finishes_of_old(1)) == [], "it has moved on"
    assert world.turn(w1.finishes(1)) == [] and world.mesh.late == 2
    assert world.turn(rank.finishes(2)) == ["rank ← TASKS 3: 2, ACK 2", "g ← REPLY 1 ok"]


def test_an_error_of_the_former_epoch_counts_for_nothing():
    world = World()
    gateway, worker = world.gateway(), world.worker()
    world.turn(gateway.submits(1, again=True))
    assert world.turn(worker.finishes_of_old(1, status=Status.INTERNAL)) == []
    assert world.mesh.late == 1 and list(world.mesh.tasks) == [1]


# Acknowledgements


def test_acknowledgements_are_split_like_any_list():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    many = list(range(1000, 1000 + LIST_ITEMS_MAX + 2))
    world.record(worker).acks = many.copy()
    world.turn(gateway.submits(1))
    (tasks,) = world.messages(Tasks)
    assert tasks.acks == many[:LIST_ITEMS_MAX]
    world.record(worker).acks = many.copy()
    world.turn(worker.beats(), gateway.beats(), after=1.0)
    assert [ack.leases for ack in world.messages(Ack)] == [many[:LIST_ITEMS_MAX], many[LIST_ITEMS_MAX:]]


def test_again_is_not_for_a_worker_to_say():
    world = World()
    gateway, worker = world.gateway(), world.worker(credit=1)
    world.turn(gateway.submits(1))
    assert world.turn(worker.finishes(1, statuses={0: Status.AGAIN})) == ["g ← REPLY 1 INTERNAL"]


def test_a_batch_in_whole_columns_ends_as_it_does_row_by_row():
    """In order it is taken at once, in any other order one row after another; two gateways, so that answers part."""
    seen = []
    for rows in ((0, 1, 2), (2, 1, 0)):
        world = World()
        one, two = world.gateway("one"), world.gateway("two")
        worker = world.worker()
        world.turn(one.submits(1, 2), two.submits(3), worker.credits(1))
        world.turn(worker.finishes(1, *rows, payload=b"done"), after=0.5)
        replies = [row for message in world.messages(Reply) for row in _rows(message)]
        record, counts = world.record(worker), world.stage().counts
        seen.append((sorted(replies), counts.tasks_ok, record.tasks, record.credit, world.stage().leased))
    assert seen[0] == seen[1]
    assert [row[:2] for row in seen[0][0]] == [(1, 0), (2, 0), (3, 0)]


def _rows(reply: Reply) -> list[tuple[object, ...]]:
    columns = reply.ids, reply.statuses, reply.kinds, reply.payloads, reply.attempts, reply.queue_us, reply.compute_us
    return list(zip(*columns, strict=True))
