"""Frozen settings, every limit with its unit, and the one table of flags and `ZMESH_*` variables.

Three nouns live here. `Limits` bounds every queue, message and wait of the mesh. `Plan` is what an app file declares:
its stages and the routes through them; it crosses process borders as JSON and its fingerprint tells two apps apart.
`Settings` is what the operator chose: one row of `OPTIONS` per flag, its variable, its default, its unit and its help,
from which the command line, the environment and the documentation are made. A variable of mosec is taken where ours is
not set. No other module reads a flag or a variable that is a setting.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

__all__ = [
    "DRAIN_SAY_SECONDS",
    "GATEWAYS_MAX",
    "LARGEST",
    "OPTIONS",
    "STATUS_URL",
    "Limits",
    "Option",
    "Plan",
    "RoutePlan",
    "Settings",
    "StagePlan",
    "notices",
    "settings_from",
]

KIB, MIB = 1024, 1024 * 1024
STATUS_URL = "http://127.0.0.1:8000"  # of a gateway that was given neither host nor port
DRAIN_SAY_SECONDS = 1.0  # between two lines of somebody who was told to drain, about what is left
GATEWAYS_MAX = 64  # one wakes for every new connection, and so do all others
SAME = frozenset({"debug", "log_level"})  # one setting by two words: who has said one has said both
LARGEST = 10**12  # of any number that a user gives; thirty years in ms, and it fits into every message


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one mesh. `queue_*` are per stage and bind at admission only: moving on to a stage is never refused."""

    queue_tasks_max: int = 1024
    queue_bytes_max: int = 256 * MIB
    mesh_tasks_max: int = 100_000
    mesh_bytes_max: int = 1024 * MIB
    midway_bytes_max: int = 256 * MIB  # waiting beyond a step; above it tasks at that step are not leased
    frame_bytes_max: int = 64 * MIB
    message_rows_max: int = 4096
    message_inline_bytes_max: int = 4 * MIB
    peers_max: int = 4096
    answer_bytes_max: int = 64 * MIB  # not acknowledged, per gateway; above it its tasks are not leased
    requeues_max: int = 5  # a task returned more often than this, for any cause but a death, ends with 500
    deaths_max: int = 2  # charged deaths of one task at one stage before it is poisoned
    late_leases_max: int = 1024  # ended leases whose late results are still taken
    story_steps_max: int = 512
    strikes_max: int = 5  # broken messages within strike_seconds before a peer is ignored
    strike_seconds: float = 10.0
    heartbeat_seconds: float = 1.0
    dead_seconds: float = 5.0  # silence after which a link is dead; never the sign of a worker's death
    hello_grace_seconds: float = 1.0  # a lost connection may come back for this long before its leases end
    probe_seconds: float = 0.1  # at most so often are the peers of a socket asked which of them lost its connection
    exit_grace_seconds: float = 0.020  # results of a process that just exited may still be on their way
    exit_grace_far_seconds: float = 0.200  # the same for a process on another host
    lease_seconds_min: float = 10.0
    lease_service_factor: float = 5.0  # a lease expires at max(lease_seconds_min, factor x slowest recent service)
    kill_grace_seconds: float = 1.0  # beyond the timeout of its stage, before a worker is ended
    stuck_seconds: float = 10.0  # a worker is ended that runs an expired lease which nobody wanted for so long
    stuck_first_seconds: float = 60.0  # the same for one that has brought no batch to a good end yet

    def __post_init__(self) -> None:
        assert self.dead_seconds >= 3 * self.heartbeat_seconds, "a link is dead after several missed heartbeats"
        assert self.message_inline_bytes_max <= self.frame_bytes_max, "an inline message must fit into a frame"
        assert self.queue_tasks_max >= 1, "a queue of no length admits nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage as declared: a worker class (qualified name in the app file) and its settings."""

    name: str
    worker: str
    num: int = 1
    max_batch_size: int = 1
    max_wait_ms: float = 10.0
    timeout_seconds: float = 0.0  # of `forward`; 0 = none
    env: tuple[Mapping[str, str], ...] = ()
    batching: str = "crowd"  # crowd, fixed, greedy
    spread: bool = False
    retry: bool = True
    prefetch: int = 2
    mime_type: str = "application/json"
    sse: bool = False
    ipc_codec: str = "zmesh"
    unpickles: bool = False  # what is handed to it could run code in it
    needs_redis: bool = False  # to hand on what it makes


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePlan:
    path: str
    stages: tuple[str, ...]
    mime_type: str = "application/json"
    sse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages in the order of their sockets, and the routes through them."""

    stages: tuple[StagePlan, ...]
    routes: tuple[RoutePlan, ...]

    def stage(self, name: str) -> StagePlan:
        """Raises KeyError for a stage that is not there."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def hands_on(self, name: str) -> bool:
        """Whether that stage has another one after it, on some route."""
        return any(name in route.stages[:-1] for route in self.routes)

    @property
    def fingerprint(self) -> str:
        """Stage names and order, routes and IPC codecs: what must agree between a broker and who joins it.

        Not num, env, host, batching or timeouts: those can be rolled over a running mesh.
        """
        return hashlib.sha256(self.shape.encode()).hexdigest()[:16]

    @property
    def shape(self) -> str:
        """What the fingerprint is made of, as JSON text: `[[stage, codec], …], [[path, [stage, …]], …]` in a list."""
        stages = [[stage.name, stage.ipc_codec] for stage in self.stages]
        return json.dumps([stages, [[route.path, list(route.stages)] for route in self.routes]])

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Plan:
        """Raises ValueError, KeyError or TypeError when `text` is not a plan."""
        data = json.loads(text)
        return Plan(
            stages=tuple(StagePlan(**{**stage, "env": tuple(stage["env"])}) for stage in data["stages"]),
            routes=tuple(RoutePlan(**{**route, "stages": tuple(route["stages"])}) for route in data["routes"]),
        )


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its field in `Settings`, what it takes, what it means. Flag and variable follow from its name."""

    name: str
    kind: str  # int, float, text, flag, choice, list
    help: str
    unit: str = ""
    choices: Sequence[str] = ()
    aliases: Sequence[str] = ()
    metavar: str = ""
    verbs: Sequence[str] = ("run", "worker", "broker", "gateway")  # which commands take it

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "ZMESH_" + self.name.upper()

    @property
    def twin(self) -> str:
        """mosec's variable of the same meaning; empty where mosec has none."""
        name = {"host": "address", "redis_url": "internal_redis_url"}.get(self.name, self.name)
        return f"MOSEC_{name.upper()}" if self.name in READ_BY_MOSEC else ""


