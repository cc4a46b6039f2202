"""Who lives under one agent: which processes a verb needs, how each is started, and in which order they leave.

`run` is a gateway that holds the broker, and workers; `--isolate-broker` gives the broker a process of its own, and so
do several gateways. The other verbs are one part each: `worker` and `gateway` join a broker elsewhere, `broker` is one.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from random import Random
from time import monotonic

from zmesh.addresses import broker_address, unpickling_problem
from zmesh.board import Board
from zmesh.config import DRAIN_SAY_SECONDS, Plan, Settings, StagePlan
from zmesh.core.restarts import Restarts
from zmesh.daemons import Daemons
from zmesh.embedded import instructions, own_server, socket_url, user_of_redis
from zmesh.errors import StartError, UsageError
from zmesh.hosting import announcement, chosen_stages, stage_table
from zmesh.messages import PeerId
from zmesh.pipe import Slate
from zmesh.processes import Child, Slot
from zmesh.segments import MEMORY, Sweeper
from zmesh.transport import private_directory

__all__ = [
    "DRAIN_GRACE_SECONDS",
    "LEAVE_SECONDS",
    "Departure",
    "House",
    "Household",
    "household",
    "shared_memory",
    "welcome",
]

DRAIN_GRACE_SECONDS = 1.0  # for children to say their last words after their time is over
LEAVE_SECONDS = 1.0  # for a process to leave when nobody wants anything of it any more
LEAVING_ORDER = ("gateway", "worker", "broker")  # from the outside in: who accepts, who works, who holds what is left
REDIS = "redis"  # a Redis of our own; it stays until all of them are gone

log = logging.getLogger("zmesh.agent")


@dataclass(frozen=True, slots=True)
class Household:
    """What runs here. `bind` and `connect` are endpoints on tcp, or empty; `stages` have workers here; `gateways` says
    how many there are, where there is that role; `redis` is the program of a Redis of our own, or empty; `daemons` are
    what the app file needs besides."""

    verb: str
    roles: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    bind: str
    connect: str
    gateways: int = 1
    redis: str = ""
    daemons: Daemons = field(default_factory=Daemons)

    def slots(self, random: Random, restarts_per_minute: int) -> list[Slot]:
        slots = [Slot(REDIS, None, 0, Restarts(1, random, restarts_per_minute))] if self.redis else []
        slots += [Slot("broker", None, 0, Restarts(1, random))] if "broker" in self.roles else []
        if "gateway" in self.roles:
            restarts, numbers = Restarts(self.gateways, random), range(1, self.gateways + 1)
            slots += [Slot("gateway", None, number, restarts) for number in (numbers if self.gateways > 1 else (0,))]
        for stage in self.stages:
            restarts = Restarts(stage.num, random, restarts_per_minute)
            slots += [Slot("worker", stage, number, restarts) for number in range(1, stage.num + 1)]
        return slots

    @property
    def has_broker(self) -> bool:
        """In a process of its own, or in the gateway's."""
        return not self.connect

    @property
    def broker_role(self) -> str:
        """Whose process holds the broker; empty when it is elsewhere."""
        return next((role for role in ("broker", "gateway") if role in self.roles and self.has_broker), "")

    def seconds_to_leave(self, role: str, left: float) -> float:
        """All that is left of the time to drain for whom somebody may still wait; workers whose only gateway is gone
        have nothing to do."""
        is_wanted = role == "gateway" or (role == "worker" and self.serves_others) or self.verb == "broker"
        return max(LEAVE_SECONDS, left) if is_wanted else LEAVE_SECONDS

    @property
    def serves_others(self) -> bool:
        """Whether gateways elsewhere may need our workers until the end: not where the broker leaves with our gateway,
        for then nobody can hear our workers any more."""
        return bool(self.connect) or (bool(self.bind) and self.broker_role == "broker")

    def told(self, settings: Settings, front: str) -> Settings:
        """What the processes here are told; `front` is where they reach the broker."""
        return replace(settings, redis_url=socket_url(front)) if self.redis else settings


