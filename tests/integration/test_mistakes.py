"""The tables of docs/behaviour.md, "Mistakes and what zmesh says": every row typed or sent as it stands there, and what
is said compared with what the row says. A row that nobody can run fails; so does an app file that no row names.
"""

from __future__ import annotations

import http.client
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, TEXT, Answer, RunningMesh, exchange, free_port, running, wait_until

DOCUMENT = REPOSITORY / "docs" / "behaviour.md"
APPS = Path(__file__).parent / "apps" / "mistakes"
TYPED, IN_FILE, STARTING, IN_A_DRY_RUN, OVER_HTTP, IN_A_WORKER = (
    "On the command line",
    "In the app file",
    "When it starts",
    "In a dry run",
    "Over HTTP",
    "And what a worker does wrong",
)
TABLES = (TYPED, IN_FILE, STARTING, IN_A_DRY_RUN, OVER_HTTP, IN_A_WORKER)
SECONDS_MAX = 20.0  # no mistake takes longer to end, on a busy machine
BODY_BYTES_MAX = 100_000  # of the mesh that is asked over HTTP


# ── the document ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Row:
    """One line of a table: its cells by the heads of their columns."""

    table: str
    cells: tuple[tuple[str, str], ...]

    def __getitem__(self, column: str) -> str:
        return dict(self.cells)[column]

    @property
    def mistake(self) -> str:
        return self.cells[0][1]

    def code(self, column: str) -> str:
        """What stands in the cell between backticks."""
        (text,) = re.findall(r"`([^`]+)`", self[column])
        return str(text)

    def file(self) -> str:
        """The app file that the row names; empty when it has a line instead."""
        named = re.search(r"\]\(\.\./tests/integration/apps/mistakes/([\w.]+)\)", self["in the file"])
        return named[1] if named else ""


@cache
def rows() -> tuple[Row, ...]:
    """All tables of the section. A table is called by the heading above it, or by how the sentence above it begins."""
    _, _, section = DOCUMENT.read_text().partition("\n## Mistakes and what zmesh says\n")
    found: list[Row] = []
    table, heads = "", []
    for line in section.split("\n## ")[0].splitlines():
        if line.startswith("### "):
            table = line.removeprefix("### ")
        elif line.startswith(IN_A_WORKER):
            table = IN_A_WORKER
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells_of(line)
        elif not set(line) <= set("|- "):
            found.append(Row(table, tuple(zip(heads, cells_of(line), strict=True))))
    return tuple(found)


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def rows_of(table: str) -> list[Row]:
    return [row for row in rows() if row.table == table]


def each(table: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows_of(table), ids=lambda row: row.mistake)


def says(expected: str, said: str) -> bool:
    """Whether it is what the document says, where `…` is any text and N a number."""
    pattern = re.sub(r"(?<![\w-])N(?![\w-])", r"\\d+", re.escape(expected).replace("…", ".+"))
    return re.fullmatch(pattern, said) is not None


def test_the_document_has_its_tables_and_no_mistake_twice():
    sizes = {table: len(rows_of(table)) for table in TABLES}
    assert sum(sizes.values()) == len(rows()) and min(sizes.values()) >= 7, sizes
    for table in sizes:
        mistakes = [row.mistake for row in rows_of(table)]
        assert sorted(mistakes) == sorted(set(mistakes))


def test_every_app_file_is_in_the_document():
    named = {row.file() for row in rows() if row.table in (IN_FILE, STARTING, IN_A_DRY_RUN)} - {""}
    there = {path.name for path in APPS.iterdir() if path.is_file()}
    assert there == named | {"helper.py", "served.py", "unpickles.py"}


def test_every_row_about_http_has_a_way_to_send_it():
    assert {row.mistake for row in rows_of(OVER_HTTP)} == set(SENDERS)
    assert {row.mistake for row in rows_of(IN_A_WORKER)} == set(ROUTES)


@pytest.fixture(scope="module", autouse=True)
def begun(served: Served) -> None:
    """From the first test of this file on the slow ones are slow, so that nobody has to wait for them at its end."""


# ── a terminal ────────────────────────────────────────────────────────────────────────────────────────────────────