READ_BY_MOSEC = frozenset(
    {"host", "path", "capacity", "timeout", "port", "namespace", "debug", "log_level", "dry_run", "max_request_size"}
) | {"redis_url"}

HTTP, WORKERS, BROKER, OUTWARD = ("run", "gateway"), ("run", "worker"), ("run", "broker"), ("worker", "gateway")

OPTIONS: tuple[Option, ...] = (
    Option("host", "text", "address to listen on; 0.0.0.0 for every interface", aliases=("--address",), verbs=HTTP),
    Option("port", "int", "port of the HTTP gateway; 0 takes a free one", verbs=HTTP),
    Option(
        "bind",
        "text",
        "where the broker listens for other hosts: stage number i of the app is at PORT+1+i",
        metavar="tcp://HOST:PORT",
        verbs=BROKER,
    ),
    Option("connect", "text", "the broker to join, as it was told to bind", metavar="tcp://HOST:PORT", verbs=OUTWARD),
    Option(
        "connect_timeout",
        "int",
        "time for the broker to answer for the first time; 0 = no end",
        unit="ms",
        verbs=OUTWARD,
    ),
    Option("insecure", "flag", "allow addresses that other hosts can reach, although nothing there is locked"),
    Option("isolate_broker", "flag", "give the broker a process of its own", verbs=("run",)),
    Option(
        "gateways",
        "int",
        "gateway processes that share the port; several leave the broker a process of its own",
        verbs=HTTP,
    ),
    Option("no_workers", "flag", "start no workers here", verbs=("run",)),
    Option(
        "stage", "list", "start only this stage here, with N workers; repeatable", metavar="NAME[:N]", verbs=WORKERS
    ),
    Option("no_shared_memory", "flag", "hand large results on through the broker on one host too", verbs=WORKERS),
    Option("capacity", "int", "tasks that may wait in the queue of a route's first stage", unit="tasks", verbs=BROKER),
    Option("timeout", "int", "time a request may take in all", unit="ms"),
    Option("drain_timeout", "int", "time to finish accepted requests at shutdown; 0 = the request timeout", unit="ms"),
    Option("wait", "int", "max_wait_time of stages that set none", unit="ms", verbs=BROKER),
    Option("max_request_size", "int", "largest request body", unit="bytes"),
    Option("compression", "flag", "take bodies in gzip and zstd, and answer so to who accepts it", verbs=HTTP),
    Option(
        "on_start_failure",
        "choice",
        "what to do when a stage fails to start three times before the mesh was ever ready",
        choices=("exit", "serve"),
    ),
    Option(
        "restarts_per_minute",
        "int",
        "how often the workers of a stage may be started again within a minute, for each of its workers here",
        verbs=WORKERS,
    ),
    Option("debug", "flag", "the same as --log-level debug"),
    Option("log_level", "choice", "how much to say", choices=("debug", "info", "warning", "error")),
    Option(
        "log_format",
        "choice",
        "how to say it: as text, or as JSON lines; auto: text on a terminal and with --log-level debug, else JSON",
        choices=("auto", "text", "json"),
    ),
    Option("dry_run", "flag", "make every stage, try the examples, show what takes how long, and end", verbs=("run",)),
    Option("namespace", "text", "prefix of the names of metrics", verbs=HTTP),
    Option("path", "text", "directory of the sockets; default: a fresh private one"),
    Option("redis_url", "text", "Redis for RedisShmIPCMixin; default: one of our own", metavar="URL,…", verbs=WORKERS),
    Option("redis_prefix", "text", "how keys in Redis begin; a name of the app follows", verbs=WORKERS),
    Option(
        "lane",
        "choice",
        "how small requests for inference reach the gateway; auto: fast where it is known to work",
        choices=("auto", "fast", "asgi"),
        verbs=HTTP,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator chose; `OPTIONS` says what each field means. Raises ValueError for a value out of range."""

    host: str = "127.0.0.1"
    port: int = 8000
    bind: str = ""
    connect: str = ""
    connect_timeout: int = 60_000
    insecure: bool = False
    isolate_broker: bool = False
    gateways: int = 1
    no_workers: bool = False
    stage: tuple[str, ...] = ()
    no_shared_memory: bool = False
    capacity: int = 1024
    timeout: int = 3000
    drain_timeout: int = 0
    wait: int = 10
    max_request_size: int = 10 * MIB
    compression: bool = False
    on_start_failure: str = "exit"
    restarts_per_minute: int = 120
    debug: bool = False
    log_level: str = "info"
    log_format: str = "auto"
    dry_run: bool = False
    namespace: str = "zmesh"
    path: str = ""
    redis_url: str = field(default="", repr=False)  # may hold a password: never to be shown
    redis_prefix: str = "zmesh"
    lane: str = "auto"
    user_args: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.debug:
            object.__setattr__(self, "log_level", "debug")
        least = dict.fromkeys(("port", "connect_timeout", "drain_timeout", "wait", "restarts_per_minute"), 0)
        least |= dict.fromkeys(("gateways", "capacity", "timeout", "max_request_size"), 1)
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                raise ValueError(f"{name.replace('_', '-')} must be at least {minimum}, not {value}")
            if value > LARGEST:
                raise ValueError(f"{name.replace('_', '-')} must be at most {LARGEST}, not {value}")
        for name, maximum in {"port": 65535, "gateways": GATEWAYS_MAX}.items():
            if (value := getattr(self, name)) > maximum:
                raise ValueError(f"{name} must be at most {maximum}, not {value}")
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.namespace):
            raise ValueError(f"namespace must be letters, digits and _, not {self.namespace!r}")
        for option in OPTIONS:
            if option.choices and (value := getattr(self, option.name)) not in option.choices:
                raise ValueError(f"{option.flag} must be one of {', '.join(option.choices)}, not {value!r}")

    @property
    def drain_seconds(self) -> float:
        return (self.drain_timeout or self.timeout) / 1000

    def limits(self) -> Limits:
        frame_bytes_max = max(64 * MIB, self.max_request_size + MIB)
        return Limits(queue_tasks_max=self.capacity, frame_bytes_max=frame_bytes_max)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Settings:
        data = json.loads(text)
        return Settings(**{**data, "stage": tuple(data["stage"]), "user_args": tuple(data["user_args"])})


def settings_from(
    given: Mapping[str, object], environ: Mapping[str, str], declared: Mapping[str, object] | None = None
) -> Settings:
    """Settings from flags, else `ZMESH_*` variables, else mosec's, else keywords of a `Server`, else defaults.

    `given` and `declared` map names of `Settings` fields to values; None means not given. Raises ValueError with a
    readable sentence for an unknown name or a value that cannot be read.
    """
    known = {f.name for f in fields(Settings)}
    for name in given:
        if name not in known:
            raise ValueError(f"there is no setting named {name!r}; known are {', '.join(sorted(known))}")
    values = {name: value for name, value in given.items() if value is not None}
    counting = _counting(values, environ)
    values |= {option.name: _read(option, variable, environ[variable]) for option, variable in counting}
    values |= {name: value for name, value in (declared or {}).items() if not _is_said(name, set(values))}
    return Settings(**values)  # type: ignore[arg-type]


def notices(given: Mapping[str, object], environ: Mapping[str, str]) -> list[str]:
    """A line for each variable of mosec that counts because neither its flag was given nor ours is set."""
    return [
        f"using {variable}={environ[variable]}; {option.variable} is its name here"
        for option, variable in _counting(given, environ)
        if variable == option.twin and option.name != "redis_url"
    ]


def _counting(said: Collection[str], environ: Mapping[str, str]) -> list[tuple[Option, str]]:
    """The variables that count beside these settings: ours before mosec's."""
    found: list[tuple[Option, str]] = []
    for kind in ("variable", "twin"):
        before = {*said, *(option.name for option, _ in found)}
        found += [
            (option, getattr(option, kind))
            for option in OPTIONS
            if environ.get(getattr(option, kind)) and not _is_said(option.name, before)
        ]
    return found


def _is_said(name: str, said: Collection[str]) -> bool:
    return name in said or (name in SAME and not SAME.isdisjoint(said))


def _read(option: Option, variable: str, text: str) -> object:
    match option.kind:
        case "flag":
            return _flag(variable, text)
        case "int":
            try:
                return int(text)
            except ValueError:
                raise ValueError(f"{variable} must be a whole number, not {text!r}") from None
        case "list":
            return tuple(text.split(","))
    if option.choices and text not in option.choices:
        raise ValueError(f"{variable} must be one of {', '.join(option.choices)}, not {text!r}")
    return text


def _flag(variable: str, text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{variable} must be 1 or 0, not {text!r}")
