"""Decisions: what should happen, without a socket, a clock or a log. Import the module that has the name."""

from __future__ import annotations

__all__: list[str] = []
