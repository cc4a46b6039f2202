"""Where requests go, and their bytes, made once: nothing of a request is put together while the clock runs."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

from zmesh.answers import VERSION
from zmesh.errors import StartError, UsageError

__all__ = ["Target", "reach", "target"]

LOOKS_LIKE = "it looks like http://127.0.0.1:8000/inference"
BODIES_BYTES_MAX = 256 * 1024 * 1024  # of all bodies together
CONNECT_SECONDS = 5.0
OURS = ("connection", "content-length", "transfer-encoding", "expect", "upgrade")  # headers that say how we talk
# Answers to these have no body although they may say how long it is, and the parser would wait for it.
BODILESS = ("HEAD", "CONNECT")
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
SAFE = "/%:@!$&'()*+,;=~-._?"  # of a path and a query, that is not escaped


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and the requests that it gets in turn."""

    url: str
    host: str
    port: int
    method: str
    requests: tuple[bytes, ...]
    bodies: tuple[str, ...] = ()  # what they were made of, for people


def target(url: str, method: str = "", headers: Sequence[str] = (), data: Sequence[str] = ()) -> Target:
    """Read what a user typed. `data` is texts, @FILE or @FOLDER. Raises UsageError."""
    parts = _split(url)
    bodies = [body for text in data for body in _bodies(text)]
    if sum(len(body) for _, body in bodies) > BODIES_BYTES_MAX:
        raise UsageError(f"the bodies are larger than {BODIES_BYTES_MAX // 2**20} MiB together; give fewer of them")
    method = (method or ("POST" if bodies else "GET")).upper()
    if not TOKEN.fullmatch(method) or method in BODILESS:
        raise UsageError(f"--method {method} cannot be measured; give one like GET, POST or PUT")
    path = quote(parts.path or "/", SAFE) + (f"?{quote(parts.query, SAFE)}" if parts.query else "")
    given = dict(map(_header, headers))
    heads = {"host": parts.netloc, "user-agent": f"zmesh-bench/{VERSION}", "accept": "*/*", **given}
    start = f"{method} {path} HTTP/1.1\r\n"
    requests = [_request(start, heads, body) for _, body in bodies] or [_request(start, heads, None)]
    assert parts.hostname is not None, "it was looked at"
    return Target(url, parts.hostname, parts.port or 80, method, tuple(requests), tuple(name for name, _ in bodies))


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        raise UsageError(f"{url} is not an address; {LOOKS_LIKE}") from None
    if parts.scheme == "https":
        raise UsageError(f"{url}: zmesh bench speaks no TLS; measure the http address behind what ends it")
    if parts.scheme != "http" or not parts.hostname or "@" in parts.netloc or port == 0:
        raise UsageError(f"{url} is not an address that zmesh bench can measure; {LOOKS_LIKE}")
    if not all(letter.isascii() and letter.isprintable() and letter != " " for letter in parts.netloc):
        raise UsageError(f"{url} is not an address that zmesh bench can measure; {LOOKS_LIKE}")
    return parts


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip().lower(), value.strip()
    if not colon or not TOKEN.fullmatch(name) or not value.isprintable():
        raise UsageError(f"--header {text!r} is not a header; it looks like 'x-request-timeout: 2'")
    if name in OURS:
        raise UsageError(f"--header {name} is set by zmesh bench itself; leave it out")
    return name, value


def _bodies(text: str) -> Iterator[tuple[str, bytes]]:
    """A name for people, and the bytes."""
    if not text.startswith("@"):
        yield "text", text.encode()
        return
    path = Path(text[1:])
    try:
        if not path.is_dir():
            yield str(path), path.read_bytes()
            return
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        for file in files:
            yield str(file), file.read_bytes()
    except OSError as error:
        raise UsageError(f"--data {text}: {error.strerror or error}; name a file or a folder after the @") from error
    if not files:
        raise UsageError(f"--data {text}: there is no file in that folder; put one body into each file")


def _request(start: str, heads: dict[str, str], body: bytes | None) -> bytes:
    if body is not None:
        heads = {"content-type": _content_type(body), **heads, "content-length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in heads.items())
    return f"{start}{lines}\r\n".encode("utf-8", "surrogateescape") + (body or b"")


def _content_type(body: bytes) -> str:
    try:
        json.loads(body)
    except ValueError:
        return "application/octet-stream"
    return "application/json"


def reach(target: Target) -> tuple[str, int]:
    """The first address of the host where somebody listens. Raises StartError when nobody does."""
    trouble: OSError | None = None
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        found, trouble = [], error
    for *_, address in found:
        try:
            with socket.create_connection((str(address[0]), target.port), CONNECT_SECONDS):
                return str(address[0]), target.port
        except OSError as error:
            trouble = error
    reason = getattr(trouble, "strerror", None) or trouble
    way_out = "start what is to be measured, or give its address: zmesh bench http://HOST:PORT/PATH"
    raise StartError(f"nobody answers at {target.host}:{target.port}: {reason}; {way_out}") from trouble
