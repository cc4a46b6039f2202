"""RedisStore against real servers, Debian's and the embedded one: what it keeps, what it refuses, and a Redis that is
full, away, stopped, or behind a password or TLS."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import numpy
import pytest

from tests.harness import free_port, wait_until
from tests.redises import SERVERS, RunningRedis, program, redis_server
from zmesh.config import Settings
from zmesh.errors import DeclarationError, PayloadLost, ServerError, StoreAway
from zmesh.messages import Kind
from zmesh.mixins import RedisShmIPCMixin
from zmesh.mixins.redis_ipc import MAGIC, REFERENCE, URL_VARIABLE, VALUE_BYTES_MAX, RedisStore
from zmesh.worker import Worker

Need = Callable[[object, str], None]
LONG = 60.0
LARGE = os.urandom(10_000_000)
RIGHTS = "+set +mget +unlink"


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, need: Need) -> str:
    return program(request.param, need)


@pytest.fixture
def redis(server: str) -> Iterator[RunningRedis]:
    with redis_server(server) as running:
        yield running


def store_of(*redises: RunningRedis | str, **how: Any) -> RedisStore:
    urls = [one if isinstance(one, str) else one.url for one in redises]
    return RedisStore(urls, "zmesh:test", **{"answer_seconds": 1.0, **how})


def put(store: RedisStore, *payloads: Any, seconds: float = LONG) -> list[bytes]:
    references = store.put(payloads, [seconds] * len(payloads))
    assert all(isinstance(reference, bytes) for reference in references), references
    return references  # type: ignore[return-value]


# ── what it keeps ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_put_is_got_by_another_as_often_as_wanted_until_it_is_released(redis: RunningRedis):
    producer, consumer = store_of(redis), store_of(redis)
    assert producer.kind is Kind.REFERENCE
    array = numpy.arange(12, dtype="f4").reshape(3, 4)
    payloads = [b"one", LARGE, memoryview(b"three"), memoryview(array), b""]
    references = put(producer, *payloads)
    assert {len(reference) for reference in references} == {REFERENCE.size}
    for _ in range(2):
        assert consumer.get(references) == [b"one", LARGE, b"three", array.tobytes(), b""]
    assert redis.client().dbsize() == 4, "nothing needs no place"
    consumer.release(references)
    consumer.release(references)  # harmless
    assert redis.client().dbsize() == 0
    lost = consumer.get(references)
    assert [type(one) for one in lost] == [PayloadLost] * 4 + [bytes]


def test_an_address_that_asks_for_text_is_given_bytes_all_the_same(redis: RunningRedis):
    store = store_of(f"{redis.url}?decode_responses=True")
    assert store.get(put(store, b"\xff")) == [b"\xff"]


def test_a_batch_is_one_round_trip_each_way(redis: RunningRedis):
    store, watcher = store_of(redis), redis.client()
    store.release(put(store, b"greetings"))
    watcher.config_resetstat()
    references = put(store, *(b"%d" % number for number in range(64)))
    store.get(references)
    store.release(references)
    calls = {name: found["calls"] for name, found in watcher.info("commandstats").items()}
    assert calls["cmdstat_set"] == 64 and calls["cmdstat_mget"] == 1 and calls["cmdstat_unlink"] == 1
    assert watcher.info("stats")["total_reads_processed"] <= 10, "64 SETs came together"


def test_every_value_has_a_time_to_live_and_keys_begin_as_they_should(redis: RunningRedis):
    store, watcher = store_of(redis), redis.client()
    put(store, b"x", seconds=7.0)
    (key,) = watcher.keys("*")
    assert key.startswith(b"zmesh:test:") and 6000 < watcher.pttl(key) <= 7000
    put(store_of(redis, seconds_max=0.05), b"y", seconds=7.0)
    wait_until(lambda: watcher.dbsize() == 1, 5, "the short-lived one to end")


def test_the_store_of_a_worker_follows_its_class_and_its_settings(redis: RunningRedis):
    class Sparing(RedisShmIPCMixin, Worker):
        redis_least_bytes = 4096
        redis_seconds_max = 5.0

        def forward(self, data: Any) -> Any:
            return data

    settings = Settings(redis_url=redis.url, redis_prefix="mine", timeout=400)
    store = RedisStore.of(settings, "0123", Sparing)
    assert store is not None and store.least_bytes == 4096
    put(store, b"x", seconds=7.0)
    (key,) = redis.client().keys("*")
    assert key.startswith(b"mine:0123:") and redis.client().pttl(key) <= 5000
    assert RedisStore.of(Settings(), "0123", Sparing) is None


# ── what it refuses ───────────────────────────────────────────────────────────────────────────────────────────────


def test_no_reference_names_a_key_of_somebody_else(redis: RunningRedis):
    watcher, store = redis.client(), store_of(redis)
    watcher.set("secret", b"s" * 16)
    (good,) = put(store, b"mine")
    name, size = good[4:20], 4
    wrong = [
        b"",
        b"secret",
        good[:-1],
        good + b"x",
        REFERENCE.pack(b"zr2", 0, name, size),
        REFERENCE.pack(MAGIC, 1, name, size),  # there is one server only
        REFERENCE.pack(MAGIC, 0, name, VALUE_BYTES_MAX + 1),
    ]
    for answer in store.get(wrong):
        assert type(answer) is ServerError and "no reference" in str(answer)
    store.release(wrong)
    assert watcher.get("secret") == b"s" * 16 and store.get([good]) == [b"mine"]
    unknown = REFERENCE.pack(MAGIC, 0, b"secret".ljust(16, b"\0"), 16)
    assert isinstance(store.get([unknown])[0], PayloadLost)


def test_a_value_of_another_size_is_not_used(redis: RunningRedis):
    store, watcher = store_of(redis), redis.client()
    references = put(store, b"short", b"right")
    (key,) = [key for key in watcher.keys("*") if watcher.get(key) == b"short"]
    watcher.set(key, b"s" * 1000)
    answers = store.get(references)
    assert isinstance(answers[0], PayloadLost) and "1000 bytes where 5" in str(answers[0])
    assert answers[1] == b"right"


def test_what_redis_has_no_room_for_is_an_error_and_nothing_is_thrown_away_for_it(server: str):
    with redis_server(server, "--maxmemory", "4mb") as redis:
        store = store_of(redis)
        (small,) = put(store, b"x")
        (large,) = store.put([LARGE], [LONG])
        assert isinstance(large, ServerError) and "used memory > 'maxmemory'" in str(large)
        wait_until(lambda: isinstance(store.put([b"y"], [LONG])[0], bytes), 5, "room, once that was forgotten")
        assert store.get([small]) == [b"x"]


def test_a_payload_beyond_what_redis_takes_is_refused_before_it_is_sent(redis: RunningRedis):
    view = memoryview(numpy.broadcast_to(numpy.uint8(0), (VALUE_BYTES_MAX + 1,)))  # which takes no memory
    (refused,) = store_of(redis).put([view], [LONG])
    assert isinstance(refused, ServerError) and "more than Redis takes" in str(refused)


# ── a Redis in trouble ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_redis_that_is_away_is_an_error_at_once_and_its_return_is_noticed(redis: RunningRedis, caplog: Any):
    caplog.set_level("INFO")
    store = store_of(redis)
    (reference,) = put(store, b"x")
    redis.kill()
    began = monotonic()
    for _ in range(20):
        assert isinstance(store.put([b"y"], [LONG])[0], StoreAway)
        assert isinstance(store.get([reference])[0], StoreAway)
        store.release([reference])
    assert monotonic() - began < 1.0
    redis.start()
    wait_until(lambda: isinstance(store.put([b"y"], [LONG])[0], bytes), 5, "the Redis to be used again")
    assert isinstance(store.get([reference])[0], PayloadLost), "a new one does not know what the old one held"
    said = [record.getMessage() for record in caplog.records if "Redis at" in record.getMessage()]
    assert len(said) == 2 and "does not answer" in said[0] and "answers again" in said[1]


def test_a_connection_that_was_lost_while_nobody_looked_costs_no_error(redis: RunningRedis):
    store = store_of(redis)
    put(store, b"x")
    redis.kill()
    redis.start()
    assert store.get(put(store, b"y")) == [b"y"]


def test_a_redis_that_hangs_costs_a_bounded_time_once_in_a_while(redis: RunningRedis):
    store = store_of(redis, answer_seconds=0.2)
    (reference,) = put(store, b"x")
    redis.stop()
    try:
        began = monotonic()
        assert isinstance(store.get([reference])[0], StoreAway)
        assert 0.1 < monotonic() - began < 1.0
        began = monotonic()
        for _ in range(50):
            assert isinstance(store.put([b"y"], [LONG])[0], StoreAway)
        assert monotonic() - began < 0.1, "it is left alone for a while"
    finally:
        redis.go_on()
    wait_until(lambda: store.get([reference]) == [b"x"], 5, "the Redis to be used again")


def test_with_several_new_values_go_to_those_that_answer(server: str):
    with redis_server(server) as one, redis_server(server) as other:
        store, reader = store_of(one, other), store_of(one, other)
        payloads = [b"%d" % number for number in range(64)]
        references = put(store, *payloads)
        assert store.get(references) == payloads
        there = [one.client().dbsize(), other.client().dbsize()]
        assert sum(there) == 64 and min(there) > 8
        other.kill()
        got = reader.get(references)
        assert [str(index).encode() for index, found in enumerate(got) if found == b"%d" % index] != []
        assert sum(isinstance(found, StoreAway) for found in got) == there[1]
        store.put([b"x"] * 64, [LONG] * 64)  # notices
        assert all(isinstance(found, bytes) for found in store.put(payloads, [LONG] * 64))


def test_a_password_is_used_and_never_said(server: str, caplog: Any):
    with redis_server(server, "--requirepass", "hush") as redis:
        with_password = f"unix://:hush@{redis.socket}"
        store = store_of(with_password)
        assert store.get(put(store, b"x")) == [b"x"]
        redis.client(password="hush").execute_command(*f"ACL SETUSER zmesh on >hush ~zmesh:* {RIGHTS}".split())
        with closing(store_of(f"unix://zmesh:hush@{redis.socket}")) as limited:
            references = put(limited, b"y")
            assert limited.get(references) == [b"y"]
            limited.release(references)
            assert isinstance(limited.get(references)[0], PayloadLost), "what docs/operations.md says is enough"
        for url in (f"unix://:wrong-hush@{redis.socket}", redis.url):
            (refused,) = store_of(url).put([b"x"], [LONG])
            assert isinstance(refused, ServerError)
            assert "hush" not in f"{refused}{caplog.text}"
        assert redis.socket in caplog.text


def test_over_tls_with_a_certificate_of_ones_own(need: Need, tmp_path: Path):
    server = program("redis-server", need)
    need(shutil.which("openssl"), "openssl is not installed: apt-get install openssl")
    key, certificate, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
    with redis_server(server, "--tls-port", str(port), "--tls-auth-clients", "no", *files):
        url = f"rediss://127.0.0.1:{port}"
        trusting = store_of(f"{url}?ssl_ca_certs={certificate}")
        assert trusting.get(put(trusting, LARGE)) == [LARGE]
        assert isinstance(store_of(url).put([b"x"], [LONG])[0], StoreAway), "nobody has vouched for it"


# ── where it is ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_set_redis_url_is_mosecs_variable_and_refuses_what_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(URL_VARIABLE, "")
    RedisShmIPCMixin.set_redis_url("redis://:hush@host:1/2")
    assert os.environ["MOSEC_INTERNAL_REDIS_URL"] == "redis://:hush@host:1/2"
    for wrong in ("localhost:6379", "redis://:hush@host:x", 6379):
        with pytest.raises(DeclarationError, match="set_redis_url: a URL") as refused:
            RedisShmIPCMixin.set_redis_url(wrong)  # type: ignore[arg-type]
        assert "hush" not in str(refused.value)
    assert os.environ["MOSEC_INTERNAL_REDIS_URL"] == "redis://:hush@host:1/2"
