"""mosec's name for `zmesh.mixins`: a file that says `from mosec.mixin import …` needs the other library's name only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zmesh.mixins import *  # noqa: F403

__all__: list[str] = []  # those of zmesh.mixins, none of which loads before it is asked for


def __getattr__(name: str) -> object:
    return getattr(importlib.import_module("zmesh.mixins"), name)


def __dir__() -> list[str]:
    return dir(importlib.import_module("zmesh.mixins"))
