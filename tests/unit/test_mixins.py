"""The mixins that are small, and that a mixin loads only what it needs."""

from __future__ import annotations

import subprocess
import sys

import msgpack
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmesh import mixin, mixins
from zmesh.errors import DecodingError, EncodingError
from zmesh.loader import current_verb
from zmesh.mixins import MsgpackMixin, NumBinIPCMixin, PlasmaShmIPCMixin
from zmesh.stage import Stage
from zmesh.worker import Worker


class Echo(MsgpackMixin, Worker):
    def forward(self, data):
        return data


def test_a_worker_with_the_mixin_answers_msgpack_and_keeps_the_codec_between_stages():
    assert Echo.resp_mime_type == "application/msgpack"
    assert Echo().serialize({"a": 1}) == msgpack.packb({"a": 1})
    assert Echo.serialize_ipc is Worker.serialize_ipc


def test_arrays_of_a_client_arrive_as_tuples():
    assert Echo().deserialize(msgpack.packb({"a": [1, [b"x"]]})) == {"a": (1, (b"x",))}


@pytest.mark.parametrize("value", [numpy.zeros(2), {"score": numpy.float32(1)}])
def test_a_numpy_result_is_an_encoding_error_with_the_way_out(value):
    with pytest.raises(EncodingError, match=r"msgpack: .*numpy: \.item\(\) or \.tolist\(\)"):
        Echo().serialize(value)


@pytest.mark.parametrize("value", [object(), 2**70, "\ud800", {1, 2}])
def test_a_result_that_msgpack_has_not_is_an_encoding_error(value):
    with pytest.raises(EncodingError, match=r"^the result cannot be written as msgpack: "):
        Echo().serialize([value])


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x92\x01", b"\x01\x01", b"\xa1\xff", b"\x81\x01\x02", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000],
)
def test_bytes_that_are_not_msgpack_are_a_decoding_error_in_words(body):
    with pytest.raises(DecodingError, match=r"^the body is not valid msgpack: .+"):
        Echo().deserialize(body)


@given(body=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_decoding_error(body):
    try:
        Echo().deserialize(body)
    except DecodingError:
        pass


def test_extensions_of_a_client_never_reach_the_next_stage_as_something_else():
    sent_by_client = msgpack.packb([msgpack.ExtType(1, b""), 2])
    with pytest.raises(EncodingError, match=r"msgpack\.ext\.ExtType"):
        Echo().serialize_ipc(Echo().deserialize(sent_by_client))


def test_every_name_of_the_package_loads_and_no_other_does():
    assert all(getattr(mixins, name) for name in mixins.__all__)
    assert set(mixins.__all__) <= set(dir(mixins))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = mixins.Nothing


def test_importing_the_package_loads_no_mixin():
    code = "import sys, zmesh.mixins; print([name for name in sys.modules if 'mixins.' in name or 'msgpack' in name])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_mosecs_name_for_the_package_gives_the_same_and_loads_no_more():
    assert mixin.MsgpackMixin is MsgpackMixin and "MsgpackMixin" in dir(mixin)
    code = "import sys, zmesh.mixin; print([name for name in sys.modules if 'mixins' in name or 'msgpack' in name])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from zmesh.mixin import Nothing  # noqa: F401


# ── NumBinIPCMixin ────────────────────────────────────────────────────────────────────────────────────────────────


class Arrays(NumBinIPCMixin, Worker):
    def forward(self, data):
        return data


def test_numbin_is_the_codec_that_every_worker_has():
    """So a stage with it and one without understand each other, and large payloads are not copied once more."""
    assert Arrays.serialize_ipc is Worker.serialize_ipc and Arrays.deserialize_ipc is Worker.deserialize_ipc
    assert Stage(Arrays).plan("arrays", 10).ipc_codec == Stage(Echo).plan("echo", 10).ipc_codec == "zmesh"
    sent = {"image": numpy.arange(6, dtype="f4").reshape(2, 3), "name": "a"}
    seen = Arrays().deserialize_ipc(Arrays().serialize_ipc(sent))
    assert seen["name"] == "a" and seen["image"].dtype == "f4" and (seen["image"] == sent["image"]).all()


def test_numbin_has_mosecs_errors():
    with pytest.raises(EncodingError, match="type object cannot be sent"):
        Arrays().serialize_ipc(object())
    with pytest.raises(DecodingError):
        Arrays().deserialize_ipc(b"\xc1 no payload")


# ── PlasmaShmIPCMixin ─────────────────────────────────────────────────────────────────────────────────────────────


def test_plasma_says_what_to_use_where_a_class_is_made_of_it_and_goes_on_without():
    with pytest.warns(UserWarning, match="pyarrow has no plasma any more; put RedisShmIPCMixin or ShmIPCMixin") as said:

        class Shared(PlasmaShmIPCMixin, Worker):
            def forward(self, data):
                return data

    assert [one.filename for one in said] == [__file__]
    with pytest.warns(UserWarning, match="PlasmaShmIPCMixin does nothing") as said:
        Shared.set_plasma_path("/tmp/plasma")
    assert [one.filename for one in said] == [__file__]
    assert Stage(Shared).plan("shared", 10).ipc_codec == "zmesh"
    assert Shared().deserialize_ipc(Shared().serialize_ipc({1, 2})) == {1, 2}


def test_plasma_is_said_by_the_process_that_was_started_and_not_by_its_children(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(current_verb, "name", "import")
    type("Shared", (PlasmaShmIPCMixin,), {"forward": lambda self, data: data})  # a warning would be an error
