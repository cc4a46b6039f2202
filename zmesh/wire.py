"""Messages ⇄ frames: the only place that knows how zmesh/1 looks on the wire.

A message is a header H and payload frames P (the routing id in front belongs to the sockets). H is four bytes, `ZM`,
version and type, that never change, then one msgpack array: the session, then the fields of the message in the order
of its class. A payload of 64 KiB or more has a frame of its own, and its row holds the index of that frame.

`_TABLE` says all that once: per type its class, and per field the check it must pass. Three rules:

1. Nothing from a peer is used before it was checked; a refusal is a `WireError` whose text opens with the field.
2. New fields are appended with a default: what we do not know yet is ignored, what an older peer lacks is filled in.
3. Columns are checked by calls in C over whole columns, never row by row: 60 000 tasks a second pass here.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
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

__all__ = ["CONTEXT_ENTRIES_MAX", "MESSAGE_TYPES", "decode", "encode", "to_json"]

INLINE_SLACK_BYTES = 64 * 1024  # a sender splits after the row that went over
CONTEXT_ENTRIES_MAX = 64
PEER_BYTES = 16
_ITEMS_MAX, _TEXT_BYTES_MAX = messages.LIST_ITEMS_MAX, messages.TEXT_BYTES_MAX
U63_MAX = 2**63 - 1
_STATES = frozenset({0, 1, 2, 3})
_STATUSES, _INTERNAL = frozenset(map(int, messages.Status)), int(messages.Status.INTERNAL)

Check: TypeAlias = Callable[[str, Any], Any]
"""(name of the field, what came) -> what the message gets; raises WireError."""
Writer: TypeAlias = Callable[[Any, list[Payload]], object]  # (value, payload frames to add to) -> for msgpack


def encode(message: Message, session: int = 0) -> list[Payload]:
    """The frames of `message`, without a routing id.

    Payloads are bytes or memoryviews of bytes, contexts are dicts. The sender keeps within the limits that `decode`
    has; a lone surrogate in a text becomes `?`. Only one thread of a process may encode: they would share one packer,
    which halves the cost of a small message.
    """
    form = _FORM_OF[type(message)]
    frames: list[Payload] = []
    body = form.write(message, frames)
    body[0] = session
    while body[-1] is None:  # what is left out at the end is read as its default, which is None
        del body[-1]
    return [form.prefix + _pack(body), *frames]


def decode(frames: Sequence[bytes | memoryview], limits: Limits) -> tuple[SessionId, Message]:
    """The session and the message in `frames`, every field checked against its type and `limits`.

    Raises WireError, and nothing else, whatever the bytes. Small payloads are bytes, large ones the frames as given.
    """
    form = _form_of(frames, limits)
    try:
        # Twice what is allowed, so that the checks can name the field that is too long.
        body = _unpack(frames[0][4:], max_array_len=2 * max(limits.message_rows_max, _ITEMS_MAX))
    except ValueError as error:
        raise WireError(f"header: {str(error) or type(error).__name__}") from error
    if type(body) is not list or not body:
        raise WireError(f"header: must be a list that opens with the session, not {_seen(body)}")
    session = SessionId(_u64("session", body.pop(0)))
    message = form.read("header", body)
    if form.payloads is not None:
        _attach(form.payloads(message), frames, limits)
    elif len(frames) > 1:
        raise WireError(f"frames: {form.type.__name__} carries no payloads, {len(frames) - 1} frames came with it")
    return session, message


def to_json(message: Message) -> dict[str, object]:
    """`message` as JSON values, for transcripts: peers in hex, payloads in base64, words by name, nothing for None."""
    return {"type": type(message).__name__.lower(), **_plain("message", message)}


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


def _plain(name: str, value: Any) -> Any:
    match value:
        case IntEnum():
            return value.name.lower()
        case bytes() | memoryview():
            return value.hex() if name in {"peer", "peers", "broker"} else {"base64": b64encode(value).decode()}
        case list():
            return [int(item) if isinstance(item, int) else _plain(name, item) for item in value]
    if not is_dataclass(value):
        return value
    named = ((field.name, getattr(value, field.name)) for field in fields(value))
    return {name: _plain(name, field) for name, field in named if field is not None}


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _seen(value: object) -> str:
    """What came, in a few words: a peer does not choose how long our logs are."""
    match value:
        case int():
            return repr(value)
        case str() | bytes() | list() | dict():
            return f"{type(value).__name__} of length {len(value)}"
    return type(value).__name__


def _that(is_right: Callable[[Any], bool], words: str) -> Check:
    def check(name: str, value: Any) -> Any:
        if not is_right(value):
            raise WireError(f"{name}: must be {words}, not {_seen(value)}")
        return value

    return check


def _are_ints(column: list[Any]) -> bool:
    return countOf(map(type, column), int) == len(column)


def _are_u63s(column: list[int]) -> bool:
    return not any(column) or (min(column) >= 0 and max(column) <= U63_MAX)


def _number(low: int, high: int) -> Check:
    return _that(lambda it: type(it) is int and low <= it <= high, f"a whole number from {low} to {high}")


def _one_of(words: type[IntEnum]) -> Check:
    known = {word.value: word for word in words}
    check = _that(lambda it: type(it) is int and it in known, f"one of {sorted(known)}")
    return lambda name, value: known[check(name, value)]


def _list_of(check: Check) -> Check:
    return lambda name, value: [check(name, item) for item in _listed(name, value)]


def _are_texts(values: Sequence[Any], bytes_max: int) -> bool:
    try:
        together = "".join(values)
    except TypeError:
        return False
    return len(together) * 4 <= bytes_max or max(map(len, map(str.encode, values))) <= bytes_max


def _text_up_to(bytes_max: int) -> Check:
    return _that(lambda it: it == "" or _are_texts((it,), bytes_max), f"text of at most {bytes_max} bytes")


# Of one value.
_u63, _u64, _exit_code = _number(0, U63_MAX), _number(0, 2**64 - 1), _number(-(2**31), 2**32 - 1)
_flag = _that(lambda it: type(it) is bool, "true or false")
_peer = _that(lambda it: type(it) is bytes and len(it) == PEER_BYTES, f"{PEER_BYTES} bytes")
_text, _long_text = _text_up_to(_TEXT_BYTES_MAX), _text_up_to(messages.LONG_TEXT_BYTES_MAX)
_text_or_nil = _that(lambda it: it is None or it == "" or _are_texts((it,), _TEXT_BYTES_MAX), "text, or nil")
_listed = _that(lambda it: type(it) is list and len(it) <= _ITEMS_MAX, f"a list of at most {_ITEMS_MAX}")
_leases = _that(
    lambda it: type(it) is list and len(it) <= _ITEMS_MAX and _are_ints(it) and min(it, default=0) >= 0,
    f"a list of at most {_ITEMS_MAX} numbers of 0 or more",
)

# Of one column: a list of ints when it comes here, and of none above 2^64-1, because msgpack has none.
_ints = _that(_are_ints, "whole numbers only")
_ids = _that(lambda column: len(set(column)) == len(column) and min(column, default=0) >= 0, "different numbers ≥ 0")
_rows = _that(lambda column: len(set(column)) == len(column) and _are_u63s(column), "different numbers, 0 to 2^63-1")
_u63s = _that(_are_u63s, "numbers from 0 to 2^63-1")
_states = _that(_STATES.issuperset, "bits of State, 0 to 3")
_kinds = _that(frozenset(map(int, messages.Kind)).issuperset, "known kinds, 0 to 2")
_column = _that(lambda it: type(it) is list, "a list or nil")
_maps = _that(lambda column: {dict, type(None)}.issuperset(map(type, column)), "maps and nils")
_payloads = _that(lambda column: True, "checked by `_attach`, who has the frames")


def _statuses(name: str, column: list[int]) -> list[int]:
    if _STATUSES.issuperset(column):
        return column
    return [status if status in _STATUSES else _INTERNAL for status in _u63s(name, column)]  # a newer peer's


def _or_nil(check: Check) -> Check:
    return lambda name, column: None if column is None else check(name, _ints(name, _column(name, column)))


_ids_or_nil, _u63s_or_nil = _or_nil(_ids), _or_nil(_u63s)


def _contexts_or_nil(name: str, column: Any) -> Any:
    if column is None:
        return None
    rows = _maps(name, _column(name, column))
    if not all(rows):
        rows = list(filter(None, rows))
    if max(map(len, rows), default=0) > CONTEXT_ENTRIES_MAX:
        raise WireError(f"{name}: {max(map(len, rows))} entries in one context, at most {CONTEXT_ENTRIES_MAX}")
    keys = set().union(*rows)  # nearly always the same few
    if not _are_texts([*keys, *[text for row in rows for text in row.values()]], _TEXT_BYTES_MAX):
        raise WireError(f"{name}: keys and values must be text of at most {_TEXT_BYTES_MAX} bytes")
    return column


def _columns(name: str, values: Any) -> Any:
    """The form's `read` for most of what passes: it takes nothing that `read` refuses, in two thirds of the time."""
    if type(values) is list and len(values) == 7:
        ids, states, remaining_ms, attempts, kinds, payloads, contexts = values
        if (
            type(ids) is type(states) is type(remaining_ms) is type(attempts) is type(kinds) is type(payloads) is list
            and len(ids) == len(states) == len(remaining_ms) == len(attempts) == len(kinds) == len(payloads) > 0
            and (contexts is None or len(_contexts_or_nil("columns.contexts", contexts)) == len(ids))
            and countOf(map(type, chain(ids, states, remaining_ms, attempts, kinds)), int) == 5 * len(ids)
            and (len(set(ids)) == len(ids) and min(ids) >= 0 and _STATES.issuperset(states))
            and (not any(kinds) and _are_u63s(attempts) and _are_u63s(remaining_ms))
        ):
            return messages.Columns(*values)
    return _COLUMNS.read(name, values)


