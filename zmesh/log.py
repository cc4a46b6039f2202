"""mosec's name for the place of `get_logger`."""

from __future__ import annotations

from zmesh.logs import get_logger

__all__ = ["get_logger"]
