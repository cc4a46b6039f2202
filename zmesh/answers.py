"""What a client reads when it does not get its result: status, text, headers. One place for every transport.

`text_of` puts a readable sentence together from the status of a task and the text that came with it. Texts from user
code name their kind before a colon (`decoding error: …`) and are passed on; texts of the mesh itself are bare and get
the words of their status. `failure` makes the answer: plain text, or problem details (RFC 9457) for who accepts them.
"""

from __future__ import annotations

import json
import re
from binascii import hexlify
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from random import Random
from typing import NamedTuple

from zmesh.messages import HTTP_STATUS, Payload, Status

__all__ = [
    "DRAINING",
    "PROBLEM_JSON",
    "SERVER",
    "TEXT",
    "VERSION",
    "Answer",
    "Header",
    "Refusal",
    "failure",
    "http_status_of",
    "new_request_id",
    "sane_token",
    "says_its_kind",
    "text_of",
]

Header = tuple[bytes, bytes]

try:
    VERSION = version("zmesh-serve")
except PackageNotFoundError:  # a checkout that was never installed
    VERSION = "0+unknown"

SERVER: Header = (b"server", b"zmesh/" + VERSION.encode("ascii"))
TEXT = b"text/plain; charset=utf-8"
PROBLEM_JSON = b"application/problem+json"
DRAINING = "gracefully shutting down"
IDS_AT_ONCE = 64
TEXT_CHARS_MAX = 4096  # a worker's text may be the whole of a model's complaint

_WORDS: Mapping[int, str] = {
    Status.BAD_REQUEST: "bad request",
    Status.TIMEOUT: "request timeout",
    Status.TOO_LARGE: "request is too large",
    Status.VALIDATION: "request validation error",
    Status.SHED: "too many requests",
    Status.CANCELLED: "request cancelled",
    Status.INTERNAL: "inference internal error",
    Status.POISONED: "inference internal error",
    Status.UNAVAILABLE: "service unavailable",
}
_HTTP = {int(status): http for status, http in HTTP_STATUS.items()}
_TITLES = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}

_is_token = re.compile(rb"[!-~]{1,128}\Z").match
_ids = Random()  # names for logs, not secrets


class Refusal(Exception):
    """This request gets this answer and nothing else."""

    def __init__(
        self,
        http: int,
        text: str,
        *,
        retry_after: int = 0,
        allow: bytes = b"",
        accept_encoding: bytes = b"",
        close: bool = False,
        linger: bool = False,
    ) -> None:
        super().__init__(text)
        self.http, self.text, self.retry_after, self.allow = http, text, retry_after, allow
        self.accept_encoding = accept_encoding  # what could have been read instead
        self.close, self.linger = close, linger


class Answer(NamedTuple):
    status: int
    headers: list[Header]
    body: bytes


def sane_token(value: bytes | None) -> bool:
    """Whether a client's own name for its request may go into logs and headers: 1 to 128 visible ASCII characters."""
    return value is not None and _is_token(value) is not None


def _new_ids() -> Iterator[bytes]:
    """Made many at a time, which costs half of making each."""
    while True:
        drawn = hexlify(_ids.randbytes(16 * IDS_AT_ONCE))
        yield from [drawn[start : start + 32] for start in range(0, len(drawn), 32)]


_each_id = _new_ids()


def new_request_id() -> bytes:
    return next(_each_id)


def http_status_of(status: int) -> int:
    """A status this gateway does not know is INTERNAL, by the protocol."""
    return _HTTP.get(status, 500)


def says_its_kind(payload: Payload) -> bool:
    """Whether it is a text from user code: the mesh's own, but for what it quotes, have no colon."""
    return b": " in bytes(payload)


def text_of(status: int, payload: Payload) -> str:
    """One readable text for the outcome `status` of a task, which came with `payload`."""
    words = _WORDS.get(status, "inference internal error")
    text = bytes(payload[: 4 * TEXT_CHARS_MAX]).decode("utf-8", "replace").strip()[:TEXT_CHARS_MAX]
    if not text:
        return words
    is_bare = status in (Status.UNAVAILABLE, Status.POISONED) or not says_its_kind(payload)
    return f"{words}: {text}" if is_bare and not text.startswith(words) else text


def failure(refusal: Refusal, request_id: bytes, accept: bytes | None) -> Answer:
    """The answer to a request that gets no result."""
    if accept is not None and PROBLEM_JSON in accept.lower():
        problem = {
            "type": "about:blank",
            "title": _TITLES.get(refusal.http, "Error"),
            "status": refusal.http,
            "detail": refusal.text,
            "request_id": request_id.decode("ascii"),
        }
        content_type, body = PROBLEM_JSON, json.dumps(problem, ensure_ascii=False, separators=(",", ":")).encode()
    else:
        content_type, body = TEXT, refusal.text.encode()
    headers: list[Header] = [
        (b"content-type", content_type),
        SERVER,
        (b"x-request-id", request_id),
        (b"content-length", b"%d" % len(body)),
    ]
    if refusal.retry_after:
        headers.append((b"retry-after", b"%d" % refusal.retry_after))
    if refusal.allow:
        headers.append((b"allow", refusal.allow))
    if refusal.accept_encoding:
        headers.append((b"accept-encoding", refusal.accept_encoding))
    if refusal.close:
        headers.append((b"connection", b"close"))
    return Answer(refusal.http, headers, body)
