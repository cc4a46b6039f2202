"""RedisShmIPCMixin: what a stage makes goes to the next one through Redis, past the broker, between any two hosts.

What travels by the broker is a reference of a fixed length: which of the servers, the random half of the key, the size
of the value. The other half of a key is ours (`redis_prefix` and the fingerprint of the app), so no reference that came
by the wire can name a key of somebody else. A value is used only if it has the size that was said.

Each value ends by itself after its time to live, and is taken away when the consumer's results have been acknowledged:
reading it changes nothing, so that a worker which dies over it costs nothing but another reading.

A batch costs one round trip to each server to write, one to read, one to forget. Every call has an end: a server that
does not answer is left alone for a while (`HUNG_SECONDS`, or `REFUSED_SECONDS` when it said no at once), and what lies
there, or was to lie there, is that batch's error and nobody else's. With several servers new values go to those that
answer.

The library redis is imported when a store is made, not before.
"""

from __future__ import annotations

import logging
import os
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from zmesh.config import Settings
from zmesh.declaring import declaration
from zmesh.embedded import check_urls
from zmesh.errors import DeclarationError, PayloadLost, ServerError, StoreAway, UsageError
from zmesh.messages import Kind, Payload
from zmesh.worker import Worker

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["RedisShmIPCMixin", "RedisStore"]

URL_VARIABLE = "MOSEC_INTERNAL_REDIS_URL"  # as mosec calls it; `config` reads it
VALUE_BYTES_MAX = 512 * 1024 * 1024  # of Redis itself
ANSWER_SECONDS_MAX = 5.0  # and never more than half of what a request may take
ANSWER_SECONDS_MIN = 0.1
HUNG_SECONDS = 1.0
REFUSED_SECONDS = 0.1
READ_BYTES = 1024 * 1024  # at a time, of an answer

MAGIC = b"zr1"
REFERENCE = struct.Struct("!3sB16sQ")  # magic, number of the server, random half of the key, size

AWAY = "what one stage hands on to the next goes through Redis, which does not answer at the moment"
NO_REFERENCE = "what the stage before handed on is no reference into the Redis of this mesh"

Made = TypeVar("Made")

log = logging.getLogger("zmesh.worker")


class RedisShmIPCMixin(Worker):
    """Put it before `Worker`: `class Embed(RedisShmIPCMixin, Worker)`.

    It is about what the stage hands on, so it goes to each stage that has a next one; who reads needs nothing. Where
    Redis is says `--redis-url`, or `set_redis_url`; with neither the stages of one host have a Redis of their own.
    """

    needs_redis: bool = True
    redis_least_bytes: int = 0
    """A payload below this goes through the broker."""
    redis_seconds_max: float = float("inf")
    """No value lives longer, whatever time its request has left."""

    @classmethod
    @declaration
    def set_redis_url(cls, url: str) -> None:
        """Where Redis is: `redis://`, `rediss://` (TLS) or `unix://`, or several with commas. Call it before
        `server.run()`. `--redis-url` and `ZMESH_REDIS_URL` are stronger. Raises DeclarationError."""
        if not isinstance(url, str):
            raise DeclarationError(f"set_redis_url: a URL is text, not {type(url).__name__}")
        try:
            check_urls(url)
        except UsageError as error:
            raise DeclarationError(
                str(error).replace("--redis-url (ZMESH_REDIS_URL)", "set_redis_url: a URL")
            ) from None
        os.environ[URL_VARIABLE] = url


# ── references ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value is."""

    server: int
    name: bytes
    size: int

    def reference(self) -> bytes:
        return REFERENCE.pack(MAGIC, self.server, self.name, self.size)


def _place(reference: bytes, servers: int) -> _Place:
    """Raises ServerError for bytes that no producer of this mesh has made."""
    if len(reference) == REFERENCE.size:
        magic, server, name, size = REFERENCE.unpack(reference)
        if magic == MAGIC and server < servers and size <= VALUE_BYTES_MAX:
            return _Place(server, name, size)
    raise ServerError(NO_REFERENCE)


# ── one server ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Server:
    """A client of it, that remembers for a while that it does not answer."""

    def __init__(self, url: str, seconds: float, clock: Callable[[], float]) -> None:
        self._client, self._clock = _client(url, seconds), clock
        self._shown = _shown(url)
        self._rest_until = float("-inf")
        self._is_away = False

    @property
    def rests(self) -> bool:
        """Whether it did not answer a moment ago."""
        return self._clock() < self._rest_until

    def close(self) -> None:
        self._client.close()

    def ask(self, question: Callable[[Redis], Made]) -> Made | ServerError:
        """Its answer, or why there is none."""
        from redis import AuthenticationError, ConnectionError, RedisError, TimeoutError

        if self.rests:
            return StoreAway(AWAY)
        try:
            answer = question(self._client)
        except (ConnectionError, TimeoutError, OSError) as error:
            is_no = isinstance(error, ConnectionError) and not isinstance(error, AuthenticationError)
            self._rest_until = self._clock() + (REFUSED_SECONDS if is_no else HUNG_SECONDS)
            if not self._is_away:
                log.warning("Redis at %s does not answer, and is asked again until it does: %s", self._shown, error)
            self._is_away = True
            return StoreAway(AWAY)
        except RedisError as error:
            return _refusal(error)
        if self._is_away:
            self._is_away = False
            log.info("Redis at %s answers again", self._shown)
        return answer


def _client(url: str, seconds: float) -> Redis:
    """Nothing is connected yet. What the URL says is stronger than what is said here."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client = Redis.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        socket_read_size=READ_BYTES,
        # None of its own, which would wait in between. A connection that was lost meanwhile its pool makes anew anyway.
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    client.connection_pool.connection_kwargs["decode_responses"] = False
    return client


def _shown(url: str) -> str:
    """Without anything that may be secret."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname}:{parts.port or 6379}"


