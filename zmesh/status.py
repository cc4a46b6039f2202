"""What `zmesh status` shows: the snapshot of a mesh, fetched from its gateway, as tables for a person."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from typing import Any

from zmesh.config import STATUS_URL
from zmesh.errors import StartError, UsageError

__all__ = ["fetch", "status_text", "table"]

STATUS_SECONDS = 5.0
STATUS_BYTES_MAX = 64 * 1024 * 1024
TRACEBACK_LINES_MAX = 12  # of a failing stage; `-o json` has all of it


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns, numbers to the right. Nothing in it can move the cursor of a terminal."""
    lines = [list(head), *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    numeric = [all(line[column].isdecimal() for line in lines[1:]) and len(lines) > 1 for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _printable(cell: object) -> str:
    text = ("no", "yes")[cell] if isinstance(cell, bool) else str(cell)
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "-"


def fetch(url: str) -> tuple[str, dict[str, Any]]:
    """The snapshot of a mesh. Raises StartError when nobody is there, or not a gateway."""
    base = (url if "://" in url else f"http://{url}").rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"{url} is not the address of a zmesh gateway; it looks like {STATUS_URL}")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a mesh is near, a proxy is not
    try:
        with direct.open(f"{base}/mesh", timeout=STATUS_SECONDS) as answer:
            text = answer.read(STATUS_BYTES_MAX).decode()
        snapshot = json.loads(text)
    except urllib.error.HTTPError as error:
        error.close()
        text = f"{base}/mesh answered {error.code} {error.reason}; is it the address of a zmesh gateway?"
        raise StartError(text) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        text = f"nobody answers at {base}: {getattr(reason, 'strerror', None) or reason}"
        way_out = "start a mesh with zmesh run app.py, or give its address: zmesh status http://HOST:PORT"
        raise StartError(f"{text}; {way_out}") from error
    except ValueError as error:
        raise StartError(f"{base} is not the address of a zmesh gateway") from error
    if not isinstance(snapshot, dict) or not isinstance(snapshot.get("stages"), list):
        raise StartError(f"{base} is not the address of a zmesh gateway")
    return text, snapshot


STAGE_COLUMNS = ("name", "ready_workers", "queued", "queued_bytes", "suspects", "leased")
WORKER_COLUMNS = ("worker_id", "host", "pid", "state", "leases", "batches", "tasks")


def status_text(snapshot: dict[str, Any]) -> str:
    stages = [stage for stage in snapshot["stages"] if isinstance(stage, dict)]
    workers = [
        (stage.get("name", ""), *(worker.get(column, "") for column in WORKER_COLUMNS))
        for stage in stages
        for worker in stage.get("workers", ())
    ]
    routes = [
        (route.get("path", ""), " → ".join(route.get("stages", ())), route.get("ready", ""))
        for route in snapshot.get("routes", ())
    ]
    parts = [
        table(
            ("STAGE", "READY", "QUEUED", "BYTES", "SUSPECTS", "LEASED"),
            ([stage.get(column, "") for column in STAGE_COLUMNS] for stage in stages),
        ),
        table(("STAGE", "WORKER", "HOST", "PID", "STATE", "LEASES", "BATCHES", "TASKS"), workers),
        table(("ROUTE", "STAGES", "READY"), routes),
    ]
    if gateways := snapshot.get("gateways"):  # of the host that was asked, if it has several
        columns = ("number", "pid", "requests", "connections")
        rows = ([one.get(column, "") for column in columns] for one in gateways)
        parts.append(table(("GATEWAY", "PID", "REQUESTS", "CONNECTIONS"), rows))
    parts += [_failure(stage) for stage in stages if stage.get("failing")]
    return "\n\n".join((["draining"] if snapshot.get("draining") else []) + parts)


def _failure(stage: dict[str, Any]) -> str:
    """Why a stage is failing, and the end of the traceback if there is one."""
    lines = str(stage.get("traceback") or "").strip().splitlines()
    if len(lines) < 2:  # what is said in one line is said already
        lines = []
    left_out = [f"… {len(lines) - TRACEBACK_LINES_MAX} lines more with -o json"]
    shown = left_out * (len(lines) > TRACEBACK_LINES_MAX) + lines[-TRACEBACK_LINES_MAX:]
    return "\n".join([_printable(stage["failing"]), *(f"  {_printable(line)}" for line in shown)])
