"""The meshes that `scripts/chaos` torments: real processes, started as a user would start them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness import REPOSITORY, TEXT, ZMESH, wait_until
from tests.hosts import Program, children, free_ports
from tests.proxy import Proxy

APP = REPOSITORY / "tests" / "integration" / "apps" / "chaos_stages.py"
LAYOUTS = ("run", "isolated", "gateways", "hosts")  # the third has two gateways on one port
FARM = "farm"  # like hosts, with two agents of workers and nothing between them and their broker
ASK_SECONDS = 2.0
HURRY_SECONDS = 0.2  # for the nemesis, who has a schedule to keep
STAGES_MAX = 3


@dataclass(frozen=True, order=True)
class WorkerAt:
    """One worker as `/mesh` shows it."""

    stage: str
    worker_id: int
    pid: int

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.worker_id}"


@dataclass
class TormentedMesh:
    """`programs` are what was started, by name: `head`, or `broker`, `gateway` and `workers`."""

    layout: str
    directory: Path
    port: int
    env: dict[str, str]
    timeout_ms: int
    capacity: int
    programs: dict[str, Program] = field(default_factory=dict)
    proxy: Proxy | None = None
    real: int = 0
    seen: int = 0
    known: list[WorkerAt] = field(default_factory=list)
    before: tuple[str, ...] = ()  # words before every command
    popen: dict[str, Any] = field(default_factory=dict)  # how programs are started, if not as usual

    # ── what runs ─────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, name: str) -> None:
        """Again, if it ran before; its log goes on in the same file."""
        command = self._commands()[name]
        path = self.directory / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [*self.before, *ZMESH, *map(str, command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**TEXT, **os.environ, **self.env},
                **self.popen,
            )
        self.programs[name] = Program(process, path)

    def _commands(self) -> dict[str, list[object]]:
        bind, connect = f"tcp://127.0.0.1:{self.real}", f"tcp://127.0.0.1:{self.seen}"
        times, bounds, door = ["--timeout", self.timeout_ms], ["--capacity", self.capacity], ["--port", self.port]
        match self.layout:
            case "run":
                return {"head": ["run", APP, *door, *times, *bounds]}
            case "isolated":
                return {"head": ["run", APP, "--isolate-broker", *door, *times, *bounds]}
            case "gateways":
                return {"head": ["run", APP, "--gateways", 2, *door, *times, *bounds]}
            case _:
                workers: list[object] = ["worker", APP, "--connect", connect, *times]
                return {
                    "broker": ["broker", APP, "--bind", bind, *times, *bounds],
                    "gateway": ["gateway", APP, "--connect", bind, *door, *times],
                    "workers": workers,
                    **({"others": workers} if self.layout == FARM else {}),
                }

    def agent(self, role: str) -> int:
        """The pid of the agent of the workers, the broker or the gateway."""
        name = {"worker": "workers"}.get(role, role) if self.layout in ("hosts", FARM) else "head"
        return self.programs[name].process.pid

    def child(self, role: str) -> int:
        """The pid of the process that holds the broker, or of a gateway. AssertionError when there is none now."""
        if role == "broker" and self.layout != "run":
            return self._program_of("broker").child("zmesh.serving")
        return self._program_of("gateway").child("gateway")

    def _program_of(self, role: str) -> Program:
        return self.programs[role if self.layout in ("hosts", FARM) else "head"]

    def processes(self) -> list[tuple[str, int]]:
        """Everything that runs now: role and pid."""
        found = []
        for name, program in self.programs.items():
            found.append((f"agent of {name}", program.process.pid))
            try:
                found += [(role_of(pid), pid) for pid in children(program.process.pid)]
            except OSError:
                pass  # it ended a moment ago
        return found

    # ── what it says ──────────────────────────────────────────────────────────────────────────────────────────────

    def ask(self, path: str, seconds: float = ASK_SECONDS) -> tuple[int, bytes]:
        """Raises OSError or HTTPException when nobody answers in time."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def snapshot(self, seconds: float = ASK_SECONDS) -> dict[str, Any]:
        """Raises OSError, HTTPException or ValueError when there is none now."""
        status, body = self.ask("/mesh", seconds)
        if status != 200:
            raise ValueError(f"/mesh answered {status}")
        snapshot = dict(json.loads(body))
        self.known = sorted(
            WorkerAt(stage["name"], worker["worker_id"], worker["pid"])
            for stage in snapshot["stages"]
            for worker in stage["workers"]
            if worker["state"] == "ready"
        )
        return snapshot

    def workers(self) -> list[WorkerAt]:
        """Those that are ready; while nobody says, those that were and still live."""
        try:
            self.snapshot(HURRY_SECONDS)
        except (OSError, http.client.HTTPException, ValueError):
            pass
        return [worker for worker in self.known if is_alive(worker.pid)]

    def wait_ready(self, seconds: float = 40.0) -> None:
        def is_ready() -> bool:
            for name, program in self.programs.items():
                assert program.process.poll() is None, f"{name} ended:\n{program.log()[-4000:]}"
            try:
                return self.ask("/readyz")[0] == 200
            except (OSError, http.client.HTTPException):
                return False

        wait_until(is_ready, seconds, "the mesh to be ready")

    def stop(self) -> dict[str, int]:
        """Exit codes by program, from the outside in."""
        codes = {}
        for name in ("gateway", "head", "workers", "others", "broker"):
            if name in self.programs:
                codes[name] = self.programs[name].stop(seconds=60.0)
        return codes


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def role_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return next(
        (role for word, role in ((b"zmesh.serving", "broker"), (b"gateway", "gateway")) if word in words), "worker"
    )


@contextmanager
def tormented(
    layout: str,
    directory: Path,
    env: dict[str, str],
    timeout_ms: int = 30_000,
    capacity: int = 1024,
    before: tuple[str, ...] = (),
    popen: dict[str, Any] | None = None,
) -> Iterator[TormentedMesh]:
    """A mesh of that layout with its logs in `directory`; nothing is left of it. `before` are words before each
    command, and `popen` is for `subprocess.Popen`."""
    ports = free_ports(4 + 2 * STAGES_MAX)
    env = {**env, "CHAOS_DIR": str(directory)}
    mesh = TormentedMesh(layout, directory, ports, env, timeout_ms, capacity, before=before, popen=popen or {})
    with ExitStack() as held:
        mesh.real = mesh.seen = ports + 1
        if layout == "hosts":
            mesh.seen = ports + 2 + STAGES_MAX
            count = 1 + STAGES_MAX
            real, seen = range(mesh.real, mesh.real + count), range(mesh.seen, mesh.seen + count)
            mesh.proxy = held.enter_context(Proxy(seen, real))
        held.callback(_end, mesh)
        for name in mesh._commands():
            mesh.start(name)
        mesh.wait_ready()
        yield mesh


def _end(mesh: TormentedMesh) -> None:
    for program in mesh.programs.values():
        if program.process.poll() is None:
            program.process.send_signal(signal.SIGCONT)
            program.process.kill()  # its children end with it
            program.process.wait()
