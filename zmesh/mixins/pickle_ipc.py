"""PickleIPCMixin: anything that Python can pickle goes from stage to stage, for those who ask for it by name.

Whoever can write what is unpickled can run any code in the process that reads it. So a stage with this mixin is served
over the private ipc sockets of one host only. With `--bind` or `--connect` on tcp zmesh refuses to start, on the
loopback too, where every user of the host could connect. Clients are no danger: what they send is never unpickled.

Put it before `Worker` of both stages, the one that writes and the one that reads.
"""

from __future__ import annotations

import pickle
from typing import Any

from zmesh.errors import EncodingError

__all__ = ["PickleIPCMixin"]


class PickleIPCMixin:
    """Put it before `Worker`. `deserialize_ipc` raises whatever unpickling raises, which is a 500."""

    unpickles: bool = True

    def serialize_ipc(self, data: Any) -> bytes:
        try:
            return pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # pickling calls into the value, which may raise what it likes
            raise EncodingError(f"the value cannot be pickled: {str(error) or type(error).__name__}") from error

    def deserialize_ipc(self, data: bytes) -> Any:
        # Runs what it reads: asked for by name, and served only where nobody but its own mesh can hand it anything, see
        # `addresses.unpickling_problem` and `household`, which refuse every other place before this is reached.
        return pickle.loads(data)