APP = """\
from zmesh import Server, Stage, Worker


class Parse(Worker):
    def forward(self, data):
        return data


server = Server()
{line}

if __name__ == "__main__":
    server.run()
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass
class Terminal:
    """A folder to type in, with `zmesh` and `python` on the path, and a directory of its own for sockets."""

    folder: Path
    sockets: Path
    env: dict[str, str]

    def type(self, line: str, **variables: str) -> Ended:
        """What a shell does with it. Nothing that it started may be there afterwards, and no socket."""
        mark = f"ZMESH_TEST_MARK={uuid.uuid4().hex}"
        env = {**self.env, **variables, **dict([mark.split("=")])}
        process = subprocess.Popen(
            ["bash", "-c", line],
            cwd=self.folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"{line} did not end within {SECONDS_MAX:g} s and had said:\n{out}{err}")
        wait_until(lambda: not processes_with(mark), 5, "all that was started to end")
        left = [path for directory in self.sockets.glob("zmesh-*") for path in directory.iterdir()]
        assert left == [], "a directory of sockets is left"
        return Ended(process.returncode, out, err)


def processes_with(mark: str) -> list[int]:
    """The processes that have `mark` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # it has just ended, or belongs to somebody else
    return found


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    home = Path(tempfile.mkdtemp(prefix="zm-"))  # not tmp_path: names of ipc sockets are short
    folder, commands, sockets = home / "here", home / "bin", home / "tmp"
    for directory in (folder, folder / "empty", commands, sockets):
        directory.mkdir()
    (commands / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (commands / "zmesh").write_text(f"#!{sys.executable}\nfrom zmesh.cli import main\n\nmain()\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZMESH_", "MOSEC_", "PYTEST_"))}
    kept.update(
        PATH=f"{commands}:{os.environ['PATH']}",
        PYTHONPATH=f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}",
        TMPDIR=str(sockets),
        ZMESH_PORT="0",
        **TEXT,
    )
    try:
        yield Terminal(folder, sockets, kept)
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, str]]:
    """What the document means by $TAKEN, $OTHER, $FREE and $LONG."""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None: ...

    with ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stranger = stack.enter_context(HTTPServer(("127.0.0.1", 0), Stranger))
        threading.Thread(target=stranger.serve_forever, args=(0.01,), daemon=True).start()
        stack.callback(stranger.shutdown)
        yield {
            "TAKEN": str(taken.getsockname()[1]),
            "OTHER": str(stranger.server_port),
            "FREE": str(free_port()),
            "LONG": "l" * 150,
        }


def check_said(row: Row, expected: str, err: str) -> None:
    """One line; below a traceback with nothing of ours in it where the row says so."""
    *before, last = err.splitlines() or [""]
    assert says(expected, last), f"{last!r} is not {expected!r}; all of it:\n{err}"
    if row["said"].startswith("`"):
        assert before == [], err
    else:
        assert any(line.startswith('  File "') for line in before), err
        assert_only_theirs("\n".join(before))


def assert_only_theirs(told: str) -> None:
    """A traceback without a frame of ours, of the import machinery, or of what we call."""
    frames = re.findall(r'File "([^"]+)", line', told)
    assert frames, told
    ours = (str(REPOSITORY / "zmesh") + os.sep, "<frozen", str(Path(os.__file__).parent))
    assert [frame for frame in frames if frame.startswith(ours)] == [], told


# ── what is typed ─────────────────────────────────────────────────────────────────────────────────────────────────


@each(TYPED)
def test_what_is_typed(row: Row, terminal: Terminal, ports: dict[str, str]):
    (terminal.folder / "app.py").write_text(APP.format(line="server.append_worker(Parse)"))
    shutil.copy(APPS / "unpickles.py", terminal.folder)
    ended = terminal.type(row.code("typed"), **ports)
    assert (ended.code, ended.out) == (int(row["code"]), ""), ended.err
    check_said(row, row.code("said"), ended.err)


# ── what stands in the app file ───────────────────────────────────────────────────────────────────────────────────


def put_app(row: Row, terminal: Terminal) -> str:
    """Writes the row's app file; its name."""
    name = row.file()
    if not name:
        (terminal.folder / "app.py").write_text(APP.format(line=row.code("in the file")))
        return "app.py"
    shutil.copy(APPS / "helper.py", terminal.folder)
    copied = "zmesh.py" if name == "zmesh.py" else "app.py"
    shutil.copy(APPS / name, terminal.folder / copied)
    return copied


@pytest.mark.parametrize("verb", ["run", "check"])
@each(IN_FILE)
def test_what_stands_in_the_file(row: Row, verb: str, terminal: Terminal):
    ended = terminal.type(f"zmesh {verb} {put_app(row, terminal)}")
    assert (ended.code, ended.out) == (1, ""), ended.err
    check_said(row, row.code("said"), ended.err)


