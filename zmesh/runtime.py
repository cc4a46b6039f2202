"""mosec's name for the place of `Runtime`, which is `zmesh.Stage`."""

from __future__ import annotations

from zmesh.stage import Stage as Runtime

__all__ = ["Runtime"]
