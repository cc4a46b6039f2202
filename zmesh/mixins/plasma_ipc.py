"""PlasmaShmIPCMixin: a name of mosec, and a word about what became of it.

pyarrow has had no plasma since version 12. So that a file written for mosec goes on, the mixin is here and carries
nothing: what goes between stages goes as without it. The process that was started by hand says so, once for each class.
"""

from __future__ import annotations

import warnings
from typing import Any

from zmesh.loader import current_verb
from zmesh.worker import Worker

__all__ = ["PlasmaShmIPCMixin"]

GONE = (
    "PlasmaShmIPCMixin does nothing: pyarrow has no plasma any more; put RedisShmIPCMixin or ShmIPCMixin in its place"
)


class PlasmaShmIPCMixin(Worker):
    """Does nothing, and warns where a class is made of it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _say(stacklevel=4)  # above this: ABCMeta.__new__, and then the line with the class

    @classmethod
    def set_plasma_path(cls, path: str) -> None:
        """What mosec takes the path of the plasma store by. Warns, and does nothing."""
        _say(stacklevel=3)


def _say(stacklevel: int) -> None:
    is_a_copy = current_verb.name == "import" or current_verb.pipe is not None  # the app file has run in the agent too
    if not is_a_copy:
        warnings.warn(GONE, UserWarning, stacklevel=stacklevel)
