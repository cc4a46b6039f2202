"""What schemathesis has to be told of us. It imports this by SCHEMATHESIS_HOOKS, in a process of its own."""

from __future__ import annotations

from typing import Any

import msgpack
import schemathesis

__all__ = ["before_call", "read_msgpack", "write_msgpack"]


@schemathesis.serializer("application/msgpack")
def write_msgpack(context: Any, value: Any) -> bytes:
    """Numbers beyond 64 bits are written as text: there they are no numbers."""
    if isinstance(value, bytes):
        return value
    packed: bytes = msgpack.packb(_writable(value))
    return packed


@schemathesis.deserializer("application/msgpack")
def read_msgpack(context: Any, response: Any) -> Any:
    return msgpack.unpackb(response.content)


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _writable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(part) for part in value]
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """A time in which nothing can be answered is told to one route only: all others would hardly get to their work."""
    headers = case.headers or {}
    if case.path != "/v1/length" and "x-request-timeout" in headers:
        headers["x-request-timeout"] = "5"
