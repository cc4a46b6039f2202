"""ShmIPCMixin: results go to a next stage on the same host through shared memory from 64 KiB on.

Without it they do so from 1 MiB on (`Worker.shared_memory_bytes`), which is where it always pays. What goes to another
host goes through the broker, with it or without.
"""

from __future__ import annotations

__all__ = ["ShmIPCMixin"]


class ShmIPCMixin:
    """Put it before `Worker`."""

    shared_memory_bytes: int | None = 64 * 1024
