"""What a user asks for: how much load, for how long, and the bounds of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONNECTIONS", "WAITING_MAX", "Load"]

CONNECTIONS = 256  # at most, unless a user says otherwise
WAITING_MAX = 10_000  # requests that wait for a connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Open loop with `rate` requests per second; closed loop with `clients`, if that is not 0."""

    seconds: float
    warmup: float = 0.0
    rate: float = 0.0
    arrivals: str = "poisson"
    seed: int = 0
    clients: int = 0
    connections: int = CONNECTIONS
    waiting_max: int = WAITING_MAX
    timeout_seconds: float = 10.0
