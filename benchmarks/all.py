"""All benchmarks of this page after one another: echo, model, stages, tensors, footprint, compare; half an hour.

    ./scripts/bench all [--write] [--quick] [--only echo,model]

`--quick` is one short round of each, to see that they run; its figures are worth nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import compare, echo, footprint, model, stages, tensors
from benchmarks.load import need_wrk
from benchmarks.peers import PEERS, Unavailable, python_of


@dataclass(frozen=True)
class Part:
    """A benchmark, and what it takes on two quiet cores."""

    name: str
    main: Callable[[list[str]], int]
    minutes: float
    quick: Sequence[str] = ("--seconds", "1", "--rounds", "1")


PARTS = (
    Part("footprint", footprint.main, 0.5, ("--rounds", "1")),
    Part("echo", echo.main, 4),
    Part("stages", stages.main, 2),
    Part("tensors", tensors.main, 2),
    Part("model", model.main, 7, ("--seconds", "1", "--rounds", "1", "--ms", "2,10", "--clients", "32")),
    Part("compare", compare.main, 8),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench all", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAMES", help=f"of {','.join(part.name for part in PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--installed-only", action="store_true", help="skip servers that are not installed yet")
    parser.add_argument("--write", action="store_true", help="into results.json, RESULTS.md, README.md and the plots")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is not met")
    options = parser.parse_args(arguments)
    need_wrk()
    names = [word.strip() for word in options.only.split(",") if word.strip()]
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"--only does not know {', '.join(sorted(unknown))}")
    parts = [part for part in PARTS if not names or part.name in names]
    if not options.quick:
        print(f"{_plan(parts)}\nkeep the machine quiet", flush=True)
    if not options.installed_only:
        _install()
    words = [f"--{name.replace('_', '-')}" for name in ("installed_only", "write", "check") if getattr(options, name)]
    missed, started = 0, time.monotonic()
    for part in parts:
        print(f"\n── {part.name} ──", flush=True)
        missed |= part.main([*(part.quick if options.quick else ()), *words])
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes")
    return missed


def _plan(parts: Sequence[Part]) -> str:
    whole = sum(part.minutes for part in parts)
    each = ", ".join(f"{part.name} {part.minutes:g}" for part in parts)
    return f"about {whole:.0f} minutes: {each}; once, before that, some for installing the other servers"


def _install() -> None:
    """First of all, so that nothing is installed while something is measured. Who fails is skipped and named later."""
    for peer in PEERS:
        try:
            python_of(peer)
        except Unavailable:
            continue


if __name__ == "__main__":
    sys.exit(main())
