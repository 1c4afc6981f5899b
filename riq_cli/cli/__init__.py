"""The command line: the only part of riq that prints, exits, or asks the terminal."""

from riq_cli.cli.main import main

__all__ = ["main"]
