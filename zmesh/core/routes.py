"""Named paths through stages, checked when they are declared.

A path is what a client types after the host, byte for byte: it is looked up as it is, so nothing in it may have two
spellings. What the gateway itself answers is reserved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from zmesh.errors import DeclarationError

__all__ = ["build", "check_path", "check_paths"]

RESERVED = ("/", "/metrics", "/livez", "/readyz")
RESERVED_WITH_ALL_BELOW = ("/openapi", "/mesh", "/docs")
NOT_IN_A_PATH = re.compile(r"[^A-Za-z0-9/._~!$&'()*+,;=:@-]")


def check_path(path: str) -> str:
    """`path` itself. Raises DeclarationError when it is reserved, cannot be a route, or is not text."""
    if not isinstance(path, str):
        raise DeclarationError(f"a route is text such as '/inference', not {path!r}")
    if path in RESERVED or any(path == top or path.startswith(f"{top}/") for top in RESERVED_WITH_ALL_BELOW):
        raise DeclarationError(f"{path!r} is reserved, try another one")
    if not path.startswith("/"):
        raise DeclarationError(f"route {path!r} must start with '/'")
    if found := NOT_IN_A_PATH.search(path):
        raise DeclarationError(f"route {path!r} may not contain {found.group()!r}")
    if path.endswith("/"):
        raise DeclarationError(f"route {path!r} may not end with '/'")
    segments = path[1:].split("/")
    if "" in segments:
        raise DeclarationError(f"route {path!r} may not contain '//'")
    if "." in segments or ".." in segments:
        raise DeclarationError(f"route {path!r} may not contain '.' or '..' as a part")
    return path


def check_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """All of `paths`, each checked. Raises DeclarationError when one stands there twice, or none at all."""
    checked: dict[str, None] = {}
    for path in paths:
        if check_path(path) in checked:
            raise DeclarationError(f"route {path!r} stands twice in one list")
        checked[path] = None
    if not checked:
        raise DeclarationError("a stage needs a route, such as '/inference'")
    return tuple(checked)


def build(routes: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The routes with the names of their stages. Raises DeclarationError for one with no stage, or with one twice."""
    built = {}
    for path, stages in routes.items():
        if not stages:
            raise DeclarationError(f"route {check_path(path)!r} has no stage")
        for index, stage in enumerate(stages):
            if stage in stages[:index]:
                raise DeclarationError(f"stage {stage!r} stands twice in route {path!r}")
        built[check_path(path)] = tuple(stages)
    return built
