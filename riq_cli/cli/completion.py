"""`riq completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from riq_cli.cli.help import Command


@click.command(
    cls=Command,
    synopsis="bash|zsh|fish",
    examples="""
riq completion bash > ~/.local/share/bash-completion/completions/riq
riq completion zsh > ~/.zfunc/_riq        # a folder of $fpath
riq completion fish > ~/.config/fish/completions/riq.fish
eval "$(riq completion bash)"             # in this shell only
""",
    short_help="Script that completes commands, options and files.",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete riq's commands, options, and model and archive files."""
    found = get_completion_class(shell)
    assert found is not None, "click knows all three"
    click.echo(found(ctx.find_root().command, {}, "riq", "_RIQ_COMPLETE").source())
