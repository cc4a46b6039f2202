"""Every error of zmesh, in one tree.

    Exception
    ├── ZmeshError          500  zmesh error                 what user code may raise for one item
    │   ├── ClientError     400  bad request
    │   │   └── DecodingError   400  decoding error
    │   ├── ServerError     500  internal error
    │   │   ├── EncodingError   500  encoding error
    │   │   ├── PayloadLost     500  internal error
    │   │   └── StoreAway       500  internal error
    │   └── ValidationError 422  request validation error
    ├── WireError           a frame that breaks the protocol
    ├── PeerError           a peer that breaks the protocol with good frames
    ├── DeclarationError    an app file declares what cannot be; a ValueError and a TypeError at once
    └── StartError          exit 1: nothing was started, and the text says why in one line
        ├── UsageError      exit 2: the command line asks for something impossible
        ├── NeverReady      exit 3: a stage never became ready
        └── DrainExpired    exit 4: accepted work was left when the drain ran out of time
    BaseException
    ├── ForwardTimeout      408  request timeout             raised inside `forward`, never by the user
    └── ForwardCancelled    499  cancelled                   the same

An error that stands for an answer has an HTTP status, the prefix of its text and whether the same request, sent
again, may fare better. A subclass made by a user may set all three (`http_status`, `prefix`, `retryable`); mosec's
`code` and `msg` stand for the first two. `describe` is the only place that turns an exception into what a client reads:
what is not of this tree tells the client nothing about our insides.

The last two are each a `BaseException` because they are raised in the middle of user code, where an `except Exception`
meant for something else must not swallow them.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ClientError",
    "DeclarationError",
    "DecodingError",
    "DrainExpired",
    "EncodingError",
    "ForwardCancelled",
    "ForwardTimeout",
    "MosecError",
    "MosecTimeoutError",
    "NeverReady",
    "PayloadLost",
    "PeerError",
    "ServerError",
    "StartError",
    "StoreAway",
    "UsageError",
    "ValidationError",
    "WireError",
    "ZmeshError",
    "describe",
]


class ZmeshError(Exception):
    """The root of what user code raises to choose the answer of one item."""

    http_status: int = 500
    prefix: str = "zmesh error"
    retryable: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        written = vars(cls)  # `msg` and `code` are what mosec calls them
        if "msg" in written and "prefix" not in written:
            cls.prefix = str(written["msg"])
        if "code" in written and "http_status" not in written:
            cls.http_status = written["code"]
        if isinstance(cls.http_status, IntEnum):
            cls.http_status = int(cls.http_status)
        # Found when the class is written, not when its first request is answered.
        if type(cls.http_status) is not int or not 400 <= cls.http_status <= 599:
            raise DeclarationError(
                f"{cls.__qualname__}.http_status must be an int from 400 to 599, not {cls.http_status!r}"
            )


class ClientError(ZmeshError):
    """The request is wrong; sending it again will not help."""

    http_status = 400
    prefix = "bad request"


class DecodingError(ClientError):
    """The bytes are not what the stage reads."""

    prefix = "decoding error"


class ServerError(ZmeshError):
    """The request is fine; something here is not."""

    prefix = "internal error"
    retryable = True


class EncodingError(ServerError):
    """The result cannot be written as bytes: the same input would end here again."""

    prefix = "encoding error"
    retryable = False


class PayloadLost(ServerError):
    """What a reference between two stages stands for is gone, for good. Its task begins again at its first stage."""


class StoreAway(ServerError):
    """A store of payloads between two stages cannot be asked at the moment, or not by this worker."""


class ValidationError(ZmeshError):
    """The request was read and its content is refused."""

    http_status = 422
    prefix = "request validation error"


class ForwardTimeout(BaseException):
    """`forward` ran longer than its stage allows."""

    http_status: int = 408
    prefix: str = "request timeout"
    retryable: bool = True


class ForwardCancelled(BaseException):
    """Nobody waits any more for anything that `forward` has in hand."""

    http_status: int = 499
    prefix: str = "cancelled"
    retryable: bool = False


MosecError = ZmeshError
MosecTimeoutError = ForwardTimeout


class WireError(Exception):
    """A frame that is not the protocol."""


class PeerError(Exception):
    """A peer that says well-formed things it may not say."""


class DeclarationError(ValueError, TypeError):
    """What an app file declares cannot be. The text is one sentence for its author, who may catch it as either kind."""


class StartError(Exception):
    """A program could not start. The text is one line for a person at a terminal."""

    exit_code: int = 1


class UsageError(StartError):
    """The command line or the environment asks for something impossible."""

    exit_code = 2


class NeverReady(StartError):
    """A stage failed every start it was given."""

    exit_code = 3


class DrainExpired(StartError):
    """Accepted work was left when the drain ran out of time."""

    exit_code = 4


def describe(error: BaseException) -> tuple[int, str]:
    """What a client is told about `error`: the HTTP status and one line of text."""
    if not isinstance(error, ZmeshError | ForwardTimeout | ForwardCancelled):
        return 500, "inference internal error"
    try:
        said = str(error).replace("\r\n", "\n").replace("\n", " - ")
    except Exception:  # a broken __str__ of user code must not cost the item its status
        said = ""
    return error.http_status, f"{error.prefix}: {said or error.prefix}"
