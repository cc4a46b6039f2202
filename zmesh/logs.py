"""One format for all processes, on stderr: time (UTC), level, role, message.

Ours are the loggers `zmesh`, `zmesh.user` (what `get_logger` gives to users) and what the libraries below us say. The
root logger belongs to the user's code and is left alone.
"""

from __future__ import annotations

import logging
import sys
import time

__all__ = ["get_logger", "say", "setup"]

LEVELS = logging.getLevelNamesMapping()
LIBRARIES = ("uvicorn", "asyncio")  # they speak up when something is wrong, and then in our format


class _Format(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]  # the stub knows no default
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Ours: `setup` replaces it and touches no other."""


def setup(level: str, role: str) -> None:
    """Say what is at least `level` (debug, info, warning, error) as `role`. May be called again."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Format(f"%(asctime)s %(levelname)s {role.replace('%', '%%')} %(message)s"))
    for name in ("zmesh", *LIBRARIES):
        logger = logging.getLogger(name)
        logger.handlers = [one for one in logger.handlers if not isinstance(one, _Handler)]
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(level.upper() if name == "zmesh" else logging.WARNING)


def say(logger: logging.Logger, level: str, text: str) -> None:
    """One line, of a level in lower case as the core names it."""
    logger.log(LEVELS[level.upper()], "%s", text)


def get_logger() -> logging.Logger:
    """The logger for a user's own code: it says its piece in the format of all processes."""
    return logging.getLogger("zmesh.user")
