"""`--compression` in a mesh: what a client sends packed is served, and without zstd it says so."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from tests.harness import RunningMesh, running
from zmesh.codings import known

APP = Path(__file__).parents[2] / "examples" / "echo" / "app.py"
NAMES = [coding.name for coding in known()]
LARGE = {"numbers": list(range(20_000))}


def unpacked(name: str, body: bytes) -> bytes:
    from zmesh.codings import Unpacking

    unpacking = Unpacking(next(coding for coding in known() if coding.name == name))
    whole = unpacking.some(body, 1 << 24)
    unpacking.end()
    return whole


def ask(mesh: RunningMesh, name: str) -> None:
    pack = next(coding.pack for coding in known() if coding.name == name)
    headers = {"content-encoding": name, "accept-encoding": name}
    answer = mesh.post("/inference", pack(json.dumps(LARGE).encode()), headers)
    assert (answer.status, answer.headers["content-encoding"]) == (200, name)
    assert json.loads(unpacked(name, answer.body)) == LARGE
    assert len(answer.body) == int(answer.headers["content-length"]) < 60_000


@pytest.mark.parametrize("lane", ["fast", "asgi"])
def test_bodies_are_packed_both_ways_through_a_mesh(lane: str):
    with running(APP, "--compression", "--lane", lane) as mesh:
        for name in NAMES:
            ask(mesh, name)
        assert mesh.get("/metrics").body.startswith(b"# HELP")
        bomb = gzip.compress(bytes(200 << 20))
        assert mesh.post("/inference", bomb, {"content-encoding": "gzip"}).status == 413
        assert mesh.post("/inference", b"no gzip", {"content-encoding": "gzip"}).status == 400
        assert "--compression speaks gzip only" not in mesh.log() or NAMES == ["gzip"]
        assert mesh.stop() == 0, mesh.log()


def test_without_zstd_there_is_gzip_and_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package of that name which cannot be imported stands in for one that is not installed."""
    for package in ("compression", "backports"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise ImportError('no {package} here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(path for path in sys.path if path)}")
    monkeypatch.setenv("ZMESH_COMPRESSION", "1")
    with running(APP) as mesh:
        ask(mesh, "gzip")
        answer = mesh.post("/inference", b"{}", {"content-encoding": "zstd"})
        assert (answer.status, answer.headers["accept-encoding"]) == (415, "gzip")
        (line,) = [line for line in mesh.log().splitlines() if "zstd" in line]
        assert "--compression speaks gzip only; zstd needs a package: pip install backports.zstd" in line
        assert mesh.stop() == 0, mesh.log()
