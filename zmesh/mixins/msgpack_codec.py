"""MsgpackMixin: clients send and receive msgpack instead of JSON.

This is the client's side of a stage (`deserialize` and `serialize`); between stages the payload codec stays. Arrays
arrive as tuples and map keys must be `str` or `bytes`, as in mosec.
"""

from __future__ import annotations

from typing import Any

import msgpack

from zmesh.errors import DecodingError, EncodingError

__all__ = ["MsgpackMixin"]


class MsgpackMixin:
    """Put it before `Worker`. Requests and answers are `application/msgpack`."""

    resp_mime_type: str = "application/msgpack"

    def serialize(self, data: Any) -> bytes:
        try:
            packed: bytes = msgpack.packb(data)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            hint = " (numpy: .item() or .tolist() first)" if "numpy." in str(error) else ""
            raise EncodingError(f"the result cannot be written as msgpack: {error}{hint}") from error
        return packed

    def deserialize(self, data: bytes) -> Any:
        try:
            # Every size in the bytes is checked against len(data) by unpackb itself, before it allocates.
            return msgpack.unpackb(data, use_list=False)
        except Exception as error:  # bytes of a stranger: whatever they break, the request is at fault
            raise DecodingError(f"the body is not valid msgpack: {str(error) or type(error).__name__}") from error
