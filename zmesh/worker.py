"""Worker and SSEWorker: what a user subclasses. No sockets, no files, no threads: a Worker is only its four codecs
and `forward`, so it can be made and called in a test without a mesh.

`stage`, `worker_id` and `max_batch_size` are set on the bare object before `__init__` runs. Nothing here assigns them,
so a subclass reads them in its own `__init__` and need not call `super().__init__()`.

JSON is read and written by orjson when it is installed, else by the standard library, and means the same with both.
Where orjson would differ (NaN, which it writes as null; integers beyond 64 bits, which it reads as floats; lone
surrogates; keys that are not text) the standard library has the last word. Only the spelling of some floats differs
(1e-7, 1e-07).
"""

from __future__ import annotations

import abc
import enum
import functools
import importlib
import importlib.util
import json
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zmesh.codec import dumps, loads
from zmesh.errors import DecodingError, EncodingError
from zmesh.metrics import Metrics

if TYPE_CHECKING:
    from zmesh.payloads import Store

__all__ = ["MOSEC_REF_TEMPLATE", "ParseTarget", "SSEWorker", "Worker"]

MOSEC_REF_TEMPLATE = "#/components/schemas/{name}"  # where `get_forward_json_schema` finds its components

_orjson = importlib.import_module("orjson") if importlib.util.find_spec("orjson") else None


class ParseTarget(enum.Enum):
    """Which side of `forward` a JSON schema describes."""

    INPUT = "INPUT"
    RETURN = "RETURN"


class Worker(abc.ABC):
    """One stage of a route. Subclass it and write `forward`.

    With `max_batch_size == 1`, `forward` gets one item and returns one result. Above 1 it always gets a list and
    returns as many results in the same order; a result may be an exception, which then answers that item alone.
    """

    example: Any = None
    multi_examples: Sequence[Any] = ()
    resp_mime_type: str = "application/json"
    shared_memory_bytes: int | None = 1024 * 1024
    """From this size on a result goes to a next stage on the same host through shared memory; None: never."""
    needs_redis: bool = False  # what it makes goes to the next stage through Redis: see RedisShmIPCMixin

    stage: str = ""
    worker_id: int = 0
    max_batch_size: int = 1

    unpickles: bool = False
    """Whether `deserialize_ipc` can run what it reads, as pickle does. Say so of a class of yours that does: it is
    refused where others than its own mesh could send it something."""

    @classmethod
    def unfit(cls) -> str:
        """For mixins: why no stage can be made of this class here, such as a library that is not installed, in words
        that follow its name; empty when one can."""
        return ""

    @functools.cached_property
    def metrics(self) -> Metrics:
        """Counters, gauges and histograms of your own, for `/metrics`: `self.metrics.counter("tokens", "Tokens made")`.
        From `__init__` on; without a mesh they just count."""
        return Metrics()

    @abc.abstractmethod
    def forward(self, data: Any) -> Any:
        """The model: one item, or a list of items, in; as many results out."""

    def deserialize(self, data: bytes) -> Any:
        """Read a client's bytes (first stage of a route). JSON; no bytes at all mean an empty object."""
        if not data:
            return {}
        try:
            return _read_json(data)
        except RecursionError as error:
            raise DecodingError("the body is not valid JSON: it is nested too deeply") from error
        except ValueError as error:
            raise DecodingError(f"the body is not valid JSON: {error}") from error

    def serialize(self, data: Any) -> bytes:
        """Write a client's answer (last stage of a route). Compact JSON."""
        try:
            return _write_json(data)
        except RecursionError as error:
            raise EncodingError("the result cannot be written as JSON: it is nested too deeply") from error
        except (TypeError, ValueError) as error:
            raise EncodingError(f"the result cannot be written as JSON: {error}") from error

    def serialize_ipc(self, data: Any) -> bytes:
        """Write a result for the next stage; see `zmesh.codec` for what it carries."""
        return dumps(data)

    def deserialize_ipc(self, data: bytes) -> Any:
        """Read what the stage before wrote with `serialize_ipc`."""
        return loads(data)

    def payload_stores(self, memory: Store | None) -> Sequence[Store]:
        """Where large results wait for the next stage, in order of preference. `memory` is the shared memory of this
        host, None where there is none. For mixins; called once, after `__init__`."""
        return [] if memory is None or self.shared_memory_bytes is None else [memory]

    @classmethod
    def get_forward_json_schema(cls, target: ParseTarget, ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The JSON schema of one side of `forward`, and the components it refers to. Unknown here: both empty."""
        return {}, {}


class SSEWorker(Worker):
    """A last stage that answers with server-sent events while `forward` runs; what `forward` returns is not sent.

    Call `send_stream_event`, or let `forward` be a generator, of which each `yield` is an event: a text, or for a batch
    (`max_batch_size` above 1) a list with a text, None or an exception per item. An exception ends the stream of its
    item, and no other, with `event: error`.
    """

    resp_mime_type: str = "text/event-stream"

    # Given by whatever runs the stage.
    _emit: Callable[[str, int], None] | None = None

    def send_stream_event(self, text: str, index: int = 0) -> None:
        """Send one event to the client of item `index` of the batch. Never waits for that client.

        Nothing is sent when `text` is empty, nor to a client that left or whose time is over.

        Threads that `forward` starts may call this, and have to be over when it returns: the next batch has other
        clients.
        """
        if self._emit is None:
            raise RuntimeError(
                "no stream is open: send_stream_event works only inside forward, while the last stage of a route serves"
            )
        self._emit(text, index)


_DIGITS_AS_ZERO = bytes(ord("0") if chr(byte).isascii() and chr(byte).isdigit() else ord(" ") for byte in range(256))
if _orjson is not None:
    _REFUSE = _orjson.OPT_PASSTHROUGH_DATACLASS | _orjson.OPT_PASSTHROUGH_DATETIME | _orjson.OPT_PASSTHROUGH_SUBCLASS
_LONG_NUMBER = b"0" * 19  # the shortest integer that can be outside 64 bits


def _read_json(data: bytes) -> Any:
    # `find`, because `in` tries a number first, and so makes an exception each time.
    if _orjson is not None and data.translate(_DIGITS_AS_ZERO).find(_LONG_NUMBER) < 0:
        try:
            return _orjson.loads(data)
        except ValueError:
            pass  # json accepts more (NaN, a byte order mark, UTF-16), and its sentence is the one clients read
    return json.loads(data)


def _write_json(value: Any) -> bytes:
    if _orjson is not None:
        try:
            written: bytes = _orjson.dumps(value, option=_REFUSE)
        except TypeError:
            pass  # json writes more, and says why when it cannot
        else:
            if written.find(b"null") < 0:  # else it may have been a NaN
                return written
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_as_json).encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8, only an escape
        return json.dumps(value, separators=(",", ":"), default=_as_json).encode()


def _as_json(value: Any) -> Any:
    """What json does not know: the two types that orjson always writes, and a sentence for the rest."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, uuid.UUID):
        return str(value)
    kind = type(value)
    if kind.__module__ == "numpy":
        way_out = "return .item() of a scalar or .tolist() of an array"
    elif kind.__module__ == "torch":
        way_out = "return .item() or .tolist() of a tensor"
    elif isinstance(value, bytes | bytearray | memoryview):
        way_out = "decode it, use base64, or put MsgpackMixin before Worker"
    else:
        way_out = "return str, int, float, bool, None, list or dict, or override serialize"
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not a JSON type; {way_out}".replace("builtins.", ""))
