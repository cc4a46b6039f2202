"""House rules as a test: floors, homes of libraries, purity of the core, sizes, banned calls.

Each rule is a function from one Module to complaints, and each complaint says what to do instead. The last part of this
file feeds every rule sources that break it, so that no rule can be dead without anybody noticing.
"""

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# ── the tables: change these, not the code below ──────────────────────────────────────────────────────────────────

# A module imports only from floors below its own. Parts of one floor do not know each other.
FLOORS: dict[str, list[str]] = {
    "0 words": ["errors", "config", "messages", "catalogue", "words"],
    "1 decisions": ["wire", "core", "core.*"],
    "2a reach": [
        "transport", "keys", "codec", "payloads", "telemetry", "logs", "worker", "pipe", "answers", "hosting",
        "tracebacks", "addresses", "alarms", "crashing", "asgi", "door", "signals",
        "resting", "board", "metrics", "sse", "conversation", "annotations", "protocol", "codings",
        "segments", "components",
    ],
    "2b halves": [
        "line", "linkage", "loader", "declaring", "rehearsal", "runner", "current", "processes", "calls",
        "connection", "heads", "turns", "emitter", "daemons", "schemas", "embedded",
    ],
    "3a parts": [
        "stage", "broker", "household", "socketport", "mixin", "mixins", "mixins.*", "predictions", "openapi", "status",
        "inference", "lane", "streaming", "tryout", "runtime", "utils", "log", "compression", "storing",
    ],
    "3b programs": ["agent", "gateway", "draining", "overhearing", "dryrun"],
    "4 assembly": [
        "server", "serving", "testing", "migration", "cog", "bench", "bench.*", "engines", "engines.*", "ui", "ui.*",
    ],
    "5 front doors": ["cli", "__main__", "__init__"],
}  # fmt: skip

# Plain words, which even their own floor may import.
OPEN_TO_ALL = {"config", "messages", "words"}

# Modules in these packages may import one another, as long as nothing goes in a circle.
ONE_ANOTHER = ["core", "core.*", "bench.*"]

# Sideways imports that are right all the same: (who, whom) and why.
SIDEWAYS: dict[tuple[str, str], str] = {
    ("worker", "codec"): "what Worker.serialize_ipc and deserialize_ipc do unless a user overrides them",
    ("telemetry", "board"): "where several gateways count together",
    ("worker", "metrics"): "what Worker.metrics is",
    ("worker", "payloads"): "the type of what Worker.payload_stores gives",
    ("asgi", "answers"): "the headers that every answer has, whoever gives it",
    ("runner", "emitter"): "what a worker says while its batch runs",
    ("rehearsal", "emitter"): "the same in a warm-up, to nobody",
    ("inference", "streaming"): "the answer of a route that streams",
    ("codings", "answers"): "what a client is told of a body that cannot be unpacked",
    ("compression", "inference"): "the same, with packed bodies",
    ("compression", "streaming"): "a type of what inference gives back",
    ("daemons", "processes"): "a daemon is watched and outlived like any process of the agent",
    ("annotations", "worker"): "the two sides of forward",
    ("runtime", "stage"): "mosec's name for the same",
    ("mixin", "mixins"): "mosec's name for the same",
    ("mixin", "mixins.*"): "mosec's name for the same",
    ("stage", "storing"): "where a worker's large results go",
    ("storing", "mixins.redis_ipc"): "a worker reads what came through Redis, whatever it hands on by itself",
}

# In these a lazy import inside a function may reach anywhere: they assemble, or must start fast.
LAZY_IMPORTS_FREE = ["server", "cli", "__main__", "__init__", "*.__init__"]

# Where each third-party library lives.
HOMES: dict[str, list[str]] = {
    "zmq": ["transport", "keys"],
    "prometheus_client": ["telemetry"],
    "fastapi": ["gateway", "openapi", "server", "serving"],  # the last two: the type of `Server.app` only
    "starlette": ["gateway", "openapi"],
    "uvicorn": ["gateway", "lane", "connection", "turns"],
    "uvloop": ["serving", "bench.loops"],
    "httptools": ["lane", "bench.connection"],
    "msgpack": ["wire", "codec", "mixins.*"],
    "msgspec": ["codec", "schemas", "worker", "mixins.*"],
    "orjson": ["codec", "worker", "mixins.*"],
    "numpy": ["codec", "mixins.*"],
    "torch": ["codec", "mixins.*"],
    "pydantic": ["gateway", "schemas", "predictions", "cog"],
    "redis": ["mixins.*"],
    "backports": ["codings"],
    "compression": ["codings"],  # Python's own, from 3.14
    "click": ["cli"],
}

