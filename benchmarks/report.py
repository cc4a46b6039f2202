"""What a benchmark says at its end: tables, verdicts beside their targets, and the pages that hold the figures.

`results.json` has the figures of the last run that was written, and all text between marks in RESULTS.md and README.md
is made from it: `<!-- bench:NAME -->` … `<!-- /bench:NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "RESULTS",
    "Data",
    "Verdict",
    "add_options",
    "at_least",
    "at_most",
    "conclude",
    "finish",
    "head_line",
    "load_results",
    "none_wrong",
    "rewrite",
    "table",
    "verdict_table",
]

Data = dict[str, Any]  # what a benchmark found, as it goes into results.json
HERE = Path(__file__).parent
RESULTS = HERE / "results.json"


@dataclass(frozen=True)
class Verdict:
    """A figure beside its target."""

    what: str
    measured: str
    target: str
    is_met: bool
    is_stretch_met: bool = False

    @property
    def text(self) -> str:
        if not self.is_met:
            return "**not met**"
        return "met, and the stretch" if self.is_stretch_met else "met"


def at_least(what: str, value: float, bar: float, unit: str = "", stretch: float | None = None) -> Verdict:
    return _judged(what, value, bar, unit, stretch, "≥", lambda one, other: one >= other)


def at_most(what: str, value: float, bar: float, unit: str = "", stretch: float | None = None) -> Verdict:
    return _judged(what, value, bar, unit, stretch, "≤", lambda one, other: one <= other)


def none_wrong(cells: Iterable[Mapping[str, Any]]) -> Verdict:
    """wrk counts answers that are errors too, so there must not be any."""
    return at_most("answers of zmesh that were wrong", sum(cell["wrong"] for cell in cells), 0)


def _judged(
    what: str,
    value: float,
    bar: float,
    unit: str,
    stretch: float | None,
    sign: str,
    holds: Callable[[float, float], bool],
) -> Verdict:
    target = f"{sign} {bar:g}{unit}" + ("" if stretch is None else f", stretch {stretch:g}{unit}")
    is_stretch_met = stretch is not None and holds(value, stretch)
    # Three digits, so that nothing is rounded onto its target.
    return Verdict(what, f"{value:.3g}{unit}", target, holds(value, bar), is_stretch_met)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown that can be read as it is: columns aligned, all but the first to the right."""
    lines = [list(map(str, head)), *(list(map(str, row)) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    whole = [lines[0], rule, *lines[1:]]
    return "\n".join(
        f"| {line[0].ljust(widths[0])} | "
        + " | ".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        + " |"
        for line in whole
    )


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    rows = [(verdict.what, verdict.measured, verdict.target, verdict.text) for verdict in verdicts]
    return table(("target", "measured", "wanted", "verdict"), rows)


def rewrite(text: str, name: str, body: str) -> str:
    """The page with another section `name`. ValueError when it has no such section, or two."""
    start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        raise ValueError(f"the page needs one {start} and after it one {end}")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n\n{body.strip()}\n\n{end}{rest.partition(end)[2]}"


def add_options(parser: argparse.ArgumentParser, seconds: float, rounds: int) -> None:
    """What every benchmark understands."""
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of each run of wrk; default {seconds:g}")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"in turn; default {rounds}")
    parser.add_argument("--installed-only", action="store_true", help="skip servers that are not installed yet")
    parser.add_argument("--write", action="store_true", help="into results.json, RESULTS.md, README.md and the plots")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is not met")


def finish(name: str, arguments: Sequence[str], data: Data, options: argparse.Namespace) -> int:
    """Show what was found, write it where that is wanted; the exit code."""
    from benchmarks import pages  # they are made of the benchmarks, which call this

    given = [word for word in arguments if word not in ("--write", "--check")]
    record = {"command": shlex.join(["./scripts/bench", name, *given]), **_circumstances(), **data}
    print(f"\n{pages.section(name, record)}", flush=True)
    if options.write:
        results = {**load_results(), name: record}
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"written: {', '.join(pages.write(results))}")
    return int(options.check and not all(verdict.is_met for verdict in pages.verdicts(name, record)))


def load_results() -> dict[str, Data]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def _circumstances() -> Data:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "zmesh") else ""),
        "machine": f"{os.cpu_count()} cores, {_system()}, Python {platform.python_version()}",
    }


def _system() -> str:
    try:
        named = platform.freedesktop_os_release()
    except OSError:
        return platform.system()
    return f"{named.get('NAME', 'Linux')} {named.get('VERSION_ID', '')}".strip()


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def head_line(record: Mapping[str, Any]) -> str:
    """The command of a section, and where and when it ran. A + after the commit: with changes on top of it."""
    return f"`{record['command']}` — {record['machine']}; zmesh at {record['commit']}, {record['date']}."


def conclude(cells: Sequence[Any], verdict: tuple[bool, str], seconds: float, path: Path | None) -> int:
    """The last line about so many cells, the cells themselves as JSON if wanted, and the exit code."""
    good, text = verdict
    print(f"{text} ({len(cells)} cells, {seconds:.0f} s)")
    if path:
        path.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))
    return 0 if good else 1
