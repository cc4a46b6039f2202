"""Who may speak: HELLO and its refusals, sessions that do not agree, strikes."""

import pytest

from tests.unit.core.world import SEGFAULT, WorkerPeer, World, stage
from zmesh.config import Plan
from zmesh.core.directory import CLOSED_MAX, GIVEN_UP_MAX, STRUCK_MAX
from zmesh.core.workers import Worker
from zmesh.messages import Refuse, RefuseCode, Role, SessionId, Welcome


def two_stages(**limits: object) -> World:
    return World(
        stage("embed"), stage("rank", retry=False), routes={"/e": ["embed"], "/er": ["embed", "rank"]}, **limits
    )


# HELLO


def test_hello_is_answered_by_welcome_with_what_a_peer_has_to_know():
    world = two_stages()
    world.gateway()
    (welcome,) = world.messages(Welcome)
    assert isinstance(welcome, Welcome)
    assert (welcome.heartbeat_ms, welcome.dead_ms) == (1000, 5000)
    assert (welcome.stages, welcome.once_routes) == (["embed", "rank"], ["/er"])
    assert welcome.epoch == world.mesh.directory.epoch > 0
    assert welcome.session in world.mesh.directory.sessions


def test_hello_repeated_from_the_same_socket_is_welcome_again_in_the_same_session():
    world = two_stages()
    gateway = world.gateway()
    session = gateway.session
    assert world.turn(gateway.greets(), after=1.0) == ["g ← WELCOME"]
    assert gateway.session == session
    assert world.mesh.directory.sessions[session].heard == world.now


def test_hello_from_a_new_connection_opens_a_new_session_and_closes_the_old():
    world = two_stages()
    gateway = world.gateway()
    former = gateway.session
    gateway.reconnects()
    assert world.turn(gateway.greets()) == ["g ← WELCOME"]
    assert gateway.session != former and former not in world.mesh.directory.sessions


def test_hello_of_an_earlier_connection_is_dropped():
    world = two_stages()
    gateway = world.gateway()
    late = gateway.greets()
    gateway.reconnects()
    world.turn(gateway.greets())
    assert world.turn(late) == []
    assert world.mesh.directory.at(late.address) is None


def test_hello_that_libzmq_repeats_over_a_new_connection_opens_a_new_session():
    world = two_stages()
    gateway = world.gateway()
    gateway.reconnects()
    gateway.connection = 1  # the same socket of the gateway, the same HELLO, another routing id
    assert world.turn(gateway.greets()) == ["g ← WELCOME"]
    assert len(world.mesh.directory.sessions) == 1


def test_hello_of_a_known_process_in_another_role_is_dropped():
    world = two_stages()
    gateway = world.gateway()
    assert world.turn(gateway.greets(role=Role.AGENT, connection=2)) == []


def test_hello_of_a_worker_that_is_known_to_be_dead_is_dropped():
    world = two_stages()
    agent, worker = world.agent(), world.worker(credit=1)
    world.turn(agent.reports(worker, SEGFAULT))
    worker.reconnects()
    assert world.turn(worker.greets()) == []  # it was said before the end and read after
    assert world.turn(after=0.02) == ["forget the old w1"]


@pytest.mark.parametrize(
    ("role", "socket", "changes", "refusal"),
    [
        (Role.GATEWAY, 0, {"versions": [2, 3]}, "VERSION: this broker speaks zmesh/1, you [2, 3]"),
        (Role.GATEWAY, 1, {}, "ROLE: a gateway does not speak on this socket"),
        (Role.WORKER, 0, {"stage": "embed"}, "ROLE: a worker does not speak on this socket"),
        (Role.WORKER, 1, {"stage": "rank"}, "STAGE: stage 'rank' is not served here; known are embed, rank"),
        (Role.WORKER, 1, {"stage": "cook"}, "STAGE: stage 'cook' is not served here; known are embed, rank"),
    ],
)
def test_hello_is_refused_with_the_reason(role: Role, socket: int, changes: dict[str, object], refusal: str):
    world = two_stages()
    stranger = world.stranger(role=role, socket=socket)
    assert world.turn(stranger.greets(**changes)) == [f"stranger ← REFUSE {refusal}"]
    assert not world.mesh.directory.sessions and world.mesh.directory.refused == 1


