"""docs/protocol.md and the code say the same: numbers, fields, defaults, types, statuses, limits.

The document is read as it stands, so a field that is added to a message, a status or a default that is changed fails
here until the page says so. Types are held to their word by sending values that §4 allows and values that it does not.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, fields
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import pytest

from zmesh import messages, wire
from zmesh.config import Limits
from zmesh.errors import WireError

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
LIMITS = Limits()
PREFIX = b"ZM" + bytes([messages.PROTOCOL_VERSION])


def section(number: str) -> str:
    """The text under the heading `## 4. …` or `### 5.1 …`, up to the next heading that is not below it."""
    depth = 2 + number.count(".")
    _, text = re.split(rf"^#{{{depth}}} {re.escape(number)}\.? .*\n", DOCUMENT, maxsplit=1, flags=re.MULTILINE)
    return re.split(rf"^#{{2,{depth}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables in `text`, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = {i for i, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def described(text: str) -> list[tuple[str, str, str]]:
    """(field, type, default) of the table of a message."""
    table = rows(text)
    assert [row[0] for row in table if row[0].isdigit()] == [str(1 + i) for i in range(len(table))], "fields in order"
    return [(name.strip("`"), kind, default.strip("`")) for _, name, kind, default, _ in table]


HEADINGS = re.findall(r"^### (5\.\d+) ([A-Z]+) \(type (\d+)\)$", DOCUMENT, re.MULTILINE)
NUMBERS = {int(number): name for _, name, number in HEADINGS}
TABLES: dict[type, list[tuple[str, str, str]]] = {
    messages.Columns: described(section("5.17")),
    messages.WorkerBeat: described(section("5.18")),
}
for place, _, number in HEADINGS:
    if int(number) in wire.MESSAGE_TYPES:  # else the first test says it
        TABLES[wire.MESSAGE_TYPES[int(number)]] = described(section(place).split("\n**", 1)[0])


def test_every_message_has_a_section_under_its_number():
    """§5"""
    assert {number: kind.__name__.upper() for number, kind in wire.MESSAGE_TYPES.items()} == NUMBERS


def test_reserved_types_are_refused():
    """§11.2"""
    reserved = [int(number) for number, *_ in rows(section("11"))]
    assert reserved == sorted(set(range(1, max(wire.MESSAGE_TYPES) + 1)) - set(wire.MESSAGE_TYPES))
    for number in reserved:
        with pytest.raises(WireError, match=r"^type"):
            wire.decode([PREFIX + bytes([number]) + msgpack.packb([0])], LIMITS)


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_fields_and_defaults_are_those_of_the_class(kind: type):
    """§3.4"""
    shown = {"false": False, "empty": [], "nil": None, '""': "", "0": 0, "1": 1}
    documented = [(name, shown[default] if default else MISSING) for name, _, default in TABLES[kind]]
    declared = []
    for field in fields(kind):
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        declared.append((field.name, made))
    assert documented == declared


# ── types ─────────────────────────────────────────────────────────────────────────────────────────────────────────

K64, M1 = 64 * 1024, 1024 * 1024
NOT_A_NUMBER: list[Any] = [None, True, 1.0, "1", b"1", [1]]
NOT_A_LIST: list[Any] = [None, 1, "x", b"x", {1: 1}]


def of_lists(good: list[Any], bad: list[Any]) -> tuple[list[Any], list[Any]]:
    return [[], *([item] for item in good), [good[0]] * 4096], [
        *([item] for item in bad),
        [good[0]] * 4097,
        *NOT_A_LIST,
    ]


def of_columns(good: list[Any], bad: list[Any]) -> tuple[list[Any], list[Any]]:
    """Of one row, like the other columns of a message; a column of two does not fit beside them."""
    return [[item] for item in good], [*([item] for item in bad), [], [good[0], good[0]], *NOT_A_LIST]


def of_words(words: type[IntEnum]) -> tuple[list[Any], list[Any]]:
    return [int(word) for word in words], [-1, max(words) + 1, *NOT_A_NUMBER]


U63, U64 = ([0, 1, 2**63 - 1], [-1, 2**63, *NOT_A_NUMBER]), ([0, 2**64 - 1], [-1, *NOT_A_NUMBER])
TEXT: tuple[list[Any], list[Any]] = (
    ["", "ü" * (K64 // 2)],
    ["x" * (K64 + 1), "ü" * (K64 // 2 + 1), None, 1, b"x", ["x"]],
)
PEER: tuple[list[Any], list[Any]] = [bytes(16)], [bytes(15), bytes(17), "x" * 16, None, 1]
BEAT = [bytes(16), "A", 1, 1, 0, 1, 0]
CONTEXT_64 = {str(i): "x" for i in range(64)}
COLUMNS = [[7], [3], [1000], [0], [0], [b"x"], None]

# What §4 says of each type: some values that are allowed, and some that are not.
TYPES: dict[str, tuple[list[Any], list[Any]]] = {
    "u63": U63,
    "u64": U64,
    "exit code": ([-(2**31), 0, 2**32 - 1], [-(2**31) - 1, 2**32, *NOT_A_NUMBER]),
    "flag": ([True, False], [None, 0, 1, "true"]),
    "text": TEXT,
    "text, or nil": ([None, *TEXT[0]], [it for it in TEXT[1] if it is not None]),
    "long text": (["", "x" * M1], ["x" * (M1 + 1), None, 1, b"x"]),
    "peer": PEER,
    "role": of_words(messages.Role),
    "refuse code": of_words(messages.RefuseCode),
    "worker state": of_words(messages.WorkerState),
    "phase": of_words(messages.Phase),
    "chunk kind": of_words(messages.ChunkKind),
    "list of u64": of_lists(*U64),
    "list of text": of_lists(["", "A"], TEXT[1]),
    "list of peer": of_lists(*PEER),
    "list of worker beat": of_lists([BEAT, [*BEAT, "from a later version"]], [BEAT[:-1], None, 1, {}]),
    "task columns": ([COLUMNS, COLUMNS[:6]], [COLUMNS[:5], [[7], *COLUMNS[:1], [], []], *NOT_A_LIST]),
    "column of id": of_columns(*U64),
    "column of row": of_columns(*U63),
    "column of u63": of_columns(*U63),
    "column of state": of_columns([0, 1, 2, 3], [-1, 4, *NOT_A_NUMBER]),
    "column of kind": of_columns(*of_words(messages.Kind)),
    "column of status": of_columns([*messages.Status, 11, 999], [-1, *NOT_A_NUMBER]),
    "column of payload": of_columns([b"", b"x" * (K64 - 1)], [0, 1, -1, None, True, "x", 1.0]),
    "column of context, or nil": (
        [None, [None], [{}], [{"request_id": "x"}], [CONTEXT_64]],
        [[{**CONTEXT_64, "one": "more"}], [{1: "x"}], [{"x": 1}], [1], [], [None, None], 1, "x", {}],
    ),
    "column of id, or nil": ([None, [0], [2**64 - 1]], [[-1], [None], [], [1, 2], 1, "x"]),
    "column of u63, or nil": ([None, [0], [2**63 - 1]], [[-1], [2**63], [None], [], [1, 2], 1, "x"]),
}

Body = list[Any]
Place = tuple[type, Callable[[Any], Body]]


def plain(kind: type) -> Body:
    """The smallest valid body of a message, without the session."""
    beat_or_columns = {"list of worker beat": [], "task columns": COLUMNS}
    return [beat_or_columns.get(word, TYPES[word][0][0]) for _, word, _ in TABLES[kind]]


def decode(kind: type, body: Body) -> messages.Message:
    number = next(number for number, known in wire.MESSAGE_TYPES.items() if known is kind)
    return wire.decode([PREFIX + bytes([number]) + msgpack.packb([0, *body])], LIMITS)[1]


def put(kind: type, index: int, value: Any) -> messages.Message:
    """Decode a message that is plain but for one field; a part of a message goes where it belongs."""
    if kind is messages.Columns:
        columns = [*COLUMNS]
        columns[index] = value
        return decode(messages.Submit, ["/route", columns])
    if kind is messages.WorkerBeat:
        beat = [*BEAT]
        beat[index] = value
        return decode(messages.Heartbeat, [0, 0, [beat]])
    body = plain(kind)
    body[index] = value
    return decode(kind, body)


FIELDS = [(kind, i, name, word) for kind, table in TABLES.items() for i, (name, word, _) in enumerate(table)]


@pytest.mark.parametrize(("kind", "index", "name", "word"), FIELDS, ids=lambda it: getattr(it, "__name__", None))
def test_a_field_takes_what_its_type_allows_and_nothing_else(kind: type, index: int, name: str, word: str):
    """§3.8 and §4"""
    good, bad = TYPES[word]
    for value in good:
        put(kind, index, value)
    for value in bad:
        with pytest.raises(WireError):
            put(kind, index, value)
            pytest.fail(f"{kind.__name__}.{name} ({word}) took {str(value)[:60]}")


def test_every_type_of_the_document_is_known_here():
    """§4"""
    assert {word for table in TABLES.values() for _, word, _ in table} == set(TYPES)


def test_unknown_statuses_are_internal():
    """§4.3"""
    reply = put(messages.Reply, [name for name, _, _ in TABLES[messages.Reply]].index("statuses"), [999])
    assert isinstance(reply, messages.Reply) and reply.statuses == [messages.Status.INTERNAL]


@pytest.mark.parametrize("kind", wire.MESSAGE_TYPES.values(), ids=lambda kind: kind.__name__)
def test_what_a_later_version_appends_is_ignored_and_what_has_a_default_may_be_missing(kind: type):
    """§3.4"""
    body = plain(kind)
    assert decode(kind, [*body, "of a later version"]) == decode(kind, body)
    required = sum(default == "" for _, _, default in TABLES[kind])
    decode(kind, body[:required])
    if required:
        with pytest.raises(WireError):
            decode(kind, body[: required - 1])


# ── words and limits ──────────────────────────────────────────────────────────────────────────────────────────────


def test_words_have_the_numbers_of_the_document():
    """§4.5"""
    enums: dict[str, type[IntEnum]] = {
        "role": messages.Role,
        "refuse code": messages.RefuseCode,
        "worker state": messages.WorkerState,
        "phase": messages.Phase,
        "chunk kind": messages.ChunkKind,
        "kind": messages.Kind,
    }
    said = {name.strip("`"): values for name, values in rows(section("4").split("**4.5**")[1].split("**4.6**")[0])}
    for name, words in enums.items():
        pairs = re.findall(r"(\d+) ([a-z -]+?)(?:,|$| \()", said[name])
        assert pairs == [(str(int(word)), word.name.lower().replace("_", sign(name))) for word in words], name
    assert "1 ingress" in said["state"] and "2 egress" in said["state"]
    assert [int(state) for state in messages.State] == [1, 2]


def sign(name: str) -> str:
    return "-" if name == "kind" else " "


def test_statuses_have_the_numbers_and_the_http_statuses_of_the_document():
    """§6.1"""
    said = [(int(number), name, http) for number, name, http, _ in rows(section("6"))]
    http = {status: str(messages.HTTP_STATUS.get(status, "–")) for status in messages.Status}
    assert said == [(int(status), status.name, http[status]) for status in messages.Status]


def test_limits_have_the_defaults_of_the_document():
    """§9.1"""
    said = {name.strip("`"): int(number.replace(" ", "")) for name, number, _ in rows(section("9"))}
    assert said == {name: getattr(LIMITS, name) for name in said}


def test_fixed_limits_are_those_of_the_code():
    """§9.2, §9.3, §3.5"""
    assert (messages.LIST_ITEMS_MAX, wire.CONTEXT_ENTRIES_MAX) == (4096, 64)
    assert (messages.TEXT_BYTES_MAX, messages.LONG_TEXT_BYTES_MAX, messages.OWN_FRAME_BYTES) == (K64, M1, K64)


def test_a_large_payload_has_a_frame_of_its_own():
    """§3.5, §3.6"""
    at, below = bytes(K64), bytes(K64 - 1)
    columns = messages.Columns(
        [messages.TaskId(n) for n in range(3)], [3] * 3, [1] * 3, [0] * 3, [0] * 3, [below, at, b""]
    )
    head, *payloads = wire.encode(messages.Submit("/route", columns))
    assert payloads == [at]
    assert msgpack.unpackb(bytes(head)[4:])[2][5] == [below, 0, b""]
    for frames in ([head], [head, at, at]):
        with pytest.raises(WireError):
            wire.decode(frames, LIMITS)


def test_the_other_versions_of_hello_and_refuse_can_be_read():
    """§3.2, §11.3"""
    for kind in wire.MESSAGE_TYPES.values():
        number = next(number for number, known in wire.MESSAGE_TYPES.items() if known is kind)
        frame = b"ZM" + bytes([2, number]) + msgpack.packb([0, *plain(kind)])
        if kind in (messages.Hello, messages.Refuse):
            wire.decode([frame], LIMITS)
        else:
            with pytest.raises(WireError, match=r"^version"):
                wire.decode([frame], LIMITS)


# ── the document itself ───────────────────────────────────────────────────────────────────────────────────────────


def test_paragraphs_are_numbered_once_and_in_order():
    numbers = re.findall(r"^\*\*(\d+(?:\.\d+)+)\*\*", DOCUMENT, re.MULTILINE)
    assert [number for number, times in Counter(numbers).items() if times > 1] == []
    keys = [[int(part) for part in number.split(".")] for number in numbers]
    assert [later for earlier, later in pairwise(keys) if later <= earlier] == []


def test_references_point_at_something():
    known = set(re.findall(r"^(?:\*\*|#+ )(\d+(?:\.\d+)*)", DOCUMENT, re.MULTILINE))
    assert set(re.findall(r"§(\d+(?:\.\d+)*)", DOCUMENT)) <= known