# ── payloads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _detach(payloads: list[Payload], frames: list[Payload]) -> list[Payload | int]:
    """The column for H: large payloads move into `frames` and leave their index behind."""
    if max(map(len, payloads), default=0) < messages.OWN_FRAME_BYTES:
        return cast("list[Payload | int]", payloads)
    column: list[Payload | int] = list(payloads)
    for row, payload in enumerate(payloads):
        if len(payload) >= messages.OWN_FRAME_BYTES:
            column[row] = len(frames)
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
        lengths = {len(value) for value in values[columns.start :] if type(value) is list}
        if len(lengths) != 1 or set(map(type, values[columns])) != {list}:
            shapes = map("{} {}".format, self.names[columns.start :], map(_seen, values[columns.start :]))
            raise WireError(f"columns: must be lists of one length, not {', '.join(shapes)}")
        numbers = self.numbers(values)
        if countOf(map(type, chain(*numbers)), int) != len(numbers) * lengths.pop():
            named = zip(self.numbers(self.names), numbers, strict=True)
            _ints(*next((name, column) for name, column in named if not _are_ints(column)))


_WRITERS: dict[str, Writer] = {
    "columns": lambda columns, frames: _COLUMNS.write(columns, frames)[1:],
    "payloads": _detach,
    "workers": lambda beats, frames: [_BEAT.write(beat, frames)[1:] for beat in beats],
}


