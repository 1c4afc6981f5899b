"""The `riq` group, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from dataclasses import fields

import click

from riq_cli.cli import interruption
from riq_cli.cli.help import FAILED, TARGET, USAGE, WIDTH, alternatives
from riq_cli.cli.terminal import error_line, say
from riq_cli.errors import RiqError, SettingsError, TargetError
from riq_cli.version import VERSION

_COMMANDS = ("compress", "decompress", "verify", "test", "run", "report", "sweep", "plot", "web", "completion", "help")


class _Lazy(click.Group):
    """A group whose commands are imported when one of them is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = "topics" if cmd_name == "help" else cmd_name  # `help` is the module of what all of them share
        command: click.Command = getattr(importlib.import_module(f"riq_cli.cli.{name}"), name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # completion parses too
            click.echo(ctx.get_help(), err=True)
            ctx.exit(USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message} {alternatives(args[0], _COMMANDS)}", ctx) from None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the topics and the exit codes."""
        from riq_cli.cli.topics import TOPICS

        with formatter.section("Topics (riq help TOPIC)"):
            formatter.write_dl(list(TOPICS.items()))
        formatter.write_paragraph()
        formatter.write_text(
            "Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 target not reached, verification failed or gate missed."
        )


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH})
@click.version_option(VERSION, "-V", "--version", prog_name="riq")
def riq() -> None:
    """Make ONNX models small: say how far the outputs may move, get the smallest file that keeps the promise.

    \b
      riq compress model.onnx --calibration samples.npz --deviation 0.01
      riq verify model.riqz --against model.onnx --calibration heldout.npz
      riq decompress model.riqz
    """


def run() -> int:
    """The exit code of the command line; every error that a user can cause becomes one line on stderr."""
    for library in ("OPENBLAS", "MKL"):  # riq's own threads work on a layer each; more of them only wait for each other
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    try:
        code: int = riq.main(prog_name="riq", standalone_mode=False) or 0
        _flush()
    except click.Abort as error:  # what click makes of a KeyboardInterrupt, which only a function of the user's raises
        raise KeyboardInterrupt from error
    except Exception as error:
        interruption.check()
        code = _failed(error)
    try:
        _flush()
    except OSError:  # it was told; what is left would fail once more as Python exits, with a code of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _failed(error: Exception) -> int:
    """The exit code of an error, after it was told."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as `head` does
        return FAILED
    asked = sum(word.count("v") for word in sys.argv[1:] if re.fullmatch("-[fqv]+", word)) > 1
    if asked and not isinstance(error, click.ClickException):
        say(*"".join(traceback.format_exception(error)).splitlines(), err=True)
    code, message = failure(error)
    error_line(message)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"Try '{error.ctx.command_path} --help'.", err=True)
    return code


def failure(error: Exception) -> tuple[int, str]:
    """The exit code of an error, and what is wrong in words."""
    if isinstance(error, click.ClickException):
        return error.exit_code, error.format_message()
    if isinstance(error, (RiqError, OSError, MemoryError)):
        code = TARGET if isinstance(error, TargetError) else USAGE if isinstance(error, SettingsError) else FAILED
        return code, _message(error)
    if isinstance(error, ModuleNotFoundError):
        return FAILED, f"this Python, {sys.executable}, has no package {error.name!r}; install riq again, with pip"
    # A bug of ours, or an archive made to mislead in fields that nothing checks.
    return FAILED, f"unexpected {type(error).__name__}: {error}; please report it, with what -vv prints"


def _flush() -> None:
    if sys.stdout is not None:  # as it is where the caller closed it
        sys.stdout.flush()


def _message(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return _with_flags(str(error)) if isinstance(error, SettingsError) else str(error)


def _with_flags(message: str) -> str:
    """A message about settings with the names that they have on the command line: `--max-bits 1` for `max_bits = 1`.

    Names that are words of English too are settings where a value follows; names in quotes are the user's own.
    """
    from riq_cli.pipeline import Settings
    from riq_cli.report import flag

    for name in (field.name for field in fields(Settings)):
        message = re.sub(rf"(?<!['\w-]){name} = ", f"{flag(name)} ", message)
        if "_" in name:
            message = re.sub(rf"(?<!['\w-]){name}\b", flag(name), message)
    return message