def _check_unpickling(plan: Plan, address: str, redis_url: str) -> None:
    """Raises UsageError if others can write what a stage would unpickle."""
    unpickling = [stage.name for stage in plan.stages if stage.unpickles]
    if unpickling and address and (problem := unpickling_problem(unpickling[0], address)):
        raise UsageError(problem)
    if unpickling and redis_url and user_of_redis(plan):
        raise UsageError(
            f"stage {unpickling[0]} unpickles what it is handed, and others can write to the Redis that it lies in: "
            "they could run code in it; take PickleIPCMixin out, or leave --redis-url out, and there is a private one"
        )


def household(verb: str, plan: Plan, settings: Settings) -> Household:
    """Raises UsageError for flags that do not go together, StartError for a stage that is not there."""
    count, insecure = len(plan.stages), settings.insecure
    stages = tuple(chosen_stages(plan, settings.stage))
    bind = connect = ""
    if verb in ("worker", "gateway"):
        if not settings.connect:
            raise UsageError(f"{verb} needs --connect tcp://HOST:PORT, what the broker was told to --bind")
        connect = broker_address("--connect", settings.connect, count, insecure=insecure)
    elif settings.bind:
        bind = broker_address("--bind", settings.bind, count, insecure=insecure)
    _check_unpickling(plan, connect or bind, settings.redis_url)
    has_workers = verb == "worker" or (verb == "run" and not settings.no_workers)
    redis = own_server(plan, settings, has_workers=has_workers, is_one_host=not (bind or connect))
    match verb:
        case "worker":
            return Household(verb, ("worker",), stages, bind, connect)
        case "gateway":
            return Household(verb, ("gateway",), (), bind, connect, settings.gateways)
        case "broker":
            if not bind:
                raise UsageError("broker needs --bind tcp://HOST:PORT: without it nobody could join")
            return Household(verb, ("broker",), (), bind, connect)
    if settings.no_workers and settings.stage:
        raise UsageError("--no-workers and --stage contradict each other; leave one of them out")
    if settings.no_workers and not bind and not settings.path:
        raise UsageError("--no-workers needs --bind tcp://HOST:PORT: without it no worker could join")
    is_apart = settings.isolate_broker or settings.gateways > 1
    roles = ("broker", "gateway", "worker") if is_apart else ("gateway", "worker")
    return Household(verb, roles, () if settings.no_workers else stages, bind, connect, settings.gateways, redis)


@contextmanager
def shared_memory(here: Household, plan: Plan, settings: Settings) -> Iterator[Sweeper]:
    """A fresh directory for what our stages hand on in shared memory; none where nobody would use it, or nobody can."""
    held, is_used = None, here.stages and any(len(route.stages) > 1 for route in plan.routes)
    if is_used and not settings.no_shared_memory and MEMORY.is_dir():
        try:
            held = private_directory(below=str(MEMORY))
        except (OSError, StartError) as error:
            log.warning("there is no shared memory, so large results go through the broker: %s", error)
    try:
        yield Sweeper(str(held.path) if held else "", monotonic())
    finally:
        if held is not None:
            held.remove()
            with suppress(OSError):  # others have theirs there too
                held.path.parent.rmdir()


