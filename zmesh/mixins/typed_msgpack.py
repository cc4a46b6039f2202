"""TypedMsgPackMixin: msgpack of clients, checked against what `forward` is annotated with before it sees it.

msgspec does the work, and is imported when the first request or the document of the routes needs it. Between stages the
payload codec stays.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from zmesh.annotations import item_type
from zmesh.errors import DecodingError, EncodingError, ValidationError
from zmesh.worker import ParseTarget, Worker

if TYPE_CHECKING:
    import msgspec

__all__ = ["TypedMsgPackMixin"]

log = logging.getLogger("zmesh.worker")


class TypedMsgPackMixin(Worker):
    """Put it before `Worker`, or in its place. Requests and answers are `application/msgpack`.

    The type of a request is the first annotated parameter of `forward`; under batching that is `list[T]`, and a request
    is a `T`. Anything that msgspec reads will do: a `Struct`, a dataclass, a TypedDict, `int | None`, `dict[str, Box]`,
    `Annotated[int, Meta(ge=0)]`. Bytes that are no msgpack are a 400, another type is a 422 that says what and where.
    """

    resp_mime_type: str = "application/msgpack"

    @classmethod
    def unfit(cls) -> str:
        if importlib.util.find_spec("msgspec") is None:
            return "TypedMsgPackMixin needs msgspec, which is not installed; install it, or the extra [validation]"
        return super().unfit()

    def deserialize(self, data: bytes) -> Any:
        import msgspec

        reader = self._reader
        try:
            return reader.decode(data)
        except msgspec.ValidationError as error:
            raise ValidationError(str(error)) from error
        except RecursionError as error:
            raise DecodingError("the body is not valid msgpack: it is nested too deeply") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DecodingError(f"the body is not valid msgpack: {error}") from error

    def serialize(self, data: Any) -> bytes:
        import msgspec

        try:
            return msgspec.msgpack.encode(data)
        except RecursionError as error:
            raise EncodingError("the result cannot be written as msgpack: it is nested too deeply") from error
        except (TypeError, ValueError, OverflowError) as error:
            hint = " (numpy: .item() or .tolist() first)" if "numpy." in str(error) else ""
            raise EncodingError(f"the result cannot be written as msgpack: {error}{hint}") from error

    @classmethod
    def get_forward_json_schema(cls, target: ParseTarget, ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both empty, and a line in the log, for a type that JSON Schema has no words for."""
        import msgspec

        kind = item_type(cls.forward, target, in_batch=True)
        try:
            (schema,), components = msgspec.json.schema_components([kind], ref_template=ref_template)
        except TypeError as error:
            log.warning(
                "%s.forward has no schema of its %s: %s", cls.__name__, target.value, str(error).splitlines()[-1]
            )
            return {}, {}
        return schema, components

    @functools.cached_property
    def _reader(self) -> msgspec.msgpack.Decoder[Any]:
        """Not made in `__init__`, which subclasses need not call."""
        import msgspec

        kind = item_type(type(self).forward, ParseTarget.INPUT, in_batch=self.max_batch_size > 1)
        return msgspec.msgpack.Decoder(kind)