@pytest.mark.parametrize(
    ("role", "socket", "what"),
    [(Role.GATEWAY, 0, "this gateway"), (Role.AGENT, 0, "these workers"), (Role.WORKER, 1, "this worker")],
)
def test_hello_of_another_app_is_refused_with_what_differs(role: Role, socket: int, what: str):
    world = two_stages()
    other = Plan(stages=(stage("embed"),), routes=world.plan.routes)
    stranger = world.stranger(role=role, socket=socket)
    changes = {"fingerprint": other.fingerprint, "stage": "embed" if socket else ""}
    assert world.turn(stranger.greets(**changes, shape=other.shape)) == [
        "stranger ← REFUSE FINGERPRINT: the head serves another app: its stages are embed, rank, yours embed; "
        f"start {what} with the same app file"
    ]
    assert world.turn(stranger.greets(**changes, shape="")) == [
        "stranger ← REFUSE FINGERPRINT: the head serves another app: its stages, routes or codecs differ from yours; "
        f"start {what} with the same app file"
    ]
    assert not world.mesh.directory.sessions


def test_a_worker_of_another_app_hears_of_the_app_before_it_hears_of_its_stage():
    world = two_stages()
    other = Plan(stages=(stage("embed"), stage("cook")), routes=())
    stranger = world.stranger(role=Role.WORKER, socket=2)
    (told,) = world.turn(stranger.greets(stage="cook", fingerprint=other.fingerprint, shape=other.shape))
    assert "its stages are embed, rank, yours embed, cook; you do not have its route" in told


def test_an_admin_needs_no_fingerprint():
    world = two_stages()
    assert world.turn(world.stranger(role=Role.ADMIN).greets(fingerprint="")) == ["stranger ← WELCOME"]


def test_hello_is_refused_when_there_are_too_many_peers():
    world = two_stages(peers_max=1)
    world.gateway()
    stranger = world.stranger()
    assert world.turn(stranger.greets()) == ["stranger ← REFUSE ERROR: this broker has 1 peers already"]


def test_a_full_broker_can_still_be_drained_by_its_own_process():
    world = two_stages(peers_max=1)
    world.gateway()
    admin = world.stranger("admin", role=Role.ADMIN, socket=-1)
    assert world.turn(admin.greets(fingerprint="")) == ["admin ← WELCOME"]


def test_a_peer_that_comes_back_is_not_one_too_many():
    world = two_stages(peers_max=1)
    gateway = world.gateway()
    gateway.reconnects()
    assert world.turn(gateway.greets()) == ["g ← WELCOME"]


def test_a_gateway_whose_task_ids_would_clash_is_refused():
    world = two_stages()
    world.gateway("gate-1")
    world.worker("gate-3")  # not a gateway: it makes no task ids
    stranger = world.stranger("gate-2")
    assert world.turn(stranger.greets()) == [
        "gate-2 ← REFUSE ERROR: another gateway has the same task ids; draw another peer id"
    ]


# Sessions


def test_a_session_nobody_knows_is_told_to_say_hello_again():
    world = two_stages()
    stranger = world.stranger()
    assert world.turn(stranger.beats()) == ["stranger ← REFUSE UNKNOWN_PEER: say HELLO again"]
    (refuse,) = world.messages(Refuse)
    assert isinstance(refuse, Refuse) and refuse.code is RefuseCode.UNKNOWN_PEER
    assert world.effects[0].session == SessionId(0)


def test_a_session_from_another_address_is_told_to_say_hello_again():
    world = two_stages()
    gateway, stranger = world.gateway(), world.stranger()
    stranger.session = gateway.session
    assert world.turn(stranger.beats()) == ["stranger ← REFUSE UNKNOWN_PEER: say HELLO again"]


def test_a_role_that_may_not_say_this_is_struck_and_changes_nothing():
    world = two_stages()
    worker, gateway = world.worker(credit=1), world.gateway()
    submitted = gateway.submits(1, route="/e")
    by_worker = type(submitted)(worker.address, worker.session, submitted.message)
    assert world.turn(by_worker) == ["warning: a peer broke the protocol: WORKER may not say this"]
    assert not world.mesh.tasks and world.mesh.directory.malformed == 1


def test_closed_sessions_of_workers_are_remembered_within_a_bound():
    world = two_stages()
    hello = world.stranger("w", Role.WORKER, 1).greets().message
    for number in range(CLOSED_MAX + 2):
        world.mesh.directory.close(Worker(SessionId(number), (1, b"w"), hello, 0, world.now))
    assert list(world.mesh.directory._closed) == list(range(2, CLOSED_MAX + 2))