@dataclass(frozen=True, slots=True)
class House:
    """What every process here is told. `agent` is who we are to a broker, `front` is where they reach the broker,
    `fronts` are where a broker of ours listens, `listener` is the descriptor of the HTTP socket, -1 without one, and
    `board` is what several gateways share. `memory` is the directory
    of `shared_memory`, or empty."""

    household: Household
    agent: PeerId
    plan: Plan
    settings: Settings
    app: str
    front: str
    fronts: tuple[str, ...]
    listener: int
    board: Board | None = None
    memory: str = ""

    def start(self, slot: Slot) -> Child:
        """Raises OSError when the system has no room for another process."""
        shared: dict[str, object] = {
            "role": slot.role,
            "name": slot.name,
            "agent": self.agent.hex(),
            "plan": self.plan.to_json(),
            "settings": self.household.told(self.settings, self.front).to_json(),
            "front": self.front,
            "fronts": list(self.fronts) if slot.role == self.household.broker_role else [],
        }
        match slot.role:
            case "redis":
                told = instructions(self.household.redis, self.front)
                return Child(slot.name, [sys.executable, "-m", "zmesh.embedded"], told)
            case "broker":
                return Child(slot.name, [sys.executable, "-m", "zmesh.serving"], shared)
            case "gateway":
                command = [sys.executable, "-m", "zmesh", "gateway", self.app, "--", *self.settings.user_args]
                shared["listen"] = self.listener
                if self.board is None:
                    return Child(slot.name, command, shared, keep=[self.listener])
                shared |= {"board": self.board.fd, "number": slot.worker_id - 1}
                return Child(slot.name, command, shared, keep=[self.listener, self.board.fd])
        assert slot.stage is not None, "a worker has a stage"
        document = {
            **shared,
            "app": self.app,
            "user_args": list(self.settings.user_args),
            "stage": slot.stage.name,
            "worker_id": slot.worker_id,
            "memory": self.memory,
        }
        env = slot.stage.env[slot.worker_id - 1] if slot.stage.env else None
        return Child(slot.name, [sys.executable, "-m", "zmesh.stage"], document, env=env, slate=Slate.make())

    def clear(self, slot: Slot) -> None:
        """Its process is gone."""
        if self.board is not None and slot.role == "gateway":
            self.board.rows[slot.worker_id - 1].leave()


class Departure:
    """How a household ends: role after role leaves, each within its time. `until` is when the present one has to be
    gone; `say_at` is when to say again how many are left of it."""

    def __init__(self, here: Household, slots: Sequence[Slot], seconds: float, now: float) -> None:
        self._here, self._slots, self._by = here, slots, now + seconds
        self._to_come = [role for role in LEAVING_ORDER if role in here.roles]
        self.leaving, self.until, self.say_at = "", now, now

    def stays(self, role: str) -> bool:
        """Whether it is needed still, and replaced if it dies."""
        return role in self._to_come or role == REDIS

    def living(self, role: str) -> list[Child]:
        return [slot.child for slot in self._slots if slot.role == role and slot.child is not None]

    def go_on(self, now: float) -> bool:
        """Tell the next role to leave; False when there is none any more."""
        while self._to_come:
            self.leaving = role = self._to_come.pop(0)
            seconds = self._here.seconds_to_leave(role, self._by - now)
            self.until, self.say_at = now + seconds + DRAIN_GRACE_SECONDS, now + DRAIN_SAY_SECONDS
            for slot in self._slots:
                if slot.role == role:
                    slot.start_at = None
            for child in (living := self.living(role)):
                if child.is_ready:
                    child.pipe.send(say="drain", seconds=seconds)
                else:
                    child.kill()  # it has accepted nothing yet
            if living:
                return True
        return False

    def remaining(self, now: float) -> str:
        """Once per second what remains to be done by workers; the others say for themselves how many requests do."""
        if now < self.say_at:
            return ""
        self.say_at = now + DRAIN_SAY_SECONDS
        if self.leaving != "worker" or not self._here.serves_others:
            return ""
        left = max(0.0, self._by - now)
        return f"workers that still finish what they hold: {len(self.living('worker'))}, for {left:.0f} s at most"


def welcome(here: Household, plan: Plan, app: str, listener: socket.socket | None, data: str) -> str:
    """What is said once everything here is ready; `data` is what curl sends."""
    if listener is not None:
        said = announcement(plan, here.stages, listener, data)
    elif here.verb == "worker":
        said = f"zmesh works for {here.connect}\n\n{stage_table(here.stages)}"
    else:
        said = f"zmesh broker is ready on {here.bind}"
    if here.bind:
        said += f"\njoin from elsewhere: zmesh worker {os.path.basename(app)} --connect {here.bind}"
    return said
