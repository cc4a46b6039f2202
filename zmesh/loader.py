"""Running a user's app file: as `__main__` where the mesh is assembled, as `__zmesh_app__` where one class of it works.

What a process is here for stands in `current_verb`, set before the app file runs and read by `Server.run()`, the only
place where anything starts. A mistake in the file becomes an `AppError`: one readable line, and in `detail` the user's
own part of the traceback.
"""

from __future__ import annotations

import ast
import atexit
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, TypeVar

from zmesh.errors import DeclarationError, StartError
from zmesh.tracebacks import as_typed, is_ours, one_line, users_traceback, with_place
from zmesh.worker import Worker

if TYPE_CHECKING:
    from zmesh.pipe import Pipe

__all__ = [
    "APP_MODULE",
    "AppError",
    "Verb",
    "current_verb",
    "find_one",
    "load_worker_class",
    "qualified",
    "refuse_optimized",
    "remind_to_run",
    "run_as_main",
    "stop_reminding",
]

APP_MODULE = "__zmesh_app__"

Kind = TypeVar("Kind")


class AppError(StartError):
    """Something is wrong with the app file. `detail` is the traceback of what the user's code raised, or empty."""

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.detail = detail


@dataclass(slots=True)
class Verb:
    """What this process is here for: a verb of the command line, import, or nothing yet (`python app.py`).

    `given` are the settings of the command line, by their names; `has_started` is set once `Server.run()` got to work.
    """

    name: str = ""
    given: Mapping[str, object] = field(default_factory=dict)
    user_args: tuple[str, ...] = ()
    app_path: str = ""
    output: str = "text"
    pipe: Pipe | None = None  # to the agent, when it started us
    has_started: bool = False

    def become(
        self,
        name: str,
        *,
        app_path: str = "",
        given: Mapping[str, object] | None = None,
        user_args: Sequence[str] = (),
        output: str = "text",
        pipe: Pipe | None = None,
    ) -> None:
        self.name, self.app_path, self.output, self.pipe = name, app_path, output, pipe
        self.given, self.user_args, self.has_started = dict(given or {}), tuple(user_args), False


current_verb = Verb()


def refuse_optimized() -> None:
    """Raises StartError under `python -O`: the assertions are part of how zmesh keeps its promises."""
    if sys.flags.optimize:
        text = "python -O takes out the checks that zmesh relies on; leave -O out, or unset PYTHONOPTIMIZE"
        raise StartError(text)


# ── the two ways to run an app file ───────────────────────────────────────────────────────────────────────────────


