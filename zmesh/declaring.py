"""Refusing what an app file declares: in one line that says what was meant, however the file was started.

Under `zmesh run` the loader makes a sentence of a DeclarationError. Under `python app.py` the error leaves the user's
own code, and only `sys.excepthook` is left to say it. So one is put in place when a declaration is refused, not
before, and it speaks for that kind of error alone. Whoever has set a hook of their own keeps it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import ParamSpec, TypeVar

from zmesh.errors import DeclarationError
from zmesh.tracebacks import as_typed, with_place
from zmesh.worker import Worker

__all__ = ["declaration", "ipc_codec", "unknown_name", "worker_class"]

Given = ParamSpec("Given")
Made = TypeVar("Made")


def declaration(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """What an app file calls to declare something: a wrong call is a DeclarationError too, and says what was meant."""
    signature = inspect.signature(function)
    known = [name for name in signature.parameters if name != "self"]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    called = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def declare(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        try:
            if strange := next((name for name in kwargs if name not in known and not takes_any), None):
                raise unknown_name(f"{called}() has no keyword", strange, known)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise DeclarationError(f"{called}(): {error}") from None
            return function(*args, **kwargs)
        except DeclarationError:
            _speak_plainly()
            raise

    return declare


def unknown_name(complaint: str, name: str, known: Iterable[str]) -> DeclarationError:
    """An error that suggests which of `known` was meant by `name`, or names them all."""
    names = list(known)
    parts = [one for one in names if name in one]  # batch_size, for max_batch_size
    meant = parts if len(parts) == 1 else difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {meant[0]}?" if meant else f"known are {', '.join(names)}"
    return DeclarationError(f"{complaint} {name!r}; {hint}")


def worker_class(worker: object) -> type[Worker]:
    """What a stage is made of. Raises DeclarationError for what cannot be run."""
    if isinstance(worker, Worker):
        name = type(worker).__name__
        raise DeclarationError(f"a stage takes the class itself: write {name}, not {name}()")
    if not isinstance(worker, type):
        raise DeclarationError(f"a stage needs a subclass of zmesh.Worker, not {worker!r}")
    if not issubclass(worker, Worker):
        raise DeclarationError(f"{worker.__name__} is not a worker; make it a subclass of zmesh.Worker")
    if inspect.isabstract(worker):
        missing = ", ".join(sorted(worker.__abstractmethods__))
        raise DeclarationError(f"{worker.__name__} cannot be run: it does not define {missing}")
    if why := worker.unfit():
        raise DeclarationError(f"{worker.__name__}: {why}")
    return worker


def _speak_plainly() -> None:
    at_prompt = sys.flags.interactive or hasattr(sys, "ps1") or "pytest" in sys.modules
    if _script() and not at_prompt and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _say_uncaught


def _say_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, DeclarationError):
        path = _script()
        sys.stderr.write(f"zmesh: {with_place(error, as_typed(path), path)}\n")
    else:
        sys.__excepthook__(kind, error, trace)


def _script() -> str:
    """The file that Python runs; empty when there is none."""
    return getattr(sys.modules.get("__main__"), "__file__", None) or ""


def ipc_codec(worker: type[Worker]) -> str:
    """A name for what it writes and reads between stages; equal in every process that has the same app file."""
    pair = worker.serialize_ipc, worker.deserialize_ipc
    if pair == (Worker.serialize_ipc, Worker.deserialize_ipc):
        return "zmesh"
    return "+".join(getattr(function, "__qualname__", "custom") for function in pair)
