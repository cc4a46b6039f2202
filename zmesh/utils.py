"""mosec's name for the place of `ParseTarget` and `parse_func_type`; nothing of ours lives here."""

from __future__ import annotations

from zmesh.annotations import parse_func_type
from zmesh.worker import ParseTarget

__all__ = ["ParseTarget", "parse_func_type"]