def run_as_main(app_path: str, user_args: Sequence[str] = ()) -> ModuleType:
    """Execute the file as `__main__`, as `python app.py` would. Raises AppError for what is wrong with it."""
    path = _existing(app_path)
    module = ModuleType("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    sys.argv = [app_path, *user_args]
    _put_first(os.path.dirname(path))
    with _explained(app_path, path):
        exec(_compiled(path), module.__dict__)
    return module


def load_worker_class(app_path: str, qualified_name: str) -> type[Worker]:
    """The class that `qualified` named, in a process that has not run the app file. Raises AppError.

    From here on this process is a worker: no `Server.run()` starts anything in it.
    """
    current_verb.become("import", app_path=app_path)
    path, app_path = _existing(app_path), as_typed(app_path)
    _put_first(os.path.dirname(path))
    home, _, name = qualified_name.rpartition(":")
    if home in ("", APP_MODULE):
        module, shown = _import_app(app_path, path), app_path
    else:
        with _explained(home, path):
            module, shown = importlib.import_module(home), f"module {home}"
    found = _inside(module, name)
    if found is None:
        raise AppError(_unreachable(name, shown, path if module.__name__ == APP_MODULE else ""))
    if not isinstance(found, type) or not issubclass(found, Worker):
        raise AppError(f"{name} of {shown} is not a worker; make it a subclass of zmesh.Worker")
    return found


def _import_app(app_path: str, path: str) -> ModuleType:
    """The file as module `__zmesh_app__`. A second call finds the first one's module."""
    known = sys.modules.get(APP_MODULE)
    if known is not None and known.__file__ == path:
        return known
    spec = spec_from_loader(APP_MODULE, SourceFileLoader(APP_MODULE, path))
    assert spec is not None and spec.loader is not None, "a loader was given"
    module = module_from_spec(spec)
    sys.modules[APP_MODULE] = module  # before it runs: dataclasses and pickle look their own module up
    try:
        with _explained(app_path, path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[APP_MODULE]
        raise
    return module


def _existing(app_path: str) -> str:
    path = os.path.abspath(app_path)
    if os.path.isdir(path):
        raise AppError(f"{app_path} is a directory; name the Python file in it that makes the Server")
    if not os.path.exists(path):
        raise AppError(f"there is no file {app_path}{_instead_of(app_path)}")
    if os.path.basename(path) == "zmesh.py":
        text = "has the name of the library itself, and workers would import it instead; rename it"
        raise AppError(f"{app_path} {text}")
    return path


def _instead_of(app_path: str) -> str:
    before, colon, _ = app_path.partition(":")
    file = before if before.endswith(".py") else f"{before}.py"
    if not os.path.isfile(file):
        return "; name the Python file that makes the Server"
    return f"; zmesh takes the file alone: zmesh run {file}" if colon else f"; did you mean {file}?"


def _put_first(folder: str) -> None:
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)


def _compiled(path: str) -> CodeType:
    with open(path, "rb") as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


# ── which class ───────────────────────────────────────────────────────────────────────────────────────────────────


def qualified(cls: type) -> str:
    """`module:qualname` as `load_worker_class` takes it. Raises AppError for a class that no worker could find."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    is_app = cls.__module__ in ("__main__", APP_MODULE) or (file is not None and file == _main_file())
    shown = os.path.basename(file) if file else f"module {cls.__module__}"
    main_file = file if is_app and file else ""
    if "<locals>" in cls.__qualname__ or cls.__qualname__.partition(".")[0] in _only_in_main_block(main_file):
        raise AppError(_unreachable(cls.__qualname__, shown, main_file))
    if module is not None and _inside(module, cls.__qualname__) is not cls:
        raise AppError(
            f"class {cls.__qualname__} is not what that name means in {shown}; "
            "workers find a class by its name, so keep it there"
        )
    return f"{APP_MODULE if is_app else cls.__module__}:{cls.__qualname__}"


def _main_file() -> str | None:
    return getattr(sys.modules.get("__main__"), "__file__", None)


def _inside(module: ModuleType, qualname: str) -> object:
    """What `Outer.Inner` means in a module; None when it means nothing."""
    found: object = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _unreachable(name: str, shown: str, path: str) -> str:
    move = "; move it to module level"
    if "<locals>" in name:
        short = name.rpartition(".")[2]
        return f"class {short} is made inside a function of {shown}, where workers cannot find it{move}"
    if name.partition(".")[0] in _only_in_main_block(path):
        return f"class {name} is made inside the main block of {shown}, which workers do not run{move}"
    return f"there is no class {name} in {shown} when a worker imports it{move}"


@functools.cache
def _only_in_main_block(path: str) -> frozenset[str]:
    """Classes that the file defines under `if __name__ == "__main__":` and nowhere else at module level."""
    if not path:
        return frozenset()
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    inside: set[str] = set()
    outside: set[str] = set()
    for node in tree.body:
        test = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        is_main = "__name__" in test and "__main__" in test
        (inside if is_main else outside).update(_names_bound(node))
    return frozenset(inside - outside)


def _names_bound(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]


def find_one(module: ModuleType, kind: type[Kind], app_path: str) -> Kind:
    """The only object of its kind at module level. Raises AppError when there is none, or more than one."""
    found = {id(value): (name, value) for name, value in reversed(vars(module).items()) if isinstance(value, kind)}
    if not found:
        raise AppError(
            f"{app_path} made no {kind.__name__} that zmesh could run; "
            "make one at module level, or call its run() in the main block"
        )
    if len(found) > 1:
        names = ", ".join(sorted(name for name, _ in found.values()))
        raise AppError(f"{app_path} made more than one {kind.__name__} ({names}); call run() of one in the main block")
    ((_, value),) = found.values()
    return value


# ── what went wrong ───────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _explained(shown: str, path: str) -> Iterator[None]:
    """Turns what the user's code raises into an AppError, unless `Server.run()` was already at work."""
    try:
        yield
    except StartError:
        raise
    except Exception as error:
        if current_verb.has_started:
            raise
        raise _explain(error, shown, path) from error


def _explain(error: Exception, shown: str, path: str) -> AppError:
    """A refusal of ours is a sentence by itself; anything else is shown with the frames of the user's code."""
    if isinstance(error, DeclarationError):
        return AppError(with_place(error, shown, path))
    if isinstance(error, SyntaxError) and error.filename == path:
        said, line = f"{type(error).__name__}: {error.msg}", error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == path), None)
        said = one_line(error)
    suffix = f" (line {line})" if line else ""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "mosec":
        suffix += f"; what to change in it says: zmesh check {shown}"
    return AppError(f"{shown} does not import: {said}{suffix}", detail=users_traceback(error))


# ── what was forgotten ───────────────────────────────────────────────────────────────────────────────────────────────


def remind_to_run() -> None:
    """A file that makes a Server and has no `run()` in it would end `python app.py` in silence: then say so at its end.

    To be called where a Server is made. One that is made in a function may be meant for a test, and is left alone.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    is_at_module_level = frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__"
    path = _main_file()
    if is_at_module_level and path and not (current_verb.name or sys.flags.interactive or hasattr(sys, "ps1")):
        stop_reminding()
        if os.path.isfile(path) and b"run(" not in Path(path).read_bytes():
            atexit.register(_say_never_run, as_typed(path))


def stop_reminding() -> None:
    """It is run after all, by another file."""
    atexit.unregister(_say_never_run)


def _say_never_run(shown: str) -> None:
    has_failed = hasattr(sys, "last_value")  # and Python has said how
    if not has_failed:
        text = f"{shown} made a Server and did not run it; call its run(), or start it with: zmesh run {shown}"
        sys.stderr.write(f"zmesh: {text}\n")
