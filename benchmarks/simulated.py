"""A mesh under a model of time: clients and workers that are made up, around the dispatcher that ships.

Clients are closed-loop (each asks again 125-375 µs after its answer) or open-loop (one by one, or 8-32 within 2 ms).
The gateway handles one request at a time, 25 µs in each direction; a hop to or from a worker takes 100 µs; a batch of
up to 32 takes as long as its worker is said to take, whatever its size. Nothing else is modelled: when a batch leaves,
and for whom, is decided by the code that ships.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from zmesh.config import Limits, Plan, RoutePlan, StagePlan
from zmesh.core.dispatcher import Dispatcher
from zmesh.core.effects import Send
from zmesh.core.events import Address, BatchFinished, CreditGranted, DispatcherEvent, PeerGreeted, TasksSubmitted, Tick
from zmesh.messages import (
    Columns,
    Credit,
    Hello,
    Kind,
    LeaseId,
    PeerId,
    Results,
    Role,
    SessionId,
    State,
    Status,
    Submit,
    TaskId,
    Tasks,
    Welcome,
    WorkerState,
)

__all__ = ["MAX_BATCH_SIZE", "Core", "Crew", "Load", "Started", "World"]

MAX_BATCH_SIZE = 32
PREFETCH = 2
GATEWAY_SECONDS = 25e-6
HOP_SECONDS = 100e-6
THINK_SECONDS = 250e-6
START_SECONDS = 0.060  # clients start one by one: no policy may profit from a common start
BURST_SECONDS = 0.002
BURST_SIZES = (8, 32)
ONLY, INLINE, OK = int(State.INGRESS | State.EGRESS), int(Kind.INLINE), int(Status.OK)


@dataclass(frozen=True)
class Crew:
    """The workers of one stage: the mean seconds each takes for a batch, and the sigma of its logarithm."""

    seconds: tuple[float, ...]
    sigma: float = 0.0

    @property
    def capacity(self) -> float:
        """Tasks a second."""
        return sum(MAX_BATCH_SIZE / seconds for seconds in self.seconds)

    @property
    def text(self) -> str:
        kinds = [f"{self.seconds.count(one)} x {one * 1e3:g}" for one in dict.fromkeys(self.seconds)]
        return f"{' + '.join(kinds)} ms{' ± ' + format(self.sigma, '.0%') if self.sigma else ''}"


@dataclass(frozen=True)
class Load:
    """What the stages have to serve. Requests take the routes in turn; a route is the numbers of its stages."""

    crews: tuple[Crew, ...]
    kind: str  # closed, poisson, bursts
    amount: float  # clients, or the share of the capacity that is asked for
    routes: tuple[tuple[int, ...], ...] = ()

    @property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The routes; unless they are given a single one through all stages."""
        return self.routes or (tuple(range(len(self.crews))),)

    @property
    def rate(self) -> float:
        """Requests a second, of an open loop."""
        shares = [sum(stage in path for path in self.paths) / len(self.paths) for stage in range(len(self.crews))]
        return self.amount * min(crew.capacity / share for crew, share in zip(self.crews, shares, strict=True))

    @property
    def seconds(self) -> float:
        """Long enough for a stage to learn, and for some thousand tasks."""
        slowest = max(max(crew.seconds) for crew in self.crews)
        if self.kind == "closed":
            return max(3.0, 300 * slowest)
        return max(3.0, 120 * slowest, min(40.0, 3000 / self.rate))

    @property
    def text(self) -> str:
        what = f"{self.amount:4.0f} clients" if self.kind == "closed" else f"{self.amount:4.0%} {self.kind:<7}"
        paths = f" (routes {', '.join('-'.join(str(stage + 1) for stage in path) for path in self.routes)})"
        return f"{' → '.join(crew.text for crew in self.crews)}{paths if self.routes else ''}, {what}"


# ── who decides ───────────────────────────────────────────────────────────────────────────────────────────────────


class Started(NamedTuple):
    """A batch on its way to a worker."""

    stage: int
    worker: int
    lease: int
    tasks: Sequence[int]


