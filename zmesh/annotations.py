"""What the annotations of a `forward` say it takes and gives, for schemas and typed mixins."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

from zmesh.worker import ParseTarget

__all__ = ["item_type", "parse_func_type"]


def parse_func_type(func: Callable[..., Any], target: ParseTarget) -> Any:
    """The type of one item on that side of `func`: of `list[T]`, which a batch is, it is `T`; `Any` if nothing is said.

    Raises TypeError for another generic type, of which nobody could tell whether it means one item or all of them.
    """
    kind = _said(func, target)
    generic: object = get_origin(kind)
    if generic is None:
        return kind
    if generic is not list:
        raise TypeError(f"{func.__qualname__} is annotated with {kind}; a class, or a list of one, can be understood")
    return get_args(kind)[0]


def item_type(func: Callable[..., Any], target: ParseTarget, *, in_batch: bool) -> Any:
    """The type of one item, whatever the annotation is: only where `func` is given a batch does `list[T]` mean `T`, and
    a bare `list` nothing (`Any`). Raises NameError for text that names what is not there.
    """
    kind = _said(func, target)
    if not in_batch or (kind is not list and get_origin(kind) is not list):
        return kind
    return next(iter(get_args(kind)), Any)


def _said(func: Callable[..., Any], target: ParseTarget) -> Any:
    """The annotation of the first parameter that has one, or of the result. Only this one is evaluated where it is
    text, also within another (`list["Box"]`): the other side may name what is imported for type checkers alone.
    """
    func = inspect.unwrap(func)
    said = inspect.get_annotations(func)
    taken = [kind for name, kind in said.items() if name != "return"]
    kind = said.get("return", Any) if target is ParseTarget.RETURN else (taken or [Any])[0]
    names = getattr(func, "__globals__", {})
    return get_type_hints(SimpleNamespace(__annotations__={"it": kind}), names, include_extras=True)["it"]
