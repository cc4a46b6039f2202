"""An example as its README tells it: the commands that a reader would type, and the answers that it promises.

    ```sh
    zmesh run examples/echo/app.py                                    starts the app; what follows is asked of it
    curl -d '{"hello": "mesh"}' http://127.0.0.1:8000/inference       is run
    ```

    ```json
    {"hello": "mesh"}                                                 has to be what the commands above printed
    ```

docs/testing.md says what else there is.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["EXAMPLES", "Asking", "Run", "apps_of", "differences", "load_example", "needs_of", "runs_of"]

EXAMPLES = Path(__file__).parent.parent / "examples"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANSWERS = ("json", "text", "")  # the languages of a block that says what was printed
ASKS = ("curl ", "python examples/")
OTHERS = ("pip ", "apt-get ", "docker ", "prometheus ", "promtool ", "zmesh ", "cd ", "git ")  # the reader's business
ANYTHING = "…"
TOLERANCE = 1e-3  # of numbers: another processor adds up in another order


@dataclass
class Asking:
    """Commands of one block, and what they print together; None: nothing is promised of it."""

    commands: list[str]
    language: str = ""
    promised: str | None = None


@dataclass
class Run:
    """One `zmesh run` of a README, and what is asked of it until the next one."""

    app: str
    arguments: list[str]
    env: dict[str, str]
    askings: list[Asking] = field(default_factory=list)


def runs_of(readme: str, folder: str) -> list[Run]:
    """The runs in the order of the page. AssertionError for a command that nobody knows how to run."""
    runs: list[Run] = []
    open_asking: Asking | None = None  # whose answer may come next
    for language, text in FENCE.findall(readme):
        if language in ("sh", "python"):
            open_asking = None
            commands = _commands(text) if language == "sh" else _program(text)
            asked = [line for line in commands if not _is_start(line, folder, runs) and _is_asked(line)]
            if asked and runs:
                open_asking = Asking(asked)
                runs[-1].askings.append(open_asking)
        elif language in ANSWERS and open_asking is not None:
            open_asking.language, open_asking.promised = language, text
            open_asking = None
    return runs


def _commands(text: str) -> list[str]:
    """One for each line, or for several that belong together; without comments. `# or` ends a block."""
    found: list[str] = []
    begun = ""
    for line in re.split(r"^# or$", text, flags=re.MULTILINE)[0].splitlines():
        begun = f"{begun}\n{line}" if begun else line
        try:
            words = shlex.split(begun.replace("\\\n", " "), comments=True)
        except ValueError:  # a quotation that is still open
            continue
        if begun.endswith("\\"):
            continue
        if words:
            found.append(begun.strip())
        begun = ""
    assert not begun, f"a quotation without an end: {begun}"
    return found


def _program(text: str) -> list[str]:
    """A client in Python, if it is one: whatever else is shown in Python is to be read."""
    return [f"python - <<'PROGRAM'\n{text}PROGRAM"] if re.search(r"\b8000\b", text) else []


def _is_start(line: str, folder: str, runs: list[Run]) -> bool:
    words = shlex.split(line, comments=True) if "<<" not in line else []
    env = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = words[len(env) :]
    if words[:2] != ["zmesh", "run"] or not any(word.startswith(f"{folder}/") for word in words[2:]):
        return False
    app = next(word for word in words if word.startswith(f"{folder}/"))
    runs.append(Run(app, [word for word in words[2:] if word != app], env))
    return True


def _is_asked(line: str) -> bool:
    if line.startswith(("python - <<", *ASKS)) or re.search(r"[|(] *curl ", line):
        return not re.match(r"python examples/\w+/(app|train)\.py", line)
    assert line.startswith(OTHERS) or re.match(r"[A-Z_]+=\S* (zmesh|python) ", line), (
        f"nobody knows how to run {line!r}: begin it with one of {ASKS + OTHERS}, or take another fence than ```sh"
    )
    return False


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def differences(promised: str, printed: str, language: str) -> str:
    """What of the promise was not kept, for a person; empty if all is as it stands there.

    `…` stands for anything: within a text, as a value, as the rest of a list, as a further key.
    """
    if language == "json":
        left, right = _documents(promised), _documents(printed)
        if right is None:
            return f"this is no JSON:\n{printed}"
        same = left is not None and _same(left, right)
    else:
        pattern = ".*".join(re.escape(piece) for piece in _lines(promised).split(ANYTHING))
        same = re.fullmatch(pattern, _lines(printed), re.DOTALL) is not None
    return "" if same else f"the README promises\n{promised}\nand there was\n{printed}"


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _documents(text: str) -> list[Any] | None:
    """JSON values one after the other; None if something else is between them."""
    found, rest = [], text.strip()
    decoder = json.JSONDecoder()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError:
            return None
        found.append(value)
        rest = rest[end:].strip()
    return found


def _same(promised: Any, found: Any) -> bool:
    if promised == ANYTHING:
        return True
    if isinstance(promised, dict) and isinstance(found, dict):
        wanted = {key: value for key, value in promised.items() if key != ANYTHING}
        is_open = len(wanted) < len(promised)
        return (is_open or wanted.keys() == found.keys()) and all(
            key in found and _same(value, found[key]) for key, value in wanted.items()
        )
    if isinstance(promised, list) and isinstance(found, list):
        if promised and promised[-1] == ANYTHING:
            promised, found = promised[:-1], found[: len(promised) - 1]
        return len(promised) == len(found) and all(map(_same, promised, found))
    if isinstance(promised, float) and isinstance(found, int | float) and not isinstance(found, bool):
        return abs(promised - found) <= TOLERANCE * max(1.0, abs(promised))
    return type(promised) is type(found) and bool(promised == found)


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────


def apps_of(folder: Path) -> list[Path]:
    """The files of an example that declare stages."""
    return [path for path in sorted(folder.glob("*.py")) if re.search(r"\bServer\(", path.read_text())]


def needs_of(readme: str) -> list[str]:
    """The distributions without which an example does not run: the names in a line that begins with `Needs`."""
    return [name for line in re.findall(r"^Needs .*", readme, re.MULTILINE) for name in re.findall(r"`([\w-]+)`", line)]


def load_example(name: str, file: str = "app.py") -> ModuleType:
    """A file of an example as a module, without its main block."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}_{Path(file).stem}", EXAMPLES / name / file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
