"""Worker and SSEWorker: what a subclass gets without writing it."""

from __future__ import annotations

import enum
import json
import math
import subprocess
import sys
import uuid
from datetime import UTC, datetime

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmesh import worker as worker_module
from zmesh.errors import DecodingError, EncodingError
from zmesh.worker import ParseTarget, SSEWorker, Worker


class Echo(Worker):
    def forward(self, data):
        return data


@pytest.fixture(params=["orjson", "json"])
def echo(request, monkeypatch):
    """A worker whose JSON library is the one named; what follows holds for both alike."""
    if request.param == "json":
        monkeypatch.setattr(worker_module, "_orjson", None)
    else:
        pytest.importorskip("orjson")
    return Echo()


def outcome(call, *args):
    """The result of a call as text (so that NaN equals itself and 1 is not 1.0), or the error."""
    try:
        return repr(call(*args))
    except (DecodingError, EncodingError) as error:
        return repr(error)


# What the loader does


def test_a_worker_reads_its_place_in_init_without_calling_super():
    class Placed(Echo):
        def __init__(self):
            self.seen = (self.stage, self.worker_id, self.max_batch_size)

    made = Placed.__new__(Placed)
    made.stage, made.worker_id, made.max_batch_size = "Placed", 3, 8
    made.__init__()
    assert made.seen == (made.stage, made.worker_id, made.max_batch_size) == ("Placed", 3, 8)


def test_a_worker_made_by_hand_has_the_defaults_of_mosec():
    made = Echo()
    assert (made.stage, made.worker_id, made.max_batch_size) == ("", 0, 1)
    assert (made.example, list(made.multi_examples), made.resp_mime_type) == (None, [], "application/json")


def test_a_worker_without_forward_cannot_be_made():
    with pytest.raises(TypeError, match="forward"):
        type("Idle", (Worker,), {})()


def test_a_worker_without_annotations_has_an_empty_schema():
    assert Echo.get_forward_json_schema(ParseTarget.INPUT, "#/components/schemas/{name}") == ({}, {})


# JSON


def test_json_is_read(echo):
    assert echo.deserialize(b'{"a": [1, 2.5, null, true, "\xc3\xa9"]}') == {"a": [1, 2.5, None, True, "é"]}


def test_no_bytes_are_read_as_an_empty_object(echo):
    assert echo.deserialize(b"") == {}


def test_json_is_written_compact_and_in_utf8(echo):
    assert echo.serialize({"a": [1, 2.5, None, True], "é": "☃"}) == '{"a":[1,2.5,null,true],"é":"☃"}'.encode()


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[1,]", b"nul", b"[" * 100_000, b'"\x00"', b"1 2"])
def test_bytes_that_are_not_json_are_a_decoding_error_in_words(echo, body):
    with pytest.raises(DecodingError, match=r"^the body is not valid JSON: "):
        echo.deserialize(body)


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, -(10**19) + 1, 10**40])
def test_an_integer_of_any_size_is_read_and_written_exactly(echo, number):
    assert echo.deserialize(f'{{"id":{number}}}'.encode()) == {"id": number}
    assert type(echo.deserialize(str(number).encode())) is int
    assert echo.serialize([number]) == f"[{number}]".encode()


def test_not_a_number_is_read_and_written_as_python_does(echo):
    assert echo.serialize([math.nan, math.inf, None]) == b"[NaN,Infinity,null]"
    assert math.isnan(echo.deserialize(b"NaN"))


def test_a_lone_surrogate_is_written_as_an_escape_and_read_back(echo):
    assert echo.serialize("\ud800é") == b'"\\ud800\\u00e9"'
    assert echo.deserialize(b'"\\ud800"') == "\ud800"


def test_keys_that_are_not_text_are_written_as_text(echo):
    assert echo.serialize({1: "a", None: "b", False: "c"}) == b'{"1":"a","null":"b","false":"c"}'


