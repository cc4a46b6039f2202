"""Opt-in behaviour of a Worker, one file each. A mixin stands before `Worker`: `class Mine(MsgpackMixin, Worker)`.

Names load on first use (PEP 562): `from zmesh.mixins import MsgpackMixin` imports that file and its libraries alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zmesh.mixins.msgpack_codec import MsgpackMixin
    from zmesh.mixins.numbin_ipc import NumBinIPCMixin
    from zmesh.mixins.pickle_ipc import PickleIPCMixin
    from zmesh.mixins.plasma_ipc import PlasmaShmIPCMixin
    from zmesh.mixins.redis_ipc import RedisShmIPCMixin
    from zmesh.mixins.shared_memory import ShmIPCMixin
    from zmesh.mixins.typed_msgpack import TypedMsgPackMixin

__all__ = [
    "MsgpackMixin",
    "NumBinIPCMixin",
    "PickleIPCMixin",
    "PlasmaShmIPCMixin",
    "RedisShmIPCMixin",
    "ShmIPCMixin",
    "TypedMsgPackMixin",
]

IPC_MIXINS: tuple[str, ...] = ("RedisShmIPCMixin", "ShmIPCMixin")
"""Those that carry what one stage hands on past the broker. A warning about large batches names them."""

_HOMES = {
    "MsgpackMixin": "zmesh.mixins.msgpack_codec",
    "NumBinIPCMixin": "zmesh.mixins.numbin_ipc",
    "PickleIPCMixin": "zmesh.mixins.pickle_ipc",
    "PlasmaShmIPCMixin": "zmesh.mixins.plasma_ipc",
    "RedisShmIPCMixin": "zmesh.mixins.redis_ipc",
    "ShmIPCMixin": "zmesh.mixins.shared_memory",
    "TypedMsgPackMixin": "zmesh.mixins.typed_msgpack",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