@each(IN_FILE)
def test_what_stands_in_the_file_by_hand(row: Row, terminal: Terminal):
    ended = terminal.type(f"python {put_app(row, terminal)}")
    assert ended.out == ""
    differs = row["`python app.py`"]
    if not differs:
        assert ended.code == 1, ended.err
        check_said(row, row.code("said"), ended.err)
    elif differs == "code 1, Python's own":
        assert ended.code == 1
        assert 'File "' in ended.err and "\nzmesh: " not in ended.err
    elif differs == "code 0, nothing":
        assert (ended.code, ended.err) == (0, "")
    else:
        assert differs.startswith("code 0: ")
        assert ended.code == 0 and ended.err.count("\n") == 1
        assert says(row.code("`python app.py`"), ended.err.strip()), ended.err


# ── what does not start ───────────────────────────────────────────────────────────────────────────────────────────

LOGGED = re.compile(r"\d{4}-\d\d-\d\dT\S+Z (WARNING|ERROR) (agent|gateway) .*\n")
# Of a worker, when three starts of a gateway take a busy machine that long: nothing that the mistake is about.
SLOW = re.compile(r"\d{4}-\d\d-\d\dT\S+Z WARNING worker \S+ no word from the broker for \d+ s\n")


@pytest.mark.parametrize("command", ["zmesh run", "python"])
@each(STARTING)
def test_what_does_not_start(row: Row, command: str, terminal: Terminal):
    ended = terminal.type(f"{command} {put_app(row, terminal)}")
    assert (ended.code, ended.out) == (int(row["code"]), ""), ended.err
    ends = [match.group() for match in LOGGED.finditer(ended.err) if match[2] == "agent"]
    assert ["started again" in line for line in ends] == [True, True, False], ended.err  # there is no fourth try
    check_said(row, row.code("said"), LOGGED.sub("", SLOW.sub("", ended.err)))


@each(IN_A_DRY_RUN)
def test_what_a_dry_run_finds(row: Row, terminal: Terminal):
    ended = terminal.type(f"zmesh check --run {put_app(row, terminal)}")
    assert (ended.code, ended.out) == (int(row["code"]), ""), ended.err
    check_said(row, row.code("said"), ended.err)


def test_a_refusal_that_is_caught_changes_nothing(terminal: Terminal):
    """It says nothing, and another error is told as ever."""
    line = (
        "try:\n    server.append_worker(Parse, num=0)\nexcept ValueError as error:\n    print('caught', error)\n1 / 0"
    )
    (terminal.folder / "app.py").write_text(APP.format(line=line))
    ended = terminal.type("python app.py")
    assert (ended.code, ended.out) == (1, "caught Parse: num must be at least 1, not 0\n")
    assert ended.err.startswith("Traceback") and ended.err.endswith("ZeroDivisionError: division by zero\n")


def test_a_hook_of_the_users_own_is_kept(terminal: Terminal):
    line = "import sys\nsys.excepthook = lambda *error: print('mine', error[1])\nserver.append_worker(Parse, num=0)"
    (terminal.folder / "app.py").write_text(APP.format(line=line))
    ended = terminal.type("python app.py")
    assert (ended.code, ended.out, ended.err) == (1, "mine Parse: num must be at least 1, not 0\n", "")


