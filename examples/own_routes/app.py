"""Counts words, for those who have a key, and shows a page of its own: routes and middleware of FastAPI.

Start it with  API_KEYS=open-sesame zmesh run examples/own_routes/app.py
and try it     curl -H 'x-api-key: open-sesame' -d '{"text": "how many words"}' http://127.0.0.1:8000/words
"""

import hmac
import os
from typing import Any

from zmesh import Server, ValidationError, Worker

OPEN_TO_ALL = {"/", "/livez", "/readyz", "/about"}  # a load balancer has no key


class Count(Worker):
    example = [{"text": "how many words"}]

    def forward(self, requests: list[Any]) -> list[dict[str, int] | ValidationError]:
        return [count(request) for request in requests]


def count(request: Any) -> dict[str, int] | ValidationError:
    text = request.get("text") if isinstance(request, dict) else None
    return {"words": len(text.split())} if isinstance(text, str) else ValidationError('send {"text": "…"}')


def add_pages(server: Server) -> None:
    """Called in the main block: agent and gateways run it, workers do not, and so they never load FastAPI."""
    from fastapi import Request
    from fastapi.responses import PlainTextResponse

    keys = [key.encode() for key in os.environ.get("API_KEYS", "").split(",") if key]

    @server.app.get("/about")
    async def about() -> dict[str, str]:
        return {"counts": "words"}

    @server.app.middleware("http")
    async def ask_for_a_key(request: Request, call_next: Any) -> Any:
        given = request.headers.get("x-api-key", "").encode()
        # Not request.url.path: older Starlettes make it of the header Host too, where a client writes what it likes.
        # compare_digest takes the same time for a wrong key, however much of it is right.
        if request.scope["path"] in OPEN_TO_ALL or any(hmac.compare_digest(given, key) for key in keys):
            return await call_next(request)
        return PlainTextResponse("a key is needed, in the header x-api-key", status_code=401)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Count, max_batch_size=16, max_wait_time=2, route="/words")
    add_pages(server)
    server.run()
