"""`riq decompress`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from riq_cli.cli import options
from riq_cli.cli.help import Command, grouped
from riq_cli.cli.paths import check_binary, check_outputs
from riq_cli.cli.progress import Wait
from riq_cli.cli.terminal import say
from riq_cli.errors import ModelError, OutputError
from riq_cli.text import human_size


@click.command(
    cls=Command,
    synopsis="ARCHIVE [-o FILE] [OPTIONS]",
    examples="""
riq decompress model.riqz
riq decompress model.riqz -o restored.onnx
cat model.riqz | riq decompress - -o restored.onnx
""",
    short_help="Archive to a runnable ONNX file.",
)
@click.argument("archive", type=options.archive_type)
@grouped(
    "Output",
    click.option("-o", "model_path", type=options.output_type, metavar="FILE",
                 help="ONNX file to write, - for stdout. [default: ARCHIVE.restored.onnx]"),
    options.force_option,
    options.max_size_option,
    options.quiet_option,
    options.verbose_option,
)  # fmt: skip
def decompress(archive: str, model_path: str | None, max_size: int, force: bool, quiet: bool, verbose: int) -> None:
    """Restore the ONNX model in ARCHIVE (- for stdin).

    A model above 2 GiB gets its data in a second file, such as FILE.1a2b3c4d.data. The model that the archive was made
    from is never replaced, not even with --force.
    """
    if model_path is None:
        if archive == "-":
            raise click.UsageError("an archive from stdin has no name to derive the output's from; give -o FILE")
        model_path = archive.removesuffix(".riqz") + ".restored.onnx"
    check_binary(model_path, force)
    if model_path != "-":
        check_outputs([model_path], [archive], force)

    from riq_cli.pipeline import decompress as restore

    with options.open_archive(archive, max_size) as opened:
        layers = opened.manifest.layers
        if model_path != "-":
            _refuse_original(Path(model_path), opened.manifest.source)
        with Wait("restoring layers", quiet, verbose) as wait, options.coding_executor(layers) as executor:
            model = restore(opened, progress=wait, executor=executor)
    if model_path == "-":
        model.write(sys.stdout.buffer)
        return
    written = model.save(model_path, force)
    if not quiet and written[0].is_file():  # a pipe has no size
        told = ", and ".join(f"{file}: {human_size(file.stat().st_size)}" for file in written)
        say(told + ("; keep both together" if len(written) > 1 else ""), err=True)


def _refuse_original(path: Path, source: Mapping[str, Any]) -> None:
    """Return nothing if a file is not the model that an archive was made from.

    Args:
        path: the file that would be replaced; it need not exist.
        source: what the archive records of its model.

    Raises:
        OutputError: it is that model, with its external data if it has any.
    """
    from riq_cli.model import Model

    if not path.is_file() or path.stat().st_size > source.get("bytes", 0):  # to read a pipe would be to wait for ever
        return
    with contextlib.suppress(ModelError):  # what cannot be loaded is not a model that was compressed
        original = Model.load(path, follow_links=True).source  # it is only compared
        if original is not None and original.sha256 == source.get("sha256"):
            raise OutputError(
                f"{path}: is the original that the archive was made from, which is never overwritten; "
                "name another file with -o"
            )
