"""The error tree, and what a client is told about each of them."""

from __future__ import annotations

import pytest

from zmesh import errors


@pytest.mark.parametrize(
    ("kind", "status", "prefix"),
    [
        (errors.ZmeshError, 500, "zmesh error"),
        (errors.ClientError, 400, "bad request"),
        (errors.DecodingError, 400, "decoding error"),
        (errors.ServerError, 500, "internal error"),
        (errors.EncodingError, 500, "encoding error"),
        (errors.ValidationError, 422, "request validation error"),
        (errors.ForwardTimeout, 408, "request timeout"),
        (errors.ForwardCancelled, 499, "cancelled"),
    ],
)
def test_an_error_with_a_text_is_described_by_its_status_its_prefix_and_the_text(kind, status, prefix):
    assert errors.describe(kind("no such cat")) == (status, f"{prefix}: no such cat")
    assert (kind.http_status, kind.prefix) == (status, prefix)


def test_an_error_without_a_text_repeats_its_prefix():
    assert errors.describe(errors.DecodingError()) == (400, "decoding error: decoding error")


def test_a_text_of_several_lines_becomes_one_line():
    assert errors.describe(errors.ClientError("a\nb\r\nc")) == (400, "bad request: a - b - c")


@pytest.mark.parametrize("error", [RuntimeError("/secret/path.py"), KeyboardInterrupt(), errors.PeerError("x")])
def test_an_error_that_is_not_an_answer_tells_the_client_nothing(error):
    assert errors.describe(error) == (500, "inference internal error")


def test_a_subclass_of_a_user_chooses_its_status_and_prefix():
    class Busy(errors.ServerError):
        http_status = 503
        prefix = "busy"

    assert errors.describe(Busy("later")) == (503, "busy: later")


@pytest.mark.parametrize("status", [200, 399, 600, "503", True, None])
def test_a_subclass_with_a_status_that_is_no_error_is_refused_where_it_is_written(status):
    with pytest.raises(TypeError, match=r"Odd\.http_status must be an int from 400 to 599"):
        type("Odd", (errors.ClientError,), {"http_status": status})


def test_an_error_whose_text_cannot_be_made_keeps_its_status():
    class Broken(errors.ClientError):
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert errors.describe(Broken()) == (400, "bad request: bad request")


def test_a_forward_timeout_passes_an_except_exception_of_user_code():
    def careless() -> None:
        try:
            raise errors.ForwardTimeout
        except Exception:
            pytest.fail("swallowed")

    with pytest.raises(errors.ForwardTimeout):
        careless()


def test_errors_of_the_client_and_of_the_content_are_not_worth_a_retry_and_those_of_the_server_are():
    not_worth = {errors.ZmeshError, errors.ClientError, errors.DecodingError, errors.ValidationError}
    assert not any(kind.retryable for kind in not_worth | {errors.EncodingError})
    assert errors.ServerError.retryable and errors.ForwardTimeout.retryable


def test_start_errors_carry_the_exit_codes_that_are_documented():
    kinds = [errors.StartError, errors.UsageError, errors.NeverReady, errors.DrainExpired]
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4]
    assert all(issubclass(kind, errors.StartError) for kind in kinds)


def test_names_of_mosec_are_the_same_classes():
    assert errors.MosecError is errors.ZmeshError
    assert errors.MosecTimeoutError is errors.ForwardTimeout


def test_the_module_opens_with_the_whole_tree():
    aliases = {"describe", "MosecError", "MosecTimeoutError"}
    assert [name for name in errors.__all__ if name not in aliases and name not in (errors.__doc__ or "")] == []
