"""deploy/ and examples/two_hosts without a second host: the files are read by the tools they are meant for.

What needs a Docker daemon or a running systemd is not here; deploy/README.md says what was tried by hand.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from PIL import Image

from zmesh import DecodingError, ValidationError, agent, cli, household
from zmesh.catalogue import CATALOGUE
from zmesh.config import OPTIONS, Plan
from zmesh.hosting import chosen_stages

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
TWO_HOSTS = ROOT / "examples" / "two_hosts"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
ZMESH = "/opt/zmesh/bin/zmesh"  # where the units expect it; it is not there when tests run

# From the end of the drain time to the end of the last process, at most.
LEAVING_SECONDS = 3 * household.DRAIN_GRACE_SECONDS + 2 * household.LEAVE_SECONDS + agent.KILL_SECONDS

Need = Callable[[object, str], None]


# ── compose ───────────────────────────────────────────────────────────────────────────────────────────────────────


def schema_says(need: Need, file: Path) -> tuple[int, str]:
    """What the schema of the Compose Specification, as check-jsonschema carries it, says of a file."""
    need(importlib.util.find_spec("check_jsonschema"), "check-jsonschema is not installed: pip install -e '.[test]'")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def compose(need: Need) -> dict[str, Any]:
    need(importlib.util.find_spec("ruamel"), "ruamel.yaml is not installed: pip install -e '.[test]'")
    from ruamel.yaml import YAML

    read: dict[str, Any] = YAML(typ="safe", pure=True).load(DEPLOY / "compose.yaml")
    return read


def test_the_compose_file_fits_the_schema_of_its_specification(need: Need):
    code, said = schema_says(need, DEPLOY / "compose.yaml")
    assert code == 0, said


def test_the_schema_finds_a_word_that_does_not_exist(need: Need, tmp_path: Path):
    broken = tmp_path / "compose.yaml"
    broken.write_text((DEPLOY / "compose.yaml").read_text().replace("shm_size:", "shm_sise:"))
    code, said = schema_says(need, broken)
    assert code != 0
    assert "shm_sise" in said


def test_compose_opens_nothing_but_http(compose: dict[str, Any]):
    published = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert published == {"head": ["8000:8000"], "worker": []}
    assert compose["networks"]["mesh"] == {"internal": True}
    assert compose["services"]["worker"]["networks"] == ["mesh"]


def test_compose_waits_longer_than_a_drain_takes(compose: dict[str, Any]):
    for name, service in compose["services"].items():
        grace = float(service["stop_grace_period"].removesuffix("s"))
        assert grace > int(service["environment"]["ZMESH_DRAIN_TIMEOUT"]) / 1000 + LEAVING_SECONDS, name
        assert service["init"] is True, f"{name}: deploy/README.md says what it is for"
        assert service["shm_size"], name


def test_compose_mounts_and_builds_what_is_there(compose: dict[str, Any]):
    for service in compose["services"].values():
        context = (DEPLOY / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()
        ((source, target, mode),) = [volume.split(":") for volume in service["volumes"]]
        app = Path("/app", service["command"][1])
        assert (DEPLOY / source / app.relative_to(target)).is_file()
        assert mode == "ro"


# ── Dockerfile ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Its instructions in order, with lines joined and comments gone."""
    text = "\n".join(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word, rest.strip()) for word, rest in lines]


INSTRUCTIONS = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "WORKDIR",
}  # fmt: skip


def only(dockerfile: list[tuple[str, str]], word: str) -> str:
    (rest,) = [rest for found, rest in dockerfile if found == word]
    return rest


def test_every_instruction_of_the_dockerfile_exists(dockerfile: list[tuple[str, str]]):
    assert {word for word, _ in dockerfile} <= INSTRUCTIONS
    assert dockerfile[0] == ("ARG", "BASE=python:3.11-slim")
    assert [rest.split()[0] for word, rest in dockerfile if word == "FROM"] == ["${BASE}", "${BASE}"]


