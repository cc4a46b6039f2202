"""Messages ⇄ frames: the only place that knows how zmesh/1 looks on the wire.

A message is a header H and payload frames P (the routing id in front belongs to the sockets). H is four bytes, `ZM`,
version and type, that never change, then one msgpack array: the session, then the fields of the message in the order
of its class. A payload of 64 KiB or more has a frame of its own, and its row holds the index of that frame.

`_TABLE` says all that once: per type its class, and per field the check it must pass. Three rules:

1. Nothing from a peer is used before it was checked; a refusal is a `WireError` whose text opens with the field.
2. New fields are appended with a default: what we do not know yet is ignored, what an older peer lacks is filled in.
3. Columns are checked by calls in C over whole columns, never row by row: 60 000 tasks a second pass here.

`encode` shares one `msgpack.Packer`, which halves the cost of a small message: one thread per process encodes.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import IntEnum
from functools import partial
from itertools import chain
from operator import attrgetter, call, countOf, itemgetter
from typing import Any, TypeAlias, cast

import msgpack

from zmesh import messages
from zmesh.config import Limits
from zmesh.errors import WireError
from zmesh.messages import PROTOCOL_VERSION, Message, Payload, SessionId

__all__ = [
    "CONTEXT_ENTRIES_MAX",
    "FRAME_PAYLOAD_BYTES_MIN",
    "INLINE_SLACK_BYTES",
    "LIST_ITEMS_MAX",
    "LONG_TEXT_BYTES_MAX",
    "MESSAGE_TYPES",
    "TEXT_BYTES_MAX",
    "decode",
    "encode",
    "to_json",
]

KIB = 1024
FRAME_PAYLOAD_BYTES_MIN = 64 * KIB  # from here on a payload travels in a frame of its own
INLINE_SLACK_BYTES = 64 * KIB  # a sender splits after the row that went over
TEXT_BYTES_MAX = 64 * KIB
LONG_TEXT_BYTES_MAX = 1024 * KIB  # a traceback, a snapshot
CONTEXT_ENTRIES_MAX = 64
LIST_ITEMS_MAX = 4096  # of a list that is not a column: leases, peers, stages
PEER_BYTES = 16
U63_MAX = 2**63 - 1
NO_SESSION = SessionId(0)

Check: TypeAlias = Callable[[str, Any], Any]
"""(name of the field, what came) -> what the message gets; raises WireError."""
Writer: TypeAlias = Callable[[Any, list[Payload]], object]
"""(value of the field, frames so far) -> what msgpack gets; may append frames."""


def encode(message: Message, session: SessionId = NO_SESSION) -> list[Payload]:
    """The frames of `message`, without a routing id.

    Payloads are bytes or memoryviews of bytes, contexts are dicts. The sender keeps within the limits that `decode`
    has; a lone surrogate in a text becomes `?`.
    """
    form = _FORM_OF[type(message)]
    frames: list[Payload] = []
    body = form.write(message, frames)
    body[0] = session
    return [form.prefix + _pack(body), *frames]


def decode(frames: Sequence[bytes | memoryview], limits: Limits) -> tuple[SessionId, Message]:
    """The session and the message in `frames`, every field checked against its type and `limits`.

    Raises WireError, and nothing else, whatever the bytes. Small payloads are bytes, large ones the frames as given.
    """
    form = _form_of(frames, limits)
    try:
        body = msgpack.unpackb(
            frames[0][4:],
            max_array_len=2 * max(limits.message_rows_max, LIST_ITEMS_MAX),  # twice, so that checks can name the field
            max_map_len=2 * CONTEXT_ENTRIES_MAX,
            max_ext_len=0,
            ext_hook=_no_extension,
            strict_map_key=True,
        )
    except ValueError as error:
        raise WireError(f"header: {str(error) or type(error).__name__}") from error
    if type(body) is not list or not body:
        raise WireError(f"header: must be a list that opens with the session, not {_seen(body)}")
    session = _u64("session", body.pop(0))
    message = form.read("header", body)
    if form.payloads is not None:
        _attach(form.payloads(message), frames, limits)
    elif len(frames) > 1:
        raise WireError(f"frames: {form.type.__name__} carries no payloads, {len(frames) - 1} frames came with it")
    return session, message


def to_json(message: Message) -> dict[str, object]:
    """`message` as JSON values, for transcripts: peers in hex, payloads in base64, words by name, nothing for None."""
    return {"type": type(message).__name__.lower(), **_plain_fields(message)}


def _form_of(frames: Sequence[bytes | memoryview], limits: Limits) -> _Form:
    if not frames:
        raise WireError("frames: a message has one or more")
    if max(map(len, frames)) > limits.frame_bytes_max:
        raise WireError(f"frames: one of {max(map(len, frames))} bytes, at most {limits.frame_bytes_max}")
    head = frames[0]
    if len(head) < 4 or head[:2] != b"ZM":
        raise WireError("prefix: must be ZM, version and type")
    version, number = head[2], head[3]
    if version != PROTOCOL_VERSION and number not in _SAME_IN_EVERY_VERSION:
        raise WireError(f"version: {version} is not spoken here, {PROTOCOL_VERSION} is")
    if number not in _FORMS:
        raise WireError(f"type: {number} is not spoken in this version")
    return _FORMS[number]


def _no_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} is not spoken here")


def _plain_fields(value: Any) -> dict[str, object]:
    named = ((field.name, getattr(value, field.name)) for field in fields(value))
    return {name: _plain(name, field) for name, field in named if field is not None}


def _plain(name: str, value: Any) -> object:
    match value:
        case IntEnum():
            return value.name.lower()
        case bytes() | memoryview():
            return value.hex() if name in {"peer", "peers", "broker"} else {"base64": b64encode(value).decode()}
        case list():
            return [int(item) if isinstance(item, int) else _plain(name, item) for item in value]
        case messages.Columns() | messages.WorkerBeat():
            return _plain_fields(value)
    return value


# ── one field ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _seen(value: object) -> str:
    """What came, in a few words: a peer does not choose how long our logs are."""
    match value:
        case int():
            return repr(value)
        case str() | bytes() | list() | dict():
            return f"{type(value).__name__} of length {len(value)}"
    return type(value).__name__


def _number(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise WireError(f"{name}: must be a whole number from {low} to {high}, not {_seen(value)}")
        return value

    return check


_u63, _u64, _exit_code = _number(0, U63_MAX), _number(0, 2**64 - 1), _number(-(2**31), 2**32 - 1)


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise WireError(f"{name}: must be true or false, not {_seen(value)}")
    return value


def _peer(name: str, value: Any) -> bytes:
    if type(value) is not bytes or len(value) != PEER_BYTES:
        raise WireError(f"{name}: must be {PEER_BYTES} bytes, not {_seen(value)}")
    return value


def _one_of(words: type[IntEnum]) -> Check:
    known = {word.value: word for word in words}

    def check(name: str, value: Any) -> IntEnum:
        if type(value) is not int or value not in known:
            raise WireError(f"{name}: must be one of {sorted(known)}, not {_seen(value)}")
        return known[value]

    return check


def _texts_fit(name: str, texts: Sequence[Any], bytes_max: int) -> None:
    if countOf(map(type, texts), str) != len(texts):
        raise WireError(f"{name}: must be text, not {_seen(next(text for text in texts if type(text) is not str))}")
    if max(map(len, texts), default=0) > bytes_max or (
        not all(map(str.isascii, texts)) and max(map(len, map(str.encode, texts))) > bytes_max
    ):
        raise WireError(f"{name}: a text of more than {bytes_max} bytes")


def _text_up_to(bytes_max: int) -> Check:
    def check(name: str, value: Any) -> str:
        _texts_fit(name, (value,), bytes_max)
        return cast(str, value)

    return check


_text, _long_text = _text_up_to(TEXT_BYTES_MAX), _text_up_to(LONG_TEXT_BYTES_MAX)


def _listed(name: str, value: Any) -> list[Any]:
    if type(value) is not list or len(value) > LIST_ITEMS_MAX:
        raise WireError(f"{name}: must be a list of at most {LIST_ITEMS_MAX}, not {_seen(value)}")
    return value


def _list_of(check: Check) -> Check:
    return lambda name, value: [check(name, item) for item in _listed(name, value)]


def _texts(name: str, value: Any) -> list[str]:
    _texts_fit(name, _listed(name, value), TEXT_BYTES_MAX)
    return cast("list[str]", value)


def _leases(name: str, value: Any) -> list[int]:
    return _u64s(name, _ints(name, _listed(name, value)))


# ── one column ────────────────────────────────────────────────────────────────────────────────────────────────────


def _ints(name: str, column: list[Any]) -> list[int]:
    """No bools and no floats: what the checks below take for granted."""
    if countOf(map(type, column), int) != len(column):
        raise WireError(f"{name}: must be whole numbers, not {_seen(next(v for v in column if type(v) is not int))}")
    return column


def _u64s(name: str, column: list[int]) -> list[int]:
    if column and min(column) < 0:  # msgpack has nothing above 2^64-1
        raise WireError(f"{name}: must be 0 or more, not {min(column)}")
    return column


def _u63s(name: str, column: list[int]) -> list[int]:
    if any(column) and max(_u64s(name, column)) > U63_MAX:
        raise WireError(f"{name}: must be {U63_MAX} or less, not {max(column)}")
    return column


def _unique(check: Check) -> Check:
    def checked(name: str, column: list[int]) -> Any:
        if len(set(column)) != len(column):
            raise WireError(f"{name}: must differ, but {len(column)} hold only {len(set(column))} numbers")
        return check(name, column)

    return checked


def _only(known: frozenset[int]) -> Check:
    def check(name: str, column: list[int]) -> list[int]:
        if not known.issuperset(column):
            raise WireError(f"{name}: must be of {sorted(known)}, not {min(set(column) - known)}")
        return column

    return check


_ids, _rows, _kinds = _unique(_u64s), _unique(_u63s), _only(frozenset(map(int, messages.Kind)))
_states = _only(frozenset({0, 1, 2, 3}))  # bits of messages.State
_STATUSES, _INTERNAL = frozenset(map(int, messages.Status)), int(messages.Status.INTERNAL)


def _statuses(name: str, column: list[int]) -> list[int]:
    if _STATUSES.issuperset(column):
        return column
    return [status if status in _STATUSES else _INTERNAL for status in _u64s(name, column)]  # a newer peer's word


def _payloads(name: str, column: list[Any]) -> list[Any]:
    return column  # `_attach` checks them: it has the frames


def _ids_or_nil(name: str, column: Any) -> Any:
    if column is None:
        return None
    if type(column) is not list:
        raise WireError(f"{name}: must be a list or nil, not {_seen(column)}")
    return _ids(name, _ints(name, column))


def _contexts_or_nil(name: str, column: Any) -> Any:
    if column is None:
        return None
    if type(column) is not list or not {dict, type(None)}.issuperset(map(type, column)):
        raise WireError(f"{name}: must be nil, or a list of maps and nils")
    rows: list[dict[Any, Any]] = list(filter(None, column))
    if max(map(len, rows), default=0) > CONTEXT_ENTRIES_MAX:
        raise WireError(f"{name}: {max(map(len, rows))} entries in one context, at most {CONTEXT_ENTRIES_MAX}")
    _texts_fit(name, [*chain.from_iterable(rows), *chain.from_iterable(map(dict.values, rows))], TEXT_BYTES_MAX)
    return column


# ── payloads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _detach(payloads: list[Payload], frames: list[Payload]) -> list[Payload | int]:
    """The column for H: large payloads move into `frames` and leave their index behind."""
    if max(map(len, payloads), default=0) < FRAME_PAYLOAD_BYTES_MIN:
        return cast("list[Payload | int]", payloads)
    column: list[Payload | int] = []
    for payload in payloads:
        if len(payload) < FRAME_PAYLOAD_BYTES_MIN:
            column.append(payload)
        else:
            column.append(len(frames))
            frames.append(payload)
    return column


def _attach(column: list[Any], frames: Sequence[bytes | memoryview], limits: Limits) -> None:
    """The other way round, in place: the list is fresh from the unpacker and nobody else has it."""
    if len(column) > limits.message_rows_max:
        raise WireError(f"payloads: {len(column)} rows, at most {limits.message_rows_max}")
    inline_max = limits.message_inline_bytes_max + INLINE_SLACK_BYTES
    if len(frames[0]) > inline_max:  # only then can the payloads in it be too many
        inline = sum(len(payload) for payload in column if type(payload) is bytes)
        if inline > inline_max:
            raise WireError(f"payloads: {inline} bytes inline, at most {inline_max}")
    if len(frames) == 1 and countOf(map(type, column), bytes) == len(column):
        return
    if not {bytes, int}.issuperset(map(type, column)):
        raise WireError("payloads: each must be bytes or the index of a frame")
    rows = [row for row, payload in enumerate(column) if type(payload) is int]
    if sorted(column[row] for row in rows) != list(range(len(frames) - 1)):
        raise WireError(f"payloads: {len(rows)} indexes do not use each of {len(frames) - 1} frames exactly once")
    for row in rows:
        column[row] = frames[1 + column[row]]


# ── forms ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Form:
    """How one class is written: a list of its fields in order, each with its check."""

    type: Any
    prefix: bytes
    names: list[str]
    checks: list[Callable[[Any], Any]]
    required: int  # fields without a default
    values: Callable[[Any], tuple[Any, ...]]  # all fields, behind a place for the session
    writers: list[tuple[int, Writer]]  # for what msgpack cannot take as it is
    payloads: Callable[[Any], list[Any]] | None  # where a message has them
    columns: slice | None  # what must be a column; any other list of such a class is one too
    numbers: Callable[[list[Any]], tuple[Any, ...]]  # the columns of ints

    def write(self, value: Any, frames: list[Payload]) -> list[Any]:
        body = list(self.values(value))
        for index, writer in self.writers:
            body[index] = writer(body[index], frames)
        return body

    def read(self, name: str, values: Any) -> Any:
        if type(values) is not list or len(values) < self.required:
            raise WireError(f"{name}: must be a list of {self.required} fields or more, not {_seen(values)}")
        if self.columns is not None:
            self.check_columns(values[: len(self.checks)], self.columns)
        return self.type(*map(call, self.checks, values))

    def check_columns(self, values: list[Any], columns: slice) -> None:
        """Lists of one length, and ints where numbers are: one pass for the whole block."""
        lengths = {len(value) for value in values if type(value) is list}
        if len(lengths) != 1 or set(map(type, values[columns])) != {list}:
            shapes = map("{} {}".format, self.names[columns.start :], map(_seen, values[columns.start :]))
            raise WireError(f"columns: must be lists of one length, not {', '.join(shapes)}")
        numbers = self.numbers(values)
        if countOf(map(type, chain(*numbers)), int) != len(numbers) * lengths.pop():
            for name, column in zip(self.numbers(self.names), numbers, strict=True):
                _ints(name, column)


def _form(number: int, kind: type, path: str = "", columns: slice | None = None, /, **checks: Check) -> _Form:
    declared = fields(kind)
    names = [field.name for field in declared]
    assert names == list(checks), f"{kind.__name__} is written as {list(checks)} but declared as {names}"
    payloads = "columns.payloads" if "columns" in names else "payloads" if columns is not None else ""
    return _Form(
        type=kind,
        prefix=b"ZM" + bytes([PROTOCOL_VERSION, number]),
        names=[path + name for name in names],
        checks=[partial(check, path + name) for name, check in checks.items()],
        required=sum(field.default is MISSING and field.default_factory is MISSING for field in declared),
        values=attrgetter("__class__", *names),
        writers=[(1 + index, _WRITERS[name]) for index, name in enumerate(names) if name in _WRITERS],
        payloads=attrgetter(payloads) if payloads else None,
        columns=columns,
        numbers=itemgetter(*[i for i in range(len(names))[columns or slice(2)] if names[i] != "payloads"]),
    )


_phase = _one_of(messages.Phase)
_COLUMNS = _form(
    0, messages.Columns, "columns.", slice(0, 6), ids=_ids, states=_states, remaining_ms=_u63s, attempts=_u63s,
    kinds=_kinds, payloads=_payloads, contexts=_contexts_or_nil,
)  # fmt: skip
_BEAT = _form(
    0, messages.WorkerBeat, "workers.", peer=_peer, stage=_text, worker_id=_u63, pid=_u63, lease=_u64, phase=_phase,
    rss_bytes=_u63,
)  # fmt: skip
_WRITERS: dict[str, Writer] = {
    "columns": lambda columns, frames: _COLUMNS.write(columns, frames)[1:],
    "payloads": _detach,
    "workers": lambda beats, frames: [_BEAT.write(beat, frames)[1:] for beat in beats],
}
_columns, _peers, _beats = _COLUMNS.read, _list_of(_peer), _list_of(_BEAT.read)
_TABLE = [
    _form(1, messages.Hello, versions=_leases, role=_one_of(messages.Role), peer=_peer, connection=_u63, host=_text,
          pid=_u63, fingerprint=_text, stage=_text, worker_id=_u63, max_batch_size=_u63, concurrency=_u63,
          running=_leases, waiting=_leases, answered=_leases, epoch=_u64),
    _form(2, messages.Welcome, version=_u63, broker=_peer, epoch=_u64, session=_u64, heartbeat_ms=_u63, dead_ms=_u63,
          frame_bytes_max=_u63, message_rows_max=_u63, message_inline_bytes_max=_u63, stages=_texts,
          once_routes=_texts),
    _form(3, messages.Refuse, code=_one_of(messages.RefuseCode), text=_text, retry_after_ms=_u63),
    _form(4, messages.Credit, total=_u63, state=_one_of(messages.WorkerState), text=_text),
    _form(5, messages.Submit, route=_text, columns=_columns, again=_flag, all=_flag, handled=_u64),
    _form(6, messages.Tasks, lease=_u64, columns=_columns, acks=_leases),
    _form(7, messages.Results, "", slice(2, 6), epoch=_u64, lease=_u64, rows=_rows, statuses=_statuses, kinds=_kinds,
          payloads=_payloads, compute_us=_u63, ids=_ids_or_nil),
    _form(8, messages.Ack, leases=_leases, peers=_peers),
    _form(9, messages.Reply, "", slice(1, 8), number=_u64, ids=_ids, statuses=_statuses, kinds=_kinds,
          payloads=_payloads, attempts=_u63s, queue_us=_u63s, compute_us=_u63s),
    _form(10, messages.Cancel, ids=_leases, reason=_text, handled=_u64),
    _form(13, messages.Heartbeat, epoch=_u64, handled=_u64, workers=_beats),
    _form(14, messages.Exited, peer=_peer, stage=_text, worker_id=_u63, code=_exit_code, lease=_u64, phase=_phase,
          row=_u63, oom=_flag, reason=_long_text, failing=_flag),
    _form(15, messages.Kill, peer=_peer, lease=_u64, reason=_text, interrupt=_flag),
    _form(17, messages.Drain, deadline_ms=_u63, reason=_text),
    _form(18, messages.Goodbye, leases=_leases),
    _form(19, messages.Stats, snapshot=_long_text),
]  # fmt: skip
# Reserved, and refused until they have a class: 11 CHUNK, 12 LOG, 16 HEALTHCHECK.
_SAME_IN_EVERY_VERSION = {1, 3}
_FORMS = {form.prefix[3]: form for form in _TABLE}
_FORM_OF = {form.type: form for form in _TABLE}
_pack = msgpack.Packer(unicode_errors="replace").pack

MESSAGE_TYPES: dict[int, type[Message]] = {number: form.type for number, form in _FORMS.items()}
