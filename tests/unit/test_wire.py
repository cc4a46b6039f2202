"""Messages ⇄ frames: what goes out comes back, what never was a message is refused, each refusal names its field."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmesh import messages as say
from zmesh import wire
from zmesh.config import Limits
from zmesh.errors import WireError
from zmesh.wire import decode, encode, to_json

GOLDEN = Path(__file__).with_name("golden_frames.json")
LIMITS = Limits()
LARGE = say.OWN_FRAME_BYTES
PEER, BROKER = bytes(range(16)), bytes(range(16, 32))
SESSION = 0xFEDCBA9876543210

# ── one of each, with no default left as it is ────────────────────────────────────────────────────────────────────

COLUMNS = say.Columns(
    ids=[0x9A3B5C7D_00000000, 0x9A3B5C7D_00000001],
    states=[1, 3],
    remaining_ms=[2950, 12],
    attempts=[0, 1],
    kinds=[0, 2],
    payloads=[b'{"x": 1}', b""],
    contexts=[{"request_id": "r-1", "traceparent": "00-4bf9"}, None],
)
EXAMPLES: list[say.Message] = [
    say.Hello(
        versions=[1, 2], role=say.Role.WORKER, peer=PEER, connection=3, host="höst", pid=4242, fingerprint="f00d",
        stage="Preprocess", worker_id=2, max_batch_size=8, concurrency=2, running=[7], waiting=[8, 9], answered=[6],
        epoch=77, shape="[[], []]",
    ),
    say.Welcome(
        version=1, broker=BROKER, epoch=77, session=SESSION, heartbeat_ms=1000, dead_ms=5000, frame_bytes_max=1 << 26,
        message_rows_max=4096, message_inline_bytes_max=1 << 22, stages=["Preprocess", "Inference"],
        once_routes=["/pay"],
    ),
    say.Refuse(code=say.RefuseCode.UNKNOWN_PEER, text="say HELLO again", retry_after_ms=50),
    say.Credit(total=12, state=say.WorkerState.READY, text="warm", metrics="[1,[],[]]"),
    say.Submit(route="/inference", columns=COLUMNS, again=True, all=True, handled=41),
    say.Tasks(lease=9, columns=COLUMNS, acks=[7, 8]),
    say.Results(
        epoch=77, lease=9, rows=[1, 0], statuses=[0, 4], kinds=[0, 1], payloads=[b"7", b"bad"], compute_us=1200,
        ids=[2**64 - 1, 5], chunks=[0, 3], metrics="[2,[],[]]",
        sizes=[1, 1 << 20],
    ),
    say.Ack(leases=[9], peers=[PEER, BROKER]),
    say.Reply(
        number=42, ids=[5, 6], statuses=[0, 5], kinds=[0, 0], payloads=[b"7", b"queue full"], attempts=[1, 0],
        queue_us=[310, 0], compute_us=[1200, 0], leases=[9, 0], chunks=[3, 0],
    ),
    say.Cancel(ids=[5, 6], reason="client gone", handled=42),
    say.Chunk(epoch=77, lease=9, ids=[5, 6], seqs=[0, 2], payloads=[b"Once", b"upon"], kind=say.ChunkKind.EVENT),
    say.Heartbeat(
        epoch=77, handled=42,
        workers=[say.WorkerBeat(PEER, "Inference", 1, 4242, lease=9, phase=say.Phase.FORWARD, rss_bytes=1 << 33)],
    ),
    say.Exited(
        peer=PEER, stage="Inference", worker_id=1, code=-9, lease=9, phase=say.Phase.FORWARD, row=1, oom=True,
        reason="killed by the kernel", failing=True,
    ),
    say.Kill(peer=PEER, lease=9, reason="timeout", interrupt=True),
    say.Drain(deadline_ms=30_000, reason="rolling update", host="gpu-1"),
    say.Goodbye(leases=[9]),
    say.Stats(snapshot='{"queued": 0}'),
]  # fmt: skip
WITH_PAYLOADS = {"Submit", "Tasks", "Results", "Reply", "Chunk"}
BY_NAME = {type(message).__name__: message for message in EXAMPLES}
FIELDS = [(name, field.name) for name, message in BY_NAME.items() for field in dataclasses.fields(message)]
FIELDS_OF_COLUMNS = [field.name for field in dataclasses.fields(say.Columns)]


def an(name: str, **changed: Any) -> Any:
    return dataclasses.replace(BY_NAME[name], **changed)


# ── frames that no honest peer would make ─────────────────────────────────────────────────────────────────────────


def body_of(message: say.Message) -> list[Any]:
    return msgpack.unpackb(bytes(encode(message, SESSION)[0])[4:], strict_map_key=False)


def frames_of(message: say.Message, body: Any) -> list[Any]:
    """The frames of `message` with another body in H."""
    return [bytes(encode(message)[0])[:4] + msgpack.packb(body), *encode(message)[1:]]


def put(message: say.Message, path: str, value: Any) -> list[Any]:
    """The frames of `message` with `value` in the field at `path`, such as `columns.ids`."""
    body = body_of(message)
    name, _, inner = path.partition(".")
    index = 1 + [field.name for field in dataclasses.fields(message)].index(name)
    if inner:
        body[index][FIELDS_OF_COLUMNS.index(inner)] = value
    else:
        body[index] = value
    return frames_of(message, body)


def refused(frames: Any, opens_with: str, limits: Limits = LIMITS) -> str:
    with pytest.raises(WireError) as caught:
        decode(frames, limits)
    text = str(caught.value)
    assert text.startswith(opens_with), text
    assert len(text) < 400, "a peer must not choose how long our logs are"
    return text


# ── what goes out comes back ──────────────────────────────────────────────────────────────────────────────────────

u63, u64 = st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1)
text = st.text(max_size=20)
peers = st.binary(min_size=16, max_size=16)
leases = st.lists(u64, max_size=4)
payloads = (
    st.binary(max_size=40)
    | st.binary(max_size=40).map(memoryview)
    | st.sampled_from([b"a" * (LARGE - 1), b"b" * LARGE, memoryview(b"c" * (LARGE + 1))])
)
contexts = st.none() | st.dictionaries(text, text, max_size=3)
COLUMN_OF = {
    "ids": u64, "rows": u63, "states": st.integers(0, 3), "remaining_ms": u63, "attempts": u63 | st.just(0),
    "kinds": st.sampled_from(say.Kind), "statuses": st.sampled_from(say.Status), "payloads": payloads,
    "contexts": contexts, "queue_us": u63, "compute_us": u63, "leases": u63, "chunks": u63, "seqs": u63,
}  # fmt: skip


@st.composite
def columns_of(draw: st.DrawFn, form: type, names: list[str], nil_or: tuple[str, ...] = (), **others: Any) -> Any:
    size = draw(st.integers(0, 4))
    values = {
        name: draw(st.lists(COLUMN_OF[name], min_size=size, max_size=size, unique=name in {"ids", "rows"}))
        for name in [*names, *nil_or]
    }
    values |= {name: None for name in nil_or if draw(st.booleans())}
    return form(**values, **{name: draw(other) for name, other in others.items()})


a_columns = columns_of(say.Columns, FIELDS_OF_COLUMNS[:-1], nil_or=("contexts",))
a_beat = st.builds(say.WorkerBeat, peers, text, u63, u63, u64, st.sampled_from(say.Phase), u63)
a_message = {
    "Hello": st.builds(
        say.Hello, leases, st.sampled_from(say.Role), peers, u63, text, u63, text, text, u63, u63, u63, leases, leases,
        leases, u64,
    ),
    "Welcome": st.builds(
        say.Welcome, u63, peers, u64, u64, u63, u63, u63, u63, u63, st.lists(text, max_size=3),
        st.lists(text, max_size=3),
    ),
    "Refuse": st.builds(say.Refuse, st.sampled_from(say.RefuseCode), text, u63),
    "Credit": st.builds(say.Credit, u63, st.sampled_from(say.WorkerState), text, text),
    "Submit": st.builds(say.Submit, text, a_columns, st.booleans(), st.booleans(), u64),
    "Tasks": st.builds(say.Tasks, u64, a_columns, leases),
    "Results": columns_of(
        say.Results, ["rows", "statuses", "kinds", "payloads"], nil_or=("ids", "chunks"), epoch=u64, lease=u64,
        compute_us=u63, metrics=st.none() | text,
    ),
    "Ack": st.builds(say.Ack, leases, st.lists(peers, max_size=3)),
    "Reply": columns_of(
        say.Reply, ["ids", "statuses", "kinds", "payloads", "attempts", "queue_us", "compute_us"],
        nil_or=("leases", "chunks"), number=u64,
    ),
    "Cancel": st.builds(say.Cancel, leases, text, u64),
    "Chunk": columns_of(
        say.Chunk, ["ids", "seqs", "payloads"], epoch=u64, lease=u64, kind=st.sampled_from(say.ChunkKind)
    ),
    "Heartbeat": st.builds(say.Heartbeat, u64, u64, st.lists(a_beat, max_size=3)),
    "Exited": st.builds(
        say.Exited, peers, text, u63, st.integers(-64, 255), u64, st.sampled_from(say.Phase), u63, st.booleans(), text,
        st.booleans(),
    ),
    "Kill": st.builds(say.Kill, peers, u64, text, st.booleans()),
    "Drain": st.builds(say.Drain, u63, text, text),
    "Goodbye": st.builds(say.Goodbye, leases),
    "Stats": st.builds(say.Stats, text),
}  # fmt: skip


@pytest.mark.parametrize("name", a_message)
def test_what_was_encoded_decodes_to_the_same_session_and_message(name):
    @given(a_message[name], u64)
    @settings(max_examples=60)
    def comes_back(message, session):
        frames = encode(message, session)
        assert decode(frames, LIMITS) == (session, message)
        assert decode([memoryview(frame) for frame in frames], LIMITS) == (session, message)
        json.dumps(to_json(message))

    comes_back()


@pytest.mark.parametrize("message", EXAMPLES, ids=BY_NAME)
def test_every_example_comes_back_and_without_a_session_it_is_0(message):
    assert decode(encode(message), LIMITS) == (0, message)


def test_every_message_has_exactly_the_number_of_the_protocol():
    numbers = {
        "Hello": 1, "Welcome": 2, "Refuse": 3, "Credit": 4, "Submit": 5, "Tasks": 6, "Results": 7, "Ack": 8, "Reply": 9,
        "Cancel": 10, "Chunk": 11, "Heartbeat": 13, "Exited": 14, "Kill": 15, "Drain": 17, "Goodbye": 18, "Stats": 19,
    }  # fmt: skip
    assert {kind.__name__: number for number, kind in wire.MESSAGE_TYPES.items()} == numbers
    assert set(wire.MESSAGE_TYPES.values()) == set(get_args(say.Message)) == set(map(type, EXAMPLES))


def test_golden_frames_have_not_changed():
    """Run with ZMESH_REWRITE_GOLDEN=1 to write them anew: then every peer of the old version misunderstands us."""
    framed = an("Tasks", columns=dataclasses.replace(COLUMNS, payloads=[b"L" * LARGE, b"s"]))
    assert len(encode(framed)) == 2
    now = {
        name: {"frames": [bytes(frame).hex() for frame in encode(message, SESSION)], "json": to_json(message)}
        for name, message in BY_NAME.items()
    }
    now["Tasks with a payload frame"] = {"header": encode(framed, SESSION)[0].hex()}
    if os.environ.get("ZMESH_REWRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert now == golden
    for name, message in BY_NAME.items():
        assert decode([bytes.fromhex(frame) for frame in golden[name]["frames"]], LIMITS) == (SESSION, message)


# ── payloads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def tasks(*payloads: Any, **columns: Any) -> Any:
    """TASKS with these payloads, and whatever else each row needs."""
    size = len(payloads)
    given = dict(ids=list(range(size)), states=[3] * size, remaining_ms=[9] * size, attempts=[0] * size)
    return say.Tasks(1, say.Columns(**{**given, "kinds": [0] * size, "payloads": list(payloads), **columns}), [])


def test_a_payload_of_64_kib_travels_in_a_frame_of_its_own_and_a_smaller_one_inline():
    frames = encode(tasks(b"a" * (LARGE - 1), b"b" * LARGE, b"", b"c" * LARGE))
    assert frames[1:] == [b"b" * LARGE, b"c" * LARGE]
    assert msgpack.unpackb(frames[0][4:])[2][5] == [b"a" * (LARGE - 1), 0, b"", 1]


def test_a_large_payload_is_never_copied_and_a_small_one_becomes_bytes():
    large, small = memoryview(b"b" * LARGE), memoryview(b"small")
    message = tasks(large, small)
    frames = encode(message)
    assert frames[1] is large
    assert message.columns.payloads == [large, small], "the message of the sender stays as it is"
    _, decoded = decode(frames, LIMITS)
    assert decoded.columns.payloads[0] is large
    assert type(decoded.columns.payloads[1]) is bytes


@pytest.mark.parametrize("name", sorted(WITH_PAYLOADS))
def test_every_message_with_payloads_carries_large_ones_in_frames(name):
    large = {"payloads": [b"1" * LARGE, b"2" * LARGE]}
    in_columns = name in {"Submit", "Tasks"}
    message = an(name, **({"columns": dataclasses.replace(COLUMNS, **large)} if in_columns else large))
    frames = encode(message)
    assert frames[1:] == large["payloads"]
    assert decode(frames, LIMITS) == (0, message)


def test_frames_may_come_in_another_order_than_the_rows():
    frames = put(tasks(b"a" * LARGE, b"b" * LARGE), "columns.payloads", [1, 0])
    assert decode(frames, LIMITS)[1].columns.payloads == [b"b" * LARGE, b"a" * LARGE]


@pytest.mark.parametrize(
    ("column", "frames"),
    [
        ([0, 2], [b"a", b"b"]),
        ([-1, 0], [b"a", b"b"]),
        ([2**64 - 1, 0], [b"a", b"b"]),
        ([0, 0], [b"a", b"b"]),
        ([0, b""], [b"a", b"b"]),
        ([0, 1], [b"a"]),
        ([0, b""], []),
        ([b"", b""], [b"a"]),
    ],
)
def test_frame_indexes_that_do_not_use_each_frame_once_are_refused(column, frames):
    header = put(tasks(b"", b""), "columns.payloads", column)[0]
    assert "exactly once" in refused([header, *frames], "payloads:")


@pytest.mark.parametrize("wrong", [True, None, 1.0, "text", [], {}])
def test_a_payload_that_is_neither_bytes_nor_an_index_is_refused(wrong):
    refused(put(tasks(b"", b""), "columns.payloads", [wrong, b""]), "payloads: each must be bytes or the index")
    header = put(tasks(b"", b""), "columns.payloads", [0, wrong])[0]
    refused([header, b"a"], "payloads: each must be bytes or the index")


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in WITH_PAYLOADS])
def test_payload_frames_of_a_message_that_carries_none_are_refused(name):
    refused([*encode(BY_NAME[name]), b"what is this"], f"frames: {name} carries no payloads")


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_frame_larger_than_the_limit_is_refused_before_it_is_looked_at():
    limits = Limits(frame_bytes_max=LARGE, message_inline_bytes_max=1024)
    assert decode(encode(tasks(b"a" * LARGE)), limits)
    refused(encode(tasks(b"a" * (LARGE + 1))), f"frames: one of {LARGE + 1} bytes", limits)
    refused([b"\0" * (LARGE + 1)], f"frames: one of {LARGE + 1} bytes", limits)


def test_more_rows_than_the_limit_are_refused():
    limits = Limits(message_rows_max=3)
    assert decode(encode(tasks(b"", b"", b"")), limits)
    refused(encode(tasks(b"", b"", b"", b"")), "payloads: 4 rows, at most 3", limits)
    assert decode(encode(tasks(*[b""] * 4096)), LIMITS)
    refused(encode(tasks(*[b""] * 4097)), "payloads: 4097 rows, at most 4096")


def test_an_array_of_absurd_length_is_refused_while_it_is_read():
    refused(encode(an("Goodbye", leases=list(range(8193)))), "header: 8193 exceeds max_array_len")
    refused([b"ZM\1\x12\xdd\xff\xff\xff\xff"], "header: 4294967295 exceeds max_array_len")


def test_more_inline_bytes_than_the_limit_and_its_slack_are_refused():
    limits = Limits(message_inline_bytes_max=100)
    at_most = 100 + wire.INLINE_SLACK_BYTES
    half = b"a" * (at_most // 2)
    assert decode(encode(tasks(half, half)), limits), "the rest of H does not count"
    refused(encode(tasks(half, half, b"a")), f"payloads: {at_most + 1} bytes inline", limits)


def test_bytes_in_frames_are_not_inline():
    frames = encode(tasks(b"a" * LARGE, b"a" * LARGE, b"a" * (LARGE - 1)))
    assert decode(frames, Limits(message_inline_bytes_max=100))


@pytest.mark.parametrize("over", ["a" * 65537, "é" * 32769, "a" * 70_000], ids=["ascii", "two bytes each", "far over"])
@pytest.mark.parametrize("path", ["Cancel.reason", "Submit.route", "Refuse.text", "Hello.host", "Kill.reason"])
def test_a_text_of_more_than_64_kib_is_refused(path, over):
    name, _, field = path.partition(".")
    at_most = over[: 65536 // len(over[0].encode())]
    assert getattr(decode(encode(an(name, **{field: at_most})), LIMITS)[1], field) == at_most
    refused(encode(an(name, **{field: over})), f"{field}: must be text of at most 65536 bytes")


@pytest.mark.parametrize("path", ["Exited.reason", "Stats.snapshot"])
def test_a_traceback_and_a_snapshot_may_have_1_mib(path):
    name, _, field = path.partition(".")
    at_most = "é" * (512 * 1024)
    assert getattr(decode(encode(an(name, **{field: at_most})), LIMITS)[1], field) == at_most
    refused(encode(an(name, **{field: at_most + "e"})), f"{field}: must be text of at most 1048576 bytes")


@pytest.mark.parametrize(
    "path",
    [
        "Hello.versions", "Hello.running", "Hello.waiting", "Hello.answered", "Tasks.acks", "Ack.leases", "Cancel.ids",
        "Goodbye.leases", "Ack.peers", "Welcome.stages", "Welcome.once_routes", "Heartbeat.workers",
    ],
)  # fmt: skip
def test_a_list_of_more_than_4096_is_refused(path):
    name, _, field = path.partition(".")
    message = BY_NAME[name]
    item = body_of(message)[1 + [f.name for f in dataclasses.fields(message)].index(field)][0]
    assert decode(put(message, field, [item] * 4096), LIMITS)
    refused(put(message, field, [item] * 4097), f"{field}: must be a list of at most 4096")


# ── the prefix and the header ─────────────────────────────────────────────────────────────────────────────────────


def test_no_frame_at_all_is_refused():
    refused([], "frames: a message has one or more")


@pytest.mark.parametrize("head", [b"", b"Z", b"ZM\1", b"zM\1\6\x90", b"MZ\1\6\x90", b"HTTP/1.1 400"])
def test_what_does_not_open_with_zm_is_refused(head):
    refused([head], "prefix: must be ZM")
    refused([memoryview(head)], "prefix: must be ZM")


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("version", [0, 2, 255])
def test_of_another_version_only_hello_and_refuse_are_understood(name, version):
    frames = encode(BY_NAME[name], SESSION)
    frames[0] = b"ZM" + bytes([version]) + bytes(frames[0][3:])
    if name in {"Hello", "Refuse"}:
        assert decode(frames, LIMITS) == (SESSION, BY_NAME[name])
    else:
        refused(frames, f"version: {version} is not spoken here, 1 is")


@pytest.mark.parametrize("number", [0, 12, 16, 20, 255])
def test_a_type_that_is_reserved_or_unknown_is_refused(number):
    refused([bytes([*b"ZM\1", number, 0x90])], f"type: {number} is not spoken in this version")


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("Unpack failed: incomplete input", b""),
        ("Unpack failed: incomplete input", b"\x92\x01"),
        ("unpack(b) received extra data", b"\x90\x90"),
        ("FormatError", b"\xc1"),
        ("StackError", b"\x91" * 5000),
        ("'utf-8' codec can't decode", b"\x92\x00\xa1\xff"),
        ("int is not allowed for map key", b"\x92\x00\x81\x01\x01"),
        ("list is not allowed for map key", b"\x92\x00\x81\x90\x01"),
        ("extension type 5 is not spoken here", b"\x92\x00\xc7\x00\x05"),
        ("2 exceeds max_ext_len(0)", b"\x92\x00\xd4\x05a"),
        ("5 exceeds max_ext_len(0)", b"\x92\x00\xd6\xff\0\0\0\1"),
        ("129 exceeds max_map_len(128)", b"\x92\x00" + msgpack.packb(dict.fromkeys(map(str, range(129))))),
    ],
)
def test_a_header_that_is_not_plain_msgpack_is_refused(what, body):
    assert what in refused([b"ZM\1\x12" + body], "header:")


@pytest.mark.parametrize("body", [None, 7, "text", b"bytes", {}, {"session": 0}, []])
def test_a_header_that_is_not_a_list_with_a_session_is_refused(body):
    refused(frames_of(BY_NAME["Goodbye"], body), "header: must be a list that opens with the session")


@pytest.mark.parametrize("session", [-1, True, 1.0, None, "1", [0]])
def test_a_session_that_is_not_an_unsigned_number_is_refused(session):
    body = body_of(BY_NAME["Goodbye"])
    refused(frames_of(BY_NAME["Goodbye"], [session, *body[1:]]), "session: must be a whole number")


def required(kind: type) -> int:
    missing = dataclasses.MISSING
    return sum(field.default is missing and field.default_factory is missing for field in dataclasses.fields(kind))


@pytest.mark.parametrize("message", EXAMPLES, ids=BY_NAME)
def test_fewer_fields_than_a_message_needs_are_refused_and_those_with_defaults_are_filled_in(message):
    body, least = body_of(message), required(type(message))
    names = [field.name for field in dataclasses.fields(message)]
    for length in range(least):
        refused(frames_of(message, body[: 1 + length]), f"header: must be a list of {least} fields or more")
    for length in range(least, len(names)):
        _, decoded = decode(frames_of(message, body[: 1 + length]), LIMITS)
        assert decoded == type(message)(**{name: getattr(message, name) for name in names[:length]})


@pytest.mark.parametrize("message", EXAMPLES, ids=BY_NAME)
def test_fields_that_a_newer_peer_appended_are_ignored(message):
    frames = frames_of(message, [*body_of(message), {"new": [1, 2, 3]}, [1, 2, 3, 4, 5]])
    assert decode(frames, LIMITS) == (SESSION, message)


def test_columns_may_lack_contexts_and_may_have_more_columns_than_we_know():
    body = body_of(BY_NAME["Tasks"])[2]
    _, decoded = decode(put(BY_NAME["Tasks"], "columns", body[:6]), LIMITS)
    assert decoded.columns == dataclasses.replace(COLUMNS, contexts=None)
    _, decoded = decode(put(BY_NAME["Tasks"], "columns", [*body, [9, 9, 9]]), LIMITS)
    assert decoded.columns == COLUMNS
    refused(put(BY_NAME["Tasks"], "columns", body[:5]), "columns: must be a list of 6 fields or more")
    refused(put(BY_NAME["Tasks"], "columns", None), "columns: must be a list of 6 fields or more")


def test_a_worker_beat_may_have_more_fields_than_we_know_but_no_fewer():
    (beat,) = body_of(BY_NAME["Heartbeat"])[3]
    assert decode(put(BY_NAME["Heartbeat"], "workers", [[*beat, 1]]), LIMITS) == (SESSION, BY_NAME["Heartbeat"])
    refused(put(BY_NAME["Heartbeat"], "workers", [beat[:-1]]), "workers: must be a list of 7 fields or more")
    refused(put(BY_NAME["Heartbeat"], "workers", [7]), "workers: must be a list of 7 fields or more")
    refused(put(BY_NAME["Heartbeat"], "workers", [[b"short", *beat[1:]]]), "workers.peer: must be 16 bytes")


# ── single fields ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wrong", [1.5, {"a": "map"}], ids=["a float", "a map"])
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_no_field_of_any_message_takes(name, field, wrong):
    assert field in refused(put(BY_NAME[name], field, wrong), "")


NUMBERS_64 = [
    "Hello.epoch", "Welcome.epoch", "Welcome.session", "Submit.handled", "Tasks.lease", "Results.epoch",
    "Results.lease", "Reply.number", "Cancel.handled", "Heartbeat.epoch", "Heartbeat.handled", "Exited.lease",
    "Kill.lease", "Chunk.epoch", "Chunk.lease",
]  # fmt: skip
NUMBERS_63 = [
    "Hello.connection", "Hello.pid", "Hello.worker_id", "Hello.max_batch_size", "Hello.concurrency", "Welcome.version",
    "Welcome.heartbeat_ms", "Welcome.dead_ms", "Welcome.frame_bytes_max", "Welcome.message_rows_max",
    "Welcome.message_inline_bytes_max", "Refuse.retry_after_ms", "Credit.total", "Results.compute_us",
    "Exited.worker_id", "Exited.row", "Drain.deadline_ms",
]  # fmt: skip


@pytest.mark.parametrize("path", NUMBERS_64 + NUMBERS_63)
@pytest.mark.parametrize("wrong", [-1, True, None, "1", b"1", []])
def test_a_number_that_is_negative_or_no_number_is_refused(path, wrong):
    name, _, field = path.partition(".")
    said = refused(put(BY_NAME[name], field, wrong), "")
    assert said.startswith(f"{field}: must be a whole number from 0 to") or f"{field} list of length 0" in said


@pytest.mark.parametrize("path", NUMBERS_63)
def test_a_number_of_64_bits_is_refused_where_63_are_meant(path):
    name, _, field = path.partition(".")
    assert decode(put(BY_NAME[name], field, 2**63 - 1), LIMITS)
    refused(put(BY_NAME[name], field, 2**63), f"{field}: must be a whole number from 0 to")


@pytest.mark.parametrize("path", NUMBERS_64)
def test_an_id_has_64_bits(path):
    name, _, field = path.partition(".")
    assert getattr(decode(put(BY_NAME[name], field, 2**64 - 1), LIMITS)[1], field) == 2**64 - 1


@pytest.mark.parametrize("wrong", [-(2**31) - 1, 2**32, True, None])
def test_an_exit_code_that_no_system_gives_is_refused(wrong):
    assert decode(put(BY_NAME["Exited"], "code", 0xC0000005), LIMITS)
    refused(put(BY_NAME["Exited"], "code", wrong), "code: must be a whole number from -2147483648")


@pytest.mark.parametrize("path", ["Submit.again", "Submit.all", "Exited.oom", "Exited.failing", "Kill.interrupt"])
@pytest.mark.parametrize("wrong", [0, 1, None, "true"])
def test_a_flag_that_is_not_true_or_false_is_refused(path, wrong):
    name, _, field = path.partition(".")
    refused(put(BY_NAME[name], field, wrong), f"{field}: must be true or false")


@pytest.mark.parametrize("path", ["Hello.peer", "Welcome.broker", "Exited.peer", "Kill.peer", "Ack.peers"])
@pytest.mark.parametrize("wrong", [PEER[:15], PEER + b"x", b"", "a text of 16 cha", None, 7])
def test_an_id_of_a_peer_that_is_not_16_bytes_is_refused(path, wrong):
    name, _, field = path.partition(".")
    refused(put(BY_NAME[name], field, [wrong] if field == "peers" else wrong), f"{field}: must be 16 bytes")


@pytest.mark.parametrize("path", ["Hello.role", "Refuse.code", "Credit.state", "Exited.phase", "Chunk.kind"])
@pytest.mark.parametrize("wrong", [-1, 99, True, 1.0, None, "READY", []])
def test_a_word_that_is_not_known_is_refused(path, wrong):
    name, _, field = path.partition(".")
    said = refused(put(BY_NAME[name], field, wrong), "")
    assert said.startswith(f"{field}: must be one of [") or f"{field} list of length 0" in said


def test_words_come_back_as_members_of_their_enumeration():
    _, hello = decode(encode(BY_NAME["Hello"]), LIMITS)
    _, beat = decode(encode(BY_NAME["Heartbeat"]), LIMITS)
    _, chunk = decode(encode(BY_NAME["Chunk"]), LIMITS)
    assert type(hello.role) is say.Role
    assert type(chunk.kind) is say.ChunkKind
    assert type(beat.workers[0].phase) is say.Phase


@pytest.mark.parametrize("wrong", [None, 7, True, b"bytes", ["list"]])
@pytest.mark.parametrize("path", ["Submit.route", "Hello.host", "Stats.snapshot", "Exited.reason", "Welcome.stages"])
def test_a_text_that_is_not_text_is_refused(path, wrong):
    name, _, field = path.partition(".")
    refused(put(BY_NAME[name], field, [wrong] if field == "stages" else wrong), f"{field}: must be text")


@pytest.mark.parametrize("path", ["Hello.running", "Tasks.acks", "Ack.leases", "Cancel.ids", "Goodbye.leases"])
@pytest.mark.parametrize("wrong", [None, 7, "77", b"77", [True], [1.0], [-1], [None], [[1]]])
def test_a_list_of_leases_or_ids_that_holds_anything_else_is_refused(path, wrong):
    name, _, field = path.partition(".")
    refused(put(BY_NAME[name], field, wrong), f"{field}: must be a list of at most 4096 numbers of 0 or more")


# ── columns ───────────────────────────────────────────────────────────────────────────────────────────────────────

# Inline first tries take the quick way through the decoder, other tasks the long one.
QUICK = an("Tasks", columns=dataclasses.replace(COLUMNS, attempts=[0, 0], kinds=[0, 0]))
IN_COLUMNS = {
    "Tasks": an("Tasks"),
    "Quick": QUICK,
    "Results": an("Results"),
    "Reply": an("Reply"),
    "Chunk": an("Chunk"),
}
PATHS = [
    *(f"Tasks.columns.{name}" for name in FIELDS_OF_COLUMNS),
    *(f"Quick.columns.{name}" for name in FIELDS_OF_COLUMNS),
    *(f"Results.{name}" for name in ["rows", "statuses", "kinds", "payloads", "ids", "chunks"]),
    *(f"Reply.{name}" for name in ["ids", "statuses", "kinds", "payloads", "attempts", "queue_us", "compute_us"]),
    *(f"Reply.{name}" for name in ["leases", "chunks"]),
    *(f"Chunk.{name}" for name in ["ids", "seqs", "payloads"]),
]
OF_NUMBERS = [path for path in PATHS if path.rpartition(".")[2] not in {"payloads", "contexts"}]
OF_63_BITS = [
    path for path in OF_NUMBERS if path.endswith(("rows", "_ms", "_us", "attempts", "leases", "chunks", "seqs"))
]
OF_IDS = ["Tasks.columns.ids", "Quick.columns.ids", "Results.rows", "Results.ids", "Reply.ids", "Chunk.ids"]


def put_column(path: str, change: Any) -> list[Any]:
    """The frames of the message of that name with the column replaced by what `change` makes of it."""
    name, _, path = path.partition(".")
    message: Any = IN_COLUMNS[name]
    column = message
    for part in path.split("."):
        column = getattr(column, part)
    return put(message, path, change(list(column)))


@pytest.mark.parametrize("change", [lambda c: [*c, c[0]], lambda c: c[:1], lambda c: []], ids=["3", "1", "none"])
@pytest.mark.parametrize("path", PATHS)
def test_columns_that_differ_in_length_are_refused(path, change):
    said = refused(put_column(path, change), "columns: must be lists of one length")
    length = len(change([1, 2]))
    assert f"{path.partition('.')[2]} list of length {length}" in said


@pytest.mark.parametrize("wrong", [7, "ab", b"ab", {"a": "b"}])
@pytest.mark.parametrize("path", PATHS)
def test_a_column_that_is_not_a_list_is_refused(path, wrong):
    said = refused(put_column(path, lambda _: wrong), "")
    assert path.partition(".")[2] in said


@pytest.mark.parametrize("wrong", [True, False, 0.0, None, "0", b"0", [0]])
@pytest.mark.parametrize("path", OF_NUMBERS)
def test_a_column_of_numbers_that_holds_anything_else_is_refused(path, wrong):
    refused(put_column(path, lambda c: [c[0], wrong]), f"{path.partition('.')[2]}: must be whole numbers only")


@pytest.mark.parametrize("path", OF_NUMBERS)
def test_a_negative_number_in_a_column_is_refused(path):
    refused(put_column(path, lambda c: [-1, c[1]]), f"{path.partition('.')[2]}: must be")


@pytest.mark.parametrize("path", OF_63_BITS)
def test_a_number_of_64_bits_in_a_column_of_63_is_refused(path):
    assert decode(put_column(path, lambda c: [2**63 - 1, c[1]]), LIMITS)
    refused(put_column(path, lambda c: [2**63, c[1]]), f"{path.partition('.')[2]}: must be")


@pytest.mark.parametrize("path", OF_IDS)
def test_ids_and_rows_that_are_not_different_are_refused(path):
    refused(put_column(path, lambda c: [c[0], c[0]]), f"{path.partition('.')[2]}: must be different numbers")


@pytest.mark.parametrize("path", ["Tasks.columns.ids", "Quick.columns.ids", "Results.ids", "Reply.ids", "Chunk.ids"])
def test_ids_have_64_bits(path):
    assert decode(put_column(path, lambda c: [2**64 - 1, 0]), LIMITS)


@pytest.mark.parametrize("state", [4, 7, 255, 2**63])
@pytest.mark.parametrize("path", ["Tasks.columns.states", "Quick.columns.states"])
def test_a_state_with_a_bit_that_has_no_meaning_is_refused(path, state):
    refused(put_column(path, lambda _: [3, state]), "columns.states: must be bits of State")


@pytest.mark.parametrize("path", ["Tasks.columns.kinds", "Quick.columns.kinds", "Results.kinds", "Reply.kinds"])
def test_a_kind_of_payload_that_is_not_known_is_refused(path):
    refused(put_column(path, lambda _: [0, 3]), f"{path.partition('.')[2]}: must be known kinds")


@pytest.mark.parametrize("path", ["Results.statuses", "Reply.statuses"])
def test_a_status_that_is_not_known_is_internal(path):
    _, decoded = decode(put_column(path, lambda _: [11, 0]), LIMITS)
    assert decoded.statuses == [say.Status.INTERNAL, say.Status.OK]
    assert set(map(type, decoded.statuses)) == {int}


def test_columns_of_no_rows_are_columns():
    assert decode(encode(tasks()), LIMITS) == (0, tasks())
    submit = say.Submit("/inference", tasks().columns, all=True)
    assert decode(encode(submit), LIMITS) == (0, submit)


@pytest.mark.parametrize(
    ("message", "left_out"),
    [(an("Results"), ["ids", "chunks", "metrics", "sizes"]), (an("Reply"), ["leases", "chunks"])],
    ids=["Results", "Reply"],
)
def test_what_is_nil_at_the_end_is_left_out(message, left_out):
    names = [field.name for field in dataclasses.fields(message)]
    for count in range(len(left_out) + 1):
        short = dataclasses.replace(message, **dict.fromkeys(left_out[count:]))
        assert len(body_of(short)) == 1 + names.index(left_out[0]) + count
        assert decode(encode(short), LIMITS) == (0, short)
    first_only = dataclasses.replace(message, **{left_out[0]: None})
    assert body_of(first_only)[1 + names.index(left_out[0])] is None, "in the middle it stays"
    assert decode(encode(first_only), LIMITS) == (0, first_only)


def test_retries_references_and_rows_without_context_pass_too():
    for columns in (
        {"attempts": [0, 200]},
        {"kinds": [0, 1]},
        {"contexts": [None, {}]},
        {"contexts": [{"a": "b"}] * 2},
    ):
        message = tasks(b"", b"", **columns)
        assert decode(encode(message), LIMITS) == (0, message)


@pytest.mark.parametrize(
    ("what", "contexts"),
    [
        ("must be maps and nils", ["text", None]),
        ("must be maps and nils", [[], None]),
        ("65 entries in one context, at most 64", [dict.fromkeys(map(str, range(65)), ""), None]),
        ("keys and values must be text", [{"a": 1}, None]),
        ("keys and values must be text", [{"a": None}, None]),
        ("keys and values must be text", [{"a": {}}, None]),
        ("keys and values must be text", [{"a": b"bytes"}, None]),
        ("keys and values must be text", [{b"bytes": "a"}, None]),
        ("at most 65536 bytes", [{"a": "a" * 65537}, None]),
        ("at most 65536 bytes", [{"é" * 32769: "a"}, None]),
        ("must be a list or nil", 7),
    ],
)
def test_a_context_that_is_not_a_small_map_of_texts_is_refused(what, contexts):
    assert what in refused(put(BY_NAME["Tasks"], "columns.contexts", contexts), "columns.contexts:")


def test_a_context_may_have_64_entries_of_64_kib():
    message = tasks(b"", contexts=[{str(i): "a" * 65536 for i in range(64)}])
    assert decode(encode(message), LIMITS) == (0, message)


# ── encoding ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lone_surrogate_in_a_text_becomes_a_question_mark():
    assert decode(encode(an("Cancel", reason="a\ud800é")), LIMITS)[1].reason == "a?é"


@pytest.mark.parametrize(
    "broken", [an("Goodbye", leases=[2**64]), an("Cancel", reason=object())], ids=["int", "object"]
)
def test_a_message_that_cannot_be_packed_leaves_the_next_one_whole(broken):
    with pytest.raises((OverflowError, TypeError)):
        encode(broken)
    assert decode(encode(BY_NAME["Cancel"]), LIMITS) == (0, BY_NAME["Cancel"])


def test_every_field_of_a_message_has_a_check_in_the_order_of_its_class():
    with pytest.raises(AssertionError, match=r"Drain is written as \['reason'\]"):
        wire._form(17, say.Drain, reason=wire._text)


# ── as JSON ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_as_json_peers_are_hex_payloads_base64_words_named_and_nil_left_out():
    assert to_json(an("Ack")) == {"type": "ack", "leases": [9], "peers": [PEER.hex(), BROKER.hex()]}
    assert to_json(an("Refuse")) == {
        "type": "refuse", "code": "unknown_peer", "text": "say HELLO again", "retry_after_ms": 50,
    }  # fmt: skip
    assert to_json(an("Heartbeat"))["workers"] == [
        {"peer": PEER.hex(), "stage": "Inference", "worker_id": 1, "pid": 4242, "lease": 9, "phase": "forward",
         "rss_bytes": 1 << 33}
    ]  # fmt: skip
    columns = to_json(tasks(b"\x00\xff", memoryview(b"abc"), states=[say.State.INGRESS, 3]))["columns"]
    assert columns == {
        "ids": [0, 1], "states": [1, 3], "remaining_ms": [9, 9], "attempts": [0, 0], "kinds": [0, 0],
        "payloads": [{"base64": "AP8="}, {"base64": "YWJj"}],
    }  # fmt: skip
    assert "ids" not in to_json(an("Results", ids=None))
    assert json.dumps(to_json(an("Reply", statuses=[say.Status.OK, say.Status.SHED]))["statuses"]) == "[0, 5]"
    assert to_json(an("Submit"))["columns"]["contexts"] == COLUMNS.contexts


# ── fuzz ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = Limits(message_rows_max=8, message_inline_bytes_max=64, frame_bytes_max=512 * 1024)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, 1, 2, 3, 4, 10, 11, -1, 2**63]),
    st.floats(), st.text(max_size=5), st.binary(max_size=20), st.just(PEER),
)  # fmt: skip
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def decodes_or_refuses(frames: Any, limits: Limits) -> None:
    """Whatever it is: WireError, or a message that can be encoded and says the same once more."""
    try:
        session, message = decode(frames, limits)
    except WireError:
        return
    assert decode(encode(message, session), LIMITS) == (session, message)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_random_frames_are_refused_and_nothing_else(frames):
    with pytest.raises(WireError):
        decode(frames, LIMITS)


@pytest.mark.slow
@given(
    st.sampled_from(sorted(wire.MESSAGE_TYPES)), st.binary(max_size=200), st.lists(st.binary(max_size=9), max_size=2)
)
@settings(max_examples=400)
def test_random_bytes_behind_a_good_prefix_never_raise_anything_but_wire_error(number, body, frames):
    decodes_or_refuses([bytes([*b"ZM\1", number]) + body, *frames], SMALL)


@pytest.mark.slow
@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=500)
def test_damaged_frames_never_raise_anything_but_wire_error(message, data):
    damaged = bytearray(encode(message, SESSION)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        match data.draw(st.sampled_from(["flip", "cut", "drop", "insert"])):
            case "flip":
                damaged[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del damaged[place:]
            case "drop":
                del damaged[place : place + data.draw(st.integers(1, 9))]
            case "insert":
                damaged[place:place] = data.draw(st.binary(max_size=9))
    frames = [bytes(damaged), *data.draw(st.lists(st.binary(max_size=9), max_size=2))]
    decodes_or_refuses(frames, LIMITS)
    decodes_or_refuses([memoryview(frame) for frame in frames], SMALL)


@st.composite
def replaced_somewhere(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one part of it, however deep, replaced by anything, doubled or left out."""
    if not isinstance(value, list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(anything)
    index = draw(st.integers(0, len(value) - 1))
    inside = draw(st.sampled_from(["replace", "replace", "replace", "double", "drop"]))
    middle = {"double": [value[index]] * 2, "drop": []}
    new = middle[inside] if inside in middle else [draw(replaced_somewhere(value[index]))]
    return [*value[:index], *new, *value[index + 1 :]]


@pytest.mark.slow
@given(st.sampled_from(EXAMPLES), st.lists(st.binary(max_size=9), max_size=2), st.data())
@settings(max_examples=600)
def test_good_msgpack_with_wrong_values_never_raises_anything_but_wire_error(message, frames, data):
    body = data.draw(replaced_somewhere(body_of(message)))
    decodes_or_refuses([*frames_of(message, body), *frames], data.draw(st.sampled_from([LIMITS, SMALL])))


def outcome(read: Any, values: Any) -> Any:
    try:
        return read("columns", values)
    except WireError:
        return "refused"


@pytest.mark.slow
@given(st.data())
@settings(max_examples=600)
def test_the_quick_way_takes_columns_just_as_the_form_does(data):
    plain = [[5, 6], [3, 3], [10, 20], [0, 0], [0, 0], [b"a", b"b"], None]
    starts = [plain, plain, [*plain[:6], [{"a": "b"}, None]], body_of(BY_NAME["Tasks"])[2], [*plain, 1], [[]] * 6]
    values = data.draw(replaced_somewhere(data.draw(st.sampled_from(starts))))
    assert outcome(wire._columns, values) == outcome(wire._COLUMNS.read, values)