# ── the store ─────────────────────────────────────────────────────────────────────────────────────────────────────


class RedisStore:
    """Payloads in one Redis or several; see `payloads.Store`. Of one thread.

    `urls` must be the same in the same order wherever it is opened.
    """

    kind = Kind.REFERENCE

    def __init__(
        self,
        urls: Sequence[str],
        prefix: str,
        *,
        answer_seconds: float = ANSWER_SECONDS_MAX,
        least_bytes: int = 0,
        seconds_max: float = float("inf"),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        assert 1 <= len(urls) <= 256, "the number of a server is one byte"
        self.least_bytes = least_bytes
        self._prefix, self._seconds_max = f"{prefix}:".encode(), seconds_max
        self._servers = [_Server(url, answer_seconds, clock) for url in urls]

    @staticmethod
    def of(settings: Settings, fingerprint: str, worker: type[Worker]) -> RedisStore | None:
        """The store of a worker: to read from, and for a RedisShmIPCMixin to write to. None where there is no Redis."""
        urls = [url.strip() for url in settings.redis_url.split(",") if url.strip()]
        if not urls:
            return None
        return RedisStore(
            urls,
            f"{settings.redis_prefix}:{fingerprint}",
            answer_seconds=min(ANSWER_SECONDS_MAX, max(ANSWER_SECONDS_MIN, settings.timeout / 2000)),
            least_bytes=getattr(worker, "redis_least_bytes", 0),
            seconds_max=getattr(worker, "redis_seconds_max", float("inf")),
        )

    def put(self, payloads: Sequence[Payload], seconds: Sequence[float]) -> list[bytes | Exception]:
        """Each with its time to live. The references, or why there is none: ServerError."""
        answers: list[bytes | Exception] = [StoreAway(AWAY)] * len(payloads)
        willing = [number for number, server in enumerate(self._servers) if not server.rests]
        rows_of: dict[int, list[int]] = {}
        places: dict[int, _Place] = {}
        for row, payload in enumerate(payloads):
            size = memoryview(payload).nbytes
            if size > VALUE_BYTES_MAX:
                answers[row] = ServerError(f"{size} bytes are more than Redis takes, {VALUE_BYTES_MAX}")
            elif willing:
                number = random.choice(willing)
                places[row] = _Place(number, os.urandom(16), size)
                if size:
                    rows_of.setdefault(number, []).append(row)
                else:
                    answers[row] = places[row].reference()  # which says it all
        for number, rows in rows_of.items():
            values = [(self._key(places[row]), payloads[row], self._ms(seconds[row])) for row in rows]
            found = self._servers[number].ask(lambda client, values=values: _set(client, values))  # type: ignore[misc]
            for index, row in enumerate(rows):
                problem = found if isinstance(found, ServerError) else found[index]
                answers[row] = problem or places[row].reference()
        return answers

    def get(self, references: Sequence[bytes]) -> list[Payload | Exception]:
        """The payloads, or why there is none: PayloadLost, ServerError."""
        answers: list[Payload | Exception] = [b""] * len(references)
        rows_of: dict[int, list[int]] = {}
        places: dict[int, _Place] = {}
        for row, reference in enumerate(references):
            try:
                places[row] = place = _place(reference, len(self._servers))
            except ServerError as error:
                answers[row] = error
            else:
                if place.size:
                    rows_of.setdefault(place.server, []).append(row)
        for number, rows in rows_of.items():
            keys = [self._key(places[row]) for row in rows]
            found = self._servers[number].ask(lambda client, keys=keys: _get(client, keys))  # type: ignore[misc]
            for index, row in enumerate(rows):
                answers[row] = found if isinstance(found, ServerError) else _checked(found[index], places[row].size)
        return answers

    def release(self, references: Sequence[bytes]) -> None:
        """They are not wanted any more. What cannot be told ends by its time to live."""
        keys_of: dict[int, list[bytes]] = {}
        for reference in references:
            try:
                place = _place(reference, len(self._servers))
            except ServerError:
                continue
            if place.size:
                keys_of.setdefault(place.server, []).append(self._key(place))
        for number, keys in keys_of.items():
            self._servers[number].ask(lambda client, keys=keys: client.unlink(*keys))  # type: ignore[misc]

    def close(self) -> None:
        """Lose the connections."""
        for server in self._servers:
            server.close()

    def _key(self, place: _Place) -> bytes:
        return self._prefix + place.name.hex().encode()

    def _ms(self, seconds: float) -> int:
        return max(1, int(min(seconds, self._seconds_max) * 1000))


def _set(client: Redis, values: Sequence[tuple[bytes, Payload, int]]) -> list[ServerError | None]:
    """One round trip; of each why it was not taken."""
    pipeline = client.pipeline(transaction=False)
    for key, payload, ms in values:
        pipeline.set(key, payload if isinstance(payload, bytes) else memoryview(payload).cast("B"), px=ms)
    answers: list[Any] = pipeline.execute(raise_on_error=False)
    return [_refusal(answer) if isinstance(answer, Exception) else None for answer in answers]


def _refusal(error: Exception) -> ServerError:
    return ServerError(f"Redis refuses what one stage hands on to the next: {error}")


def _get(client: Redis, keys: Sequence[bytes]) -> list[bytes | None]:
    values: Any = client.mget(keys)
    return list(values)


def _checked(value: bytes | None, size: int) -> bytes | PayloadLost:
    if value is None:
        return PayloadLost("it is not in Redis any more")
    if len(value) != size:
        return PayloadLost(f"Redis has {len(value)} bytes where {size} were handed on")
    return value
