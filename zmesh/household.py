"""Who lives under one agent: which processes a verb needs, how each is started, and in which order they leave.

`run` is a gateway that holds the broker, and workers; `--isolate-broker` gives the broker a process of its own. The
other verbs are one part each: `worker` and `gateway` join a broker elsewhere, `broker` is one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from random import Random

from zmesh.addresses import broker_address
from zmesh.config import Plan, Settings, StagePlan
from zmesh.core.restarts import Restarts
from zmesh.errors import UsageError
from zmesh.hosting import chosen_stages
from zmesh.pipe import Slate
from zmesh.processes import Child, Slot

__all__ = ["LEAVE_SECONDS", "LEAVING_ORDER", "House", "Household", "household"]

LEAVE_SECONDS = 1.0  # for a process to leave when nobody wants anything of it any more
LEAVING_ORDER = ("gateway", "worker", "broker")  # from the outside in: who accepts, who works, who holds what is left


@dataclass(frozen=True, slots=True)
class Household:
    """What runs here. `bind` and `connect` are endpoints on tcp, or empty; `stages` have workers here."""

    verb: str
    roles: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    bind: str
    connect: str

    def slots(self, random: Random) -> list[Slot]:
        slots = [Slot(role, None, 0, Restarts(1, random)) for role in self.roles if role != "worker"]
        for stage in self.stages:
            restarts = Restarts(stage.num, random)
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
        """Whether gateways elsewhere may need our workers until the end."""
        return bool(self.bind or self.connect)


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
    match verb:
        case "worker":
            return Household(verb, ("worker",), stages, bind, connect)
        case "gateway":
            return Household(verb, ("gateway",), (), bind, connect)
        case "broker":
            if not bind:
                raise UsageError("broker needs --bind tcp://HOST:PORT: without it nobody could join")
            return Household(verb, ("broker",), (), bind, connect)
    if settings.no_workers and settings.stage:
        raise UsageError("--no-workers and --stage contradict each other; leave one of them out")
    if settings.no_workers and not bind and not settings.path:
        raise UsageError("--no-workers needs --bind tcp://HOST:PORT: without it no worker could join")
    roles = ("broker", "gateway", "worker") if settings.isolate_broker else ("gateway", "worker")
    return Household(verb, roles, () if settings.no_workers else stages, bind, connect)


@dataclass(frozen=True, slots=True)
class House:
    """What every process here is told. `front` is where they reach the broker, `fronts` are where a broker of ours
    listens, `listener` is the descriptor of the HTTP socket, -1 without one."""

    household: Household
    plan: Plan
    settings: Settings
    app: str
    front: str
    fronts: tuple[str, ...]
    listener: int

    def start(self, slot: Slot) -> Child:
        """Raises OSError when the system has no room for another process."""
        shared = {
            "role": slot.role,
            "plan": self.plan.to_json(),
            "settings": self.settings.to_json(),
            "front": self.front,
            "fronts": list(self.fronts) if slot.role == self.household.broker_role else [],
        }
        match slot.role:
            case "broker":
                return Child(slot.name, [sys.executable, "-m", "zmesh.serving"], shared)
            case "gateway":
                command = [sys.executable, "-m", "zmesh", "gateway", self.app, "--", *self.settings.user_args]
                return Child(slot.name, command, {**shared, "listen": self.listener}, keep=[self.listener])
        assert slot.stage is not None, "a worker has a stage"
        document = {
            **shared,
            "app": self.app,
            "user_args": list(self.settings.user_args),
            "stage": slot.stage.name,
            "worker_id": slot.worker_id,
        }
        env = slot.stage.env[slot.worker_id - 1] if slot.stage.env else None
        return Child(slot.name, [sys.executable, "-m", "zmesh.stage"], document, env=env, slate=Slate.make())