class Core:
    """The dispatcher that ships, with one gateway and the workers of each stage: told what a broker would tell it.

    Tasks are numbered from 0 in the order of their submission.
    """

    def __init__(self, mode: str, windows_seconds: Sequence[float], load: Load, spread: bool = False) -> None:
        """One window for each stage."""
        names = [f"stage{number}" for number in range(len(load.crews))]
        stages = tuple(
            StagePlan(
                name=name,
                worker="Model",
                num=len(crew.seconds),
                max_batch_size=MAX_BATCH_SIZE,
                max_wait_ms=window * 1000,
                batching=mode,
                spread=spread,
            )
            for name, crew, window in zip(names, load.crews, windows_seconds, strict=True)
        )
        self._paths = [f"/{number}" for number in range(len(load.paths))]
        routes = [
            RoutePlan(path=path, stages=tuple(names[stage] for stage in stages_of))
            for path, stages_of in zip(self._paths, load.paths, strict=True)
        ]
        self._plan = Plan(stages=stages, routes=tuple(routes))
        # Nobody here falls silent or sheds, so nobody's pulse is taken.
        limits = Limits(queue_tasks_max=10**6, mesh_tasks_max=10**6, heartbeat_seconds=1e6, dead_seconds=3e6)
        self._dispatcher = Dispatcher(self._plan, limits, Random(0), now=0.0)
        self._gateway = self._greet((0, b"gateway"), Role.GATEWAY)
        self._workers: dict[tuple[int, int], tuple[Address, SessionId]] = {}
        self._numbers: dict[SessionId, tuple[int, int]] = {}
        for stage, crew in enumerate(load.crews):
            for worker in range(len(crew.seconds)):
                self._add_worker(stage, worker)
        self._leased: dict[int, int] = {}  # tasks of each lease
        self._task_count = 0

    def _add_worker(self, stage: int, worker: int) -> None:
        address, session = self._greet((stage + 1, b"%d/%d" % (stage, worker)), Role.WORKER)
        self._workers[stage, worker], self._numbers[session] = (address, session), (stage, worker)
        self._handle(CreditGranted(address, session, Credit(PREFETCH, WorkerState.READY)), 0.0)

    def _greet(self, address: Address, role: Role) -> tuple[Address, SessionId]:
        peer = PeerId(address[1].ljust(16))
        stage = self._plan.stages[address[0] - 1].name if role is Role.WORKER else ""
        hello = Hello([1], role, peer, 1, "here", 1, self._plan.fingerprint, stage)
        for effect in self._dispatcher.handle(PeerGreeted(address, hello), now=0.0):
            if isinstance(effect, Send) and isinstance(effect.message, Welcome):
                self._epoch = effect.message.epoch
                return address, effect.message.session
        raise AssertionError(f"{role.name} was not welcome")

    @property
    def next_wakeup(self) -> float:
        return self._dispatcher.next_wakeup()

    def submit(self, route: int, now: float) -> list[Started]:
        """One task."""
        columns = Columns([TaskId(self._task_count)], [ONLY], [10**9], [1], [INLINE], [b""])
        self._task_count += 1
        return self._handle(TasksSubmitted(*self._gateway, Submit(self._paths[route], columns)), now)

    def finished(self, batch: Started, service_seconds: float, now: float) -> list[Started]:
        count = self._leased.pop(batch.lease)
        results = Results(
            epoch=self._epoch,
            lease=LeaseId(batch.lease),
            rows=list(range(count)),
            statuses=[OK] * count,
            kinds=[INLINE] * count,
            payloads=[b""] * count,
            compute_us=int(service_seconds * 1e6),
        )
        return self._handle(BatchFinished(*self._workers[batch.stage, batch.worker], results), now)

    def wake(self, now: float) -> list[Started]:
        return self._handle(Tick(), now)

    def _handle(self, event: DispatcherEvent, now: float) -> list[Started]:
        batches = []
        for effect in self._dispatcher.handle(event, now=now):
            if type(effect) is Send and type(tasks := effect.message) is Tasks:
                self._leased[tasks.lease] = len(tasks.columns.ids)
                batches.append(Started(*self._numbers[effect.session], tasks.lease, tasks.columns.ids))
        return batches


# ── the world around it ───────────────────────────────────────────────────────────────────────────────────────────


