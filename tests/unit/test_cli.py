"""What a person sees at a terminal: lines, exit codes, and how soon."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from zmesh import __version__
from zmesh.cli import main, parse_known
from zmesh.config import OPTIONS, Plan
from zmesh.errors import UsageError
from zmesh.loader import current_verb
from zmesh.status import table

APP = """
    import sys
    from zmesh import Server, Worker

    class Double(Worker):
        def forward(self, data):
            return data

    if __name__ == "__main__":
        server = Server()
        server.append_worker(Double, num=2, max_batch_size=16, max_wait_time=5)
        server.append_worker(Double)
"""

HIDDEN = """
    from zmesh import Server, Worker

    if __name__ == "__main__":
        class Hidden(Worker):
            def forward(self, data):
                return data

        server = Server()
        server.append_worker(Hidden)
"""

Write = Callable[[str], str]
Zmesh = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zmesh"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    for name in [name for name in os.environ if name.startswith(("ZMESH_", "MOSEC_"))]:
        monkeypatch.delenv(name)
    yield
    current_verb.become("")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(source: str) -> str:
        (tmp_path / "app.py").write_text(textwrap.dedent(source))
        return "app.py"

    return write_file


@pytest.fixture
def zmesh(capsys: pytest.CaptureFixture[str]) -> Zmesh:
    """Runs a command line in this process: exit code, stdout, stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main(args)
        said = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return exit.value.code, said.out, said.err

    return run


def in_a_process(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **variables}
    return subprocess.run([sys.executable, *args], check=False, capture_output=True, text=True, env=env)


# ── the front door ────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_shows_the_verbs_of_today(zmesh: Zmesh):
    code, out, _ = zmesh("--help")
    assert code == 0
    verbs = ("run", "worker", "broker", "gateway", "check", "status", "drain", "bench", "version")
    assert [verb for verb in verbs if f"\n  {verb} " not in out] == []


def test_no_verb_is_a_usage_error_that_shows_the_help(zmesh: Zmesh):
    code, out, err = zmesh()
    assert (code, out) == (2, "")
    assert "Usage: zmesh" in err


@pytest.mark.parametrize("args", [["version"], ["--version"]])
def test_the_version_is_said(zmesh: Zmesh, args: Sequence[str]):
    assert zmesh(*args) == (0, f"zmesh {__version__}\n", "")


