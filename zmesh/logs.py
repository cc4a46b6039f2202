"""One format for all processes, on stderr: a line of text for a person, or a JSON object for a machine.

Both say when (UTC), how serious, who (role, and which worker or gateway), what, and of which request, when that is
known. Whatever a record carries, its line is bounded, and nothing in it can pass for another record or move the cursor
of a terminal: what clients choose may stand in it.

Ours are the loggers `zmesh`, `zmesh.user` (what `get_logger` gives to users) and what the libraries below us say. The
root logger belongs to the user's code. Where nobody has given it a handler, and Python would show warnings only and
without their time, `join_in` has such records said like ours; whoever configures logging keeps what they configured.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

__all__ = ["announce", "get_logger", "is_json", "join_in", "last_words", "say", "setup"]

LEVELS = logging.getLevelNamesMapping()
LIBRARIES = ("uvicorn", "asyncio")  # they speak up when something is wrong, and then in our format
MESSAGE_CHARACTERS_MAX = 32 * 1024  # of a message or a traceback; the middle of a longer one is left out
ID_CHARACTERS_MAX = 128  # of a request id, as in HTTP
IDS_MAX = 64  # of a record
TRACEBACK = "Traceback (most recent call last):"  # with which those begin that stand in a message of ours
COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}  # of a terminal; INFO has none
_MAIN = threading.main_thread().ident

# What moves a cursor, ends a line or turns the direction of a text; a line feed has its own way.
_CONTROLS = [*range(9), *range(11, 32), *range(127, 160)]
_CONTROLS += [0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROLS} | {10: "\n    "}


def _nobody() -> str | None:
    return None


class _Who:
    """Who this process is, for every record: `worker Echo/1` is the worker 1 of stage Echo."""

    def __init__(self, role: str, request_id: Callable[[], str | None]) -> None:
        self.role, self._request_id = role, request_id
        kind, _, label = role.partition(" ")
        name, _, number = kind.partition("/")
        self.fields: dict[str, Any] = {"role": name}
        if label:
            self.fields["worker"] = label
        elif number:
            self.fields[name] = int(number) if number.isdecimal() else number

    def requests(self, record: logging.LogRecord) -> list[str]:
        """Of which requests it is: those that its author named, or the one that the main thread works for."""
        named = getattr(record, "request_id", None)
        if named is None and record.thread == _MAIN:
            named = self._request_id()
        if not named:
            return []
        known = named[:IDS_MAX] if isinstance(named, list | tuple) else [named]
        return [str(one)[:ID_CHARACTERS_MAX] for one in known]


class _Format(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]  # the stub knows no default
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, who: _Who) -> None:
        super().__init__()
        self._who = who

    def exception(self, record: logging.LogRecord) -> str:
        told = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        return "\n".join(part for part in (told, record.stack_info) if part)


class _Text(_Format):
    """`TIME LEVEL ROLE [REQUEST] MESSAGE`; what follows a first line is indented, so that no message can forge one."""

    def __init__(self, who: _Who, *, is_coloured: bool) -> None:
        super().__init__(who)
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        said = _bounded(_message(record))
        if told := self.exception(record):
            said += f"\n{_bounded(told)}"
        requests = [one for one in self._who.requests(record) if one not in said]
        about = f"[{' '.join(requests)[:ID_CHARACTERS_MAX]}] " if requests else ""
        level, role, text = record.levelname, self._who.role, f"{about}{said}".translate(_ESCAPES)
        if self._is_coloured:
            level, role = _coloured(level, COLOURS.get(level, "")), _coloured(role, "36")
        return f"{self.formatTime(record)} {level} {role} {text}"


def _coloured(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


class _Json(_Format):
    """One object. The keys, and which of them are always there, are in docs/operations.md."""

    def format(self, record: logging.LogRecord) -> str:
        who, said, told = self._who, _message(record), self.exception(record)
        first, _, rest = said.partition("\n")
        if not told and rest.startswith(TRACEBACK):  # of a user's code, without the frames of ours
            said, told = first, rest
        fields = {"time": self.formatTime(record), "level": record.levelname, **who.fields, "pid": record.process}
        fields["logger"] = record.name
        if record.lineno and (not record.name.startswith("zmesh.") or record.name == "zmesh.user"):
            fields["source"] = f"{record.filename}:{record.lineno}"
        if requests := who.requests(record):
            fields |= {"request_id": requests[0]} if len(requests) == 1 else {"request_ids": requests}
        fields["message"] = _bounded(said)
        if told:
            fields["exception"] = _bounded(told)
        return json.dumps(fields)  # in ASCII: whatever stderr can carry, it is one line


def _message(record: logging.LogRecord) -> str:
    """What it says; a call with arguments that do not fit is said too, and not a traceback of `logging`."""
    try:
        return record.getMessage()
    except Exception as error:
        said = f"{record.msg!s} (its arguments do not fit: {type(error).__name__})"
        return f"{said}; {record.filename}, line {record.lineno}"


def _bounded(text: str) -> str:
    if len(text) <= MESSAGE_CHARACTERS_MAX:
        return text
    half = MESSAGE_CHARACTERS_MAX // 2
    return f"{text[:half]} … {len(text) - 2 * half} characters left out … {text[-half:]}"


class _Handler(logging.StreamHandler[TextIO]):
    """Ours: `setup` replaces it and touches no other."""


_handler = _Handler(sys.stderr)  # as `setup` made it last


def setup(level: str, role: str, form: str = "auto", request_id: Callable[[], str | None] = _nobody) -> None:
    """Say what is at least `level` (debug, info, warning, error) as `role`. May be called again.

    `form` is text, json, or auto: text on a terminal and for `debug`, else JSON. `request_id` tells which request the
    main thread works for, if it does.
    """
    global _handler
    _handler = _Handler(sys.stderr)
    who, is_terminal = _Who(role, request_id), sys.stderr.isatty()
    if form == "json" or (form == "auto" and not is_terminal and level != "debug"):
        _handler.setFormatter(_Json(who))
    else:
        is_plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        _handler.setFormatter(_Text(who, is_coloured=is_terminal and not is_plain))
    for name in ("zmesh", *LIBRARIES):
        logger = logging.getLogger(name)
        logger.handlers = [one for one in logger.handlers if not isinstance(one, _Handler)]
        logger.addHandler(_handler)
        logger.propagate = False
        logger.setLevel(level.upper() if name == "zmesh" else logging.WARNING)


def is_json() -> bool:
    """Whether a machine reads what this process says."""
    return isinstance(_handler.formatter, _Json)


def say(logger: logging.Logger, level: str, text: str) -> None:
    """One line, of a level in lower case as the core names it."""
    logger.log(LEVELS[level.upper()], "%s", text)


def announce(logger: logging.Logger, text: str) -> None:
    """What somebody at a terminal waits for: on stdout, or where a machine reads, a record like all others."""
    if is_json():
        logger.info("%s", text)
    else:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def last_words(line: str, detail: str = "") -> str:
    """Why a program gives up, ready to be written when logging is over: `line`, and before it a traceback."""
    if is_json():
        said = logging.LogRecord("zmesh", logging.ERROR, "", 0, f"{line}\n{detail.rstrip()}".rstrip(), None, None)
        return f"{_handler.format(said)}\n"
    return f"{detail.rstrip()}\nzmesh: {line}\n" if detail else f"zmesh: {line}\n"


def get_logger() -> logging.Logger:
    """The logger for a user's own code: it says its piece in the format of all processes."""
    return logging.getLogger("zmesh.user")


# ── loggers of the user's own ─────────────────────────────────────────────────────────────────────────────────────


class _LastResort(logging.Handler):
    """Where Python hands a record for which nobody has put up a handler: said by ours.

    What installed packages say for debugging is left out; one decoder of images would drown all others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._installed = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.INFO or not record.pathname.startswith(self._installed):
            _handler.handle(record)


def join_in() -> None:
    """From now on the user's loggers speak like ours, at our level, as long as they were given no handler.

    Called again after the user's code was imported: if it has configured the root logger by then, its level is put
    back as it was, unless they have chosen one themselves.
    """
    root, ours = logging.getLogger(), logging.getLogger("zmesh")
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "zmesh"]:
        logging.getLogger(name).disabled = False  # `dictConfig` disables whoever it does not know
    has_joined = isinstance(logging.lastResort, _LastResort)
    if root.handlers:
        if has_joined and root.level == ours.level - 1:
            root.setLevel(logging.WARNING)
    elif not has_joined:
        logging.lastResort = _LastResort()
        if root.level == logging.WARNING:
            root.setLevel(ours.level - 1)  # which lets the same pass, and can be told from a level of theirs
