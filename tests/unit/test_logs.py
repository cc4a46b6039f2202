"""What the processes say: text for people, JSON for machines, bounded, and never two records where there was one."""

import io
import json
import logging
import logging.config
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zmesh import get_logger, logs

MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
OURS = ("zmesh", "zmesh.user", "zmesh.worker", "uvicorn", "asyncio")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging is one for the whole process: put it back."""
    root = logging.getLogger()
    before = {name: (list(logger.handlers), logger.level, logger.propagate) for name, logger in named(*OURS)}
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.setattr(logs, "_handler", logs._handler)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    level = root.level
    root.setLevel(logging.WARNING)
    yield
    root.setLevel(level)
    for name, logger in named(*OURS):
        logger.handlers, level, logger.propagate = before[name]
        logger.setLevel(level)
        logger.disabled = False


def named(*names: str) -> list[tuple[str, logging.Logger]]:
    return [(name, logging.getLogger(name)) for name in names]


Listen = Callable[..., io.StringIO]


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Listen:
    """Sets logging up, and gives what goes to stderr from then on."""

    def begin(
        level: str = "info", role: str = "worker Echo/2", form: str = "auto", *, terminal: bool = False, **more: Any
    ) -> io.StringIO:
        stream = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
        logs.setup(level, role, form, **more)
        return stream

    return begin


def said(stream: io.StringIO) -> dict[str, Any]:
    """The only record, which has to be one line of JSON."""
    (line,) = stream.getvalue().splitlines()
    return dict(json.loads(line))


def fail(text: str) -> None:
    raise ValueError(text)


# ── which of the two ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("form", "level", "terminal", "is_json"),
    [
        ("auto", "info", False, True),
        ("auto", "info", True, False),
        ("auto", "debug", False, False),
        ("json", "debug", True, True),
        ("text", "info", False, False),
    ],
)
def test_a_person_reads_text_and_a_supervisor_gets_json(
    listen: Listen, form: str, level: str, terminal: bool, is_json: bool
) -> None:
    stream = listen(level, form=form, terminal=terminal)
    get_logger().info("hello")
    assert logs.is_json() == is_json == stream.getvalue().startswith("{")


def test_colours_are_for_a_terminal_that_wants_them(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = listen(terminal=True)
    get_logger().warning("hot")
    assert re.fullmatch(
        f"{MOMENT} \x1b\\[33mWARNING\x1b\\[0m \x1b\\[36mworker Echo/2\x1b\\[0m hot\n", stream.getvalue()
    )
    stream = listen(terminal=True)
    get_logger().info("well")
    assert re.fullmatch(f"{MOMENT} INFO \x1b\\[36mworker Echo/2\x1b\\[0m well\n", stream.getvalue())
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            stream = listen(terminal=True)
        get_logger().warning("hot")
        assert "\x1b" not in stream.getvalue(), name


# ── what a record has ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_in_json_says_when_who_and_what(listen: Listen) -> None:
    stream = listen(form="json")
    logging.getLogger("zmesh.worker").warning("%d items", 3)
    record = said(stream)
    assert re.fullmatch(MOMENT, record.pop("time")) and record.pop("pid") > 0
    assert record == {
        "level": "WARNING",
        "role": "worker",
        "worker": "Echo/2",
        "logger": "zmesh.worker",
        "message": "3 items",
    }


@pytest.mark.parametrize(
    ("role", "fields"),
    [
        ("agent", {"role": "agent"}),
        ("gateway", {"role": "gateway"}),
        ("gateway/3", {"role": "gateway", "gateway": 3}),
        ("worker My Stage/1/2", {"role": "worker", "worker": "My Stage/1/2"}),
    ],
)
def test_every_role_has_its_fields(listen: Listen, role: str, fields: dict[str, object]) -> None:
    stream = listen(role=role, form="json")
    logging.getLogger("zmesh.agent").info("x")
    assert {key: value for key, value in said(stream).items() if key in ("role", "worker", "gateway")} == fields


def test_a_users_record_says_where_it_was_written(listen: Listen) -> None:
    stream = listen(form="json")
    get_logger().info("x")
    assert re.fullmatch(r"test_logs\.py:\d+", said(stream)["source"])


def test_an_exception_has_a_field_of_its_own(listen: Listen) -> None:
    stream = listen(form="json")
    try:
        fail("no cheese")
    except ValueError:
        get_logger().exception("it broke")
    record = said(stream)
    assert record["message"] == "it broke"
    assert record["exception"].startswith(logs.TRACEBACK) and record["exception"].endswith("ValueError: no cheese")


def test_a_users_traceback_that_stands_in_a_message_goes_there_too(listen: Listen) -> None:
    stream = listen(form="json")
    told = f'{logs.TRACEBACK}\n  File "app.py", line 3, in forward\nKeyError: 1'
    logging.getLogger("zmesh.worker").error("request a failed: %s\n%s", "KeyError: 1", told)
    record = said(stream)
    assert (record["message"], record["exception"]) == ("request a failed: KeyError: 1", told)


def test_the_last_words_of_a_program_have_the_same_form(listen: Listen) -> None:
    told = f"{logs.TRACEBACK}\n  File …\nKeyError: 1\n"
    listen(role="agent", form="text")
    assert logs.last_words("it ends", told) == f"{told}zmesh: it ends\n"
    assert logs.last_words("it ends", "") == "zmesh: it ends\n"
    listen(role="agent", form="json")
    record = json.loads(logs.last_words("it ends", told))
    assert "source" not in record, "it stands in no line of anybody's code"
    assert (record["level"], record["message"], record["exception"]) == ("ERROR", "it ends", told.strip())
    assert "exception" not in json.loads(logs.last_words("it ends", ""))


# ── of which request ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_has_the_request_that_the_main_thread_works_for(listen: Listen) -> None:
    stream = listen(form="json", request_id=lambda: "r-1")
    get_logger().info("x")
    assert said(stream)["request_id"] == "r-1"
    stream = listen(form="text", request_id=lambda: "r-1")
    get_logger().info("x")
    get_logger().info("request r-1 again")
    assert re.sub(MOMENT, "-", stream.getvalue()) == (
        "- INFO worker Echo/2 [r-1] x\n- INFO worker Echo/2 request r-1 again\n"
    )


def test_another_thread_may_work_for_another_request(listen: Listen) -> None:
    stream = listen(form="json", request_id=lambda: "r-1")
    thread = threading.Thread(target=get_logger().info, args=("x",))
    thread.start()
    thread.join()
    assert "request_id" not in said(stream)


def test_who_names_the_request_is_believed(listen: Listen) -> None:
    stream = listen(form="json", request_id=lambda: "r-1")
    get_logger().info("x", extra={"request_id": "mine"})
    assert said(stream)["request_id"] == "mine"
    stream = listen(form="json")
    get_logger().info("x", extra={"request_id": ["a", "b"]})
    assert said(stream)["request_ids"] == ["a", "b"]


# ── what a line cannot do ─────────────────────────────────────────────────────────────────────────────────────────

FORGED = "bad\n2026-01-01T00:00:00.000Z INFO agent all is well\r\x1b[2J\x85\u2028\u202e end"


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_client_sends_cannot_pass_for_a_record(listen: Listen, form: str) -> None:
    stream = listen(form=form)
    try:
        fail(FORGED)
    except ValueError:
        get_logger().exception("refused: %s", FORGED)
    text = stream.getvalue()
    assert not set("\r\x1b\x85\u2028\u202e") & set(text)
    first, *others = text.splitlines()
    assert others if form == "text" else not others
    assert all(line.startswith("    ") for line in others) and not first.startswith("2026-01-01")
    if form == "json":
        assert said(stream)["message"] == f"refused: {FORGED}"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_of_ten_megabytes_does_not_pass(listen: Listen, form: str) -> None:
    stream = listen(form=form)
    huge = "start" + "\x00" * 10_000_000 + "end"
    try:
        fail(huge)
    except ValueError:
        get_logger().exception(huge, extra={"request_id": huge})
    text = stream.getvalue()
    assert len(text) < 20 * logs.MESSAGE_CHARACTERS_MAX
    assert "start" in text and "characters left out" in text and "end" in text


def test_arguments_that_do_not_fit_are_said_and_cost_nothing(listen: Listen) -> None:
    stream = listen(form="json")
    get_logger().info("%d items of %s", "three")
    assert said(stream)["message"].startswith(
        "%d items of %s (its arguments do not fit: TypeError); test_logs.py, line"
    )


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_no_encoding_has_is_said_all_the_same(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, "ascii", "backslashreplace"))
    logs.setup("info", "agent", form)
    get_logger().info("größe \udc80")
    assert raw.getvalue().count(b"\n") == 1
    if form == "json":
        assert json.loads(raw.getvalue())["message"] == "größe \udc80"


# ── loggers of the user's own ─────────────────────────────────────────────────────────────────────────────────────


def own(name: str = "app.model") -> logging.Logger:
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate, logger.disabled = [], True, False
    logger.setLevel(logging.NOTSET)
    return logger


def test_a_logger_that_nobody_configured_joins_in(listen: Listen) -> None:
    stream = listen(form="json")
    logs.join_in()
    own().info("loaded")
    own().debug("not said")
    record = said(stream)
    assert (record["logger"], record["message"], record["worker"]) == ("app.model", "loaded", "Echo/2")


def test_installed_packages_are_not_heard_at_debug(listen: Listen, tmp_path: Path) -> None:
    stream = listen("debug", form="json")
    logs.join_in()
    where = sysconfig.get_path("purelib") + "/noisy/reader.py"
    for level in (logging.DEBUG, logging.INFO):
        own("noisy").handle(logging.LogRecord("noisy", level, where, 1, "chunk", (), None))
    own().debug("mine")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == ["INFO", "DEBUG"]


def test_who_configures_the_root_logger_keeps_it_and_hears_nothing_twice(listen: Listen) -> None:
    stream = listen()
    logs.join_in()
    theirs = io.StringIO()
    logging.basicConfig(stream=theirs, format="mine %(message)s")
    logs.join_in()
    own().warning("once")
    own().info("not said: they asked for no level")
    get_logger().info("ours")
    assert theirs.getvalue() == "mine once\n"
    assert said(stream)["message"] == "ours"


def test_a_level_that_they_chose_is_kept(listen: Listen) -> None:
    listen()
    logs.join_in()
    theirs = io.StringIO()
    logging.basicConfig(stream=theirs, level=logging.INFO, format="%(message)s")
    logs.join_in()
    own().info("said")
    assert theirs.getvalue() == "said\n"


def test_a_logger_with_a_handler_of_its_own_is_theirs(listen: Listen) -> None:
    stream = listen()
    logs.join_in()
    theirs = io.StringIO()
    own("theirs").addHandler(logging.StreamHandler(theirs))
    logging.getLogger("theirs").warning("once")
    assert (theirs.getvalue(), stream.getvalue()) == ("once\n", "")


def test_a_configuration_by_dict_does_not_silence_us(listen: Listen) -> None:
    stream = listen(form="json")
    logging.config.dictConfig({"version": 1, "root": {"level": "ERROR"}})
    assert logging.getLogger("zmesh.worker").disabled
    logs.join_in()
    logging.getLogger("zmesh.worker").warning("still here")
    assert said(stream)["message"] == "still here"
