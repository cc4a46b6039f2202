"""One seed from beginning to end: a mesh under load and faults, then calm, then what must be true.

report = run(17)            # raises Failed, with the story, when something does not hold
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation import coverage, scenario
from tests.simulation.actors import Broker, Gateway
from tests.simulation.checks import Broken, Checks
from tests.simulation.faults import KINDS, Faults
from tests.simulation.host import Agent, Worker
from tests.simulation.model import Ask, Flaw
from tests.simulation.network import Cable, Network
from tests.simulation.scenario import FAULT_SECONDS, Burst
from tests.simulation.world import START, Line, World
from zmesh.messages import Status

__all__ = ["Failed", "Report", "Simulation", "run"]

HEALED_SECONDS_MAX = 60.0  # until every place has a worker that runs; the longest back-off is 36 s
RECOVERY_SECONDS = 10.0  # I7
OK = int(Status.OK)
DRAINED_SECONDS = 35.0  # the broker may learn so late of a connection that broke behind everybody
PROBES = 5  # fresh requests per gateway and route when all is calm
PROBE_SECONDS = 10.0
STEP_SECONDS = 0.25
LIVES = ((0.70, 8.0, 25.0), (0.22, 2.0, 8.0), (0.08, 0.02, 0.4))  # share of requests, seconds until the deadline
FLAWS = ((0.02, Flaw.BAD), (0.005, Flaw.RAISE), (0.0005, Flaw.HUGE))
LARGE = ((0.003, 70_000), (0.01, 3000))


@dataclass
class Report:
    """What one seed did."""

    seed: int
    tasks: int = 0
    faults: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)  # of faults
    hits: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    steps: int = 0
    seconds: float = 0.0  # of virtual time
    digest: str = ""  # of the transcript, if one was kept


class Failed(Exception):
    """A seed that does not hold what is promised."""

    def __init__(self, seed: int, text: str, story: list[Line]) -> None:
        super().__init__(f"{text}\nreplay it: python -m tests.simulation --seed {seed}")
        self.seed, self.text, self.story = seed, text, story

    def __reduce__(self) -> tuple[type, tuple[int, str, list[Line]]]:
        return Failed, (self.seed, self.text, self.story)


class Simulation:
    """Everybody who is there. Faults change it, checks look at it."""

    def __init__(self, seed: int, *, is_told: bool) -> None:
        self.world = World(seed, is_told=is_told)
        self.scenario = scenario.draw(seed, KINDS, is_told=is_told)
        self.plan, self.limits = self.scenario.plan, self.scenario.limits
        self.hits: Counter[str] = Counter()
        self.network = Network(self.world, self.limits)
        self.checks = Checks(self, self.hits)
        self.checks.is_thorough = is_told
        self.load, self.dice_for_strangers = self.world.dice("load"), self.world.dice("strangers")
        self.broker: Broker | None = None
        self.brokers = 0
        self.broken_until: dict[str, float] = {}  # stages whose workers do not start
        self.start_broker()
        local = not self.scenario.is_isolated
        self.gateways = [Gateway(self, n, is_local=local and n == 0) for n in range(self.scenario.gateways)]
        self.agents = [Agent(self, host, 0) for host in range(self.scenario.hosts)]
        self.former_agents: list[Agent] = []
        self.faults = Faults(self)
        self._probes: list[Ask] = []

    # What happens to it.

    def start_broker(self) -> None:
        self.brokers += 1
        self.broker = Broker(self, self.brokers)
        self.checks.broker_started(self.broker)
        self.world.tell(self.broker.name, f"starts, epoch {self.broker.epoch}")

    def is_broken(self, stage: str) -> bool:
        return self.broken_until.get(stage, 0.0) > self.world.now

    def workers(self) -> list[Worker]:
        return [worker for agent in self.agents for worker in agent.workers]

    def cables(self) -> list[Cable]:
        cables = [gateway.cable for gateway in self.gateways if gateway.line is not None]
        for agent in self.agents:
            cables += [agent.cable, *(slot.cable for slot in agent.slots)]
        return cables

    def ask(self, burst: Burst, *, flaw: Flaw = Flaw.NONE, seconds: float = 0.0, is_plain: bool = False) -> None:
        """One gateway accepts some requests; with `flaw` the first one has it, with `seconds` all live so long."""
        gateway = self.gateways[burst.gateway]
        stages = next(route.stages for route in self.plan.routes if route.path == burst.route)
        plain = [is_plain or (flaw is not Flaw.NONE and row == 0) for row in range(burst.count)]  # one flaw is enough
        asks = [self._ask(gateway, burst.route, stages, is_plain=one) for one in plain]
        if flaw is not Flaw.NONE:
            asks[0].flaw, asks[0].flaw_at = flaw, self.load.choice(stages)
        lives = [seconds or self._life() for _ in asks]
        gateway.arrive(asks, lives)

    def _ask(self, gateway: Gateway, route: str, stages: tuple[str, ...], *, is_plain: bool) -> Ask:
        nonce = len(self.checks.asks)
        payload, chance = b"%d:" % nonce, 1.0 if is_plain else self.load.random()
        flaw, flaw_at = Flaw.NONE, ""
        for share, kind in FLAWS:
            if chance < share:
                flaw, flaw_at = kind, self.load.choice(stages)
                break
            chance -= share
        else:
            size = next((size for share, size in LARGE if self.load.random() < share), 0)
            payload += b"." * size
        if flaw is Flaw.HUGE:
            payload += b"." * (self.limits.frame_bytes_max + 1)
        ask = Ask(nonce, gateway.name, route, stages, payload, self.world.now, 0.0, flaw, flaw_at)
        self.checks.add(ask)
        return ask

    def _life(self) -> float:
        chance = self.load.random()
        for share, least, most in LIVES:
            if chance < share:
                return self.load.uniform(least, most)
            chance -= share
        return LIVES[0][1]

    # The course of a seed.

    def run(self) -> None:
        for burst in self.scenario.bursts:
            self.world.at(START + burst.at, self.ask, burst)
        self.faults.schedule()
        self.world.run(START + FAULT_SECONDS)
        self.faults.stop()
        self.world.run(self.faults.end())
        self.world.tell("world", "calm")
        self._wait(self._is_staffed, HEALED_SECONDS_MAX, "a worker in every place")
        self._wait(self._serves_fresh_requests, RECOVERY_SECONDS, "answers to fresh requests")
        self._wait(lambda: not self.checks.unanswered(), RECOVERY_SECONDS, "an answer for everybody")
        self._wait(self.checks.is_drained, DRAINED_SECONDS, "empty broker")
        self.world.run(self.world.now + 2 * self.limits.heartbeat_seconds)  # for the last acknowledgements
        self.checks.at_the_end()

    def _wait(self, condition: object, seconds: float, what: str) -> None:
        end = self.world.now + seconds
        while not condition():  # type: ignore[operator]
            waiting = next((ask for ask in self.checks.asks if ask.status is None and not ask.is_abandoned), None)
            self.checks.expect(self.world.now < end, f"I7: no {what} within {seconds:g} s of calm", waiting)
            self.world.run(self.world.now + STEP_SECONDS)

    def _is_staffed(self) -> bool:
        places = [slot for agent in self.agents for slot in agent.slots]
        return all(slot.worker is not None and slot.worker.is_alive and slot.worker.is_booted for slot in places)

    def _serves_fresh_requests(self) -> bool:
        """Whether the latest of them were all answered; asks anew if one was shed by a queue that is still full, or
        belonged to what the last fault broke."""
        if not self._probes or any(ask.status not in (None, OK) for ask in self._probes):
            self._probes = self._probe()
        return all(ask.status == OK for ask in self._probes)

    def _probe(self) -> list[Ask]:
        before = len(self.checks.asks)
        for number in range(len(self.gateways)):
            for route in self.plan.routes:
                self.ask(Burst(0.0, number, route.path, PROBES), is_plain=True, seconds=PROBE_SECONDS)
        return self.checks.asks[before:]

    def report(self) -> Report:
        digest = self.world.digest() if self.world.is_told else ""
        faults, steps = self.faults, self.world.steps
        return Report(
            self.world.seed,
            len(self.checks.asks),
            sum(faults.counts.values()),
            self.checks.outcomes,
            faults.counts,
            self.hits,
            self.network.messages,
            steps,
            self.world.now - START,
            digest,
        )


def run(seed: int, *, is_told: bool = False, listen: object = None) -> Report:
    """Run one seed. Raises Failed. `is_told` keeps a transcript and looks at everything after every turn."""
    simulation = Simulation(seed, is_told=is_told)
    try:
        with coverage.watching(simulation.hits):
            simulation.run()
    except AssertionError as error:
        ask = error.ask if isinstance(error, Broken) else None
        simulation.world.tell("world", f"FAILED: {error}", [ask.id] if ask else [])
        story = [line for line in simulation.world.transcript if ask is None or ask.id in line.ids or is_news(line)]
        if callable(listen):
            listen(simulation)
        kind = "" if isinstance(error, Broken) else f"{type(error).__name__} in the core: "
        at = simulation.world.now - START
        raise Failed(seed, f"seed {seed} at {at:.6f} s: {kind}{error}", story) from error
    if callable(listen):
        listen(simulation)
    return simulation.report()


def is_news(line: Line) -> bool:
    """Lines that matter to every story: faults, and who starts and ends."""
    return line.who in ("fault", "world") or line.text.startswith(("starts", "ends with", "buries"))
