"""The broker alone, under simulated gateways and workers: its CPU per task by batch size, workers and queue length.

    ./scripts/bench broker [core] [local] [sockets] [--rounds 3]

`core` is the dispatcher in this process, told events. `sockets` is a broker in a process of its own; gateways and
workers speak the protocol to it over ipc from this process, each with a socket of its own. `local` is the same with the
gateway in the broker's process. Every worker has a batch in hand and `queued` tasks wait beside; what is answered is
submitted anew. Only the CPU of the broker counts, so it matters little how busy the machine is: tasks per second and
core are what it would do if it had one. Exit 1 when a cell costs more than 1.2 times the one with 5 workers and no
queue: each round is compared with itself, then the median of all rounds counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from statistics import median

from zmesh.broker import Broker
from zmesh.config import Limits, Plan, RoutePlan, StagePlan
from zmesh.core import events
from zmesh.core.dispatcher import Dispatcher
from zmesh.core.effects import Send
from zmesh.core.events import Address, DispatcherEvent
from zmesh.messages import (
    PROTOCOL_VERSION,
    Columns,
    Credit,
    Heartbeat,
    Hello,
    Message,
    PeerId,
    Reply,
    Results,
    Role,
    SessionId,
    State,
    Submit,
    TaskId,
    Tasks,
    Welcome,
    WorkerState,
)
from zmesh.transport import Context, Dealer, raise_file_limit, stage_endpoint
from zmesh.wire import decode, encode

BATCHES, WORKERS, QUEUED = (1, 8, 32, 128), (5, 50, 200, 1000), (0, 1_000, 10_000, 100_000)
FLAT = 1.2  # no cell of a batch size may cost so many times its first one
TASKS_PER_SECOND = 20_000  # of the simulated clock: how often heartbeats come, for each task
BEAT_SECONDS = 1.0
ROWS_MAX = 1024  # of a message from a gateway
BODY = b'{"x": "abcdefghijklmnopqrstu"}'
HOUR_MS = 3_600_000
READY_NOW = Credit(1, WorkerState.READY)
LIMITS = Limits(queue_tasks_max=1_000_000, mesh_tasks_max=1_000_000, answer_bytes_max=2**40)


def a_plan(batch: int) -> Plan:
    stage = StagePlan(name="only", worker="Only", max_batch_size=batch)
    return Plan(stages=(stage,), routes=(RoutePlan(path="/go", stages=("only",)),))


def greeting(plan: Plan, role: Role, number: int) -> Hello:
    peer, stage = PeerId(number.to_bytes(4, "big") + bytes(12)), "only" if role is Role.WORKER else ""
    return Hello([PROTOCOL_VERSION], role, peer, 1, "here", 1, plan.fingerprint, stage, number)


def submission(ids: count[int], rows: int, handled: int) -> Submit:
    named = [TaskId(next(ids)) for _ in range(rows)]
    whole, none = int(State.INGRESS | State.EGRESS), [0] * rows
    columns = Columns(named, [whole] * rows, [HOUR_MS] * rows, none, none, [BODY] * rows, None)
    return Submit("/go", columns, False, False, handled)


def parts(rows: int) -> list[int]:
    """So many rows in messages that may be so long."""
    return [min(ROWS_MAX, rows - start) for start in range(0, rows, ROWS_MAX)]


def answer(epoch: int, tasks: Tasks) -> Results:
    rows = len(tasks.columns.ids)
    return Results(epoch, tasks.lease, list(range(rows)), [0] * rows, [0] * rows, tasks.columns.payloads, 5)


class Core:
    """A dispatcher in a steady state. A step is a batch: a worker answers, its gateway submits as many tasks again."""

    def __init__(self, workers: int, batch: int, queued: int, gateways: int = 2) -> None:
        self._now, self._ids, self._turn = 100.0, count(), 0
        self._batch, plan = batch, a_plan(batch)
        self.dispatcher = Dispatcher(plan, LIMITS, Random(7), self._now)
        self._leases: deque[tuple[Address, SessionId, Tasks]] = deque()
        self._said: dict[Address, float] = {}  # when a worker said CREDIT last
        self._handled: dict[Address, int] = {}  # by gateway, the number of its last REPLY
        self.seconds = 0.0  # of CPU in the dispatcher, since the last `run` began
        self._gateways = [
            ((0, b"g%d" % i), self._join((0, b"g%d" % i), Role.GATEWAY, i, plan)) for i in range(gateways)
        ]
        for i in range(workers):
            address = (1, b"w%d" % i)
            session = self._join(address, Role.WORKER, gateways + i, plan)
            self._tell(events.CreditGranted(address, session, READY_NOW))
        for rows in parts(workers * batch + queued):
            self._submit(rows)
        assert len(self._leases) == workers, "every worker has a batch"

    def run(self, tasks: int) -> float:
        """CPU seconds for each of about so many tasks."""
        self.seconds, steps = 0.0, max(1, tasks // self._batch)
        for _ in range(steps):
            self.step()
        return self.seconds / (steps * self._batch)

    def step(self) -> None:
        address, session, tasks = self._leases.popleft()
        self._now += self._batch / TASKS_PER_SECOND / 2
        results = answer(self.dispatcher.mesh.directory.epoch, tasks)
        happened: list[DispatcherEvent] = [events.BatchFinished(address, session, results)]
        if self._now - self._said.get(address, 0.0) >= BEAT_SECONDS:
            self._said[address] = self._now
            happened.append(events.CreditGranted(address, session, READY_NOW))
        self._tell(*happened)
        self._now += self._batch / TASKS_PER_SECOND / 2
        self._submit(self._batch)

    def _join(self, address: Address, role: Role, number: int, plan: Plan) -> SessionId:
        (welcome,) = self._tell(events.PeerGreeted(address, greeting(plan, role, number)))
        return welcome.session

    def _submit(self, rows: int) -> None:
        self._turn += 1
        address, session = self._gateways[self._turn % len(self._gateways)]
        message = submission(self._ids, rows, self._handled.get(address, 0))
        self._tell(events.TasksSubmitted(address, session, message))

    def _tell(self, *happened: DispatcherEvent) -> list[Send]:
        started = time.thread_time()
        effects = self.dispatcher.handle(*happened, now=self._now)
        self.seconds += time.thread_time() - started
        sent = [effect for effect in effects if isinstance(effect, Send)]
        for effect in sent:
            if isinstance(effect.message, Tasks):
                self._leases.append((effect.address, effect.session, effect.message))
            elif isinstance(effect.message, Reply):
                self._handled[effect.address] = effect.message.number
        return sent


class Player:
    """A gateway or a worker at a socket of its own. `answered` counts the rows of a gateway's REPLYs."""

    def __init__(self, context: Context, endpoint: str, hello: Hello, ids: count[int]) -> None:
        self.dealer: Dealer = context.dealer(endpoint)
        self.answered = 0
        self._hello, self._ids = hello, ids
        self._session, self._epoch, self._handled, self._said = SessionId(0), 0, 0, 0.0

    @property
    def joined(self) -> bool:
        return self._session != 0

    def greet(self) -> bool:
        return self.dealer.send(encode(self._hello))

    def say(self, message: Message) -> None:
        assert self.dealer.send(encode(message, self._session)), "the broker reads"

    def submit(self, rows: int) -> None:
        for some in parts(rows):
            self.say(submission(self._ids, some, self._handled))

    def receive(self) -> None:
        rows = 0
        while (frames := self.dealer.receive()) is not None:
            _, message = decode(frames, LIMITS)
            if isinstance(message, Tasks):
                self.say(answer(self._epoch, message))
                self._beat()
            elif isinstance(message, Reply):
                self._handled = message.number
                rows += len(message.ids)
            elif isinstance(message, Welcome):
                self._session, self._epoch = message.session, message.epoch
        self.answered += rows
        if rows:
            self.submit(rows)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._said >= BEAT_SECONDS:
            self._said = now
            self.say(READY_NOW)


