"""The examples whose clients speak msgpack, beyond what their READMEs show (test_examples.py runs those)."""

from __future__ import annotations

import subprocess
import sys

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


def test_a_picture_that_is_none_is_refused_by_its_reason() -> None:
    with running(EXAMPLES / "image_msgpack" / "app.py") as mesh:
        sample = (EXAMPLES / "digits" / "samples" / "07_is_9.png").read_bytes()
        for image in (b"", b"\x89PNG\r\n\x1a\n cut short", sample[:100], 7, None):
            refused = mesh.post("/digits", msgpack.packb({"image": image}))
            assert refused.status == 422, image
            assert b": the image is " in refused.body or b": send " in refused.body
        for body in ([], {}, None, "image"):
            assert mesh.post("/digits", msgpack.packb(body)).status == 422, body


def test_arrays_of_any_size_and_nothing_else_are_segmented() -> None:
    with running(EXAMPLES / "large_arrays" / "app.py", "--max-request-size", "67108864", "--timeout", "30000") as mesh:
        client(mesh, "large_arrays", "/segment", "--side", "4000")  # 16 MB in, and from stage to stage, and out
        for image in (dumps([1, 2]), dumps(numpy.zeros((2, 2))), dumps(numpy.zeros((0, 2), "u1")), b"\xc1", 3):
            refused = mesh.post("/segment", msgpack.packb({"image": image}))
            assert refused.status == 422
            assert b": the image " in refused.body or b": send " in refused.body
        one = msgpack.unpackb(mesh.post("/segment", msgpack.packb({"image": dumps(numpy.full((1, 1), 9, "u1"))})).body)
        assert loads(one["mask"]).shape == (1, 1)


def test_compression_pays_for_masks() -> None:
    with running(EXAMPLES / "large_arrays" / "app.py", "--compression") as mesh:
        first, _ = client(mesh, "large_arrays", "/segment", "--compress").splitlines()
        plain, _ = client(mesh, "large_arrays", "/segment").splitlines()
        assert int(first.split()[-2]) < int(plain.split()[-2]) / 100  # of a mask of one disc
