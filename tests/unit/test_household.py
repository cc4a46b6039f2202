"""Who lives under one agent, and in which order and how long they leave."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

import zmesh.household as home
from zmesh.board import Board
from zmesh.config import Plan, RoutePlan, Settings, StagePlan
from zmesh.household import DRAIN_GRACE_SECONDS, LEAVE_SECONDS, Departure, House, Household, household, shared_memory
from zmesh.messages import PeerId
from zmesh.processes import Slot
from zmesh.segments import SharedMemory

STAGE = StagePlan(name="Embed", worker="app:Embed")
PLAN = Plan(stages=(STAGE,), routes=(RoutePlan(path="/go", stages=("Embed",)),))
BROKER = "tcp://127.0.0.1:5555"


def house(verb: str = "run", **settings: Any) -> Household:
    return household(verb, PLAN, Settings(**settings))


@dataclass
class Child:
    is_ready: bool = True
    told: list[dict[str, object]] = field(default_factory=list)
    killed: bool = False

    @property
    def pipe(self) -> "Child":
        return self

    def send(self, **words: object) -> None:
        self.told.append(words)

    def kill(self) -> None:
        self.killed = True


def slots(here: Household, **children: Child) -> list[Slot]:
    roles: Any = children
    return [Slot(role, STAGE if role == "worker" else None, 1, None, child=roles[role]) for role in roles]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (house(), False),
        (house("worker", connect=BROKER), True),
        (house(bind=BROKER, isolate_broker=True), True),
        (house(bind=BROKER), False),  # the broker leaves with the gateway
    ],
)
def test_workers_have_the_whole_time_to_drain_while_a_gateway_elsewhere_can_reach_them(here: Household, expected: bool):
    assert here.serves_others == expected
    assert here.seconds_to_leave("worker", 20.0) == (20.0 if expected else LEAVE_SECONDS)


@pytest.mark.parametrize(
    ("here", "roles", "names"),
    [
        (house(), ("gateway", "worker"), ["gateway", "Embed/1"]),
        (house(gateways=1, isolate_broker=True), ("broker", "gateway", "worker"), ["broker", "gateway", "Embed/1"]),
        (house(gateways=2), ("broker", "gateway", "worker"), ["broker", "gateway/1", "gateway/2", "Embed/1"]),
        (house(gateways=2, bind=BROKER, no_workers=True), ("broker", "gateway", "worker"),
         ["broker", "gateway/1", "gateway/2"]),
        (house("gateway", gateways=2, connect=BROKER), ("gateway",), ["gateway/1", "gateway/2"]),
        (house("worker", gateways=2, connect=BROKER), ("worker",), ["Embed/1"]),
        (house("broker", gateways=2, bind=BROKER), ("broker",), ["broker"]),
    ],
)  # fmt: skip
def test_several_gateways_have_a_broker_beside_them(here: Household, roles: tuple[str, ...], names: list[str]):
    found = here.slots(Random(1), 120)
    assert here.roles == roles and [slot.name for slot in found] == names
    assert here.gateways == max(1, sum(slot.role == "gateway" for slot in found))
    assert len({slot.key for slot in found}) == len(found), "each is waited for before all is said to be ready"


def test_a_gateway_that_is_gone_has_nothing_open_and_others_are_not_asked():
    board = Board.make(2, 1)
    for row in board.rows:
        row.enter(7)
    here = house(gateways=2)
    home = House(here, PeerId(b"a" * 16), PLAN, Settings(), "app.py", "", (), -1, board)
    by_name = {slot.name: slot for slot in here.slots(Random(1), 120)}
    home.clear(by_name["Embed/1"])
    home.clear(by_name["broker"])
    assert [row.pid for row in board.rows] == [7, 7]
    home.clear(by_name["gateway/2"])
    assert [row.pid for row in board.rows] == [7, 0]
    board.close()


def test_role_after_role_leaves_and_who_comes_later_is_still_needed():
    here = house(isolate_broker=True)
    gateway, worker, broker = Child(), Child(), Child()
    mine = slots(here, broker=broker, gateway=gateway, worker=worker)
    departure = Departure(here, mine, 20.0, 100.0)
    assert departure.go_on(100.0) and departure.leaving == "gateway"
    assert gateway.told == [{"say": "drain", "seconds": 20.0}] and worker.told == broker.told == []
    assert departure.until == 120.0 + DRAIN_GRACE_SECONDS
    assert [departure.stays(role) for role in ("gateway", "worker", "broker")] == [False, True, True]
    mine[1].child = None
    assert departure.go_on(105.0) and departure.leaving == "worker"
    assert worker.told == [{"say": "drain", "seconds": LEAVE_SECONDS}]
    mine[2].child = None
    assert departure.go_on(106.0) and departure.leaving == "broker"
    mine[0].child = None
    assert not departure.go_on(107.0)


def test_all_gateways_leave_at_the_same_time():
    here = house(gateways=2)
    first, second = Child(), Child()
    mine = [Slot("gateway", None, number, None, child=child) for number, child in ((1, first), (2, second))]  # type: ignore[arg-type]
    assert Departure(here, mine, 20.0, 0.0).go_on(0.0)
    assert first.told == second.told == [{"say": "drain", "seconds": 20.0}]


def test_who_has_not_begun_is_ended_and_nobody_takes_its_place():
    here = house("worker", connect=BROKER)
    mine = slots(here, worker=(starting := Child(is_ready=False)))
    assert Departure(here, mine, 20.0, 0.0).go_on(0.0)
    assert starting.killed and starting.told == [] and mine[0].start_at is None


def test_a_household_without_anybody_is_done_at_once():
    here = house("worker", connect=BROKER)
    assert not Departure(here, [], 20.0, 0.0).go_on(0.0)


def test_once_per_second_it_says_how_many_workers_have_not_finished():
    here = house("worker", connect=BROKER)
    departure = Departure(here, slots(here, worker=Child()), 20.0, 0.0)
    departure.go_on(0.0)
    assert departure.remaining(0.9) == ""
    assert departure.remaining(1.0) == "workers that still finish what they hold: 1, for 19 s at most"
    assert departure.remaining(1.5) == ""
    assert departure.remaining(2.1) != ""


def test_of_workers_that_nobody_needs_nothing_is_said():
    here = house()
    departure = Departure(here, slots(here, gateway=(gateway := Child()), worker=Child()), 20.0, 0.0)
    departure.go_on(0.0)
    assert departure.remaining(1.0) == "", "the gateway says it for itself"
    assert gateway.told
    departure.go_on(2.0)
    assert departure.remaining(3.0) == ""


# ── shared memory ─────────────────────────────────────────────────────────────────────────────────────────────────


TWO = Plan(
    stages=(StagePlan(name="decode", worker="app:Decode"), StagePlan(name="model", worker="app:Model")),
    routes=(RoutePlan(path="/digits", stages=("decode", "model")),),
)


def test_a_run_with_two_stages_has_a_directory_in_shared_memory_and_takes_it_along(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "MEMORY", tmp_path)
    (left := tmp_path / f"zmesh-{os.getuid()}" / "tmpabcdefgh").mkdir(parents=True, mode=0o700)
    (left / "lock").write_text("")
    with shared_memory(household("run", TWO, Settings()), TWO, Settings()) as sweeper:
        place = Path(sweeper.directory)
        assert place.parent == left.parent and place.stat().st_mode & 0o777 == 0o700
        assert not left.exists(), "what a killed run left is swept"
        (place / "payload").write_text("x")
        assert SharedMemory(place).get([b""])
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_others_is_taken_along(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "MEMORY", tmp_path)
    here = household("run", TWO, Settings())
    with shared_memory(here, TWO, Settings()) as first:
        with shared_memory(here, TWO, Settings()):
            pass
        assert Path(first.directory).is_dir()


@pytest.mark.parametrize(
    ("plan", "settings", "verb"),
    [(PLAN, {}, "run"), (TWO, {"no_shared_memory": True}, "run"), (TWO, {"connect": "tcp://127.0.0.1:1"}, "gateway")],
)
def test_who_has_no_use_for_shared_memory_has_none(tmp_path, monkeypatch, plan, settings, verb):
    monkeypatch.setattr(home, "MEMORY", tmp_path)
    with shared_memory(household(verb, plan, Settings(**settings)), plan, Settings(**settings)) as sweeper:
        assert sweeper.directory == "" and list(tmp_path.iterdir()) == []


def test_memory_that_cannot_be_used_is_no_reason_not_to_start(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(home, "MEMORY", tmp_path)
    (tmp_path / f"zmesh-{os.getuid()}").write_text("somebody else's")
    with shared_memory(household("run", TWO, Settings()), TWO, Settings()) as sweeper:
        assert sweeper.directory == ""
    assert "large results go through the broker" in caplog.text
    monkeypatch.setattr(home, "MEMORY", tmp_path / "none")
    with shared_memory(household("run", TWO, Settings()), TWO, Settings()) as sweeper:
        assert sweeper.directory == ""