class Sockets:
    """A broker in a process of its own, and everybody who speaks to it. With `local` its gateway is with it."""

    def __init__(self, workers: int, batch: int, queued: int, *, local: bool = False) -> None:
        raise_file_limit()
        self._directory = tempfile.TemporaryDirectory(prefix="zmesh-bench-")
        front, plan, ids = f"ipc://{self._directory.name}/front.s", a_plan(batch), count()
        outstanding = workers * batch + queued
        command = [sys.executable, "-m", "benchmarks.broker", "--serve", front, "--batch", str(batch)]
        command += ["--outstanding", str(outstanding)] if local else []
        pipe = subprocess.PIPE
        self._broker = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parent.parent)
        self.ask()
        self._context, self._events = Context(), select.epoll()
        self._gateways = [Player(self._context, front, greeting(plan, Role.GATEWAY, i), ids) for i in range(2)]
        self._gateways = [] if local else self._gateways
        endpoint, numbers = stage_endpoint(front, 0), range(2, 2 + workers)
        crew = [Player(self._context, endpoint, greeting(plan, Role.WORKER, i), ids) for i in numbers]
        self._players = {player.dealer.fd: player for player in (*self._gateways, *crew)}
        for fd in self._players:
            self._events.register(fd, select.EPOLLIN)
        self._join()
        for worker in crew:
            worker.say(READY_NOW)
        for number, gateway in enumerate(self._gateways):
            gateway.submit((outstanding + number) // len(self._gateways))

    def ask(self) -> tuple[float, int]:
        """CPU seconds of the broker's process, and how many tasks its own gateway was answered."""
        assert self._broker.stdin is not None and self._broker.stdout is not None, "it has pipes"
        print(flush=True, file=self._broker.stdin)
        seconds, answered = self._broker.stdout.readline().split()
        return float(seconds), int(answered) + sum(gateway.answered for gateway in getattr(self, "_gateways", []))

    def run(self, tasks: int) -> float:
        """CPU seconds for each of about so many tasks."""
        before, answered = self.ask()
        done, slice_seconds = 0, 0.1
        while done < tasks:
            self._play(time.monotonic() + slice_seconds)
            after, now_answered = self.ask()
            done = now_answered - answered
        return (after - before) / done

    def close(self) -> None:
        for player in self._players.values():
            player.dealer.close()
        self._context.close()
        self._broker.communicate(timeout=20)
        self._directory.cleanup()

    def _join(self) -> None:
        limit, said = time.monotonic() + 30, set[int]()
        while not all(player.joined for player in self._players.values()):
            assert time.monotonic() < limit, "the broker welcomes everybody"
            said |= {fd for fd, player in self._players.items() if fd not in said and player.greet()}
            self._play(time.monotonic() + 0.02)

    def _play(self, until: float) -> None:
        """Let everybody answer what they hear. Sending may use up what a descriptor has to tell, so look again."""
        ready = set(self._players)
        while time.monotonic() < until:
            for fd in ready:
                self._players[fd].receive()
            ready = {fd for fd in ready if self._players[fd].dealer.pending()}
            ready |= {fd for fd, _ in self._events.poll(0 if ready else 0.02)}


async def serve(front: str, batch: int, outstanding: int) -> None:
    """The broker's process: each line that comes in is answered with the CPU seconds so far."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    context, plan = Context(), a_plan(batch)
    broker = Broker(plan, LIMITS, context, [front], loop)
    broker.start()
    near = _Near(broker, loop, plan, outstanding)

    def asked() -> None:
        if sys.stdin.readline():
            print(time.process_time(), near.answered, flush=True)
        else:
            stopped.set()

    loop.add_reader(sys.stdin.fileno(), asked)
    await stopped.wait()
    if broker.missed_edges:
        print(f"the broker found something to read {broker.missed_edges} times without a sign", file=sys.stderr)
    broker.close()
    context.close()


class _Near:
    """A gateway in the broker's process, if it is to have any tasks; it submits anew at the end of a turn."""

    def __init__(self, broker: Broker, loop: asyncio.AbstractEventLoop, plan: Plan, outstanding: int) -> None:
        self.answered = 0
        self._loop, self._port, self._ids, self._outstanding = loop, broker.local_port(), count(), outstanding
        self._handled = 0
        if outstanding:
            self._port.open(self._hear, lambda: None)
            self._port.send(SessionId(0), greeting(plan, Role.GATEWAY, 1))

    def _hear(self, session: SessionId, message: Message) -> None:
        if isinstance(message, Welcome):
            self._submit(session, self._outstanding)
        elif isinstance(message, Heartbeat):
            self._port.send(session, Heartbeat(1, self._handled, []))
        elif isinstance(message, Reply):
            self.answered += len(message.ids)
            self._handled = message.number
            self._loop.call_soon(self._submit, session, len(message.ids))

    def _submit(self, session: SessionId, rows: int) -> None:
        for some in parts(rows):
            self._port.send(session, submission(self._ids, some, self._handled))


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────

Cell = tuple[int, int]  # workers, queued
CELLS: list[Cell] = [*((workers, 0) for workers in WORKERS), *((WORKERS[0], queued) for queued in QUEUED[1:])]


def core_cost(workers: int, batch: int, queued: int) -> float:
    gc.collect()
    core = Core(workers, batch, queued)
    core.run(2_000)
    return core.run(3_000 if batch == 1 else 12_000)


def sockets_cost(workers: int, batch: int, queued: int, *, local: bool = False) -> float:
    gc.collect()
    sockets = Sockets(workers, batch, queued, local=local)
    try:
        sockets.run(2_000)
        return sockets.run(4_000 if batch == 1 else 16_000)
    finally:
        sockets.close()


def local_cost(workers: int, batch: int, queued: int) -> float:
    return sockets_cost(workers, batch, queued, local=True)


KINDS: dict[str, Callable[[int, int, int], float]] = {"core": core_cost, "local": local_cost, "sockets": sockets_cost}


def measure(kind: str, rounds: int) -> bool:
    """Print the table of one kind; whether it is flat."""
    costs: dict[tuple[int, Cell], list[float]] = {}
    for _ in range(rounds):
        for batch in BATCHES:
            for cell in CELLS:
                costs.setdefault((batch, cell), []).append(KINDS[kind](cell[0], batch, cell[1]))
    print(f"{kind}: tasks per second and core (us of CPU per task; times the first of its column)")
    print(" workers   queued" + "".join(f"{f'batch {batch}':>24}" for batch in BATCHES))
    worst = 0.0
    for cell in CELLS:
        shown = ""
        for batch in BATCHES:
            cost = median(costs[batch, cell])
            pairs = zip(costs[batch, cell], costs[batch, CELLS[0]], strict=True)
            times = median(one / first for one, first in pairs)
            worst = max(worst, times)
            shown += f"{f'{1 / cost:.0f} ({cost * 1e6:.1f}; {times:.2f})':>24}"
        print(f"{cell[0]:>8} {cell[1]:>8}{shown}", flush=True)
    print(
        f"{kind}: the dearest cell costs {worst:.2f} times its first one (at most {FLAT}), medians of {rounds} rounds"
    )
    return worst <= FLAT


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", metavar="FRONT", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--outstanding", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.serve, options.batch, options.outstanding))
        return 0
    flat = [measure(kind, options.rounds) for kind in options.kinds or KINDS]
    print("every cost is flat" if all(flat) else "a cost is not flat")
    return 0 if all(flat) else 1


if __name__ == "__main__":
    sys.exit(main())
