"""What a seed draws: the app, the limits, who runs where, how much is asked, and what goes wrong when.

Swarm testing: each seed leaves out about half of all kinds of faults, so that the others meet each other more often and
deeper than if everything always happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from zmesh.config import Limits, Plan, RoutePlan, StagePlan

__all__ = ["FAULT_SECONDS", "Burst", "Scenario", "draw"]

FAULT_SECONDS = 60.0  # faults and load last that long
CALM_SECONDS = 2.0  # of load before the first fault
TASKS_MIN = 2000
FAULTS_MIN = 22
KIB, MIB = 1024, 1024 * 1024
NAMES = ("a", "b", "c")
ROUTES = {
    1: [{"/one": "a"}],
    2: [{"/one": "ab", "/two": "b"}, {"/one": "ab", "/two": "ba"}, {"/one": "a", "/two": "ab"}],
    3: [{"/one": "abc", "/two": "cb", "/three": "b"}, {"/one": "ab", "/two": "cb"}, {"/one": "abc", "/two": "ca"}],
}


@dataclass(frozen=True, slots=True)
class Burst:
    """Requests that one gateway accepts in one turn."""

    at: float
    gateway: int
    route: str
    count: int


@dataclass(frozen=True, slots=True)
class Scenario:
    plan: Plan
    limits: Limits
    hosts: int
    gateways: int
    is_isolated: bool  # the broker has a process of its own; else the first gateway lives in it
    costs: dict[str, tuple[float, float]]  # seconds per batch and per row, by stage
    speakers: frozenset[str]  # stages that say something to clients while they run
    wire_seconds: float  # a usual delay
    bursts: list[Burst]
    fault_times: list[float]
    fault_odds: dict[str, float]


def draw(seed: int, kinds: dict[str, float], *, is_told: bool) -> Scenario:
    """`kinds` are the kinds of faults there are, with how often each happens compared to the others."""
    dice = Random(f"{seed} scenario")
    count = dice.choice((1, 1, 2, 2, 2, 3, 3))
    once = dice.randrange(count) if dice.random() < 0.35 else -1
    stages, costs = [], {}
    patience = Random(f"{seed} patience")
    for index, name in enumerate(NAMES[:count]):
        size = dice.choice((1, 4, 8, 16, 16, 32))
        costs[name] = (dice.uniform(0.002, 0.006), 0.0) if size == 1 else (dice.uniform(0.004, 0.030), 0.0005)
        stages.append(
            StagePlan(
                name=name,
                worker=name.upper(),
                num=dice.choice((1, 1, 2, 2, 3)),
                max_batch_size=size,
                max_wait_ms=dice.choice((0.0, 5.0, 10.0, 20.0)),
                batching=dice.choice(("crowd", "crowd", "fixed", "greedy")),
                spread=dice.random() < 0.2,
                retry=index != once,
                prefetch=dice.choice((1, 2, 2, 2, 3)),
                timeout_seconds=patience.choice((0.0, 0.0, 0.0, 0.5, 2.0, 6.0)),
            )
        )
    routes = dice.choice(ROUTES[count])
    plan = Plan(
        stages=tuple(stages),
        routes=tuple(RoutePlan(path=path, stages=tuple(names)) for path, names in routes.items()),
    )
    is_isolated = dice.random() < 0.6
    gateways, hosts = dice.choice((1, 2, 3)), dice.choice((1, 1, 2))
    peers = gateways + hosts * (1 + sum(stage.num for stage in stages))
    small = dice.random() < 0.3
    limits = Limits(
        queue_tasks_max=dice.choice((64, 128, 256)),
        late_leases_max=dice.choice((4, 64, 1024)),
        peers_max=peers + dice.choice((0, 2, 1000, 1000, 1000)),
        midway_bytes_max=Random(f"{seed} midway").choice((0, 60, 300, 256 * MIB)),
        answer_bytes_max=dice.choice((400, 400, 1500, 6000, 64 * MIB)),
        frame_bytes_max=256 * KIB,
        message_rows_max=dice.choice((5, 20)) if small else 4096,
        message_inline_bytes_max=8 * KIB if small else 128 * KIB,
        exit_grace_seconds=dice.choice((0.020, 0.020, 0.200)),
        stuck_seconds=patience.choice((10.0, 3.0)),
        stuck_first_seconds=patience.choice((60.0, 6.0)),
        story_steps_max=512 if is_told else 1,  # stories are told when a seed is replayed, and cost time
    )
    odds = {kind: weight for kind, weight in kinds.items() if dice.random() < 0.55}
    for kind in dice.sample(list(kinds), 6):
        odds.setdefault(kind, kinds[kind])
    streams = Random(f"{seed} streams")
    speakers = frozenset(NAMES[:count] if streams.random() < 0.25 else ())
    times = sorted(dice.uniform(CALM_SECONDS, FAULT_SECONDS) for _ in range(FAULTS_MIN + dice.randrange(20)))
    return Scenario(
        plan=plan,
        limits=limits,
        hosts=hosts,
        gateways=gateways,
        is_isolated=is_isolated,
        costs=costs,
        speakers=speakers,
        wire_seconds=dice.choice((0.0001, 0.0001, 0.001)),
        bursts=_bursts(dice, gateways, list(routes)),
        fault_times=times,
        fault_odds=odds,
    )


def _bursts(dice: Random, gateways: int, routes: list[str]) -> list[Burst]:
    bursts: list[Burst] = []
    tasks = 0
    while tasks < TASKS_MIN:
        at = dice.uniform(0.5, FAULT_SECONDS)
        count = dice.choice((1, 1, 2, 4, 8, 8, 16, 30))
        bursts.append(Burst(at, dice.randrange(gateways), dice.choice(routes), count))
        tasks += count
    return sorted(bursts, key=lambda burst: (burst.at, burst.gateway, burst.route))
