"""Server-sent events as bytes: what mosec sends, byte for byte.

An event is `data: ` and the text; each CR and each LF in it begins another `data: ` line, and an empty line ends it. A
comment keeps a connection alive. A stream that fails ends with an event of the type `error`, whose text names the HTTP
status that a plain answer would have had.
"""

from __future__ import annotations

from http import HTTPStatus

__all__ = ["KEEP_ALIVE", "STREAM_HEADERS", "error_event", "event"]

KEEP_ALIVE = b":\n\n"
STREAM_HEADERS = [(b"cache-control", b"no-cache")]
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",  # these two have older names in older Pythons
    422: "Unprocessable Content",
    499: "Client Closed Request",
}


def event(payload: bytes | memoryview) -> bytes:
    """One event; `payload` is UTF-8."""
    text = payload if type(payload) is bytes else bytes(payload)
    if b"\r" in text:
        text = text.replace(b"\r", b"\n")
    if b"\n" in text:
        text = text.replace(b"\n", b"\ndata: ")
    return b"data: %s\n\n" % text


def error_event(http_status: int, text: str) -> bytes:
    """The last event of a stream that fails."""
    phrase = _PHRASES.get(http_status, "Error")
    said = f"SSE inference error: {http_status}: {phrase}: {text}"
    return b"event: error\n" + event(said.encode(errors="replace"))
