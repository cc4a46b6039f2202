"""What the annotations of a `forward` say it takes and gives, for schemas and typed mixins."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args, get_origin

from zmesh.worker import ParseTarget

__all__ = ["parse_func_type"]


def parse_func_type(func: Callable[..., Any], target: ParseTarget) -> Any:
    """The type of one item on that side of `func`: of `list[T]`, which a batch is, it is `T`; `Any` if nothing is said.

    Raises TypeError for another generic type, of which nobody could tell whether it means one item or all of them.
    """
    said = inspect.get_annotations(inspect.unwrap(func), eval_str=True)
    taken = [kind for name, kind in said.items() if name != "return"]
    kind = said.get("return", Any) if target is ParseTarget.RETURN else (taken or [Any])[0]
    generic: object = get_origin(kind)
    if generic is None:
        return kind
    if generic is not list:
        raise TypeError(f"{func.__qualname__} is annotated with {kind}; a class, or a list of one, can be understood")
    return get_args(kind)[0]
