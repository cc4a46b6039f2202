"""Words and manners of ASGI that every callable of ours shares."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from zmesh.answers import SERVER, new_request_id, sane_token

__all__ = ["AsgiApp", "Receive", "Scope", "Send", "dressed", "drop_upload"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LINGER_SECONDS = 2.0  # a refused upload is read and dropped for so long, or a reset would outrun the answer


async def drop_upload(receive: Receive) -> None:
    """Read what the client still sends, so that it gets to read its answer."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass


def dressed(scope: Scope, send: Send) -> Send:
    """`send` with the headers that every answer has, unless they are there."""

    async def dressed(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            if b"server" not in names:
                headers.append(SERVER)
            if b"x-request-id" not in names:
                given = dict(scope["headers"]).get(b"x-request-id")
                headers.append(
                    (b"x-request-id", given if given is not None and sane_token(given) else new_request_id())
                )
            message = {**message, "headers": headers}
        await send(message)

    return dressed
