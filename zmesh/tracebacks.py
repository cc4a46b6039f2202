"""The user's part of a traceback: what went wrong in their code, without the frames of ours that led there.

A frame is left out when it is ours, when it belongs to the import machinery, or when it is one of the standard library
that we called. So what `json` says of a result that we could not write has no frames at all, and is one line.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from pathlib import Path

__all__ = ["as_typed", "is_ours", "one_line", "users_traceback", "with_place"]

_OURS = str(Path(__file__).parent) + os.sep
_STANDARD = str(Path(traceback.__file__).parent) + os.sep
_PACKAGES = tuple(f"{_STANDARD}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


def is_ours(filename: str) -> bool:
    """Whether a frame of this file is none of the user's business."""
    return filename.startswith((_OURS, "<frozen "))


def one_line(error: BaseException) -> str:
    """`KeyError: 'text'`, however many lines the error would like to have."""
    try:
        text = " ".join(str(error).split())
    except Exception as worse:  # a broken __str__ of user code must not hide what happened
        text = f"(its text cannot be shown: {type(worse).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def as_typed(path: str) -> str:
    """A file as its author calls it: by its path from here, if it is below here."""
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def with_place(error: BaseException, shown: str, path: str) -> str:
    """`app.py, line 12: …`: the last line of the user's, in whichever file it stands; `path` is called `shown`."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = next((frame for frame in reversed(frames) if not is_ours(frame.filename)), None)
    if theirs is None:
        return f"{shown}: {error}"
    return f"{shown if theirs.filename == path else as_typed(theirs.filename)}, line {theirs.lineno}: {error}"


def users_traceback(error: BaseException) -> str:
    """The traceback with the user's frames only; empty when there is none of theirs."""
    told = traceback.TracebackException.from_exception(error)
    return "".join(told.format()) if _prune(told) else ""


def _prune(told: traceback.TracebackException) -> bool:
    """Leaves out what is not the user's; whether anything of theirs is left."""
    told.stack = traceback.StackSummary.from_list(_theirs(told.stack))
    if told.__cause__ is not None and not _prune(told.__cause__):
        told.__cause__ = None
    if told.__context__ is not None and not _prune(told.__context__):
        told.__context__ = None
    members = [_prune(one) for one in told.exceptions or ()]
    is_syntax_error = hasattr(told, "filename")  # it shows the user's line, without a frame
    return bool(told.stack or told.__cause__ or told.__context__ or is_syntax_error or any(members))


def _theirs(frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    theirs, called_by_us = [], False
    for frame in frames:
        is_standard = frame.filename.startswith(_STANDARD) and not frame.filename.startswith(_PACKAGES)
        if is_ours(frame.filename):
            called_by_us = True
        elif not (called_by_us and is_standard):
            called_by_us = False
            theirs.append(frame)
    return theirs
