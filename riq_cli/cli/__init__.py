"""The command line: the only part of riq that prints, exits, or asks the terminal."""

from __future__ import annotations

import sys

from riq_cli.cli import interruption

__all__ = ["main"]


def main() -> None:
    """Run the command line, and end the process with its exit code.

    Signals are caught before anything else is imported: that takes most of the time of a short command.
    """

    def run() -> int:
        from riq_cli.cli.commands import run

        return run()

    sys.exit(interruption.guarded(run))
