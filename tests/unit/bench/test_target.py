"""What a user types becomes bytes, or one sentence."""

from pathlib import Path

import pytest

from zmesh.answers import VERSION
from zmesh.bench.target import reach, target
from zmesh.errors import StartError, UsageError

URL = "http://127.0.0.1:8000/inference"


def test_a_request_is_put_together_once_with_all_it_needs():
    aim = target(URL, data=['{"x": 1}'], headers=["X-Request-Timeout: 2", "accept:text/plain"])
    assert (aim.host, aim.port, aim.method) == ("127.0.0.1", 8000, "POST")
    assert aim.requests == (
        b"POST /inference HTTP/1.1\r\ncontent-type: application/json\r\nhost: 127.0.0.1:8000\r\n"
        b"user-agent: zmesh-bench/%s\r\naccept: text/plain\r\nx-request-timeout: 2\r\ncontent-length: 8\r\n\r\n"
        b'{"x": 1}' % VERSION.encode(),
    )


def test_without_a_body_it_is_a_get():
    aim = target("http://[::1]/a b?q=ä")
    assert (aim.host, aim.port, aim.method) == ("::1", 80, "GET")
    (request,) = aim.requests
    assert request.startswith(b"GET /a%20b?q=%C3%A4 HTTP/1.1\r\nhost: [::1]\r\n")
    assert b"content-" not in request and request.endswith(b"\r\n\r\n")


def test_bodies_come_from_texts_files_and_folders_in_turn(tmp_path: Path):
    (tmp_path / "b.json").write_text("[2]")
    (tmp_path / "a.bin").write_bytes(b"\xff\x00")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "deeper").mkdir()
    aim = target("localhost:1/x", "put", data=["1", f"@{tmp_path}", f"@{tmp_path}/b.json"])
    assert [request.partition(b"\r\n\r\n")[2] for request in aim.requests] == [b"1", b"\xff\x00", b"[2]", b"[2]"]
    types = [b"application/json" in request for request in aim.requests]
    assert types == [True, False, True, True] and aim.method == "PUT"
    assert all(request.startswith(b"PUT /x HTTP/1.1\r\n") for request in aim.requests)


def test_a_content_type_of_the_user_wins():
    (request,) = target(URL, data=["{}"], headers=["Content-Type: application/msgpack"]).requests
    assert request.count(b"content-type") == 1 and b"content-type: application/msgpack\r\n" in request


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://a/x", "https://a/x: zmesh bench speaks no TLS; measure the http address behind what ends it"),
        ("file:///etc/passwd", "file:///etc/passwd is not an address that zmesh bench can measure; it looks like"),
        ("http://", "http:// is not an address that zmesh bench can measure; it looks like"),
        ("http://u:p@a/", "http://u:p@a/ is not an address that zmesh bench can measure; it looks like"),
        ("http://a b/", "http://a b/ is not an address that zmesh bench can measure; it looks like"),
        ("http://a:0/", "http://a:0/ is not an address that zmesh bench can measure; it looks like"),
        ("http://a:99999/", "http://a:99999/ is not an address; it looks like http://127.0.0.1:8000/inference"),
        ("http://[::1/", "http://[::1/ is not an address; it looks like http://127.0.0.1:8000/inference"),
    ],
)
def test_a_wrong_address_is_one_sentence(url: str, said: str):
    with pytest.raises(UsageError) as error:
        target(url)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("header", ["x", ": y", "a b: c", "x: a\r\ny: b", "x: \x00"])
def test_what_is_no_header_is_refused(header: str):
    with pytest.raises(UsageError, match="is not a header; it looks like 'x-request-timeout: 2'"):
        target(URL, headers=[header])


@pytest.mark.parametrize("name", ["Content-Length", "connection", "Transfer-Encoding", "expect", "upgrade"])
def test_headers_that_say_how_we_talk_are_ours(name: str):
    with pytest.raises(UsageError, match=rf"^--header {name.lower()} is set by zmesh bench itself; leave it out$"):
        target(URL, headers=[f"{name}: 1"])


@pytest.mark.parametrize("method", ["HEAD", "connect", "GE T"])
def test_a_method_whose_answers_have_no_body_is_refused(method: str):
    with pytest.raises(UsageError, match="cannot be measured; give one like GET, POST or PUT"):
        target(URL, method)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"^--data @gone\.json: No such file or directory; name a file or a folder"):
        target(URL, data=["@gone.json"])
    with pytest.raises(UsageError, match="there is no file in that folder; put one body into each file"):
        target(URL, data=[f"@{tmp_path}"])


def test_nobody_there_is_one_sentence():
    with pytest.raises(StartError, match=r"^nobody answers at 127\.0\.0\.1:1: Connection refused; start what is to be"):
        reach(target("127.0.0.1:1/x"))
    with pytest.raises(StartError, match=r"^nobody answers at no-such-host\.invalid:80: .+; start what is to be"):
        reach(target("http://no-such-host.invalid/"))
