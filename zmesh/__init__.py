"""zmesh serves machine-learning pipelines over HTTP: dynamic batching, a process per worker, any stage on any host.

    from zmesh import Server, Worker

A name is loaded when it is first used: a worker never pays for the HTTP side, nor `zmesh --help` for either.
"""

from __future__ import annotations

import importlib
import os
import signal
from typing import TYPE_CHECKING

from zmesh.signals import end_early

if TYPE_CHECKING:
    from zmesh.current import current_task
    from zmesh.errors import ClientError, DecodingError, EncodingError, ServerError, ValidationError
    from zmesh.logs import get_logger
    from zmesh.server import Server
    from zmesh.stage import Stage
    from zmesh.stage import Stage as Runtime
    from zmesh.worker import SSEWorker, Worker

__all__ = [
    "ClientError",
    "DecodingError",
    "EncodingError",
    "Runtime",
    "SSEWorker",
    "Server",
    "ServerError",
    "Stage",
    "ValidationError",
    "Worker",
    "__version__",
    "current_task",
    "get_logger",
]

__version__ = "0.1.0"

if os.getpid() == 1:  # the only process of a container, to which SIGTERM means nothing unless somebody heeds it
    end_early(signal.SIGTERM)

_WHERE = {
    "ClientError": "zmesh.errors:ClientError",
    "DecodingError": "zmesh.errors:DecodingError",
    "EncodingError": "zmesh.errors:EncodingError",
    "Runtime": "zmesh.stage:Stage",
    "SSEWorker": "zmesh.worker:SSEWorker",
    "Server": "zmesh.server:Server",
    "ServerError": "zmesh.errors:ServerError",
    "Stage": "zmesh.stage:Stage",
    "ValidationError": "zmesh.errors:ValidationError",
    "Worker": "zmesh.worker:Worker",
    "current_task": "zmesh.current:current_task",
    "get_logger": "zmesh.logs:get_logger",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'zmesh' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    value: object = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
