"""`riq help`: the pages that ship with riq, and the help of a command."""

from __future__ import annotations

import shutil
import signal
import sys
from importlib.resources import files

import click

from riq_cli.cli.help import Command, alternatives

TOPICS = {
    "commands": "Every command by example: data, options, exit codes.",
    "how-it-works": "From the model to the archive, step by step.",
    "loss": "Keep a loss, a metric or the predicted class instead.",
    "ci": "Continuous integration: an action, a job, a hook.",
    "python": "Compress, restore and verify from Python.",
    "browser": "Decode and run archives in browsers and in Node.",
    "scale": "Models of gigabytes, many models: time and memory.",
    "limits": "What riq does not do, what it needs, untrusted files.",
    "results": "Measured sizes and accuracies; how to measure them.",
    "format": "The archive, to the last bit.",
}


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _names(ctx) if name.startswith(incomplete)]


@click.command(
    "help",
    cls=Command,
    synopsis="[TOPIC|COMMAND]",
    examples="""
riq help how-it-works
riq help compress
riq help
""",
    short_help="Show a page on a topic, or the help of a command.",
)
@click.argument("topic", required=False, shell_complete=_complete, metavar="[TOPIC|COMMAND]")
@click.pass_context
def topics(ctx: click.Context, topic: str | None) -> None:
    """Show the page on TOPIC, or the help of COMMAND; without either, list them."""
    root = ctx.find_root()
    if topic is None:
        _show(root.get_help())
    elif topic in TOPICS:
        path = "FORMAT.md" if topic == "format" else f"docs/{topic}.md"
        lines = files("riq_cli").joinpath(path).read_text(encoding="utf-8").rstrip().splitlines()
        _show("\n".join(line for line in lines if not line.startswith("<!--")))  # marks for the bench
    elif command := _group(ctx).get_command(root, topic):
        _show(command.get_help(click.Context(command, root, topic)))
    else:
        raise click.UsageError(f"No such topic or command {topic!r}. {alternatives(topic, _names(ctx))}", ctx)


def _group(ctx: click.Context) -> click.Group:
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    return group


def _names(ctx: click.Context) -> list[str]:
    return [*TOPICS, *_group(ctx).list_commands(ctx)]


def _show(text: str) -> None:
    """Print a text; page by page on a terminal that is smaller."""
    if sys.stdout.isatty() and text.count("\n") + 2 > shutil.get_terminal_size().lines:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # click leaves a Ctrl-C to the pager
        click.echo_via_pager(text)
    else:
        click.echo(text)
