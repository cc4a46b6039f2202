"""Settings from flags and variables, ours and mosec's, and that docs/configuration.md has all of them."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path

import click
import pytest

from zmesh import cli
from zmesh.config import OPTIONS, Limits, Option, Settings, notices, settings_from

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
FLAGS = [option for option in OPTIONS if option.kind == "flag"]

# mosec 0.9.7, `--help` and its table of variables.
MOSEC_FLAGS = {
    "--path",
    "--capacity",
    "--timeout",
    "--wait",
    "--address",
    "--port",
    "--namespace",
    "--debug",
    "--log-level",
    "--dry-run",
    "--max-request-size",
    "--compression",
}
MOSEC_VARIABLES = {
    "MOSEC_PATH",
    "MOSEC_CAPACITY",
    "MOSEC_TIMEOUT",
    "MOSEC_ADDRESS",
    "MOSEC_PORT",
    "MOSEC_NAMESPACE",
    "MOSEC_DEBUG",
    "MOSEC_LOG_LEVEL",
    "MOSEC_DRY_RUN",
    "MOSEC_MAX_REQUEST_SIZE",
    "MOSEC_INTERNAL_REDIS_URL",
}


# ── variables ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("option", FLAGS, ids=lambda option: option.name)
@pytest.mark.parametrize("prefix", ["ZMESH", "MOSEC"])
@pytest.mark.parametrize(
    ("text", "value"),
    [(word, True) for word in ("1", "true", "YES", " on ")] + [(word, False) for word in ("0", "false", "No", "OFF")],
)
def test_a_variable_of_a_flag_is_read_as_a_boolean(option: Option, prefix: str, text: str, value: bool):
    variable = option.variable if prefix == "ZMESH" else option.twin
    if variable:
        assert getattr(settings_from({}, {variable: text}), option.name) is value


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("ZMESH_DEBUG", "maybe", "ZMESH_DEBUG must be 1 or 0, not 'maybe'"),
        ("MOSEC_DEBUG", "2", "MOSEC_DEBUG must be 1 or 0, not '2'"),
        ("ZMESH_PORT", "http", "ZMESH_PORT must be a whole number, not 'http'"),
        ("MOSEC_PORT", "80.0", "MOSEC_PORT must be a whole number, not '80.0'"),
        ("MOSEC_PORT", "65536", "port must be at most 65535, not 65536"),
        ("MOSEC_LOG_LEVEL", "loud", "MOSEC_LOG_LEVEL must be one of debug, info, warning, error, not 'loud'"),
        ("ZMESH_LANE", "slow", "ZMESH_LANE must be one of auto, fast, asgi, not 'slow'"),
        ("MOSEC_NAMESPACE", "a-b", "namespace must be letters, digits and _, not 'a-b'"),
    ],
)
def test_a_variable_that_cannot_be_read_is_one_sentence_that_names_it(variable: str, text: str, said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        settings_from({}, {variable: text})


def test_every_variable_of_mosec_stands_in_for_ours():
    twins = {option.twin for option in OPTIONS if option.twin}
    assert MOSEC_VARIABLES <= twins <= MOSEC_VARIABLES
    known = {flag for option in OPTIONS for flag in (option.flag, *option.aliases)}
    assert known >= MOSEC_FLAGS


def test_a_variable_of_mosec_counts_where_ours_is_not_set_and_a_line_says_so():
    environ = {"MOSEC_PORT": "1", "MOSEC_TIMEOUT": "2", "ZMESH_TIMEOUT": "3", "MOSEC_CAPACITY": "", "MOSEC_PATH": "/x"}
    settings = settings_from({"path": "/y"}, environ)
    assert (settings.port, settings.timeout, settings.capacity, settings.path) == (1, 3, 1024, "/y")
    assert notices({"path": "/y"}, environ) == ["using MOSEC_PORT=1; ZMESH_PORT is its name here"]


def test_a_variable_that_mosec_never_had_is_nobodys():
    assert settings_from({}, {"MOSEC_GATEWAYS": "4", "MOSEC_WAIT": "1"}) == Settings()


def test_debug_is_the_log_level_debug_unless_a_level_was_given():
    assert settings_from({"debug": True}, {}).log_level == "debug"
    assert settings_from({}, {"MOSEC_DEBUG": "1"}).log_level == "debug"
    assert settings_from({}, {"MOSEC_DEBUG": "false"}).log_level == "info"
    assert settings_from({"log_level": "error"}, {"ZMESH_DEBUG": "1"}).log_level == "error"
    assert settings_from({}, {"MOSEC_DEBUG": "1", "ZMESH_LOG_LEVEL": "warning"}).log_level == "warning"
    assert Settings.from_json(Settings(debug=True).to_json()).log_level == "debug"


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of the page, cell by cell."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return rows[2:]


def row_of(option: Option) -> list[str]:
    """What has to stand on the page; the last cell, what it means, is free."""
    default = getattr(Settings(), option.name)
    shown = f"`{default}`" if default else {"": "none", (): "none"}.get(default, "off" if default is False else "`0`")
    names = " ".join(f"`{name}`" for name in (option.flag, *option.aliases))
    verbs = ", ".join(option.verbs) if len(option.verbs) < 4 else "all four"
    return [
        names,
        f"`{option.variable}`",
        f"`{option.twin}`" if option.twin else "–",
        shown,
        option.unit or "–",
        verbs,
    ]


def test_every_setting_has_its_row_on_the_page_in_the_order_of_the_table():
    expected = [row_of(option) for option in OPTIONS]
    found = {row[0]: row[:6] for row in table("Settings")}
    missing = [f"| {' | '.join(row)} | … |" for row in expected if found.get(row[0]) != row]
    said = "docs/configuration.md needs these rows, with a last cell that says what they mean"
    assert not missing, said + "".join(f"\n{row}" for row in missing)
    assert list(found) == [row[0] for row in expected]


def test_every_option_that_one_command_has_for_itself_has_its_row_on_the_page():
    shared = {option.name for option in OPTIONS}
    expected = {
        (f"`zmesh {verb}`", " ".join(f"`{name}`" for name in parameter.opts))
        for verb, command in cli.zmesh.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and (verb in ("drain", "bench") or parameter.name not in shared)
    }
    assert {(row[0], row[1]) for row in table("Options of one command")} == expected


def test_every_limit_has_its_row_on_the_page():
    expected = [(f"`{limit.name}`", f"`{limit.default}`") for limit in fields(Limits)]
    assert [tuple(row[:2]) for row in table("Limits")] == expected


@pytest.mark.parametrize("row", table("Limits of the gateway and the agent"), ids=lambda row: row[0])
def test_a_limit_of_a_module_is_what_the_page_says(row: list[str]):
    module, _, name = row[0].strip("`").rpartition(".")
    assert str(getattr(importlib.import_module(f"zmesh.{module}"), name)) == row[1].strip("`")