def test_the_image_is_not_root_and_stops_as_zmesh_does(dockerfile: list[tuple[str, str]]):
    user = only(dockerfile, "USER").partition(":")[0]
    assert int(user) > 0
    assert any(f"--uid {user} " in rest for word, rest in dockerfile if word == "RUN")
    assert [word for word, _ in dockerfile].index("USER") > max(
        number for number, (word, _) in enumerate(dockerfile) if word in {"RUN", "COPY"}
    )
    assert json.loads(only(dockerfile, "ENTRYPOINT")) == ["zmesh"]
    assert only(dockerfile, "STOPSIGNAL") == "SIGTERM"


def test_what_the_image_copies_is_there_and_not_kept_out(dockerfile: list[tuple[str, str]]):
    ignore = (ROOT / ".dockerignore").read_text().split()
    let_in = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert "*" in ignore
    copied = [rest.split()[:-1] for word, rest in dockerfile if word == "COPY" and not rest.startswith("--from")]
    sources = {source for line in copied for source in line}
    assert sources == let_in
    assert all((ROOT / source).exists() for source in sources)


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server on a port of its own that answers /livez with `status`, and all else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_livez(dockerfile: list[tuple[str, str]], status: int, is_healthy: bool):
    command = json.loads(only(dockerfile, "HEALTHCHECK").partition("CMD ")[2])
    assert command[0] == "python3"
    with answering(status) as port:
        env = {"ZMESH_PORT": str(port)}
        done = subprocess.run([sys.executable, *command[1:]], env=env, capture_output=True, timeout=30, check=False)
    assert (done.returncode == 0) is is_healthy, done.stderr


# ── systemd ───────────────────────────────────────────────────────────────────────────────────────────────────────


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def environment(unit: Path) -> dict[str, str]:
    return dict(word.split("=", 1) for line in directives(unit)["Environment"] for word in shlex.split(line))