def _form(number: int, kind: type, path: str = "", columns: slice | None = None, /, **checks: Check) -> _Form:
    declared = fields(kind)
    names = [field.name for field in declared]
    assert names == list(checks), f"{kind.__name__} is written as {list(checks)} but declared as {names}"
    numbers = [index for index in range(len(names))[columns or slice(0)] if names[index] != "payloads"]
    payloads = "columns.payloads" if "columns" in names else "payloads" if columns else ""
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
        numbers=itemgetter(*numbers) if numbers else tuple,
    )


_phase = _one_of(messages.Phase)
_COLUMNS: _Form = _form(
    0, messages.Columns, "columns.", slice(0, 6), ids=_ids, states=_states, remaining_ms=_u63s, attempts=_u63s,
    kinds=_kinds, payloads=_payloads, contexts=_contexts_or_nil,
)  # fmt: skip
_BEAT: _Form = _form(
    0, messages.WorkerBeat, "workers.", peer=_peer, stage=_text, worker_id=_u63, pid=_u63, lease=_u64, phase=_phase,
    rss_bytes=_u63,
)  # fmt: skip
_beats, _peers, _texts = _list_of(_BEAT.read), _list_of(_peer), _list_of(_text)
_TABLE = [
    _form(1, messages.Hello, versions=_leases, role=_one_of(messages.Role), peer=_peer, connection=_u63, host=_text,
          pid=_u63, fingerprint=_text, stage=_text, worker_id=_u63, max_batch_size=_u63, concurrency=_u63,
          running=_leases, waiting=_leases, answered=_leases, epoch=_u64, shape=_text, memory=_text),
    _form(2, messages.Welcome, version=_u63, broker=_peer, epoch=_u64, session=_u64, heartbeat_ms=_u63, dead_ms=_u63,
          frame_bytes_max=_u63, message_rows_max=_u63, message_inline_bytes_max=_u63, stages=_texts,
          once_routes=_texts),
    _form(3, messages.Refuse, code=_one_of(messages.RefuseCode), text=_text, retry_after_ms=_u63),
    _form(4, messages.Credit, total=_u63, state=_one_of(messages.WorkerState), text=_text, metrics=_text_or_nil),
    _form(5, messages.Submit, route=_text, columns=_columns, again=_flag, all=_flag, handled=_u64),
    _form(6, messages.Tasks, lease=_u64, columns=_columns, acks=_leases, near=_flag),
    _form(7, messages.Results, "", slice(2, 6), epoch=_u64, lease=_u64, rows=_rows, statuses=_statuses, kinds=_kinds,
          payloads=_payloads, compute_us=_u63, ids=_ids_or_nil, chunks=_u63s_or_nil,
          metrics=_text_or_nil, sizes=_u63s_or_nil),
    _form(8, messages.Ack, leases=_leases, peers=_peers),
    _form(9, messages.Reply, "", slice(1, 8), number=_u64, ids=_ids, statuses=_statuses, kinds=_kinds,
          payloads=_payloads, attempts=_u63s, queue_us=_u63s, compute_us=_u63s, leases=_u63s_or_nil,
          chunks=_u63s_or_nil),
    _form(10, messages.Cancel, ids=_leases, reason=_text, handled=_u64),
    _form(11, messages.Chunk, "", slice(2, 5), epoch=_u64, lease=_u64, ids=_ids, seqs=_u63s, payloads=_payloads,
          kind=_one_of(messages.ChunkKind)),
    _form(13, messages.Heartbeat, epoch=_u64, handled=_u64, workers=_beats),
    _form(14, messages.Exited, peer=_peer, stage=_text, worker_id=_u63, code=_exit_code, lease=_u64, phase=_phase,
          row=_u63, oom=_flag, reason=_long_text, failing=_flag),
    _form(15, messages.Kill, peer=_peer, lease=_u64, reason=_text, interrupt=_flag),
    _form(17, messages.Drain, deadline_ms=_u63, reason=_text, host=_text),
    _form(18, messages.Goodbye, leases=_leases),
    _form(19, messages.Stats, snapshot=_long_text),
]  # fmt: skip
# Reserved, and refused until they have a class: 12 LOG, 16 HEALTHCHECK.
_SAME_IN_EVERY_VERSION = {1, 3}
_FORMS = {form.prefix[3]: form for form in _TABLE}
_FORM_OF = {form.type: form for form in _TABLE}
_pack = msgpack.Packer(unicode_errors="replace").pack
_unpack = partial(
    msgpack.unpackb, max_map_len=2 * CONTEXT_ENTRIES_MAX, max_ext_len=0, ext_hook=_no_extension, strict_map_key=True
)

MESSAGE_TYPES: dict[int, type[Message]] = {number: form.type for number, form in _FORMS.items()}
