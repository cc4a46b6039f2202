"""The examples whose clients speak msgpack: each is started, and asked by its own client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgpack
import numpy

from tests.harness import REPOSITORY, RunningMesh, running
from zmesh.codec import dumps, loads

EXAMPLES = REPOSITORY / "examples"


def client(mesh: RunningMesh, name: str, route: str, *more: str) -> str:
    """What the client of an example prints; it has to be content."""
    command = [sys.executable, str(EXAMPLES / name / "client.py"), "--url", f"{mesh.url}{route}", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_type_validation() -> None:
    with running(EXAMPLES / "type_validation" / "app.py") as mesh:
        said = client(mesh, "type_validation", "/colour")
        assert said in (EXAMPLES / "type_validation" / "README.md").read_text()
        assert mesh.stop() == 0


def test_image_msgpack(tmp_path: Path) -> None:
    with running(EXAMPLES / "image_msgpack" / "app.py") as mesh:
        first, second, third = client(mesh, "image_msgpack", "/digits").splitlines()
        assert first == "40 of 40 samples are read right"
        assert (second[:4], third[:4]) == ("422 ", "400 ")
        sample = EXAMPLES / "digits" / "samples" / "07_is_9.png"
        seen = tmp_path / "seen.png"
        assert client(mesh, "image_msgpack", "/digits", str(sample), "--seen", str(seen)).startswith("07_is_9.png: 9 (")
        assert seen.read_bytes().startswith(b"\x89PNG")
        for image in (b"", b"\x89PNG\r\n\x1a\n cut short", sample.read_bytes()[:100], 7, None):
            assert mesh.post("/digits", msgpack.packb({"image": image})).status == 422, image
        for body in ([], {}, None, "image"):
            assert mesh.post("/digits", msgpack.packb(body)).status == 422, body


def test_large_arrays() -> None:
    with running(EXAMPLES / "large_arrays" / "app.py", "--max-request-size", "67108864", "--timeout", "30000") as mesh:
        assert client(mesh, "large_arrays", "/segment") in (EXAMPLES / "large_arrays" / "README.md").read_text()
        client(mesh, "large_arrays", "/segment", "--side", "4000")  # 16 MB in, and from stage to stage, and out
        for image in (dumps([1, 2]), dumps(numpy.zeros((2, 2))), dumps(numpy.zeros((0, 2), "u1")), b"\xc1", 3):
            refused = mesh.post("/segment", msgpack.packb({"image": image}))
            assert (refused.status, refused.body[:30]) == (
                422,
                b"request validation error: the image"[:30],
            ) or image == 3
        one = msgpack.unpackb(mesh.post("/segment", msgpack.packb({"image": dumps(numpy.full((1, 1), 9, "u1"))})).body)
        assert loads(one["mask"]).shape == (1, 1)


def test_large_arrays_with_compression() -> None:
    with running(EXAMPLES / "large_arrays" / "app.py", "--compression") as mesh:
        first, _ = client(mesh, "large_arrays", "/segment", "--compress").splitlines()
        plain, _ = client(mesh, "large_arrays", "/segment").splitlines()
        assert int(first.split()[-2]) < int(plain.split()[-2]) / 100  # of a mask of one disc