def verify(need: Need, unit: Path, folder: Path, text: str) -> str:
    """Everything systemd-analyze has to say of `text` as that unit, with a program in it that exists here."""
    need(shutil.which("systemd-analyze"), "systemd-analyze is not installed: apt-get install systemd")
    assert ZMESH in text
    copy = folder / unit.name
    copy.write_text(text.replace(ZMESH, sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    said = done.stdout + done.stderr
    return said or (f"exit code {done.returncode}" if done.returncode else "")


def test_there_is_a_unit_for_each_kind_of_host():
    assert [unit.name for unit in UNITS] == ["zmesh-head.service", "zmesh-worker@.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_unit_without_a_word(need: Need, unit: Path, tmp_path: Path):
    assert verify(need, unit, tmp_path, unit.read_text()) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("KillMode=mixed", "KillMode=mixt"), ("OOMPolicy=", "OOMPolitics="), ("StopSec=40", "StopSec=later")],
)
def test_systemd_finds_a_wrong_word(need: Need, tmp_path: Path, right: str, wrong: str):
    text = UNITS[0].read_text()
    assert right in text
    key, _, value = wrong.partition("=")
    assert (value or key) in verify(need, UNITS[0], tmp_path, text.replace(right, wrong))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_say_how_zmesh_ends(unit: Path):
    said = directives(unit)
    assert said["KillMode"] == ["mixed"]
    assert said["RestartPreventExitStatus"] == [str(click.UsageError.exit_code)]
    assert said["OOMPolicy"] == ["continue"]
    drain = int(environment(unit)["ZMESH_DRAIN_TIMEOUT"]) / 1000
    assert float(said["TimeoutStopSec"][0]) > drain + LEAVING_SECONDS
    (runtime,) = said["RuntimeDirectory"]
    assert f"--path %t/{runtime}/" in said["ExecStart"][0], "all else in /run is read-only"


# ── what the files tell zmesh ─────────────────────────────────────────────────────────────────────────────────────

IMAGE = "zmesh-serve"  # as these pages name it
PAGES = [DEPLOY / "README.md", ROOT / "docs" / "operations.md", TWO_HOSTS / "README.md"]


def commands_of_units() -> list[list[str]]:
    return [shlex.split(line.removeprefix(ZMESH)) for unit in UNITS for line in directives(unit)["ExecStart"]]


def commands_of(page: Path) -> list[list[str]]:
    """What the blocks of a page hand to zmesh, at a prompt or as the command of a container; continued lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line, comments=True) for line in "".join(blocks).replace("\\\n", " ").splitlines()]
    typed = [words[1:] for words in lines if words[:1] == ["zmesh"]]
    return typed + [
        words[words.index(IMAGE) + 1 :] for words in lines if words[:2] == ["docker", "run"] and IMAGE in words
    ]


def parsed(words: list[str]) -> dict[str, Any]:
    """What zmesh makes of a command line. Fails with the line when it takes no such verb or flag."""
    verb = cli.zmesh.get_command(click.Context(cli.zmesh), words[0])
    assert verb is not None, f"zmesh has no {words[0]}: {shlex.join(words)}"
    try:
        return verb.make_context(words[0], words[1:]).params
    except click.UsageError as error:
        raise AssertionError(f"{error.format_message()} in: zmesh {shlex.join(words)}") from error


def test_zmesh_takes_the_commands_of_the_units():
    for words in commands_of_units():
        parsed(words)


def test_zmesh_takes_the_commands_of_the_compose_file(compose: dict[str, Any]):
    for service in compose["services"].values():
        parsed(service["command"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_zmesh_takes_the_commands_of_the_page(page: Path):
    commands = commands_of(page)
    assert commands, "the page shows no command"
    for words in commands:
        parsed(words)


def test_every_variable_in_the_files_is_read_by_zmesh():
    known = {option.variable for option in OPTIONS} | {"ZMESH_APP"}
    files = [*UNITS, *PAGES, DEPLOY / "Dockerfile", DEPLOY / "compose.yaml"]
    used = {word for file in files for word in re.findall(r"\bZMESH_[A-Z_]*[A-Z]", file.read_text())}
    assert used - known == set()


def test_every_metric_in_the_page_exists():
    named = set(re.findall(r"`zmesh_(\w+)`", (ROOT / "docs" / "operations.md").read_text()))
    assert named
    assert named - {family.name for family in CATALOGUE} == set()


# ── examples/two_hosts ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples_two_hosts", TWO_HOSTS / "app.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hosts_of_the_example_have_every_stage_between_them(compose: dict[str, Any]):
    command = [sys.executable, "-m", "zmesh", "check", "-o", "json", str(TWO_HOSTS / "app.py")]
    plan = Plan.from_json(subprocess.run(command, capture_output=True, text=True, timeout=50, check=True).stdout)
    stages = [re.findall(r"--stage[= ](\S+)", " ".join(service["command"])) for service in compose["services"].values()]
    assert [[stage.name for stage in chosen_stages(plan, names)] for names in stages] == [["Parse"], ["Classify"]]
    assert [stage.name for stage in plan.stages] == ["Parse", "Classify"], "the ports in its README follow this order"


def test_two_hosts_reads_the_samples(app: ModuleType):
    labels: dict[str, int] = json.loads((app.DIGITS / "samples" / "labels.json").read_text())
    parse = app.Parse()
    bodies = [(app.DIGITS / "samples" / name).read_bytes() for name in labels]
    answers = app.Classify().forward([parse.forward(parse.deserialize(body)) for body in bodies])
    right = sum(answer["digit"] == label for answer, label in zip(answers, labels.values(), strict=True))
    assert right >= 0.9 * len(labels)
    assert {(answer["batch_size"], answer["classified_on"]) for answer in answers} == {(len(labels), app.HOST)}


def test_two_hosts_refuses_what_is_no_picture(app: ModuleType):
    parse = app.Parse()
    with pytest.raises(DecodingError):
        parse.forward(b"no picture")
    with pytest.raises(DecodingError):
        parse.forward(app.Parse.example[:-40])


@pytest.mark.parametrize("size", [(8, 2049), (7, 8)])
def test_two_hosts_refuses_sides_out_of_bounds(app: ModuleType, size: tuple[int, int]):
    png = BytesIO()
    Image.new("L", size).save(png, "PNG")
    with pytest.raises(ValidationError):
        app.Parse().forward(png.getvalue())
