"""Who lives under one agent, and in which order and how long they leave."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from zmesh.config import Plan, RoutePlan, Settings, StagePlan
from zmesh.household import DRAIN_GRACE_SECONDS, LEAVE_SECONDS, Departure, Household, household
from zmesh.processes import Slot

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
