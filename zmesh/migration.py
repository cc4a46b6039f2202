"""What to change in a file that imports mosec, found by reading it: it is not run, and mosec need not be there.

A finding is a line of the file with what to write instead, or a word about it. The modules beside the file that it
imports are read too. What zmesh has is asked of zmesh itself, so that this cannot say less, or more, than there is.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from zmesh.config import OPTIONS

__all__ = ["Finding", "findings", "report"]

THEIRS, OURS = "mosec", "zmesh"
PAGE = "docs/migrating-from-mosec.md"

# What has no counterpart of the same name, and what there is in its place.
INSTEAD: Mapping[str, str] = {
    "mosec.plugins": "gone since mosec 0.8: leave the wrapper out, or override serialize_ipc and deserialize_ipc",
    "mosec.args": "settings are read by zmesh alone; give them as keywords: Server(port=9000)",
    "mosec.env": "settings are read by zmesh alone; give them as keywords: Server(port=9000)",
    "mosec.coordinator": "a worker is tried without a server by making one: YourWorker().forward(…)",
    "mosec.dry_run": "zmesh check --run app.py tries every stage with its example",
    "mosec.server.MOSEC_RESERVED_ENDPOINTS": "docs/behaviour.md lists the paths that cannot be routes",
    "mosec.server.GUARD_CHECK_INTERVAL": "a worker that ends is replaced at once, so nothing is polled",
    "mosec.protocol.HTTPStautsCode": "write HTTPStatusCode, as mosec does since 0.8.7",
}
# What is there under the same name, and needs a word all the same.
DIFFERS: Mapping[str, str] = {
    "mosec.mixin.PlasmaShmIPCMixin": "it does nothing but say so: pyarrow has no plasma any more; put RedisShmIPCMixin "
    "or ShmIPCMixin in its place",
}
KEYWORDS: Mapping[str, str] = {
    "ipc_wrapper": "leave it out, it is gone since mosec 0.8; what goes between stages is serialize_ipc's",
    "start_method": "taken, and without effect: each worker is a fresh process, so load what it needs in its __init__",
}
CALLS: Mapping[str, str] = {
    "start_http_server": "the main block runs in the agent and in each gateway, so this port is taken when the second "
    "comes; leave it out and count with self.metrics, which /metrics shows",
}
UNSEEN = (
    "it listens on 127.0.0.1; for other hosts give it --host 0.0.0.0 (--address is the same)",
    "between stages go msgpack, numpy arrays and tensors, not pickle: other types are refused by name; on one host "
    "PickleIPCMixin before Worker sends them as mosec does",
    "names of metrics begin with zmesh_; with --namespace mosec_service they begin as before",
    "a stage is called as its class, not Class_1",
    "the main block runs in the agent and in each gateway: what it starts before run(), it starts in each of them",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """`before` stands in that line. Either `after` replaces it, or `advice` says what to do."""

    file: str
    line: int
    before: str
    after: str = ""
    advice: str = ""


def report(path: str, output: str = "text") -> str:
    """What to change, for a person or as JSON; empty when nothing imports mosec, or the file cannot be read."""
    found = list(_of_files(Path(path), set()))
    if not found:
        return ""
    if output == "json":
        return json.dumps([asdict(one) for one in found], indent=2)
    lines = [f"{path} is written for mosec; this is what to change:"]
    for one in found:
        lines += ["", f"{one.file}, line {one.line}:  {one.before}"]
        lines.append(f"  write  {one.after}" if one.after else f"  note   {one.advice}")
    lines += ["", "what no line shows:", *(f"  {text}" for text in UNSEEN), "", f"all else, one by one: {PAGE}"]
    return "\n".join(lines)


def _of_files(path: Path, seen: set[Path]) -> Iterator[Finding]:
    """Of a file and of those beside it that it imports."""
    if path in seen:
        return
    seen.add(path)
    try:
        with tokenize.open(path) as file:  # in the encoding that it names
            source = file.read()
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return  # whoever runs it will say so
    yield from findings(source, str(path))
    for module in sorted({name for node in ast.walk(tree) for name in _modules(node)}):
        parts = module.split(".")
        for length in range(1, len(parts) + 1):
            near = path.parent.joinpath(*parts[:length])
            for file_of_it in (near.with_name(f"{near.name}.py"), near / "__init__.py"):
                if file_of_it.is_file():
                    yield from _of_files(file_of_it, seen)


def _modules(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(module)):
            return [module]
    return []


def findings(source: str, file: str = "app.py") -> list[Finding]:
    """Of one file, from top to bottom. Raises SyntaxError for what is no Python."""
    tree = ast.parse(source)
    if not any(_is_theirs(name) for node in ast.walk(tree) for name in _modules(node)):
        return []
    reader = _Reader(source.splitlines(), file)
    reader.visit(tree)
    return sorted(dict.fromkeys(reader.found), key=lambda one: (one.line, not one.after))


class _Reader(ast.NodeVisitor):
    def __init__(self, lines: list[str], file: str) -> None:
        self._lines, self._file = lines, file
        self._names: dict[str, str] = {}  # what a name of the file stands for, of theirs
        self.found: list[Finding] = []

    def _replace(self, node: ast.stmt | ast.expr) -> None:
        """Every line of it that says mosec says zmesh."""
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            text = self._lines[number - 1].strip()
            if (changed := re.sub(rf"\b{THEIRS}\b", OURS, text)) != text:
                self.found.append(Finding(self._file, number, text, after=changed))

    def _note(self, node: ast.stmt | ast.expr | ast.alias | ast.keyword, advice: str) -> None:
        self.found.append(Finding(self._file, node.lineno, self._lines[node.lineno - 1].strip(), advice=advice))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in filter(lambda alias: _is_theirs(alias.name), node.names):
            self._names[alias.asname or THEIRS] = alias.name if alias.asname else THEIRS
            if not _exists(alias.name):
                self._note(alias, _instead_of(alias.name))
            self._replace(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level or not _is_theirs(node.module or ""):
            return
        if any(_exists(f"{node.module}.{alias.name}") for alias in node.names):
            self._replace(node)
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            self._names[alias.asname or alias.name] = whole
            if whole in DIFFERS:
                self._note(alias, DIFFERS[whole])
            elif alias.name != "*" and not _exists(whole):
                self._note(alias, _instead_of(whole))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        whole = _dotted(node)
        first, _, rest = whole.partition(".")
        if first not in self._names:
            self.generic_visit(node)
            return
        if first == THEIRS:
            self._replace(node)
        meant = f"{self._names[first]}.{rest}"
        if known := next((name for name in DIFFERS if f"{meant}.".startswith(f"{name}.")), ""):
            self._note(node, DIFFERS[known])
        elif _is_module(self._names[first]) and not _exists(meant):
            self._note(node, _instead_of(meant))

    def visit_Call(self, node: ast.Call) -> None:
        called = _dotted(node.func).rpartition(".")[2]
        for keyword in node.keywords if called in ("Server", "append_worker", "Runtime") else ():
            is_spawn = isinstance(keyword.value, ast.Constant) and keyword.value.value == "spawn"
            if (advice := KEYWORDS.get(keyword.arg or "")) and not is_spawn:
                self._note(keyword, advice)
        if advice := CALLS.get(called):
            self._note(node, advice)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str) or "\n" in node.value:
            return
        for variable in re.findall(r"\bMOSEC_[A-Z_]+", node.value):
            ours = next((option.variable for option in OPTIONS if option.twin == variable), "")
            read = f"{ours} is its name here; {variable} is read too, with a line that says so"
            self._note(node, read if ours else f"zmesh reads no {variable}")
        if "mosec_service" in node.value:
            self._note(node, "names of metrics begin with zmesh_, or with what --namespace says")


def _is_theirs(module: str) -> bool:
    return module.partition(".")[0] == THEIRS


def _is_module(name: str) -> bool:
    return importlib.util.find_spec(_ours(name)) is not None if _parent_is_package(name) else False


def _parent_is_package(name: str) -> bool:
    return name.count(".") < 2  # zmesh, and what is right below it


def _ours(name: str) -> str:
    return OURS + name.removeprefix(THEIRS)


def _exists(name: str) -> bool:
    """Whether `mosec.worker.Worker`, or `mosec.worker`, is there under our name."""
    if not _is_theirs(name) or (_parent_is_package(name) and _is_module(name)):
        return True
    module, _, attribute = _ours(name).rpartition(".")
    try:
        return attribute == "*" or hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False


def _instead_of(name: str) -> str:
    parts = name.split(".")
    known = (INSTEAD.get(".".join(parts[:length])) for length in range(len(parts), 1, -1))
    return next((text for text in known if text), f"zmesh has no {_ours(name).removeprefix(OURS + '.')}; see {PAGE}")


def _dotted(node: ast.expr) -> str:
    """`mosec.errors.MosecError` for that expression, empty for anything that is no plain dotted name."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            before = _dotted(value)
            return f"{before}.{attr}" if before else ""
    return ""