# ── what is sent ──────────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    """A connection on which one may write anything."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX)
        self.was_reset = False

    def send(self, data: bytes) -> None:
        """As far as the other side takes it: it may have refused already."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.was_reset = True

    def answer(self) -> Answer | None:
        """The next one; None when the connection ends without."""
        response = http.client.HTTPResponse(self.socket, method="POST")
        try:
            response.begin()
        except (http.client.RemoteDisconnected, ConnectionResetError):
            return None
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, response.read(), named, 0.0)

    def is_open(self) -> bool:
        self.send(GOOD)
        answer = self.answer()
        return answer is not None and (answer.status, answer.body) == (200, b'{"x":1}')

    def is_closed(self) -> bool:
        """By an orderly end: a reset could have cost the answer."""
        return not self.was_reset and self.socket.recv(1) == b""


Send = Callable[[Client], "Answer | None"]


def raw(*pieces: bytes) -> Send:
    def send(client: Client) -> Answer | None:
        for piece in pieces:
            client.send(piece)
        return client.answer()

    return send


def request(body: bytes = b'{"x": 1}', *headers: str, path: str = "/inference", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: here", *headers]
    if not any(line.startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


GOOD = request()
TOO_MUCH = b"x" * 8 * 1024 * 1024  # more than the buffers of a connection hold
IN_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(TOO_MUCH), TOO_MUCH)
CHUNKED = "transfer-encoding: chunked"
EXPECTS = "expect: 100-continue"


def with_time(text: str) -> Send:
    return raw(request(b'{"x": 1}', f"x-request-timeout: {text}"))


def then_the_end(data: bytes) -> Send:
    def send(client: Client) -> Answer | None:
        client.send(data)
        client.socket.shutdown(socket.SHUT_WR)
        return client.answer()

    return send


def then_a_reset(client: Client) -> None:
    client.send(request(b"{", "content-length: 100"))
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()


def expecting_chunks(client: Client) -> Answer | None:
    client.send(request(b"", EXPECTS, CHUNKED))
    go_on = b""
    while not go_on.endswith(b"\r\n\r\n"):
        go_on += client.socket.recv(1)
    assert go_on.startswith(b"HTTP/1.1 100 "), go_on
    client.send(IN_CHUNKS)
    return client.answer()


def leaving(client: Client) -> None:
    client.send(request(b'{"seconds": 1}', path="/slow"))
    client.socket.close()


SLOW_BODY, SLOW_HEADERS = "a body slower than 30 s", "headers slower than 10 s"
SENDERS: dict[str, Send] = {
    "a path that is no route": raw(request(path="/nowhere")),
    "a route with a slash too many": raw(request(path="/inference/")),
    "a route in another spelling (`/%69nference`)": raw(request(path="/%69nference")),
    "GET on a route": raw(request(b"", method="GET")),
    "an empty body": raw(request(b"")),
    "a body that is not JSON": raw(request(b"{x}")),
    "a body that is not UTF-8": raw(request(b'{"x": "\xff"}')),
    "a body nested too deeply": raw(request(b"[" * 50_000 + b"]" * 50_000)),
    "a body over the limit, by its `content-length`": raw(request(TOO_MUCH)),
    "a body over the limit, in chunks": raw(request(IN_CHUNKS, CHUNKED)),
    "a body over the limit, announced with `expect: 100-continue`": raw(
        request(b"", EXPECTS, f"content-length: {len(TOO_MUCH)}")
    ),
    "the same, and the body is sent at once": raw(request(TOO_MUCH, EXPECTS)),
    "chunks over the limit, with `expect: 100-continue`": expecting_chunks,
    "a body shorter than its `content-length`, then the end": then_the_end(request(b'{"x": 1}', "content-length: 100")),
    "chunks without their end, then the end": then_the_end(request(b'8\r\n{"x": 1}\r\n', CHUNKED)),
    "a body broken off by a reset": then_a_reset,
    SLOW_BODY: raw(request(b"{", "content-length: 100")),
    SLOW_HEADERS: raw(GOOD[:40]),
    "headers over 64 KiB": raw(request(b"", *(f"x-{number}: {'h' * 1000}" for number in range(100)))),
    "chunks that are none": raw(request(b"chunk\r\n", CHUNKED)),
    "a `content-length` that is no number": raw(request(b"{}", "content-length: two")),
    "two `content-length` that differ": raw(request(b"{}", "content-length: 2", "content-length: 3")),
    "a `content-length` beside `transfer-encoding: chunked`": raw(request(b"{}", "content-length: 2", CHUNKED)),
    "two `host` headers": raw(request(b'{"x": 1}', "host: there")),
    "a first line that is no request": raw(request(b'{"x": 1}', method="P ST")),
    "a header without a name or a colon": raw(request(b'{"x": 1}', "colonless")),
    "bytes that are not HTTP": raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "`x-request-timeout: soon`": with_time("soon"),
    "`x-request-timeout: 0`": with_time("0"),
    "`x-request-timeout: -1`": with_time("-1"),
    "`x-request-timeout: nan`": with_time("nan"),
    "`x-request-timeout: 1_0`": with_time("1_0"),
    "a client that leaves while it waits": leaving,
}


@dataclass
class Served:
    """A mesh, a client that uses it all the time, and what has been sent slowly since it runs."""

    mesh: RunningMesh
    neighbour: http.client.HTTPConnection
    slow: dict[str, Client]

    def being_read(self) -> int:
        """Requests whose body is still slow: neither refused nor given up."""
        client = self.slow[SLOW_BODY].socket
        return int(client.fileno() >= 0 and not select.select([client], [], [], 0)[0])

    def check_neighbour(self) -> None:
        answer = exchange(self.neighbour, "POST", "/inference", b'{"x":1}')
        assert (answer.status, answer.body) == (200, b'{"x":1}')
        assert self.neighbour.sock is not None, "its connection was closed"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running(APPS / "served.py", "--max-request-size", str(BODY_BYTES_MAX), "--timeout", "5000") as mesh:
        slow = {}
        for name, start in {SLOW_BODY: request(b"{", "content-length: 100"), SLOW_HEADERS: GOOD[:40]}.items():
            slow[name] = Client(mesh.port)
            slow[name].socket.settimeout(40)
            slow[name].send(start)
        neighbour = http.client.HTTPConnection("127.0.0.1", mesh.port, timeout=SECONDS_MAX)
        yield Served(mesh, neighbour, slow)
        for connection in (neighbour, *(client.socket for client in slow.values())):
            connection.close()
        assert mesh.stop() == 0, mesh.log()


def in_flight(mesh: RunningMesh) -> tuple[int, int]:
    """Requests being read or waiting, and tasks queued or leased."""
    now = mesh.mesh()
    return now["gateway"]["requests"], sum(stage["queued"] + stage["leased"] for stage in now["stages"])


# ── what a worker does ────────────────────────────────────────────────────────────────────────────────────────────

ROUTES: dict[str, str] = {
    "`forward` raises": "/raises",
    "`forward` returns too few results": "/short",
    "`forward` returns no list": "/no-list",
    "a result that JSON has not": "/not-json",
    "`serialize` returns text": "/text",
    "`deserialize` raises what is no `DecodingError`": "/picky",
    "`forward` is slower than `--timeout`": "/slow",
    "the process ends in `forward`, twice": "/dies",
}


def from_line(mesh: RunningMesh, expected: str) -> list[str]:
    """The log from the line on that says so; empty when there is none yet."""
    lines = mesh.log().splitlines()
    said = [re.sub(r"^\S+Z [A-Z]+ \S+( \S+/\d+)? (?=request|\S+ ended)", "", line) for line in lines]
    return next((lines[number:] for number, line in enumerate(said) if says(expected, line)), [])


@each(IN_A_WORKER)
def test_what_a_worker_does(row: Row, served: Served):
    route = ROUTES[row.mistake]
    identity = f"id-{uuid.uuid4().hex}"
    headers = {"x-request-id": identity, "x-request-timeout": "0.5" if route == "/slow" else "20"}
    answer = served.mesh.post(route, b'{"seconds": 1}', headers)
    served.check_neighbour()
    assert answer.status == int(row["status"])
    assert says(row.code("answer"), answer.body.decode()), answer.body
    if row["log"] == "nothing":
        assert identity not in served.mesh.log()
        return
    expected = row.code("log").replace("request …", f"request {identity}")
    wait_until(lambda: from_line(served.mesh, expected), 5, f"{expected!r} in the log")
    told = re.split(r"\n(?=\d{4}-\d\d-\d\dT)", "\n".join(from_line(served.mesh, expected)))[0]
    if row["log"].endswith("your traceback"):
        assert_only_theirs(told)
    else:
        assert told.count("\n") == 0, told


# ── the answers, the slow ones last ───────────────────────────────────────────────────────────────────────────────────


@each(OVER_HTTP)
def test_what_is_sent(row: Row, served: Served):
    served.check_neighbour()
    before = served.mesh.log().count("Traceback")
    is_slow = row.mistake in served.slow
    client = served.slow[row.mistake] if is_slow else Client(served.mesh.port)
    answer = client.answer() if is_slow else SENDERS[row.mistake](client)
    served.check_neighbour()
    if row["status"] == "none":
        assert answer is None
    else:
        assert answer is not None, "the connection ended without an answer"
        assert answer.status == int(row["status"])
        assert says(row.code("answer"), answer.body.decode()), answer.body
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["server"].startswith("zmesh/") and answer.headers["x-request-id"]
    if client.socket.fileno() >= 0:
        assert client.is_closed() if row["connection"] == "closed" else client.is_open()
        client.socket.close()
    wait_until(lambda: in_flight(served.mesh) == (served.being_read(), 0), 10, "nothing to be left of it")
    assert served.mesh.log().count("Traceback") == before, served.mesh.log()[-3000:]
