"""mosec's name for the place of `HTTPStatusCode`: what the `code` of an error of one's own is. Here its members are the
statuses themselves, and any from 400 to 599 will do as well. The protocol of the mesh is in `zmesh.messages`."""

from __future__ import annotations

import enum

__all__ = ["HTTPStatusCode"]


class HTTPStatusCode(enum.IntEnum):
    """The statuses that mosec knows."""

    OK = 200
    BAD_REQUEST = 400
    TIMEOUT_ERROR = 408
    VALIDATION_ERROR = 422
    INTERNAL_ERROR = 500
