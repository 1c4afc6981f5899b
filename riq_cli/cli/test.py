"""`riq test`."""

from __future__ import annotations

from typing import Any

import click

from riq_cli.cli import options
from riq_cli.cli.help import FAILED, Command, grouped
from riq_cli.cli.progress import Wait
from riq_cli.cli.terminal import error_line, print_json, say
from riq_cli.errors import ArchiveError
from riq_cli.text import counted, human_size, shortened


@click.command(
    cls=Command,
    synopsis="ARCHIVE... [OPTIONS]",
    examples="""
riq test model.riqz
riq test -q *.riqz && echo all is well
curl -s https://example.com/model.riqz | riq test -
""",
    short_help="Check that archives are whole: decode all, compare checksums.",
)
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...", type=options.archive_type)
@grouped(
    "Output",
    options.json_option,
    options.max_size_option,
    options.quiet_option,
)  # fmt: skip
def test(archives: tuple[str, ...], as_json: bool, max_size: int, quiet: bool) -> None:
    """Decode every layer of each ARCHIVE (- for stdin) in memory, and compare all checksums.

    Neither the original model nor onnxruntime is needed, and nothing is written. Exits with 1 when any archive is
    damaged, after all of them were tested.
    """
    if archives.count("-") > 1:
        raise click.UsageError("only one archive can come from stdin")
    found = [_tested(archive, max_size, quiet) for archive in archives]
    if as_json:
        print_json({"archives": found})
    if not all(one["ok"] for one in found):
        raise click.exceptions.Exit(FAILED)


def _tested(archive: str, max_size: int, quiet: bool) -> dict[str, Any]:
    """What --json prints of one archive, after it was said on stderr."""
    from riq_cli.decode import decode_layers

    try:
        with options.open_archive(archive, max_size) as opened, Wait(f"testing {shortened(archive)}", quiet):
            opened.skeleton()
            with options.coding_executor(opened.manifest.layers) as executor:
                layers = sum(1 for _ in decode_layers(opened, executor))
    except ArchiveError as error:
        error_line(str(error))
        return {"archive": archive, "ok": False, "error": str(error)}
    if not quiet:
        restored = human_size(opened.manifest.restored)
        say(f"{archive}: ok, {counted(layers, 'layer')}, {restored}", err=True)
    return {"archive": archive, "ok": True, "layers": layers, "restored_bytes": opened.manifest.restored}
