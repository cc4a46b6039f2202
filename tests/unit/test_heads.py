"""A repeated head is taken for the same only where the parser would say the same of it."""

from __future__ import annotations

import httptools
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zmesh.heads import LENGTH_DIGITS_MAX, REPEATED_BYTES_MAX, AnswerHeads, Repeated

HEAD = b"POST /inference HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\nAccept: */*\r\n\r\n"


class Parsed:
    """What the parser makes of some bytes on a connection on which nothing came before."""

    def __init__(self, data: bytes) -> None:
        self.url, self.headers, self.body = b"", list[tuple[bytes, bytes]](), b""
        self.begun = self.whole = 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.meaning = (self.url, parser.get_method(), parser.get_http_version(), parser.should_keep_alive())

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() != b"content-length":
            self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole += 1


def repeated(size: int = 5, head: bytes = HEAD) -> Repeated[str]:
    found = Repeated.of(head % b"%d" % size + bytes(size), size, "/inference")
    assert found is not None
    return found


def request(length: bytes, body: bytes) -> bytes:
    return HEAD % length + body


def test_the_same_head_has_another_body():
    assert repeated().body_of(request(b"5", b"hello")) == b"hello"
    assert repeated().body_of(request(b"11", b"hello world")) == b"hello world"
    assert repeated(100_000).body_of(request(b"1", b"x")) == b"x"


def test_nothing_else_is_taken_for_it():
    known = repeated()
    for data in (
        request(b"5", b"hell"),
        request(b"5", b"hello!"),
        request(b"0", b""),
        request(b"", b"hello"),
        request(b"+5", b"hello"),
        request(b"5 ", b"hello"),
        request(b"5\r\nx: y", b"hello"),
        request(b"1" * (LENGTH_DIGITS_MAX + 1), b"hello"),
        request(b"5", b"hello").replace(b"*/*", b"*/x"),
        b"\r\n" + request(b"5", b"hello"),
        request(b"5", b"hello")[:-20],
        b"",
    ):
        assert known.body_of(data) == b"", data


def test_what_is_not_one_whole_request_is_not_remembered():
    for data, size in (
        (request(b"5", b"hello") + b"POST", 5),
        (request(b"5", b"hel"), 5),
        (b"0\r\n\r\n" + request(b"5", b"hello"), 5),
        (b"POST / HTTP/1.1\r\nhost: x\r\n\r\n", 0),
        (HEAD.replace(b"*/*", b"x" * REPEATED_BYTES_MAX) % b"5" + b"hello", 5),
    ):
        assert Repeated.of(data, size, "/") is None, data


NAMES = st.sampled_from([b"Host", b"accept", b"Content-Type", b"X-Request-Id", b"connection", b"a"])
VALUES = st.sampled_from([b"x", b"", b"keep-alive", b"close", b"content-length: 7", b"a b", b"\xc3\xa9"])
EDITS = st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=3) | st.sampled_from([b"\r\n", b" ", b"0"]))


@settings(max_examples=400)
@given(
    st.lists(st.tuples(NAMES, VALUES), max_size=4),
    st.integers(0, 4),
    st.binary(min_size=1, max_size=12),
    st.binary(min_size=1, max_size=12),
    st.lists(EDITS, max_size=2),
)
@example([], 0, b"hello", b"world", [(0.9, 1, b"\r\n")])
@example([(b"a", b"content-length: 7")], 1, b"1", b"2", [])
def test_a_body_is_found_only_where_the_parser_finds_it(headers, place, first, second, edits):
    lines = [b"%s: %s\r\n" % header for header in headers]

    def make(body: bytes) -> bytes:
        said = [*lines[:place], b"Content-Length: %d\r\n" % len(body), *lines[place:]]
        return b"".join([b"POST /inference HTTP/1.1\r\n", *said, b"\r\n", body])

    parsed = Parsed(make(first))
    known = Repeated.of(make(first), len(first), "/")
    assert known is not None
    data = make(second)
    assert known.body_of(data) == second
    for at, gone, new in edits:
        start = int(at * len(data))
        data = data[:start] + new + data[start + gone :]
    if body := known.body_of(data):
        again = Parsed(data)
        assert (again.body, again.headers, again.meaning) == (body, parsed.headers, parsed.meaning)
        assert again.begun == again.whole == 1


def test_the_head_of_an_answer_is_made_anew_when_the_date_changes():
    asked: list[str] = []

    def first(path: str) -> list[tuple[bytes, bytes]]:
        asked.append(path)
        return [(b"content-type", path.encode())]

    heads, today, tomorrow = AnswerHeads(b"HTTP/1.1 200 OK\r\n", first), [(b"date", b"1")], [(b"date", b"2")]
    one = b"HTTP/1.1 200 OK\r\ndate: 1\r\ncontent-type: /a\r\nx-request-id: "
    assert heads.of("/a", today) == heads.of("/a", today) == one
    assert heads.of("/b", today) == one.replace(b"/a", b"/b")
    assert heads.of("/a", tomorrow) == one.replace(b"1\r\nc", b"2\r\nc")
    assert asked == ["/a", "/b", "/a"]