@pytest.mark.parametrize("verb", ["run", "worker", "broker", "gateway"])
def test_the_help_of_a_verb_has_its_options_of_the_table_and_no_others(zmesh: Zmesh, verb: str):
    _, out, _ = zmesh(verb, "--help")
    words = out.replace("]", " ").replace("[", " ").replace(",", " ").split()
    for option in OPTIONS:
        assert (option.flag in words) == (option.variable in words) == (verb in option.verbs), option.flag


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run", "app.py", "--prot", "1"], "zmesh: there is no option --prot; did you mean --port? options of the"),
        (["run", "app.py", "--port", "x"], "zmesh: invalid value for '--port': 'x' is not a valid integer; see"),
        (["run", "app.py", "other.py"], "zmesh: got unexpected extra argument (other.py); see zmesh run --help"),
        (["run", "app.py", "--log-level", "loud"], "zmesh: invalid value for '--log-level': 'loud' is not one of"),
        (["worker", "a.py", "--gateways", "2"], "zmesh: --gateways is an option of zmesh run and zmesh gateway; see"),
        (["frob"], "zmesh: there is no command frob; see zmesh --help"),
        (["chek"], "zmesh: there is no command chek; did you mean check?"),
        (["app.py"], "zmesh: there is no command app.py; to serve a file: zmesh run app.py"),
        (["run"], "zmesh: which app? name its file (zmesh run app.py), set ZMESH_APP, or stand where an app.py is"),
        (["status", "file:///etc"], "zmesh: file:///etc is not the address of a zmesh gateway"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_exit_code_2(zmesh: Zmesh, args: Sequence[str], said: str):
    code, out, err = zmesh(*args)
    assert (code, out) == (2, "")
    assert err.startswith(said) and err.count("\n") == 1


# ── app files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_check_shows_the_plan_of_a_file_that_only_declares(zmesh: Zmesh, write: Write):
    code, out, err = zmesh("check", write(APP))
    assert (code, err) == (0, "")
    assert out == textwrap.dedent("""\
        STAGE     WORKERS  BATCH  WAIT  CLASS
        Double          2     16  5 ms  Double
        Double_2        1      1  -     Double

        ROUTE       STAGES             ANSWERS
        /inference  Double → Double_2  application/json
        """)


def test_check_gives_the_plan_as_json_to_programs(zmesh: Zmesh, write: Write):
    code, out, _ = zmesh("check", write(APP), "-o", "json", "--wait", "7")
    assert code == 0
    assert [stage.max_wait_ms for stage in Plan.from_json(out).stages] == [5.0, 7.0]


def test_run_inside_the_main_block_is_not_run_again(zmesh: Zmesh, write: Write):
    code, out, _ = zmesh("check", write(APP + "        server.run()\n        print('after', sys.argv[1:])"), "--", "-x")
    assert code == 0
    assert out.count("CLASS") == 1 and out.endswith("after ['-x']\n")


def test_the_app_is_found_where_one_stands_and_by_its_variable(
    zmesh: Zmesh, write: Write, monkeypatch: pytest.MonkeyPatch
):
    write(APP)
    assert zmesh("check")[0] == 0
    monkeypatch.setenv("ZMESH_APP", "other.py")
    assert zmesh("check") == (1, "", "zmesh: there is no file other.py; name the Python file that makes the Server\n")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "zmesh: app.py made no Server that zmesh could run"),
        ("from zmesh import Server\na, b = Server(), Server()", "zmesh: app.py made more than one Server (a, b)"),
        ("from zmesh import Server\nServer().run()", "zmesh: no worker is registered"),
        ("from zmesh import Server\nServer(prot=1)", "zmesh: app.py, line 2: Server() has no keyword 'prot'"),
        (APP + "        server.append_worker(Double, num=0)", "zmesh: app.py, line 13: Double: num must be at least 1"),
        (HIDDEN, "zmesh: class Hidden is made inside the main block of app.py, which workers do not run; move it to"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line_and_exit_code_1(zmesh: Zmesh, write: Write, source: str, said: str):
    code, out, err = zmesh("check", write(source))
    assert (code, out) == (1, "")
    assert err.startswith(said) and err.count("\n") == 1


def test_an_error_of_the_users_own_shows_their_traceback_and_then_the_line(zmesh: Zmesh, write: Write):
    code, _, err = zmesh("run", write("def load():\n    open('weights.bin')\nload()\n"))
    assert code == 1
    assert err.splitlines()[0] == "Traceback (most recent call last):"
    assert err.splitlines()[-1] == (
        "zmesh: app.py does not import: FileNotFoundError: [Errno 2] No such file or directory: 'weights.bin' (line 2)"
    )
    assert "loader.py" not in err and "click" not in err


def test_a_setting_out_of_range_is_a_usage_error(zmesh: Zmesh, write: Write, monkeypatch: pytest.MonkeyPatch):
    assert zmesh("check", write(APP), "--port", "99999") == (2, "", "zmesh: port must be at most 65535, not 99999\n")
    monkeypatch.setenv("ZMESH_TIMEOUT", "soon")
    assert zmesh("check", write(APP)) == (2, "", "zmesh: ZMESH_TIMEOUT must be a whole number, not 'soon'\n")


def test_an_exit_code_of_the_file_is_kept(zmesh: Zmesh, write: Write):
    assert zmesh("check", write("raise SystemExit(7)"))[0] == 7


def test_ctrl_c_while_the_file_is_read_is_quiet(zmesh: Zmesh, write: Write):
    code, out, err = zmesh("check", write("raise KeyboardInterrupt"))
    assert (code, out, err.strip()) == (130, "", "")


def test_python_m_zmesh_runs_the_file_as_main(write: Write):
    write(APP + "        print(sys.modules['__main__'].__file__)")
    done = in_a_process("-m", "zmesh", "check", "app.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith("/app.py")


def test_python_with_assertions_off_is_refused(write: Write):
    done = in_a_process("-m", "zmesh", "check", write(APP), PYTHONOPTIMIZE="1")
    assert (done.returncode, done.stderr) == (
        1,
        "zmesh: python -O takes out the checks that zmesh relies on; leave -O out, or unset PYTHONOPTIMIZE\n",
    )


def test_python_app_py_shows_our_help(write: Write):
    done = in_a_process(write(APP + "        server.run()"), "--help")
    assert done.returncode == 0
    assert "Usage: app.py [OPTIONS]" in done.stdout and "--drain-timeout" in done.stdout


def test_the_arguments_of_python_app_py_are_ours_or_the_files():
    given, left = parse_known(
        ["--lr=3", "--port", "1", "in.txt", "--stage", "A", "--stage", "B:2", "--", "--port"], "a"
    )
    assert given == {"port": 1, "stage": ("A", "B:2")}
    assert left == ("--lr=3", "in.txt", "--port")
    with pytest.raises(UsageError, match=r"^option '--timeout' requires an argument$"):
        parse_known(["--timeout"], "a")


@pytest.mark.parametrize(
    ("typed", "meant"), [("--prot", "--port"), ("--time-out=5", "--timeout"), ("--stge", "--stage")]
)
def test_what_looks_like_a_slip_in_an_option_of_ours_is_not_left_to_the_file(typed: str, meant: str):
    name = typed.partition("=")[0]
    with pytest.raises(UsageError, match=rf"^there is no option {name}; did you mean {meant}\? options of the file"):
        parse_known(["--model", "big", typed, "9"], "a")
    assert parse_known(["--", typed], "a") == ({}, (typed,))


def test_an_option_of_another_verb_is_not_left_to_the_file():
    with pytest.raises(
        UsageError, match=r"^--connect is an option of zmesh worker and zmesh gateway; see zmesh --help$"
    ):
        parse_known(["--connect", "tcp://127.0.0.1:5555"], "a")


# ── status ────────────────────────────────────────────────────────────────────────────────────────────────────────

SNAPSHOT: dict[str, Any] = {
    "draining": True,
    "stages": [
        {
            "name": "Double",
            "ready_workers": 1,
            "queued": 12,
            "queued_bytes": 3400,
            "suspects": 0,
            "leased": 5,
            "workers": [
                {"worker_id": 1, "host": "a\x1b[2J", "pid": 7, "state": "ready", "leases": 1, "batches": 9, "tasks": 99}
            ],
        },
        {"name": "Empty"},
    ],
    "routes": [{"path": "/inference", "stages": ["Double", "Empty"], "ready": False}],
    "gateways": [{"number": 2, "pid": 8, "requests": 3, "connections": 4}],
}


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], str]]:
    """A server that says one thing to everybody; gives its address."""
    servers = []

    def answer(status: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/mesh" else 404)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"127.0.0.1:{server.server_port}"

    yield answer
    for server in servers:
        server.shutdown()
        server.server_close()


def test_status_is_a_table_of_stages_workers_and_routes(zmesh: Zmesh, answering: Callable[[int, bytes], str]):
    code, out, err = zmesh("status", answering(200, json.dumps(SNAPSHOT).encode()) + "/")
    assert (code, err) == (0, "")
    assert out == textwrap.dedent("""\
        draining

        STAGE   READY  QUEUED  BYTES  SUSPECTS  LEASED
        Double  1      12      3400   0         5
        Empty   -      -       -      -         -

        STAGE   WORKER  HOST   PID  STATE  LEASES  BATCHES  TASKS
        Double       1  a?[2J    7  ready       1        9     99

        ROUTE       STAGES          READY
        /inference  Double → Empty  no

        GATEWAY  PID  REQUESTS  CONNECTIONS
              2    8         3            4
        """)


def test_status_shows_the_end_of_the_traceback_of_a_failing_stage(zmesh: Zmesh, answering: Callable[[int, bytes], str]):
    lines = [f"line {number}" for number in range(14)]
    failing = {"name": "Double", "failing": "stage Double does not start: KeyError: 'x'", "traceback": "\n".join(lines)}
    plain = {"name": "Plain", "failing": "stage Plain does not start: SIG\x1bKILL", "traceback": "SIGKILL"}
    snapshot = {"stages": [failing, plain, {"name": "Well", "failing": None, "traceback": ""}]}
    code, out, _ = zmesh("status", answering(200, json.dumps(snapshot).encode()))
    assert code == 0
    _, _, told = out.partition("ROUTE  STAGES  READY\n\n")
    shown = ["… 2 lines more with -o json", *lines[2:]]
    expected = [failing["failing"], *(f"  {line}" for line in shown), "", "stage Plain does not start: SIG?KILL", ""]
    assert told == "\n".join(expected)


def test_status_as_json_is_what_the_mesh_said(zmesh: Zmesh, answering: Callable[[int, bytes], str]):
    code, out, _ = zmesh("status", "http://" + answering(200, json.dumps(SNAPSHOT).encode()), "-o", "json")
    assert code == 0 and json.loads(out) == SNAPSHOT


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"", "/mesh answered 404 Not Found"),
        (200, b"<html>", "is not the address of a zmesh gateway"),
        (200, b"[]", "is not the address of a zmesh gateway"),
        (200, b"{}", "is not the address of a zmesh gateway"),
        (200, b"\xff", "is not the address of a zmesh gateway"),
    ],
)
def test_status_of_somebody_else_is_one_line(
    zmesh: Zmesh, answering: Callable[[int, bytes], str], status: int, body: bytes, said: str
):
    code, out, err = zmesh("status", answering(status, body))
    assert (code, out) == (1, "")
    assert said in err and err.count("\n") == 1


def test_status_of_nobody_is_one_line(zmesh: Zmesh):
    code, _, err = zmesh("status", "127.0.0.1:1")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(
        "zmesh: nobody answers at http://127.0.0.1:1: Connection refused; start a mesh with zmesh run"
    )


def test_an_empty_table_is_its_head():
    assert table(("A", "LONG"), []) == "A  LONG"
    assert table(("A", "LONG"), [("word", 5), ("", True)]) == "A     LONG\nword  5\n-     yes"


def test_help_comes_soon_because_little_is_imported(write: Write):
    done = in_a_process("-X", "importtime", "-m", "zmesh", "--help")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {
        "zmq",
        "fastapi",
        "uvicorn",
        "uvloop",
        "asyncio",
        "httptools",
        "msgpack",
        "numpy",
        "prometheus_client",
        "urllib.request",
    }
    assert "click" in imported and not imported & heavy
    assert not imported & {"zmesh.server", "zmesh.loader", "zmesh.stage", "zmesh.worker", "zmesh.bench"}