class World:
    """Clients, a gateway and workers around a core, from a seed."""

    def __init__(self, load: Load, core: Core, seed: int, tick_seconds: float = 0.0) -> None:
        self.load = load
        self.last_stages = [path[-1] for path in load.paths]
        self.core = core
        self.random = Random(seed)
        self.speed = Random(seed)  # apart, so that the arrivals are the same whatever is decided
        self.seconds = load.seconds
        self.tick = tick_seconds
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.count = 0
        self.gateway_free = 0.0
        self.wakes: float | None = None
        self.asked: list[tuple[float, int]] = []  # by task: when its client asked, and for which route
        self.asking: deque[tuple[float, int]] = deque()  # in the gateway
        self.latencies: list[float] = []
        self.sizes: list[list[int]] = [[] for _ in load.crews]  # of the batches of each stage
        workers = [(stage, worker) for stage, crew in enumerate(load.crews) for worker in range(len(crew.seconds))]
        self.running: dict[tuple[int, int], bool] = dict.fromkeys(workers, False)
        self.received: dict[tuple[int, int], deque[Started]] = {worker: deque() for worker in workers}

    def at(self, when: float, call: Callable[..., None], *arguments: object) -> None:
        self.count += 1
        heapq.heappush(self.heap, (when, self.count, call, arguments))

    def run(self) -> tuple[float, float]:
        """Answers per second, and their mean latency, after the first fifth."""
        if self.load.kind == "closed":
            for client in range(int(self.load.amount)):
                self.at(self.random.random() * START_SECONDS, self.ask, client % len(self.load.paths))
        else:
            self.at(0.0, self.generate)
        heap, pop = self.heap, heapq.heappop
        while heap and heap[0][0] <= self.seconds:
            self.now, _, call, arguments = pop(heap)
            call(*arguments)
        return len(self.latencies) / (0.8 * self.seconds), statistics.fmean(self.latencies or [self.seconds])

    def generate(self) -> None:
        if self.load.kind == "poisson":
            self.ask(self.any_route())
            self.at(self.now + self.random.expovariate(self.load.rate), self.generate)
            return
        for _ in range(self.random.randint(*BURST_SIZES)):
            self.at(self.now + self.random.random() * BURST_SECONDS, self.ask, self.any_route())
        self.at(self.now + self.random.expovariate(self.load.rate / statistics.fmean(BURST_SIZES)), self.generate)

    def any_route(self) -> int:
        return self.random.randrange(len(self.load.paths)) if self.load.routes else 0

    def ask(self, route: int) -> None:
        self.gateway_free = max(self.gateway_free, self.now) + GATEWAY_SECONDS
        self.asking.append((self.now, route))
        self.at(self.gateway_free, self.submit)

    def submit(self) -> None:
        self.asked.append(self.asking.popleft())
        self.perform(self.core.submit(self.asked[-1][1], self.now))

    def wake(self, when: float) -> None:
        if self.wakes == when:
            self.wakes = None
            self.perform(self.core.wake(self.now))

    def perform(self, batches: list[Started]) -> None:
        for batch in batches:
            self.sizes[batch.stage].append(len(batch.tasks))
            self.at(self.now + HOP_SECONDS, self.receive, batch)
        due = self.core.next_wakeup
        if self.tick:
            due = self.now + self.tick * math.ceil((due - self.now) / self.tick)
        if due != self.wakes:
            self.at(due, self.wake, due)
        self.wakes = due

    def receive(self, batch: Started) -> None:
        worker = (batch.stage, batch.worker)
        self.received[worker].append(batch)
        if not self.running[worker]:
            self.start(worker)

    def start(self, worker: tuple[int, int]) -> None:
        self.running[worker] = bool(self.received[worker])
        if self.running[worker]:
            crew = self.load.crews[worker[0]]
            service = crew.seconds[worker[1]]
            if crew.sigma:
                service *= self.speed.lognormvariate(-(crew.sigma**2) / 2, crew.sigma)
            self.at(self.now + service, self.finish, self.received[worker].popleft(), service)

    def finish(self, batch: Started, service: float) -> None:
        self.start((batch.stage, batch.worker))
        self.at(self.now + HOP_SECONDS, self.answer, batch, service)

    def answer(self, batch: Started, service: float) -> None:
        for task in batch.tasks:
            asked, route = self.asked[task]
            if self.last_stages[route] == batch.stage:
                self.reply(asked, route)
        self.perform(self.core.finished(batch, service, self.now))

    def reply(self, asked: float, route: int) -> None:
        self.gateway_free = max(self.gateway_free, self.now) + GATEWAY_SECONDS
        if self.now > 0.2 * self.seconds:
            self.latencies.append(self.gateway_free - asked)
        if self.load.kind == "closed":
            self.at(self.gateway_free + THINK_SECONDS * (0.5 + self.random.random()), self.ask, route)
