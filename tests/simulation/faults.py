"""What goes wrong. Each kind of fault is a method; `KINDS` says how often it is drawn compared to the others.

A fault comes at its time, or lies in wait for a message of some type and comes just after that was sent, when most
harm is done. One that finds nobody to harm is drawn again as another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tests.simulation.actors import Broker, Gateway
from tests.simulation.host import KILLED, SEGFAULT, TERMINATED, Agent, Worker
from tests.simulation.model import ENDLESS_SECONDS, Ask, Flaw, Part
from tests.simulation.network import Cable, Connection, Garbage, Sent, Trigger
from tests.simulation.scenario import Burst
from tests.simulation.strangers import PATIENCE_SECONDS, Administrator, strangers
from tests.simulation.world import START, Process
from zmesh.core import events
from zmesh.messages import Cancel, Credit, Exited, Hello, Kill, LeaseId, Reply, Results, Submit, Tasks, Welcome

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

__all__ = ["KINDS", "Faults"]

KINDS: dict[str, float] = {
    "kill_worker": 3,
    "crash_worker": 2,
    "run_out_of_memory": 1,
    "die_in_mid_sentence": 5,
    "worker_quits": 1,
    "stop_worker": 2,
    "drain_worker": 2,
    "slow_batch": 2,
    "sick_worker": 1,
    "kill_agent": 1,
    "stop_agent": 1,
    "broken_start": 0.8,
    "stop_gateway": 1,
    "clients_leave": 2,
    "overload": 1,
    "hurried_clients": 1,
    "poison": 2,
    "hunt": 1,
    "kill_broker": 2,
    "replace_broker": 0.7,
    "stop_broker": 1,
    "break_connection": 4,
    "break_behind_everybody": 2,
    "cut_off": 2,
    "lose_acknowledgements": 2,
    "cut_off_host": 1,
    "lose_one_way": 2,
    "slow_cable": 2,
    "slow_network": 1,
    "full_pipe": 1,
    "full_broker": 1,
    "garbage_from_stranger": 0.5,
    "garbage_from_peer": 1,
    "garbage_to_peer": 1,
    "garbage_to_greeter": 1,
    "stranger": 1.5,
    "late_hello": 1,
    "order_kill": 1,
    "endless_forward": 3,
    "drain_host": 1,
    "remake_socket": 1.5,
}
# What a fault may lie in wait for.
MOMENTS: dict[str, tuple[type, ...]] = {
    "kill_worker": (Hello, Welcome, Credit, Tasks, Results, Cancel),
    "crash_worker": (Hello, Tasks, Results),
    "run_out_of_memory": (Tasks, Results),
    "stop_worker": (Tasks, Results, Welcome),
    "drain_worker": (Hello, Welcome, Tasks, Results),
    "kill_agent": (Exited, Tasks),
    "broken_start": (Tasks,),
    "stop_gateway": (Reply, Submit),
    "clients_leave": (Tasks, Results, Submit),
    "kill_broker": (Submit, Tasks, Results, Reply, Welcome),
    "stop_broker": (Submit, Results, Hello),
    "break_connection": (Submit, Tasks, Results, Reply, Hello, Welcome, Credit, Exited, Cancel),
    "break_behind_everybody": (Submit, Tasks, Results, Reply, Welcome),
    "cut_off": (Submit, Tasks, Results, Reply),
    "lose_acknowledgements": (Tasks,),
    "lose_one_way": (Submit, Tasks, Results, Reply, Welcome),
    "garbage_to_greeter": (Hello,),
    "remake_socket": (Hello, Results, Submit),
}
IN_WAIT = 0.6  # of those that can
IN_WAIT_SECONDS = 2.0
RETIRED_SECONDS = 3.0  # after an agent was told to drain
HALF_OPEN_SECONDS = (15.0, 30.0)  # until an end that heard nothing of a break learns of it (keep-alive)
T = TypeVar("T")


class Faults:
    """`counts` says what came to pass."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation, self.world, self.network = simulation, simulation.world, simulation.network
        self.dice = self.world.dice("faults")
        self.counts: Counter[str] = Counter()
        self._until = START
        self._is_over = False
        self._strangers = 0
        self._prey: dict[
            int, list[str]
        ] = {}  # hunted requests, and at which stages ("": any) their workers have to end

    def schedule(self) -> None:
        for seconds in self.simulation.scenario.fault_times:
            self.world.at(START + seconds, self._strike)

    def end(self) -> float:
        """When the last of them is over."""
        return self._until

    def stop(self) -> None:
        """No new one begins."""
        self._is_over = True
        self.network.triggers.clear()
        for worker in self.simulation.workers():
            worker.slow_batch_seconds = 0.0

    def _strike(self) -> None:
        odds = self.simulation.scenario.fault_odds
        for _ in range(10):
            (kind,) = self.dice.choices(list(odds), list(odds.values()))
            moments = MOMENTS.get(kind)
            if moments and self.dice.random() < IN_WAIT:
                self._lie_in_wait(kind, self.dice.choice(moments))
                return
            if self._happen(kind, None):
                return

    def _lie_in_wait(self, kind: str, moment: type) -> None:
        trigger = Trigger(moment, lambda owner: self._happen(kind, owner) or self._strike())
        self.network.triggers.append(trigger)
        self.world.after(IN_WAIT_SECONDS, self._wait_no_longer, trigger)

    def _wait_no_longer(self, trigger: Trigger) -> None:
        if trigger in self.network.triggers:
            self.network.triggers.remove(trigger)
            trigger.act(None)

    def _happen(self, kind: str, near: Process | None) -> bool:
        """Whether there was somebody to harm; `near` is who has just said or been said something."""
        if self._is_over:
            return True
        what = getattr(self, kind)(near)
        if what:
            self.counts[kind] += 1
            self.world.tell("fault", f"{kind}: {what}")
            self.lasts(0.0)
        return bool(what)

    def lasts(self, seconds: float) -> None:
        self._until = max(self._until, self.world.now + seconds)

    # ── whom ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _one(self, of: list[T]) -> T | None:
        return self.dice.choice(of) if of else None

    def _worker(self, near: Process | None) -> Worker | None:
        """The one nearby, else mostly one that is busy."""
        if isinstance(near, Worker) and near.is_alive and near in self.simulation.workers():
            return near
        workers = self.simulation.workers()
        busy = [worker for worker in workers if worker.batch is not None]
        return self._one(busy if busy and self.dice.random() < 0.7 else workers)

    def _lonely_worker(self) -> Worker | None:
        """One that is busy, best where it is the only one of its stage."""
        workers = self.simulation.workers()
        stages = Counter(worker.stage.name for worker in workers)
        busy = [worker for worker in workers if worker.batch is not None] or workers
        return self._one([worker for worker in busy if stages[worker.stage.name] == 1] or busy)

    def _connection(self, near: Process | None) -> Connection | None:
        """That of the one nearby, else anybody's."""
        lines = [gateway.line for gateway in self.simulation.gateways if gateway.line is not None]
        for agent in self.simulation.agents:
            lines += [agent.line, *(worker.line for worker in agent.workers)]
        connections = [line.connection for line in lines if line.connection is not None]
        return self._one([one for one in connections if one.dealer.owner is near] or connections)

    def _between(self, *ranges: tuple[float, float]) -> float:
        return self.dice.uniform(*self.dice.choice(ranges))

    # ── workers and agents ────────────────────────────────────────────────────────────────────────────────────────

    def _end_worker(self, near: Process | None, code: int, *, is_oom: bool = False) -> str:
        worker = self._worker(near)
        if worker is None:
            return ""
        worker.was_out_of_memory = is_oom
        worker.exit(code)
        return f"{worker.name} ends with {code}"

    def kill_worker(self, near: Process | None) -> str:
        return self._end_worker(near, KILLED)

    def crash_worker(self, near: Process | None) -> str:
        return self._end_worker(near, self.dice.choice((SEGFAULT, -6, 1)))

    def die_in_mid_sentence(self, near: Process | None) -> str:
        """On a slow way its last results arrive after its agent has told of its end; best where it is the only one."""
        worker = self._lonely_worker()
        if worker is None:
            return ""
        said = self._slow([worker.line.cable], 0.4)
        self._when_it_says(worker, Results, lambda worker: worker.exit(SEGFAULT, linger=True))
        return f"{said}, and then it dies of what it has just answered"

    def _when_it_says(self, worker: Worker, kind: type, act: Callable[[Worker], None]) -> None:
        """Just after its next message of that kind, or to it, as long as it lives and faults happen."""

        def happen(near: Process | None) -> None:
            if not worker.is_alive or self._is_over:
                return
            if near is worker:
                act(worker)
            else:
                self._when_it_says(worker, kind, act)

        self.network.triggers.append(Trigger(kind, happen, delays=(0.0,)))

    def run_out_of_memory(self, near: Process | None) -> str:
        return self._end_worker(near, KILLED, is_oom=True)

    def worker_quits(self, near: Process | None) -> str:
        return self._end_worker(near, self.dice.choice((0, TERMINATED)))

    def stop_worker(self, near: Process | None) -> str:
        return self._stop(self._worker(near), self._between((0.1, 2.0), (2.0, 8.0), (10.0, 25.0)))

    def stop_agent(self, near: Process | None) -> str:
        return self._stop(self._one(self.simulation.agents), self._between((0.1, 2.0), (4.0, 12.0)))

    def _stop(self, process: Process | None, seconds: float) -> str:
        if process is None:
            return ""
        process.stop(seconds)
        self.lasts(seconds)
        return f"{process.name} is stopped for {seconds:.3f} s"

    def drain_worker(self, near: Process | None) -> str:
        worker = self._worker(near)
        if worker is None:
            return ""
        seconds, is_alone = self.dice.choice((0.02, 0.5, 5.0, 5.0)), self.dice.random() < 0.5
        if is_alone:
            seconds = 5.0
            self._when_it_says(worker, Credit, self._leave_it_alone)
        worker.order_drain(seconds)
        self.lasts(seconds)
        told = f"{worker.name} is told to drain within {seconds} s"
        return f"{told}, and nobody answers when it says so" if is_alone else told

    def _leave_it_alone(self, worker: Worker) -> None:
        """What it waits for does not come. Then it is found gone, or ends, or is heard again."""
        connection = worker.line.connection
        if connection is None:
            return
        seconds, chance = self.dice.uniform(0.3, 2.5), self.dice.random()
        self.lasts(seconds)
        if chance < 0.3:
            connection.full_until = self.world.now + seconds
            worker.hurt(seconds)
            return
        self.network.lose(connection, up=False)
        if chance < 0.6:
            self.world.after(seconds, worker.exit, KILLED)
        else:
            self.world.after(seconds, self.network.break_off, connection, self.dice.uniform(*HALF_OPEN_SECONDS), 0.0)

    def slow_batch(self, near: Process | None) -> str:
        worker = self._worker(near)
        if worker is None:
            return ""
        worker.slow_batch_seconds = seconds = self._between((0.5, 3.0), (6.0, 18.0))
        return f"the next batch of {worker.name} takes {seconds:.3f} s longer"

    def sick_worker(self, near: Process | None) -> str:
        """Every row it runs fails. Most of them are also stopped or lost, so that their rows are theirs no more."""
        worker = self._lonely_worker()
        if worker is None:
            return ""
        seconds = self._between((0.2, 2.0), (8.0, 20.0))
        worker.sick_until = self.world.now + seconds
        self.lasts(seconds)
        also = self.dice.choice((None, self.stop_worker, self._lose_in_mid_batch, self._lose_in_mid_batch))
        return f"{worker.name} fails every row for {seconds:.3f} s" + (f"; {also(worker)}" if also else "")

    def _lose_in_mid_batch(self, worker: Worker) -> str:
        """Its next batch is long, and the broker gives it up meanwhile."""
        worker.slow_batch_seconds = self.dice.uniform(1.5, 4.0)

        def lose(worker: Worker) -> None:
            if worker.line.connection is not None:
                self.network.break_off(worker.line.connection, self.dice.uniform(1.0, 1.5), 0.005)

        self._when_it_says(worker, Tasks, lose)
        return f"it is lost during its next batch, of {worker.slow_batch_seconds:.3f} s"

    def kill_agent(self, near: Process | None) -> str:
        agent = self._one([agent for agent in self.simulation.agents if agent.is_alive])
        if agent is None:
            return ""
        agent.die()
        seconds = self._between((0.05, 0.5), (1.0, 6.0))
        self.world.after(seconds, self._replace_agent, agent)
        self.lasts(seconds)
        return f"{agent.name} dies with its workers; another one comes in {seconds:.3f} s"

    def drain_host(self, near: Process | None) -> str:
        """An operator tells it to finish and go; see `retires`."""
        agent = self._one([agent for agent in self.simulation.agents if agent.is_alive and not agent.is_retiring])
        if agent is None or self.simulation.broker is None:
            return ""
        self._strangers += 1
        Administrator(self.simulation, self._strangers, drain=True, host=agent.host_name)
        self.lasts(PATIENCE_SECONDS)
        return f"{agent.host_name} is to drain"

    def retires(self, agent: Agent) -> None:
        """It was told to, and is replaced a while after its workers have gone."""
        self.world.after(RETIRED_SECONDS, self._end_agent, agent)
        self.lasts(RETIRED_SECONDS + 1.0)

    def _end_agent(self, agent: Agent) -> None:
        if agent.is_alive:
            agent.die()
            self.world.after(self.dice.uniform(0.1, 1.0), self._replace_agent, agent)

    def _replace_agent(self, former: Agent) -> None:
        agents = self.simulation.agents
        agents[agents.index(former)] = Agent(self.simulation, former.host, former.life + 1)
        self.simulation.former_agents.append(former)

    def broken_start(self, near: Process | None) -> str:
        """Its workers do not start for a while, and the present ones end."""
        worker = self._worker(near)
        stage = worker.stage.name if worker else self.dice.choice(self.simulation.plan.stages).name
        seconds = self._between((0.3, 1.0), (2.0, 6.0))
        self.simulation.broken_until[stage] = self.world.now + seconds
        self.lasts(seconds)
        for worker in self.simulation.workers():
            if worker.stage.name == stage:
                worker.exit(self.dice.choice((KILLED, SEGFAULT, 1)))
        also = f"; {self.lose_acknowledgements(None)}" if self.dice.random() < 0.7 else ""
        return f"workers of {stage} do not start for {seconds:.3f} s{also}"

    def order_kill(self, near: Process | None) -> str:
        """The broker tells an agent to end a process, if it still runs that lease."""
        worker, broker = self._worker(near), self.simulation.broker
        agent = next((agent for agent in self.simulation.agents if worker in agent.workers), None)
        if worker is None or broker is None or agent is None or not worker.slate.lease:
            return ""
        known = next((p for p in broker.dispatcher.mesh.directory.sessions.values() if p.peer == agent.peer), None)
        if known is None:
            return ""
        lease = LeaseId(worker.slate.lease - self.dice.choice((0, 0, 0, 1)))
        sent = broker.router.send(known.address, known.session, Kill(worker.peer, lease, "somebody wants it so"))
        return f"{agent.name} is told to end {worker.name}, running {lease}" if sent is Sent.SENT else ""

    # ── gateways and their clients ────────────────────────────────────────────────────────────────────────────────

    def stop_gateway(self, near: Process | None) -> str:
        gateway = near if isinstance(near, Gateway) else self.dice.choice(self.simulation.gateways)
        seconds = self._between((0.1, 2.0), (4.0, 12.0))
        if gateway.line is None and self.simulation.broker is not None:
            self.simulation.broker.freeze(seconds, with_threads=True)  # they share a process
        return self._stop(gateway, seconds)

    def clients_leave(self, near: Process | None) -> str:
        gateway = near if isinstance(near, Gateway) else self.dice.choice(self.simulation.gateways)
        asks = [ask for ask in gateway.asks.values() if self.dice.random() < 0.5]
        if not asks or gateway.is_stopped:
            return ""
        gateway.abandon(asks)
        return f"{len(asks)} clients of {gateway.name} leave"

    def _ask(self, count: int, *, flaw: Flaw = Flaw.NONE, seconds: float = 0.0) -> str:
        gateway = self.dice.randrange(len(self.simulation.gateways))
        route = self.dice.choice(self.simulation.plan.routes).path
        self.simulation.ask(Burst(0.0, gateway, route, count), flaw=flaw, seconds=seconds)
        return f"{count} requests for {route} at {self.simulation.gateways[gateway].name}"

    def overload(self, near: Process | None) -> str:
        limit = self.simulation.limits.queue_tasks_max
        return ", ".join(self._ask(limit // 2 + 10) for _ in range(3))

    def hurried_clients(self, near: Process | None) -> str:
        return self._ask(self.dice.choice((4, 16, 40)), seconds=self._between((0.01, 0.1), (0.1, 0.5)))

    def poison(self, near: Process | None) -> str:
        count, chance = self.dice.choice((1, 3, 12)), self.dice.random()
        if chance < 0.6:
            return "one of " + self._ask(count, flaw=Flaw.POISON)
        told = self._ask(count, flaw=Flaw.POISON, seconds=self.dice.uniform(0.1, 0.6))
        self.world.after(0.02, self._silence_gateways)
        return f"one of {told}, who do not live to say that it is too late"

    def endless_forward(self, near: Process | None) -> str:
        """Whoever runs one of these does not come back before its client has left."""
        seconds = self.dice.uniform(1.0, 8.0)
        self.lasts(seconds + ENDLESS_SECONDS)
        return "one of " + self._ask(self.dice.choice((1, 4, 12)), flaw=Flaw.ENDLESS, seconds=seconds)

    def hunt(self, near: Process | None) -> str:
        """Whoever runs one certain innocent request is ended several times in a row, from outside; or crashes, once at
        each stage. It must not be taken for a poison."""
        before, crash = len(self.simulation.checks.asks), self.dice.random() < 0.5
        told = self._ask(self.dice.choice((1, 6)), seconds=self.dice.uniform(5.0, 20.0))
        ask = self.simulation.checks.asks[before]
        ends = list(ask.stages) if crash else [""] * self.dice.choice((1, 2, 3))
        self._prey[before] = ends
        return f"{len(ends)} workers that run {before} {'crash' if crash else 'are ended'}, one of {told}"

    def part_begins(self, worker: Worker, part: Part, asks: list[Ask]) -> None:
        """For those who hunt."""
        for row in part.rows:
            ends = self._prey.get(asks[row].nonce, [])
            code = SEGFAULT if worker.stage.name in ends else self.dice.choice((KILLED, KILLED, TERMINATED, 0))
            at = worker.stage.name if code == SEGFAULT else ""
            if at in ends and not self._is_over:
                ends.remove(at)
                self.world.after(part.seconds * self.dice.random(), worker.exit, code)

    def _silence_gateways(self) -> None:
        for gateway in self.simulation.gateways:
            if gateway.line is not None and gateway.line.connection is not None:
                self.network.break_off(gateway.line.connection, self.dice.uniform(*HALF_OPEN_SECONDS), 0.0)

    # ── the broker ────────────────────────────────────────────────────────────────────────────────────────────────

    def kill_broker(self, near: Process | None) -> str:
        broker = self.simulation.broker
        if broker is None or not self.simulation.scenario.is_isolated:
            return ""
        seconds = self._between((0.01, 0.1), (0.1, 0.5), (0.5, 2.0), (4.0, 8.0))
        self._kill_broker(broker, seconds)
        return f"{broker.name} is killed; another one comes in {seconds:.3f} s"

    def _kill_broker(self, broker: Broker, seconds: float) -> None:
        if broker.is_alive:
            broker.die()
            self.simulation.broker = None
            self.world.after(seconds, self.simulation.start_broker)
            self.lasts(seconds)

    def replace_broker(self, near: Process | None) -> str:
        """An operator tells it to drain; see `drains`."""
        broker = self.simulation.broker
        if broker is None or not self.simulation.scenario.is_isolated or broker.is_draining:
            return ""
        self._strangers += 1
        Administrator(self.simulation, self._strangers, drain=True)
        self.lasts(PATIENCE_SECONDS)
        return f"{broker.name} is to drain"

    def drains(self, broker: Broker) -> None:
        """It was told to, and is replaced after a while."""
        seconds = self._between((0.1, 0.5), (0.5, 3.0))
        self.world.after(seconds, self._kill_broker, broker, 0.2)
        self.world.tell("fault", f"{broker.name} drains, and is replaced in {seconds:.3f} s")
        self.lasts(seconds + 0.2)

    def stop_broker(self, near: Process | None) -> str:
        broker = self.simulation.broker
        if broker is None:
            return ""
        seconds = self._between((0.5, 3.0), (0.5, 3.0), (3.0, 12.0), (12.0, 40.0))
        with_threads = self.dice.random() < 0.5
        broker.freeze(seconds, with_threads=with_threads)
        self.lasts(seconds)
        return f"{broker.name} is stopped for {seconds:.3f} s" + (", I/O thread and all" if with_threads else "")

    # ── the network ───────────────────────────────────────────────────────────────────────────────────────────────

    def break_connection(self, near: Process | None) -> str:
        """Both ends learn of it soon, or only one of them does."""
        soon = self.dice.uniform(0.0, 0.003), self.dice.uniform(0.0, 0.003)
        late = self.dice.uniform(*HALF_OPEN_SECONDS)
        peer, broker = self.dice.choice((soon, soon, (soon[0], late), (late, soon[1])))
        return self._break(self._connection(near), peer, broker)

    def break_behind_everybody(self, near: Process | None) -> str:
        late = self.dice.uniform(*HALF_OPEN_SECONDS), self.dice.uniform(*HALF_OPEN_SECONDS)
        return self._break(self._connection(near), *late)

    def _break(self, connection: Connection | None, peer: float, broker: float) -> str:
        if connection is None:
            return ""
        self.network.break_off(connection, peer, broker)
        known = " and ".join(name for name, after in (("it", peer), ("the broker", broker)) if after < 1)
        return f"the connection of {connection.dealer.owner.name} breaks; {known or 'nobody'} learns of it at once"

    def lose_one_way(self, near: Process | None) -> str:
        connection = self._connection(near)
        if connection is None:
            return ""
        up = self.dice.random() < 0.5
        self.network.lose(connection, up=up, down=not up)
        seconds = self._between((0.05, 1.0), (1.0, 15.0))
        self.world.after(seconds, self.network.break_off, connection, 0.0, 0.0)
        self.lasts(seconds)
        who = connection.dealer.owner.name
        return f"nothing arrives {'from' if up else 'at'} {who}, until that connection breaks in {seconds:.3f} s"

    def lose_acknowledgements(self, near: Process | None) -> str:
        """A gateway's word does not arrive for a while, so that its answers pile up; some of the workers are lost."""
        gateways = [gateway for gateway in self.simulation.gateways if gateway.line and gateway.line.connection]
        gateway = self._one(gateways)
        if gateway is None or gateway.line is None or gateway.line.connection is None:
            return ""
        seconds, lost = self.dice.uniform(2.5, 4.5), []
        self.network.lose(gateway.line.connection, down=False)
        self.world.after(seconds, self.network.break_off, gateway.line.connection, 0.0, 0.0)
        for worker in self.simulation.workers():
            if worker.batch is not None and worker.line.connection is not None and self.dice.random() < 0.7:
                self.network.break_off(worker.line.connection, self.dice.uniform(1.2, 2.0), 0.0)
                lost.append(worker.name)
        self.lasts(seconds)
        return f"{gateway.name} is not heard for {seconds:.3f} s, and {' '.join(lost) or 'nobody'} is lost"

    def _cut(self, cables: list[Cable], seconds: float) -> None:
        for gateway in self.simulation.gateways:
            if gateway.line is not None and gateway.cable in cables:
                self._cut_line(gateway.line.connection)
        for agent in self.simulation.agents:
            if agent.cable in cables:
                self._cut_line(agent.line.connection)
            for slot in agent.slots:
                if slot.cable in cables and slot.worker is not None:
                    self._cut_line(slot.worker.line.connection)
        self.lasts(seconds)

    def _cut_line(self, connection: Connection | None) -> None:
        if connection is not None:
            after = self._between((0.0, 0.1), (0.1, 5.0), (5.0, 15.0)), self._between((0.0, 0.1), (0.1, 15.0))
            self.network.break_off(connection, *after)

    def cut_off(self, near: Process | None) -> str:
        cable, seconds = self._one(self.simulation.cables()), self._between((0.05, 1.0), (1.0, 4.0), (5.0, 14.0))
        if cable is None:
            return ""
        cable.down_until = self.world.now + seconds
        self._cut([cable], seconds)
        return f"{cable.name} is cut off for {seconds:.3f} s"

    def cut_off_host(self, near: Process | None) -> str:
        agent = self.dice.choice(self.simulation.agents)
        cables, seconds = [agent.cable, *(slot.cable for slot in agent.slots)], self._between((0.05, 2.0), (2.0, 14.0))
        for cable in cables:
            cable.down_until = self.world.now + seconds
        self._cut(cables, seconds)
        return f"the host of {agent.name} is cut off for {seconds:.3f} s"

    def slow_cable(self, near: Process | None) -> str:
        cable = self._one(self.simulation.cables())
        return self._slow([cable]) if cable else ""

    def slow_network(self, near: Process | None) -> str:
        return self._slow(self.simulation.cables())

    def _slow(self, cables: list[Cable], delay: float = 0.0) -> str:
        seconds, delay = self._between((0.5, 5.0), (3.0, 10.0)), delay or self.dice.choice((0.03, 0.1, 0.4))
        for cable in cables:
            cable.slow_until, cable.slow_seconds = self.world.now + seconds, delay
        self.lasts(seconds)
        names = cables[0].name if len(cables) == 1 else "everything"
        return f"{names} takes up to {delay} s longer for {seconds:.3f} s"

    def full_pipe(self, near: Process | None) -> str:
        """A peer does not read, or so slowly that the broker has to keep what it says."""
        connection = self._connection(near)
        if connection is None:
            return ""
        seconds = self._between((0.05, 1.0), (3.0, 10.0))
        connection.full_until = self.world.now + seconds
        connection.dealer.owner.hurt(seconds)
        self.lasts(seconds)
        return f"the pipe to {connection.dealer.owner.name} is full for {seconds:.3f} s"

    def full_broker(self, near: Process | None) -> str:
        """The broker keeps so much for others that what it has to say to this peer is lost, though the peer is well."""
        connection = self._connection(near)
        if connection is None:
            return ""
        seconds = self._between((0.0, 0.05), (0.1, 2.0))
        connection.crowded_until = self.world.now + seconds
        connection.dealer.owner.hurt(seconds)
        self.lasts(seconds)
        return f"there is no room at the broker for messages to {connection.dealer.owner.name}, for {seconds:.3f} s"

    # ── nonsense ──────────────────────────────────────────────────────────────────────────────────────────────────

    def garbage_from_stranger(self, near: Process | None) -> str:
        broker = self.simulation.broker
        if broker is None:
            return ""
        for _ in range(self.dice.choice((1, 7))):
            broker.overhear(events.MessageBroken((self.dice.randrange(2), self.dice.randbytes(5)), "prefix: nonsense"))
        return "nonsense from nowhere"

    def garbage_from_peer(self, near: Process | None) -> str:
        connection, broker = self._connection(near), self.simulation.broker
        if connection is None or broker is None:
            return ""
        count, is_last = self.dice.choice((1, 4, 5, 8)), self.dice.random() < 0.3
        if is_last:  # the broker knows that the connection is gone before it has read all that came by it
            self.network.break_off(connection, self.dice.uniform(*HALF_OPEN_SECONDS), 0.0)
            self.world.after(0.3, self._nonsense, connection, 8)
        else:
            self._nonsense(connection, count)
        if is_last or count >= self.simulation.limits.strikes_max:
            seconds = self.simulation.limits.strike_seconds
            connection.dealer.owner.hurt(seconds)
            self.lasts(seconds)
        return f"{count} times nonsense from {connection.dealer.owner.name}"

    def _nonsense(self, connection: Connection, count: int) -> None:
        if self.simulation.broker is not None and self.simulation.broker.router is connection.router:
            for _ in range(count):
                self.simulation.broker.overhear(events.MessageBroken(connection.address, "prefix: nonsense"))

    def garbage_to_peer(self, near: Process | None) -> str:
        connection = self._connection(near)
        if connection is None:
            return ""
        for _ in range(self.dice.choice((1, 2))):
            self.network.carry_down(connection, 0, Garbage("prefix: nonsense"))  # type: ignore[arg-type]
        return f"{connection.dealer.owner.name} hears nonsense"

    def garbage_to_greeter(self, near: Process | None) -> str:
        """Nonsense overtakes the WELCOME, and both are read at once."""
        connection = self._connection(near)
        if connection is None:
            return ""
        self.network.carry_down(connection, 0, Garbage("prefix: nonsense"))  # type: ignore[arg-type]
        return self._stop(connection.dealer.owner, 0.05) + " and hears nonsense first"

    def stranger(self, near: Process | None) -> str:
        if self.simulation.broker is None:
            return ""
        self._strangers += 1
        make: Callable[..., Process] = self.dice.choice(strangers(self.simulation))
        return f"{make(self.simulation, self._strangers).name} comes"

    def late_hello(self, near: Process | None) -> str:
        """A HELLO of an earlier connection arrives after that of the present one."""
        broker = self.simulation.broker
        heard = [hello for hello in self.network.hellos if broker and hello.router is broker.router]
        stale = [hello for hello in heard if hello.owner.is_alive and hello.number < hello.owner.connections]
        busy = [hello for hello in stale if isinstance(hello.owner, Worker) and hello.owner.batch is not None]
        hello = self._one(busy or stale)
        if hello is None or broker is None:
            return ""
        broker.overhear(events.PeerGreeted(hello.address, hello.message))
        return f"an early HELLO of {hello.owner.name} comes late"

    def remake_socket(self, near: Process | None) -> str:
        """A program makes a fresh socket by itself."""
        agents = self.simulation.agents
        everybody = [*self.simulation.gateways, *agents, *self.simulation.workers()]
        process = near if near in everybody else self._one(everybody)
        if not isinstance(process, Gateway | Agent | Worker) or process.is_stopped or not process.is_alive:
            return ""
        process.remake_socket()
        return f"{process.name} makes a fresh socket"
