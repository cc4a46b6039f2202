"""How a README of an example is read, and how strictly its answers are compared."""

from __future__ import annotations

import pytest

from tests.readme import differences, needs_of, runs_of

PAGE = """
Needs `numpy` and `msgpack` (`pip install …`).

```sh
pip install numpy
SIZE=3 zmesh run examples/x/app.py --timeout 100
# or
python examples/x/app.py
```

```sh
curl -d '{"a":
  1}' http://127.0.0.1:8000/x
curl \\
  http://127.0.0.1:8000/y   # the other
```

```json
{"a": 1}
```

```json
{"this": "is shown, and no answer"}
```

```python
class NoClient: ...
```

```python
connect("127.0.0.1", 8000)
```

```
done
```

```sh
zmesh run examples/x/second.py
```
"""


def test_each_start_is_followed_by_what_is_asked_of_it_and_what_that_answers():
    first, second = runs_of(PAGE, "examples/x")
    assert (first.app, first.arguments, first.env) == ("examples/x/app.py", ["--timeout", "100"], {"SIZE": "3"})
    curls, program = first.askings
    assert [command.split()[0] for command in curls.commands] == ["curl", "curl"]
    assert curls.commands[0].endswith("/x") and "\n" in curls.commands[0]
    assert (curls.language, curls.promised) == ("json", '{"a": 1}\n')
    assert program.commands[0].startswith("python - <<") and program.promised == "done\n"
    assert (second.app, second.askings) == ("examples/x/second.py", [])
    assert needs_of(PAGE) == ["numpy", "msgpack"]


def test_a_command_that_nobody_can_run_is_no_silence():
    with pytest.raises(AssertionError, match="nobody knows how to run 'wget"):
        runs_of("```sh\nzmesh run examples/x/app.py\nwget http://127.0.0.1:8000/\n```", "examples/x")
    with pytest.raises(AssertionError, match="without an end"):
        runs_of("```sh\ncurl -d 'x\n```", "examples/x")


def test_the_app_of_another_folder_is_not_started():
    assert runs_of("```sh\nzmesh run examples/xy/app.py\n```", "examples/x") == []


@pytest.mark.parametrize(
    ("promised", "printed"),
    [
        ('{"a": 1, "b": [1.0, 2]}', '{"b":[1.0004,2],\n"a":1}'),
        ('{"a": 1}\n{"a": 2}', '{"a":1}\n{"a":2}\n'),
        ('{"vector": [0.5, "…"]}', '{"vector":[0.5,0.1,0.2]}'),
        ('{"id": "…", "n": 1}', '{"id":{"any":[1]},"n":1}'),
        ('{"n": 1, "…": "…"}', '{"n":1,"more":2}'),
        ("1.5", "1.5"),
        ('{"p": 1.0}', '{"p": 1}'),
    ],
)
def test_json_is_compared_by_what_it_says(promised: str, printed: str):
    assert differences(promised, printed, "json") == ""


@pytest.mark.parametrize(
    ("promised", "printed"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": 1.0}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 1.0}', '{"a": 1.01}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1, "b": "…"}', '{"a": 1}'),
        ('{"b": "…", "…": "…"}', '{"a": 1}'),
        ('{"vector": [0.5, "…"]}', '{"vector":[0.6,0.1]}'),
        ('{"vector": [0.5, 0.1, "…"]}', '{"vector":[0.5]}'),
        ('{"vector": [0.5]}', '{"vector":[0.5,0.1]}'),
        ('{"a": 1}', '{"a": 1}{"a": 1}'),
        ('{"a": 1}', "internal error"),
        ("", '{"a": 1}'),
        ("not JSON", "1"),
    ],
)
def test_json_that_says_something_else_is_shown(promised: str, printed: str):
    assert printed in differences(promised, printed, "json")


def test_text_is_compared_line_by_line_and_three_dots_are_anything():
    assert differences("HTTP/1.1 200 OK\n…\n\n3 words\n", "HTTP/1.1 200 OK\r\ndate: x\r\ny: z\r\n\r\n3 words", "") == ""
    assert differences("3 words", "33 words", "") != ""
    assert differences("3 words", "3 words, and more", "text") != ""
    assert differences("a.c", "abc", "") != "", "a point is a point"
