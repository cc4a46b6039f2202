"""The OpenAPI 3.1 document of the inference routes, and the page that shows it.

`metadata` writes the document from the plan. What the workers of a route know of its request and result is a
`RouteSchema` (see `schemas.py`); without one a body is whatever its media type says. The page is Swagger UI from our
own files (`static/swagger/`, with the sums of what was taken over in its MANIFEST.json): it loads nothing from anywhere
else, and its policy forbids it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zmesh.components import PREFIX, Components
from zmesh.config import Plan, RoutePlan
from zmesh.schemas import Body, RouteSchema

__all__ = ["CONTENT_SECURITY_POLICY", "PAGE_FILES", "RouteSchema", "metadata", "page_file"]

Json = dict[str, Any]

STATIC = Path(__file__).parent / "static" / "swagger"

PAGE_FILES: Mapping[str, str] = {
    "index.html": "text/html; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
"""What may be asked for, and its content type."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

ERRORS: Mapping[int, str] = {
    400: "The body is empty or cannot be decoded, or a header cannot be read",
    405: "Only POST is served here",
    408: "No answer before the deadline",
    413: "The body is larger than this server takes",
    422: "The body was decoded and is not valid",
    429: "Too many requests wait; retry-after says when to come again",
    500: "The worker failed on this request",
    503: "The server is draining, or a stage cannot be started; retry-after says when to come again",
}

COMPRESSION_ERRORS: Mapping[int, str] = {
    406: "accept-encoding wants neither a plain answer nor one that this server can make",
    415: "The body is in a content-encoding that is not taken here; accept-encoding says which are",
}

RESULT = "The result"
EVENTS = "Events, as they happen"

HEADERS: Mapping[str, tuple[Json, str]] = {
    "x-request-timeout": (
        {"type": "number", "exclusiveMinimum": 0},
        "Seconds to wait for the answer, within the server's",
    ),
    "x-request-id": ({"type": "string", "maxLength": 128}, "Name of this request in answers and logs"),
    "traceparent": ({"type": "string"}, "W3C trace context, handed to every stage"),
}


def metadata(
    plan: Plan,
    schemas: Mapping[str, RouteSchema] | None = None,
    *,
    version: str = "0",
    compression: bool = False,
) -> Json:
    """The document, ready for JSON. `schemas` maps a route's path to what is known of it."""
    known = schemas or {}
    components = Components()
    bodies = {
        route.path: _bodies(plan, route, known.get(route.path, RouteSchema()), components) for route in plan.routes
    }
    problem = components.add({"$ref": f"{PREFIX}Problem"}, {"Problem": _problem()})  # after theirs, whose names stay
    errors = _errors(ERRORS, problem) | (_errors(COMPRESSION_ERRORS, problem) if compression else {})
    return {
        "openapi": "3.1.0",
        "info": {"title": "zmesh inference", "version": version},
        "paths": {route.path: {"post": _operation(route, *bodies[route.path], errors)} for route in plan.routes},
        "components": {"schemas": components.schemas},
    }


def _bodies(plan: Plan, route: RoutePlan, schema: RouteSchema, components: Components) -> tuple[Json, Json]:
    """The contents of the request and of a 200."""
    request = schema.request
    taken = _content(request.media_type or plan.stage(route.stages[0]).mime_type, request, components)
    if request.schema is None:
        taken.setdefault("application/octet-stream", {})
    if route.sse:
        return taken, _content("text/event-stream", Body(), components)
    return taken, _content(route.mime_type, schema.response, components)


def _content(mime_type: str, body: Body, components: Components) -> Json:
    said: Json = {} if body.schema is None else {"schema": components.add(body.schema, body.components)}
    if len(body.examples) == 1:
        said["example"] = body.examples[0]
    elif body.examples:
        said["examples"] = {str(number): {"value": one} for number, one in enumerate(body.examples, 1)}
    return {mime_type: said}


def _errors(texts: Mapping[int, str], problem: Json) -> Json:
    content = {"text/plain": {"schema": {"type": "string"}}, "application/problem+json": {"schema": problem}}
    return {str(code): {"description": text, "content": content} for code, text in texts.items()}


def _operation(route: RoutePlan, taken: Json, given: Json, errors: Json) -> Json:
    return {
        "operationId": "infer" + route.path.replace("_", "__").replace("/", "_"),
        "summary": " → ".join(route.stages),
        "parameters": [
            {"name": name, "in": "header", "required": False, "schema": shape, "description": text}
            for name, (shape, text) in HEADERS.items()
        ],
        "requestBody": {"required": True, "content": taken},
        "responses": {"200": {"description": EVENTS if route.sse else RESULT, "content": given}} | errors,
    }


def _problem() -> Json:
    return {
        "type": "object",
        "description": "Problem details (RFC 9457), for who accepts application/problem+json",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
        },
        "required": ["type", "title", "status", "detail"],
    }


@functools.cache
def page_file(name: str) -> bytes:
    """The content of one of `PAGE_FILES`, read once. Raises KeyError for any other name."""
    if name not in PAGE_FILES:
        raise KeyError(name)
    return (STATIC / name).read_bytes()
