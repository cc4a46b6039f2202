"""`zmesh`, and `python -m zmesh`. A signal to stop is heeded before anything is imported that takes time."""

import sys

from zmesh.signals import ending_early

__all__ = ["main"]

LASTING = ("run", "worker", "broker", "gateway")  # the others are over in a moment, and 0 would say that all is well


def main() -> None:
    """Do what the command line says and exit."""
    if sys.argv[1:2] and sys.argv[1] in LASTING:
        with ending_early():
            _main()
    else:
        _main()


def _main() -> None:
    from zmesh.cli import main

    main()


if __name__ == "__main__":
    main()
