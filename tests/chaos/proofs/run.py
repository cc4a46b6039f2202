"""Acceptance lines as checks that print their figures: `scripts/prove NAME`, see `docs/testing.md`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from time import monotonic

from tests.chaos.proofs import crowds, deaths, drains, first, redises
from tests.chaos.proofs.findings import Findings

PROOFS: dict[str, Callable[[Findings], None]] = {
    "agent-killed": deaths.agent_killed,
    "first-batch": first.first_batch,
    "blackout": first.blackout,
    "native-loop": deaths.native_loop,
    "overload": crowds.overload,
    "expanding": crowds.expanding,
    "crossing": crowds.crossing,
    "abandoned": deaths.abandoned,
    "rolling": drains.rolling,
    "group": drains.group,
    "terminal": drains.terminal,
    "redis-leaks": redises.leaks,
    "redis-restarted": redises.restarted,
}


def prove(name: str, is_short: bool, say: Callable[[str], None]) -> bool:
    """Whether every claim of it held."""
    proof = PROOFS[name]
    found = Findings(is_short, say)
    assert proof.__doc__ is not None, "it says what it shows"
    say(f"{name}: {' '.join(proof.__doc__.split())}")
    began = monotonic()
    try:
        proof(found)
    except AssertionError as error:
        found.hold(False, f"it could not be shown: {error}")
    assert found.claims, "a check that claims nothing shows nothing"
    verdict = "all hold" if not found.failed else f"{found.failed} do not hold"
    say(f"  {found.claims} claims, {verdict}; {monotonic() - began:.0f} s\n")
    return not found.failed


def main(args: Sequence[str] | None = None) -> int:
    """0 when everything held, 1 when something did not."""
    shown = "\n".join(f"  {name:<14}{(proof.__doc__ or '').splitlines()[0]}" for name, proof in PROOFS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/prove",
        description=f"{__doc__}\n\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="+", choices=[*PROOFS, "all"], metavar="NAME")
    parser.add_argument("--short", action="store_true", help="the form that CI has time for")
    arguments = parser.parse_args(args)
    names = list(PROOFS) if "all" in arguments.name else arguments.name
    held = [prove(name, arguments.short, lambda line: print(line, flush=True)) for name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave nothing behind
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in its background
    sys.exit(main())
