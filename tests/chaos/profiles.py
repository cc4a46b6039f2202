"""What `scripts/chaos` can be asked for by name: a mesh, a load, and what is done to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.chaos.faults import (
    AbortWorker,
    CutLinks,
    Fault,
    KillAgent,
    KillBroker,
    KillWorker,
    Overload,
    Poison,
    RestartBroker,
    SlowFirst,
    StopAgent,
    StopBroker,
    StopGateway,
    StopWorker,
    Stroke,
    TerminateWorker,
)


@dataclass(frozen=True)
class Profile:
    """`faults` by name. `timeout` is of a request, in seconds; `service_ms` of a batch; `think` is what clients
    leave between an answer and their next request, in seconds."""

    says: str
    faults: dict[str, Fault]
    layout: str = "isolated"
    routes: tuple[str, ...] = ("double",)
    workers: int = 2
    batch: int = 16
    service_ms: float = 5.0
    timeout: float = 30.0
    capacity: int = 1024
    hasty: float = 0.0
    fickle: float = 0.0
    wild_bursts: bool = False
    think: float = 0.0
    minutes: float = 2.0
    during_share: float = 0.0  # of the speed before the faults, that must be left during them


# Every fault by its name, as `mix` has it.
FAULTS: dict[str, Fault] = {
    "kill-worker": KillWorker(4.0),
    "kill-exponential": KillWorker(4.0, is_random=True),
    "terminate-worker": TerminateWorker(5.0),
    "abort-worker": AbortWorker(6.0, is_random=True),
    "stop-worker": StopWorker(6.0, least=0.2, most=3.0),
    "stop-agent": StopAgent(10.0, least=0.2, most=3.0),
    "stop-broker": StopBroker(10.0, least=0.2, most=2.5),
    "stop-gateway": StopGateway(12.0, least=0.2, most=1.5),
    "kill-broker": KillBroker(9.0),
    "restart-broker": RestartBroker(14.0),
    "cut-links": CutLinks(7.0),
    "kill-agent": KillAgent(17.0),
    "overload": Overload(13.0, least=1.0, most=3.0),
    "poison": Poison(7.0),
    "slow-first": SlowFirst(9.0, least=1.0, most=2.0),
}

POISONED = Profile(
    "a fresh poison every 2 s for four workers",
    {"poison": Poison(2.0)},
    routes=("whole",),
    workers=4,
    batch=8,
    service_ms=20.0,
    minutes=1.4,
    during_share=0.5,
)

PROFILES: dict[str, Profile] = {
    "default": Profile(
        "a worker killed every second and the broker every 20 s",
        {"kill-worker": KillWorker(1.0, first=1.0), "kill-broker": KillBroker(20.0, first=10.0)},
    ),
    "mix": Profile(
        "every fault there is, with hasty and fickle clients and a stage that runs nothing twice",
        FAULTS,
        routes=("double", "once"),
        capacity=256,
        hasty=1.0,
        fickle=0.5,
    ),
    # libuv takes one new connection in a turn of its loop; if the gateway did not take those that wait behind it, the
    # last of a burst would wait for hundreds of turns before their deadlines even begin.
    "burst": Profile(
        "ten times the clients at once, with short deadlines from the first request on",
        {"overload": Overload(6.0, least=1.0, most=3.0)},
        routes=("double", "once"),
        capacity=256,
        hasty=1.0,
        fickle=0.5,
        wild_bursts=True,
        minutes=0.75,
    ),
    "exponential": Profile(
        "workers killed with exponential gaps of a second on average",
        {"kill-exponential": KillWorker(1.0, is_random=True)},
        service_ms=50.0,
    ),
    # For a long time, see soak.py. Brokers live for ten minutes, so that one that fills up has the time to show it.
    "soak": Profile(
        "every fault now and then, at a moderate rate",
        {
            "kill-worker": KillWorker(15.0),
            "kill-exponential": KillWorker(30.0, is_random=True),
            "terminate-worker": TerminateWorker(30.0),
            "abort-worker": AbortWorker(25.0, is_random=True),
            "stop-worker": StopWorker(25.0, least=0.2, most=3.0),
            "stop-agent": StopAgent(40.0, least=0.2, most=3.0),
            "stop-broker": StopBroker(40.0, least=0.2, most=2.5),
            "stop-gateway": StopGateway(50.0, least=0.2, most=1.5),
            "kill-broker": KillBroker(600.0, first=600.0),
            "overload": Overload(60.0, least=1.0, most=3.0),
            "poison": Poison(30.0),
            "slow-first": SlowFirst(40.0, least=1.0, most=2.0),
        },
        routes=("double", "once"),
        capacity=256,
        hasty=1.0,
        fickle=0.5,
        think=0.2,
        minutes=30.0,
    ),
    "poison": POISONED,
    "poison-one": replace(POISONED, says="a fresh poison every 2 s for one worker", workers=1),
    "stops": Profile(
        "workers stopped for 0.5, 2 and 10 times their lease of 10 s, and the agent for 30 s",
        {
            # Each another worker: the list has two of the first stage, then two of the second.
            "stop-worker": StopWorker(given=(Stroke(2, 0.1, 100), Stroke(40, 0.6, 5), Stroke(55, 0.9, 20))),
            "stop-agent": StopAgent(given=(Stroke(6, 0.0, 30),)),
        },
        timeout=60.0,
        minutes=2.2,
    ),
}