def test_an_address_that_was_taken_over_is_not_forgotten_with_its_former_peer():
    world = two_stages()
    first, second = world.gateway("one"), world.stranger("two")
    second.address = first.address
    leaves = first.leaves()
    world.turn(second.greets())
    successor = world.mesh.directory.at(second.address)
    world.turn(leaves)
    assert successor is not None and world.mesh.directory.at(second.address) is successor


def test_a_process_is_a_worker_only_if_it_said_so():
    world = two_stages()
    gateway, worker = world.gateway(), world.worker()
    assert world.mesh.directory.worker_of(gateway.peer) is None
    assert world.mesh.directory.worker_of(worker.peer) is world.record(worker)


# Strikes


def struck(world: World, times: int = 5) -> WorkerPeer:
    worker = world.worker(credit=1)
    for _ in range(times):
        world.turn(worker.sends_rubbish())
    return worker


def test_each_strike_but_the_last_is_reported():
    world = World()
    worker = world.worker()
    warning = "warning: a peer broke the protocol: not a message"
    assert [world.turn(worker.sends_rubbish()) for _ in range(5)] == [[warning]] * 4 + [[]]
    assert world.mesh.directory.malformed == 5


def test_of_many_addresses_five_strikes_in_ten_seconds_are_reported_and_all_are_counted():
    world = World()

    def reports() -> int:
        return sum(bool(world.turn(world.stranger(f"stranger {number}").sends_rubbish())) for number in range(20))

    assert reports() == 5
    world.now += 9.9
    assert reports() == 0
    world.now += 0.2
    assert reports() == 5
    assert world.mesh.directory.malformed == 60


def test_five_strikes_within_ten_seconds_and_the_peer_is_not_heard_for_as_long():
    world = World()
    stranger = world.stranger()
    for _ in range(5):
        world.turn(stranger.sends_rubbish(), after=1.0)
    assert world.turn(stranger.greets()) == []
    assert world.turn(stranger.greets(), after=5.9) == []
    assert world.turn(stranger.greets(), after=0.2) == ["stranger ← WELCOME"]


def test_four_strikes_or_five_over_a_longer_time_are_forgiven():
    world = World()
    stranger = world.stranger()
    for _ in range(4):
        world.turn(stranger.sends_rubbish())
    world.turn(stranger.sends_rubbish(), after=10.0)
    assert world.turn(stranger.greets()) == ["stranger ← WELCOME"]


def test_others_are_heard_while_one_is_ignored():
    world = World()
    struck(world)
    assert world.turn(world.stranger().greets()) == ["stranger ← WELCOME"]
    assert world.turn() == []  # and what has no address is heard too


def test_an_ignored_worker_is_given_nothing_and_what_it_holds_is_run_elsewhere_uncharged():
    world = World()
    gateway = world.gateway()
    bad = world.worker("bad", credit=1)
    assert world.turn(gateway.submits(1, 2)) == ["bad ← TASKS 1: 1 2"]
    good = world.worker("good", credit=1)
    for _ in range(5):
        world.turn(bad.sends_rubbish())
    assert world.turn(bad.beats()) == ["forget bad", "good ← TASKS 2: 1 2"]
    assert world.stage().counts.deaths == 0 and world.task(1).deaths == 0
    assert world.turn(bad.finishes(1)) == []
    assert world.turn(good.finishes(2)) == ["g ← REPLY 1 ok, 2 ok"]


def test_what_the_broker_finds_out_about_an_ignored_peer_still_counts():
    world = World()
    worker = struck(world)
    world.turn(worker.is_unreachable())
    assert world.mesh.directory.at(worker.address).lost_at == world.now


def test_strikes_are_remembered_of_a_bounded_number_of_addresses():
    world = World()
    directory = world.mesh.directory
    for number in range(STRUCK_MAX + 10):
        directory.strike((0, number.to_bytes(4, "big")), "nonsense", world.now)
    assert len(directory._strikes) == STRUCK_MAX


def test_processes_that_were_given_up_are_remembered_within_a_bound():
    world = World()
    directory = world.mesh.directory
    peer = directory.sessions[world.gateway().session]
    for number in range(GIVEN_UP_MAX + 5):
        peer.peer = number.to_bytes(16, "big")
        directory.give_up(peer)
    assert len(directory._given_up) == GIVEN_UP_MAX and next(iter(directory._given_up)) == (5).to_bytes(16, "big")
