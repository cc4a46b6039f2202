"""What an agent needs of its host: the stages to run, and words for the person at it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zmesh.config import Plan, StagePlan
from zmesh.errors import UsageError

__all__ = [
    "HeavyBatches",
    "Search",
    "announcement",
    "chosen_stages",
    "class_name",
    "curl_data",
    "stage_table",
]

EXAMPLE_CHARACTERS_MAX = 200  # of an example that is shown in the line to try
WAITING_SECONDS = 2.0  # without a word from a broker elsewhere, before we say that we wait for it
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to reach what listens on every interface

log = logging.getLogger("zmesh.agent")


# ── stages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def chosen_stages(plan: Plan, wanted: Sequence[str]) -> list[StagePlan]:
    """The stages to run here: all as planned, or those of `--stage NAME[:N]`, with `num` set. Raises UsageError."""
    if not wanted:
        return list(plan.stages)
    chosen: dict[str, StagePlan] = {}
    for text in wanted:
        name, colon, count = text.rpartition(":")
        if not colon or not count.isdecimal():
            name, count = text, ""
        stage = next((stage for stage in plan.stages if stage.name == name), None)
        if stage is None:
            known = ", ".join(stage.name for stage in plan.stages)
            raise UsageError(f"there is no stage {name!r}; the stages are: {known}")
        num = int(count) if count else stage.num
        if num < 1:
            raise UsageError(f"--stage {text}: at least one worker, or leave the stage out")
        if stage.env and len(stage.env) < num:
            raise UsageError(f"--stage {text}: the app file has an env for {len(stage.env)} workers of it only")
        chosen[name] = replace(stage, num=num)
    return [chosen[stage.name] for stage in plan.stages if stage.name in chosen]


def class_name(stage: StagePlan) -> str:
    return stage.worker.rpartition(":")[2]


def stage_called(stage: StagePlan) -> str:
    """`stage Echo`, and with the name of its class if that is another."""
    name, of_class = stage.name, class_name(stage)
    return f"stage {name}" if of_class == name else f"stage {name} ({of_class})"


def curl_data(example: bytes | None, directory: Path | None) -> str:
    """How curl is to send `example`: in the line itself when it reads well there, else from a file in `directory`."""
    if example is None:
        return "--data-binary @FILE"
    text = example.decode("utf-8", errors="ignore")
    if text.encode() == example and text.isprintable() and "'" not in text and len(text) <= EXAMPLE_CHARACTERS_MAX:
        return f"--data '{text}'"
    if directory is None:
        return "--data-binary @FILE"
    (directory / "example").write_bytes(example)
    return f"--data-binary @{directory / 'example'}"


def announcement(plan: Plan, stages: Sequence[StagePlan], listener: socket.socket, data: str) -> str:
    """What is said once everything is ready: where, what, and a line to try it with; `data` is what curl sends."""
    host, port = listener.getsockname()[:2]
    reach = ANYWHERE.get(host, host)
    url = f"http://[{reach}]:{port}" if ":" in reach else f"http://{reach}:{port}"
    everywhere = "" if host == reach else ", and on every interface of this machine"
    lines = [f"zmesh is ready on {url}{everywhere}"]
    if stages:
        lines += ["", stage_table(stages)]
    if plan.routes:
        lines += ["", f"try it: curl -X POST {url}{plan.routes[0].path} {data}"]
    return "\n".join(lines)


def stage_table(stages: Sequence[StagePlan]) -> str:
    rows = [("stage", "class", "workers", "batch", "wait")]
    for stage in stages:
        batch = str(stage.max_batch_size)
        wait = f"{stage.max_wait_ms:g} ms" if stage.max_batch_size > 1 else "-"
        rows.append((stage.name, class_name(stage), str(stage.num), batch, wait))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


class HeavyBatches:
    """Says once of each stage that a batch of it is large for the next one; `mixins` are those that would help."""

    def __init__(self, mixins: Sequence[str]) -> None:
        self._mixins = mixins
        self._said: set[str] = set()

    def say(self, stage: str, size: int, rows: int) -> None:
        if stage not in self._said:
            self._said.add(stage)
            log.warning("%s", self.text(stage, size, rows))

    def text(self, stage: str, size: int, rows: int) -> str:
        told = f"stage {stage} hands {size / 1024**2:.1f} MiB on to the next stage in a batch of {rows}"
        way_out = "return less, say a smaller dtype or the name of a file, or do both steps in one stage"
        if self._mixins:
            way_out += f", or put {' or '.join(self._mixins)} before Worker"
        return f"{told}; all of it is copied through the broker: {way_out}"


# ── a broker elsewhere ────────────────────────────────────────────────────────────────────────────────────────────


class Search:
    """For a broker elsewhere, until it has answered once; after that its peers look for it as long as it takes.

    `note_at` and `give_up_at` are when to look again.
    """

    def __init__(self, where: str, seconds: float, now: float) -> None:
        self._where, self._seconds = where, seconds
        self.note_at = now + WAITING_SECONDS if where else None
        self.give_up_at = now + seconds if where and seconds else None

    def look(self, now: float, is_found: bool) -> str:
        """Why it is hopeless, if it is."""
        if is_found:
            self.end()
        if self.note_at is not None and now >= self.note_at:
            self.note_at = None
            log.warning("nobody answers at %s yet; does the head run there, with --bind?", self._where)
        if self.give_up_at is None or now < self.give_up_at:
            return ""
        answered = f"no broker answered at {self._where} within {self._seconds:g} s"
        return f"{answered}; start one there with --bind, or wait longer with --connect-timeout"

    def end(self) -> None:
        self.note_at = self.give_up_at = None