def test_enum_and_uuid_are_written_by_value(echo):
    colour = enum.Enum("colour", {"RED": "r"})
    assert echo.serialize([colour.RED, uuid.UUID(int=1)]) == b'["r","00000000-0000-0000-0000-000000000001"]'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (numpy.float32(1), r"numpy\.float32 is not a JSON type; return \.item\(\)"),
        (numpy.int64(1), r"numpy\.int64"),
        (numpy.zeros(2), r"numpy\.ndarray .*\.tolist\(\) of an array"),
        (b"x", r": bytes is not a JSON type; .*MsgpackMixin"),
        ({1, 2}, r": set is not a JSON type; return str, int"),
        (datetime.now(UTC), r"datetime\.datetime is not a JSON type"),
        ({(1, 2): 3}, r"keys must be"),
    ],
)
def test_a_value_that_json_has_not_is_an_encoding_error_that_names_the_type_and_the_way_out(echo, value, text):
    with pytest.raises(EncodingError, match=text):
        echo.serialize({"answer": [value]})


def test_a_result_that_contains_itself_or_is_too_deep_is_an_encoding_error(echo):
    ring: list = []
    ring.append(ring)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (ring, deep):
        with pytest.raises(EncodingError, match=r"^the result cannot be written as JSON: "):
            echo.serialize(value)


JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.dictionaries(st.text(st.characters()) | st.integers() | st.none(), inner)
    ),
    max_leaves=10,
)


@settings(max_examples=50)
@given(value=JSON_LIKE)
def test_what_orjson_writes_and_reads_means_what_json_writes_and_reads(value):
    pytest.importorskip("orjson")
    with pytest.MonkeyPatch.context() as patch:
        fast = Echo().serialize(value)
        fast_read = outcome(Echo().deserialize, fast)
        patch.setattr(worker_module, "_orjson", None)
        plain = Echo().serialize(value)
        assert outcome(Echo().deserialize, fast) == outcome(Echo().deserialize, plain) == fast_read
        assert fast_read == repr(json.loads(plain))


NUMBERS = st.from_regex(rb"-?[0-9]{1,25}(\.[0-9]{1,25})?(e-?[0-9]{1,4})?", fullmatch=True)


@given(body=st.binary() | st.text(alphabet='[]{}",:0123456789eE+-.nultrfasNI \\d').map(str.encode) | NUMBERS)
def test_any_bytes_are_read_alike_with_orjson_and_json(body):
    pytest.importorskip("orjson")
    with pytest.MonkeyPatch.context() as patch:
        fast = outcome(Echo().deserialize, body)
        patch.setattr(worker_module, "_orjson", None)
        assert fast == outcome(Echo().deserialize, body)


# Between stages


def test_between_stages_the_default_codec_keeps_types():
    sent = {"image": numpy.eye(2, dtype="f2"), "box": (1, 2)}
    seen = Echo().deserialize_ipc(Echo().serialize_ipc(sent))
    assert seen["box"] == (1, 2) and seen["image"].dtype == "f2" and (seen["image"] == sent["image"]).all()


def test_importing_the_worker_loads_neither_numpy_nor_a_socket_library():
    code = "import sys, zmesh.worker; print(sorted({'numpy', 'torch', 'zmq', 'fastapi', 'pickle'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Streams


class Talk(SSEWorker):
    def forward(self, data):
        self.send_stream_event("hello", index=2)
        self.send_stream_event("again")
        return data


def test_an_event_goes_to_the_stream_that_is_open():
    sent: list[tuple[str, int]] = []
    made = Talk()
    made._emit = lambda text, index: sent.append((text, index))
    made.forward(None)
    assert sent == [("hello", 2), ("again", 0)]


def test_an_event_without_a_stream_is_an_error_that_says_when_there_is_one():
    assert Talk.resp_mime_type == "text/event-stream"
    with pytest.raises(RuntimeError, match=r"no stream is open: .* only inside forward"):
        Talk().forward(None)
