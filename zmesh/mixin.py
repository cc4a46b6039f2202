"""mosec's name for `zmesh.mixins`: a file that says `from mosec.mixin import …` needs the other library's name only.

A mixin of mosec that is not here is refused in a sentence that says how to do without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zmesh.mixins import *  # noqa: F403

__all__ = ["WITHOUT"]  # and those of zmesh.mixins, none of which loads before it is asked for

WITHOUT: Mapping[str, str] = MappingProxyType(
    {
        "RedisShmIPCMixin": "leave it out: what goes between stages goes through the broker, up to 64 MiB a piece",
    }
)
"""How to do without the mixins of mosec that are not here."""


def __getattr__(name: str) -> object:
    mixins = importlib.import_module("zmesh.mixins")
    if name in WITHOUT and name not in mixins.__all__:
        raise ImportError(f"there is no {name} in this version of zmesh; {WITHOUT[name]}")
    return getattr(mixins, name)


def __dir__() -> list[str]:
    return dir(importlib.import_module("zmesh.mixins"))