# Modules that only decide, and what would let them touch the world.
PURE = [
    "core", "core.*", "wire", "messages", "words",
    "bench.arrivals", "bench.figures", "bench.knee", "bench.load", "bench.verdict",
]  # fmt: skip
WORLDLY = {
    "asyncio", "concurrent", "io", "logging", "multiprocessing", "os", "pathlib", "queue", "secrets", "select",
    "selectors", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip

MODULE_LINES_MAX = 400
CLASS_LINES_MAX = 300
FUNCTION_LINES_MAX = 70

PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MAY_PICKLE = ["mixins.pickle*"]
MAY_EXEC = ["loader"]
MAY_SLEEP = ["cli", "agent", "crashing"]
MAY_PRINT = ["cli", "server", "agent"]

# Written so that this file does not match itself.
NOT_IN_REPO = {
    r"pypi\.org|files\.pythonhosted|registry\.npmjs|debian\.org": "names a package registry; name the package only",
    r"(?<![\w.$}/-])/wor[k]/": "names a path of one machine; write it relative to the repository",
}


# ── reading the package ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Module:
    """One file of zmesh/: `core.tasks` for zmesh/core/tasks.py, `core` for zmesh/core/__init__.py."""

    name: str
    source: str
    path: str = "(made up)"

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    def is_any(self, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(self.name, pattern) for pattern in patterns)

    def at(self, node: ast.AST, complaint: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {complaint}"


@dataclass(frozen=True)
class Import:
    """One imported name: `from zmq import utils as u` is whole="zmq.utils", library="zmq"."""

    node: ast.AST
    whole: str
    is_lazy: bool
    is_for_types: bool

    @property
    def library(self) -> str:
        return self.whole.partition(".")[0]


def read_package(package: Path) -> list[Module]:
    modules = []
    for path in sorted(package.rglob("*.py")):
        parts = list(path.relative_to(package).with_suffix("").parts)
        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()
        shown = str(path.relative_to(package.parent))
        modules.append(Module(".".join(parts), path.read_text(encoding="utf-8"), shown))
    return modules


def imports_of(module: Module) -> Iterator[Import]:
    yield from _imports_in(module.tree, is_lazy=False, is_for_types=False)


def _imports_in(parent: ast.AST, *, is_lazy: bool, is_for_types: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(parent):
        lazy = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = is_for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for whole in _names_imported(node):
            yield Import(node, whole, lazy, for_types)
        yield from _imports_in(node, is_lazy=lazy, is_for_types=for_types)


def _names_imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            start = "." * node.level + (node.module or "")
            return [f"{start}.{alias.name}" for alias in node.names]
        case ast.Call(func=func, args=[ast.Constant(value=str(whole)), *_]):
            if _dotted(func) in {"importlib.import_module", "import_module", "__import__"}:
                return [whole]
    return []


def floor_of(name: str) -> int | None:
    for floor, patterns in enumerate(FLOORS.values()):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return floor
    return None


def part_of(whole: str) -> str | None:
    """The module of ours that an imported name stands for: `zmesh.core.tasks.Task` is `core.tasks`."""
    library, *parts = whole.split(".")
    if library != "zmesh":
        return None
    for length in range(len(parts), 0, -1):
        patterns = [pattern for named in FLOORS.values() for pattern in named if pattern.count(".") == length - 1]
        name = ".".join(parts[:length])
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return name
    return parts[0] if len(parts) > 1 else "__init__"


def _dotted(node: ast.AST) -> str:
    """`time.sleep` for that expression, "" for anything that is not a plain dotted name."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            before = _dotted(value)
            return f"{before}.{attr}" if before else ""
    return ""


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


# ── the rules ─────────────────────────────────────────────────────────────────────────────────────────────────────


def imports_only_from_below(module: Module) -> Iterator[str]:
    floor = floor_of(module.name)
    if floor is None:
        yield module.at(module.tree, f"no floor known for {module.name!r}: add it to FLOORS in tests/test_tidy.py")
        return
    for found in imports_of(module):
        if found.whole.startswith("."):
            yield module.at(found.node, "relative import: write `from zmesh.… import …` in full")
            continue
        used = part_of(found.whole)
        if used is None or used == module.name or used in OPEN_TO_ALL:
            continue
        if found.is_lazy and module.is_any(LAZY_IMPORTS_FREE):
            continue
        used_floor = floor_of(used)
        if used_floor is None:
            yield module.at(found.node, f"no floor known for {used!r}: add it to FLOORS in tests/test_tidy.py")
        elif used_floor >= floor and not _may_look_sideways(module, used):
            own, other = list(FLOORS)[floor], list(FLOORS)[used_floor]
            advice = "import the module that has the name" if used == "__init__" else "move what both need down"
            yield module.at(found.node, f"floor {own!r} may not import {used!r} of floor {other!r}: {advice}")


def _may_look_sideways(module: Module, used: str) -> bool:
    if floor_of(used) != floor_of(module.name):
        return False
    front_door = module.name == "__main__" and used == "cli"
    own_package = used.startswith(f"{module.name}.")
    among_themselves = module.is_any(ONE_ANOTHER) and any(fnmatchcase(used, pattern) for pattern in ONE_ANOTHER)
    return front_door or own_package or among_themselves or (module.name, used) in SIDEWAYS


def libraries_stay_at_home(module: Module) -> Iterator[str]:
    for found in imports_of(module):
        library = found.library
        if not library or library == "zmesh" or library in sys.stdlib_module_names:
            continue
        homes = HOMES.get(library)
        if homes is None and library not in PICKLES:
            yield module.at(found.node, f"no home known for {library!r}: add it to HOMES, or do without it")
        elif homes is not None and not module.is_any(homes):
            home = " or ".join(home.replace(".", "/") + ".py" for home in homes)
            yield module.at(found.node, f"{library} belongs in {home}: call that instead of the library")


def decisions_touch_nothing(module: Module) -> Iterator[str]:
    if not module.is_any(PURE):
        return
    for found in imports_of(module):
        if found.library in WORLDLY:
            advice = "take what it would tell you as an argument (now, a seed, a number)"
            yield module.at(found.node, f"a pure module may not import {found.library}: {advice}")
        if found.library == "random" and found.whole != "random.Random":
            yield module.at(found.node, "only `from random import Random`: randomness is seeded and given in")
    for node in module.nodes:
        match node:
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield module.at(node, "a pure module has no async: return an effect, the shell awaits it")
            case ast.Call(func=ast.Name(id="open" | "input" as name)):
                yield module.at(node, f"a pure module may not call {name}(): take the bytes as an argument")


def sets_are_not_iterated(module: Module) -> Iterator[str]:
    """The order of a set differs between runs, and then a seed replays something else."""
    if not module.is_any(["core", "core.*"]):
        return
    known = {
        _dotted(node.target)
        for node in module.nodes
        if isinstance(node, ast.AnnAssign) and re.match(r"(frozen)?set\b", ast.unparse(node.annotation))
    }
    for node in module.nodes:
        if not isinstance(node, ast.For | ast.comprehension):
            continue
        over = node.iter
        is_set = isinstance(over, ast.Set | ast.SetComp) or (
            isinstance(over, ast.Call) and _dotted(over.func) in {"set", "frozenset"}
        )
        if is_set or (_dotted(over) and _dotted(over) in known):
            yield module.at(over, "iterates over a set: use a dict (its keys keep their order), or sorted()")


def nothing_is_too_long(module: Module) -> Iterator[str]:
    lines = module.source.count("\n")
    if lines > MODULE_LINES_MAX:
        yield module.at(module.tree, f"module of {lines} lines, at most {MODULE_LINES_MAX}: find its second noun")
    for node in module.nodes:
        match node:
            case ast.ClassDef() if _lines(node) > CLASS_LINES_MAX:
                yield module.at(
                    node, f"class {node.name} of {_lines(node)} lines, at most {CLASS_LINES_MAX}: it owns two nouns"
                )
            case ast.FunctionDef() | ast.AsyncFunctionDef() if _lines(node) > FUNCTION_LINES_MAX:
                yield module.at(
                    node, f"{node.name}() of {_lines(node)} lines, at most {FUNCTION_LINES_MAX}: name a part of it"
                )


def nothing_banned_is_called(module: Module) -> Iterator[str]:
    prose = {
        id(node.value) for node in module.nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for found in imports_of(module):
        if found.library in PICKLES and not module.is_any(MAY_PICKLE):
            yield module.at(found.node, f"{found.library} runs code from the wire: encode with codec.py")
        if found.whole == "zmq.asyncio" or found.whole.startswith("zmq.asyncio."):
            yield module.at(found.node, "zmq.asyncio is slow and loses cancelled sends: use the links of transport.py")
        if found.whole == "time.sleep" and not module.is_any(MAY_SLEEP):
            yield module.at(found.node, SLEEP)
    for node in module.nodes:
        if id(node) not in prose:
            for complaint in _banned_here(module, node):
                yield module.at(node, complaint)


SLEEP = "sleep hides a race: wait for the condition itself, with a deadline"


def _banned_here(module: Module, node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Name(id="eval")):
            yield "eval: parse the value instead"
        case ast.Call(func=ast.Name(id="exec")) if not module.is_any(MAY_EXEC):
            yield "exec: only loader.py runs a user's file"
        case ast.Call(func=ast.Name(id="print")) if not module.is_any(MAY_PRINT):
            yield "print: write to the log (logs.py), or return the text to a front door"
        case ast.Attribute(attr="recv_pyobj" | "send_pyobj" as name):
            yield f"{name} is pickle: send frames of wire.py"
        case ast.Attribute(attr="asyncio", value=ast.Name(id="zmq")):
            yield "zmq.asyncio is slow and loses cancelled sends: use the links of transport.py"
        case ast.Attribute(attr="sleep", value=ast.Name(id="time")) if not module.is_any(MAY_SLEEP):
            yield SLEEP
        case ast.ExceptHandler(type=None):
            yield "bare except also catches exits and interrupts: name what you expect"
        case ast.ExceptHandler(type=kind, body=body) if kind is not None and all(map(_does_nothing, body)):
            if {_dotted(one) for one in _kinds(kind)} & {"Exception", "BaseException"}:
                yield "swallows every error: name what you expect, or log it and count it"
        case ast.Constant(value=str(text)) if "tcp://*" in text:
            yield "tcp://* listens to the whole world: bind the address that was asked for, 127.0.0.1 otherwise"


def _kinds(kind: ast.expr) -> list[ast.expr]:
    return kind.elts if isinstance(kind, ast.Tuple) else [kind]


def _does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass | ast.Continue) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def opens_with_what_it_is(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield module.at(module.tree, "no docstring: open with what this module is, and its rules")
    if module.name.rpartition(".")[2] == "__main__":
        return
    assigned = set()
    for node in module.tree.body:
        match node:
            case ast.Assign(targets=targets):
                assigned |= {_dotted(target) for target in targets}
            case ast.AnnAssign(target=target):
                assigned.add(_dotted(target))
    if "__all__" not in assigned:
        yield module.at(module.tree, "no __all__: list what other modules may use")


RULES: list[Callable[[Module], Iterator[str]]] = [
    imports_only_from_below,
    libraries_stay_at_home,
    decisions_touch_nothing,
    sets_are_not_iterated,
    nothing_is_too_long,
    nothing_banned_is_called,
    opens_with_what_it_is,
]


def circles(modules: list[Module]) -> list[str]:
    """Imports that go in a circle when the package is loaded: lazy ones and those for types do not count."""
    graph: dict[str, list[str]] = {module.name: [] for module in modules}
    for module in modules:
        for one in imports_of(module):
            name = one.whole.removeprefix("zmesh.")
            while name not in graph and name:
                name = name.rpartition(".")[0]
            if one.library == "zmesh" and name not in {"", module.name} and not (one.is_lazy or one.is_for_types):
                graph[module.name].append(name)
    found: dict[frozenset[str], list[str]] = {}
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            circle = path[path.index(name) :]
            found.setdefault(frozenset(circle), [*circle, name])
        elif name not in finished:
            for used in graph.get(name, []):
                visit(used, [*path, name])
            finished.add(name)

    for name in graph:
        visit(name, [])
    return [f"circle {' → '.join(circle)}: move what they share into a module below both" for circle in found.values()]


def repository_files() -> list[Path]:
    """What git tracks or would track; without git (a source archive) everything but hidden and built folders."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
        return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    skipped = {"build", "dist", "__pycache__"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not any(part in skipped or part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


def places_in(text: str) -> list[str]:
    """Hosts and paths that have no place in a repository, as `line number: complaint`."""
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {match.group()!r} {complaint}"
        for pattern, complaint in NOT_IN_REPO.items()
        for match in re.finditer(pattern, text)
    ]


# ── the package keeps them ────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def package() -> list[Module]:
    return read_package(ROOT / "zmesh")


def test_package_is_found():
    assert {"errors", "config", "messages"} <= {module.name for module in package()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Callable[[Module], Iterator[str]]):
    complaints = [complaint for module in package() for complaint in rule(module)]
    assert not complaints, "\n" + "\n".join(complaints)


def test_imports_never_go_in_a_circle():
    complaints = circles(package())
    assert not complaints, "\n" + "\n".join(complaints)


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in (ROOT / "zmesh").rglob("*.py")}
    bare = sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file())
    assert not bare, f"add an __init__.py with a docstring and __all__ to: {', '.join(bare)}"


def test_repository_names_no_registry_and_no_machine():
    complaints = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        complaints += [f"{path.relative_to(ROOT)}:{place}" for place in places_in(text)]
    assert not complaints, "\n" + "\n".join(complaints)


# ── every rule bites ──────────────────────────────────────────────────────────────────────────────────────────────

# rule, module the source pretends to be, source, a word of the complaint
BROKEN = [
    (imports_only_from_below, "errors", "from zmesh.wire import encode", "may not import 'wire'"),
    (imports_only_from_below, "wire", "import zmesh.transport", "may not import 'transport'"),
    (imports_only_from_below, "wire", "from zmesh.core.tasks import Task", "may not import 'core.tasks'"),
    (imports_only_from_below, "core.tasks", "from zmesh import telemetry", "may not import 'telemetry'"),
    (imports_only_from_below, "broker", "from zmesh.stage import Stage", "move what both need down"),
    (imports_only_from_below, "gateway", "from zmesh.agent import Agent", "may not import 'agent'"),
    (imports_only_from_below, "lane", "from zmesh.gateway import Gateway", "may not import 'gateway'"),
    (imports_only_from_below, "gateway", "from zmesh.server import Server", "may not import 'server'"),
    (imports_only_from_below, "gateway", "from zmesh import Worker", "import the module that has the name"),
    (imports_only_from_below, "broker", "def f():\n    from zmesh.gateway import Gateway", "may not import 'gateway'"),
    (imports_only_from_below, "server", "from zmesh.cli import main", "may not import 'cli'"),
    (imports_only_from_below, "wire", "if TYPE_CHECKING:\n    from zmesh.keys import Keys", "may not import 'keys'"),
    (imports_only_from_below, "wire", "importlib.import_module('zmesh.keys')", "may not import 'keys'"),
    (imports_only_from_below, "mixins.redis", "from zmesh.mixins.shm import Shm", "may not import 'mixins.shm'"),
    (imports_only_from_below, "broker", "from .core import tasks", "relative import"),
    (imports_only_from_below, "leases", "", "add it to FLOORS"),
    (libraries_stay_at_home, "broker", "import zmq", "zmq belongs in transport.py or keys.py"),
    (libraries_stay_at_home, "broker", "import zmq.utils as u", "zmq belongs in"),
    (libraries_stay_at_home, "broker", "from prometheus_client import Counter", "belongs in telemetry.py"),
    (libraries_stay_at_home, "lane", "from fastapi import FastAPI", "belongs in gateway.py"),
    (libraries_stay_at_home, "lane", "from starlette.requests import Request", "belongs in gateway.py"),
    (libraries_stay_at_home, "server", "def f():\n    import uvicorn", "belongs in gateway.py or lane.py"),
    (libraries_stay_at_home, "broker", "import msgpack", "belongs in wire.py"),
    (libraries_stay_at_home, "server", "import click", "belongs in cli.py"),
    (libraries_stay_at_home, "broker", "from redis import Redis", "belongs in mixins/*.py"),
    (libraries_stay_at_home, "gateway", "import requests", "add it to HOMES"),
    (decisions_touch_nothing, "core.link", "import asyncio", "may not import asyncio"),
    (decisions_touch_nothing, "core.link", "import os.path", "may not import os"),
    (decisions_touch_nothing, "core.link", "from time import monotonic", "may not import time"),
    (decisions_touch_nothing, "wire", "import socket", "may not import socket"),
    (decisions_touch_nothing, "messages", "import uuid, logging", "may not import logging"),
    (decisions_touch_nothing, "core.link", "def f():\n    import threading", "may not import threading"),
    (decisions_touch_nothing, "core.link", "import subprocess", "may not import subprocess"),
    (decisions_touch_nothing, "core.link", "import random", "from random import Random"),
    (decisions_touch_nothing, "core.link", "from random import choice", "from random import Random"),
    (decisions_touch_nothing, "core.link", "async def f(): ...", "no async"),
    (decisions_touch_nothing, "core.link", "open('x')", "may not call open()"),
    (sets_are_not_iterated, "core.link", "for x in {1, 2}: ...", "iterates over a set"),
    (sets_are_not_iterated, "core.link", "for x in set(y): ...", "iterates over a set"),
    (sets_are_not_iterated, "core.link", "for x in {y for y in z}: ...", "iterates over a set"),
    (sets_are_not_iterated, "core.link", "a = [x for x in frozenset(y)]", "iterates over a set"),
    (sets_are_not_iterated, "core.link", "self.a: set[int] = set()\nfor x in self.a: ...", "iterates over a set"),
    (nothing_is_too_long, "broker", "x = 1\n" * (MODULE_LINES_MAX + 1), "module of 401 lines"),
    (nothing_is_too_long, "broker", "class A:\n" + "    x = 1\n" * CLASS_LINES_MAX, "class A of 301 lines"),
    (nothing_is_too_long, "broker", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX, "f() of 71 lines"),
    (nothing_is_too_long, "broker", "async def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX, "f() of 71 lines"),
    (nothing_banned_is_called, "loader", "eval('1')", "parse the value"),
    (nothing_banned_is_called, "broker", "exec('1')", "only loader.py"),
    (nothing_banned_is_called, "codec", "import pickle", "runs code from the wire"),
    (nothing_banned_is_called, "codec", "from cloudpickle import loads", "runs code from the wire"),
    (nothing_banned_is_called, "mixins.redis", "def f():\n    import pickle", "runs code from the wire"),
    (nothing_banned_is_called, "transport", "s.recv_pyobj()", "is pickle"),
    (nothing_banned_is_called, "transport", "s.send_pyobj(1)", "is pickle"),
    (nothing_banned_is_called, "transport", "import zmq.asyncio", "links of transport.py"),
    (nothing_banned_is_called, "transport", "from zmq import asyncio", "links of transport.py"),
    (nothing_banned_is_called, "transport", "from zmq.asyncio import Context", "links of transport.py"),
    (nothing_banned_is_called, "transport", "zmq.asyncio.Context()", "links of transport.py"),
    (nothing_banned_is_called, "broker", "try:\n    f()\nexcept Exception:\n    pass", "swallows every error"),
    (nothing_banned_is_called, "broker", "try:\n    f()\nexcept (E, Exception) as e:\n    ...", "swallows every error"),
    (nothing_banned_is_called, "broker", "try:\n    f()\nexcept:\n    raise", "bare except"),
    (nothing_banned_is_called, "broker", "bind('tcp://*:5555')", "listens to the whole world"),
    (nothing_banned_is_called, "broker", "bind(f'tcp://*:{port}')", "listens to the whole world"),
    (nothing_banned_is_called, "broker", "time.sleep(1)", "hides a race"),
    (nothing_banned_is_called, "broker", "from time import sleep", "hides a race"),
    (nothing_banned_is_called, "broker", "print(1)", "write to the log"),
    (opens_with_what_it_is, "broker", "__all__ = []", "no docstring"),
    (opens_with_what_it_is, "broker", "'''Words.'''", "no __all__"),
    (opens_with_what_it_is, "__main__", "x = 1", "no docstring"),
]

# rule, module the source pretends to be, source that is right
SOUND = [
    (imports_only_from_below, "errors", "import enum\nfrom zmesh.messages import State"),
    (imports_only_from_below, "core.link", "from zmesh.core.events import Event\nfrom zmesh.errors import PeerError"),
    (imports_only_from_below, "broker", "import zmesh.transport\nfrom zmesh.core import dispatcher"),
    (imports_only_from_below, "gateway", "from zmesh.openapi import document\nfrom zmesh import codec"),
    (imports_only_from_below, "server", "from zmesh.agent import Agent\nfrom zmesh.gateway import Gateway"),
    (imports_only_from_below, "server", "def f():\n    from zmesh.testing import LocalMesh"),
    (imports_only_from_below, "cli", "from zmesh.server import Server"),
    (imports_only_from_below, "__main__", "from zmesh.cli import main"),
    (imports_only_from_below, "mixins", "from zmesh.mixins.redis import RedisMixin"),
    (libraries_stay_at_home, "keys", "import zmq\nimport json\nfrom zmesh.errors import PeerError"),
    (libraries_stay_at_home, "mixins.redis", "import redis\nimport msgpack"),
    (libraries_stay_at_home, "lane", "from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol"),
    (decisions_touch_nothing, "core.link", "from random import Random\nfrom heapq import heappush"),
    (decisions_touch_nothing, "broker", "import asyncio\nasync def f(): ...\nopen('x')"),
    (sets_are_not_iterated, "core.link", "for x in sorted({1, 2}): ...\nfor x in {1: 2}: ...\nfor x in [1]: ..."),
    (sets_are_not_iterated, "broker", "for x in {1, 2}: ..."),
    (nothing_is_too_long, "broker", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1)),
    (nothing_banned_is_called, "loader", "exec('1')"),
    (nothing_banned_is_called, "mixins.pickle_ipc", "import pickle"),
    (nothing_banned_is_called, "agent", "import time\ntime.sleep(1)\nprint(1)"),
    (nothing_banned_is_called, "broker", "'''Never tcp://*.'''\ntry:\n    f()\nexcept OSError:\n    pass"),
    (nothing_banned_is_called, "broker", "try:\n    f()\nexcept Exception as error:\n    log(error)"),
    (opens_with_what_it_is, "broker", "'''Words.'''\n__all__: list[str] = []"),
    (opens_with_what_it_is, "__main__", "'''Words.'''"),
]


@pytest.mark.parametrize(("rule", "name", "source", "word"), BROKEN)
def test_rule_catches(rule: Callable[[Module], Iterator[str]], name: str, source: str, word: str):
    complaints = list(rule(Module(name, source)))
    assert any(word in complaint for complaint in complaints), complaints


@pytest.mark.parametrize(("rule", "name", "source"), SOUND)
def test_rule_lets_pass(rule: Callable[[Module], Iterator[str]], name: str, source: str):
    assert list(rule(Module(name, source))) == []


def test_every_rule_is_shown_to_bite_and_to_let_pass():
    assert {rule for rule, *_ in BROKEN} == set(RULES)
    assert {rule for rule, *_ in SOUND} == set(RULES)


def test_every_home_has_a_floor():
    named = {home for homes in HOMES.values() for home in homes}
    assert [home for home in sorted(named) if floor_of(home.replace("*", "x")) is None] == []


def test_circle_is_found_and_types_do_not_make_one():
    here = Module("core.events", "from zmesh.core.link import Request")
    there = Module("core.link", "from zmesh.core.effects import Reply")
    back = Module("core.effects", "from zmesh.core.events import Event")
    (complaint,) = circles([here, there, back])
    assert "circle core.events → core.link → core.effects → core.events" in complaint
    for_types = Module("core.effects", "if TYPE_CHECKING:\n    from zmesh.core.events import Event")
    assert circles([here, there, for_types]) == []


def test_hosts_and_paths_are_found():
    for bad in (
        "py" + "pi.org",
        "https://files." + "pythonhosted.org/x",
        "registry." + "npmjs.org",
        "deb.debian" + ".org",
    ):
        assert places_in(f"one\nsee {bad}\n")[0].startswith("2: ")
    assert places_in("cd /wo" + "rk/main")
    assert places_in("apt-get install python3, frame/wo" + "rk/x, $HOME/wo" + "rk/") == []
