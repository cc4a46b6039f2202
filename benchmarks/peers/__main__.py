"""Installs the servers that zmesh is measured beside, each into an environment of its own.

./scripts/bench peers [NAME …]
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.peers import PEERS, Unavailable, installed_version, python_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; default: all of them")
    names = parser.parse_args().names or PEERS
    if unknown := sorted(set(names) - set(PEERS)):
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    missing = 0
    for name in names:
        try:
            python = python_of(name)
            print(f"{name} {installed_version(name)}: {python}")
        except Unavailable as why:
            print(f"skipped: {name} ({why})")
            missing += 1
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
