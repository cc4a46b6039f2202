"""Events as bytes, as mosec writes them."""

import pytest

from zmesh.sse import error_event, event


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("hello", "data: hello\n\n"),
        ("two\nlines", "data: two\ndata: lines\n\n"),
        ("\n", "data: \ndata: \n\n"),
        ("a\rb", "data: a\ndata: b\n\n"),
        ("a\r\nb", "data: a\ndata: \ndata: b\n\n"),
        (" leading", "data:  leading\n\n"),
        ("größer ✓", "data: größer ✓\n\n"),
        ("data: x", "data: data: x\n\n"),
    ],
)
def test_each_line_of_a_text_has_its_own_data(text: str, lines: str):
    assert event(text.encode()) == event(memoryview(text.encode())) == lines.encode()


@pytest.mark.parametrize(
    ("http", "text", "said"),
    [
        (422, "request validation error: text is required", "422: Unprocessable Content: request validation error: text"
         " is required"),
        (400, "bad request: no", "400: Bad Request: bad request: no"),
        (408, "request timeout: no", "408: Request Timeout: request timeout: no"),
        (500, "inference internal error", "500: Internal Server Error: inference internal error"),
        (413, "request is too large: x", "413: Content Too Large: request is too large: x"),
        (429, "x", "429: Too Many Requests: x"),
        (499, "x", "499: Client Closed Request: x"),
        (503, "x", "503: Service Unavailable: x"),
        (598, "x", "598: Error: x"),
    ],
)  # fmt: skip
def test_an_error_is_an_event_of_its_own_type_with_the_words_of_its_status(http: int, text: str, said: str):
    assert error_event(http, text) == f"event: error\ndata: SSE inference error: {said}\n\n".encode()


def test_an_error_of_several_lines_stays_one_event():
    assert error_event(500, "a\nb").count(b"\n\n") == 1
