"""examples/own_routes without a mesh: whom its middleware lets in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.readme import load_example
from zmesh import Server, ValidationError

Headers = dict[str, str]


def status_of(path: str, headers: Headers) -> int:
    """What a GET is answered."""
    server = Server()
    load_example("own_routes").add_pages(server)
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("x", 80),
        "headers": [(name.encode(), value.encode()) for name, value in {"host": "x", **headers}.items()],
    }  # fmt: skip
    asyncio.run(server.app(scope, receive, send))  # type: ignore[arg-type]
    return int(said[0]["status"])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/about", {}, 200),
        ("/elsewhere", {}, 401),
        ("/elsewhere", {"x-api-key": "one"}, 404),
        ("/elsewhere", {"x-api-key": "two"}, 404),
        ("/elsewhere", {"x-api-key": "one,two"}, 401),
        ("/elsewhere", {"x-api-key": ""}, 401),
        ("/elsewhere", {"x-api-key": "ö"}, 401),
        ("/about/", {}, 401),
    ],
)
def test_only_who_has_a_key_gets_past_the_open_pages(
    path: str, headers: Headers, status: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("API_KEYS", "one,,two")
    assert status_of(path, headers) == status


def test_without_any_key_nobody_gets_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("API_KEYS", raising=False)
    assert status_of("/elsewhere", {"x-api-key": ""}) == 401


def test_words_are_counted_and_what_is_no_text_is_refused_alone():
    one, none, two = load_example("own_routes").Count().forward([{"text": "a"}, {"text": 1}, {"text": "a b"}])
    assert (one, two) == ({"words": 1}, {"words": 2}) and isinstance(none, ValidationError)
