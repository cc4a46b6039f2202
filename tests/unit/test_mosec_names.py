"""What a file written for mosec imports, after the name of the library was replaced: it is there, or a sentence is."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zmesh import errors
from zmesh.protocol import HTTPStatusCode
from zmesh.utils import ParseTarget, parse_func_type
from zmesh.worker import Worker

# Every name of mosec 0.8.0 to 0.9.7 that is public, with the module that its documentation imports it from.
NAMES = {
    "zmesh": "ClientError DecodingError EncodingError Runtime SSEWorker Server ServerError ValidationError Worker "
    "get_logger __version__",
    "zmesh.errors": "MosecError ClientError ServerError EncodingError DecodingError ValidationError MosecTimeoutError",
    "zmesh.log": "get_logger",
    "zmesh.mixin": "MsgpackMixin NumBinIPCMixin PlasmaShmIPCMixin RedisShmIPCMixin TypedMsgPackMixin",
    "zmesh.protocol": "HTTPStatusCode",
    "zmesh.runtime": "Runtime",
    "zmesh.server": "Server",
    "zmesh.utils": "ParseTarget parse_func_type",
    "zmesh.worker": "Worker SSEWorker MOSEC_REF_TEMPLATE",
}


@pytest.mark.parametrize(("module", "names"), NAMES.items(), ids=list(NAMES))
def test_every_public_name_of_mosec_is_where_its_users_import_it_from(module: str, names: str):
    found = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(found, name)] == []


def test_names_that_stand_in_two_places_are_one_thing():
    import zmesh

    for module in ("errors", "log", "runtime", "server", "worker"):
        there = importlib.import_module(f"zmesh.{module}")
        shared = [name for name in NAMES["zmesh"].split() if hasattr(there, name)]
        assert shared and all(getattr(there, name) is getattr(zmesh, name) for name in shared)


def test_importing_reads_no_arguments():
    imports = "; ".join(f"import {module}" for module in NAMES)
    command = [sys.executable, "-c", f"{imports}; print('imported')", "--help", "--port", "http", "--log-level", "loud"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("imported\n", "")


def test_the_package_says_that_it_is_typed():
    import zmesh

    assert zmesh.__file__ and (Path(zmesh.__file__).parent / "py.typed").is_file()


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "base", "status", "prefix"),
    [
        ("MosecError", Exception, 500, "zmesh error"),
        ("ClientError", errors.MosecError, 400, "bad request"),
        ("ServerError", errors.MosecError, 500, "internal error"),
        ("EncodingError", errors.ServerError, 500, "encoding error"),
        ("DecodingError", errors.ClientError, 400, "decoding error"),
        ("ValidationError", errors.MosecError, 422, "request validation error"),
        ("MosecTimeoutError", BaseException, 408, "request timeout"),
    ],
)
def test_an_error_has_mosecs_base_and_status_and_its_text_follows_a_prefix(
    name: str, base: type[BaseException], status: int, prefix: str
):
    kind = getattr(errors, name)
    assert kind.__bases__ == (base,)
    assert errors.describe(kind("one\ntwo")) == (status, f"{prefix}: one - two")
    assert errors.describe(kind()) == (status, f"{prefix}: {prefix}")


def test_an_error_of_ones_own_may_say_code_and_msg_as_in_mosec():
    class TooLong(errors.MosecError):
        code = HTTPStatusCode.VALIDATION_ERROR
        msg = "the text is too long"

    class MuchTooLong(TooLong):
        msg = "the text is much too long"

    class Ours(TooLong):
        http_status = 413
        prefix = "too long"

    assert errors.describe(TooLong("9 words")) == (422, "the text is too long: 9 words")
    assert errors.describe(MuchTooLong()) == (422, "the text is much too long: the text is much too long")
    assert errors.describe(Ours()) == (413, "too long: too long")
    assert type(TooLong.http_status) is int


def test_a_code_that_is_no_error_is_refused_where_it_is_written():
    with pytest.raises(errors.DeclarationError, match=r"Fine\.http_status must be an int from 400 to 599, not 200"):
        type("Fine", (errors.MosecError,), {"code": HTTPStatusCode.OK})


# ── schema hooks ──────────────────────────────────────────────────────────────────────────────────────────────────


class Question:
    pass


class Typed(Worker):
    def forward(self, data: list[Question]) -> list[int]:
        return [0 for _ in data]


class Lazy(Worker):
    def forward(self, data: Question) -> int:
        return 0


class Silent(Worker):
    def forward(self, data):  # type: ignore[no-untyped-def]
        return data


@pytest.mark.parametrize(
    ("worker", "taken", "given"), [(Typed, Question, int), (Lazy, Question, int), (Silent, Any, Any)]
)
def test_the_type_of_one_item_is_read_from_forward(worker: type[Worker], taken: Any, given: Any):
    assert parse_func_type(worker.forward, ParseTarget.INPUT) is taken
    assert parse_func_type(worker.forward, ParseTarget.RETURN) is given
    bound = worker().forward
    assert parse_func_type(bound, ParseTarget.INPUT) is taken


def test_a_generic_type_that_is_no_list_is_a_type_error():
    def forward(data: dict[str, int]) -> None: ...

    with pytest.raises(TypeError, match=r"forward is annotated with dict\[str, int\]; a class, or a list of one"):
        parse_func_type(forward, ParseTarget.INPUT)
