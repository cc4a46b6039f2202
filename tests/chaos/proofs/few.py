"""A mesh of `apps/proofs.py` for a few requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.harness import RunningMesh, running

APP = Path(__file__).parent.parent / "apps" / "proofs.py"


@contextmanager
def lonely(shape: str, *arguments: str, **env: str) -> Iterator[tuple[RunningMesh, Path]]:
    """`zmesh run` of that shape, and the directory where its stages take notes."""
    with TemporaryDirectory(prefix="zmesh-proof-") as name:
        directory = Path(name)
        with running(APP, *arguments, env={"SHAPE": shape, "PROOF_DIR": name, **env}) as mesh:
            yield mesh, directory


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
