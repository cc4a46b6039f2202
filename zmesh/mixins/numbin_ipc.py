"""NumBinIPCMixin: what a file written for mosec puts before `Worker` to send numpy arrays from stage to stage.

Here every worker does that without being told, so this is the payload codec under mosec's name (`zmesh.codec`): numpy
arrays as they lie in memory, and all else that the codec knows. The numbin package is not used. A stage with the mixin
and one without understand each other.
"""

from __future__ import annotations

from zmesh.worker import Worker

__all__ = ["NumBinIPCMixin"]


class NumBinIPCMixin:
    """Put it before `Worker`, or leave it out: it is the same."""

    # The functions themselves, by which a stage knows that it speaks the codec of zmesh.
    serialize_ipc = Worker.serialize_ipc
    deserialize_ipc = Worker.deserialize_ipc
