"""`riq decompress`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli import options
from riq_cli.cli.help import Command, grouped
from riq_cli.cli.paths import check_binary, check_outputs
from riq_cli.cli.progress import Wait
from riq_cli.cli.terminal import say
from riq_cli.errors import FormatError, ModelError, OutputError
from riq_cli.text import counted, human_size, percent, shortened

if TYPE_CHECKING:
    from riq_cli.pipeline import Converted, Format


@click.command(
    cls=Command,
    synopsis="ARCHIVE [-o FILE] [OPTIONS]",
    examples="""
riq decompress model.riqz
riq decompress model.riqz -o restored.onnx
riq decompress model.riqz --format int8
cat model.riqz | riq decompress - -o restored.onnx
""",
    short_help="Archive to a runnable ONNX file.",
)
@click.argument("archive", type=options.archive_type)
@options.format_options
@grouped(
    "Output",
    click.option("-o", "model_path", type=options.output_type, metavar="FILE",
                 help="ONNX file to write, - for stdout. [default: ARCHIVE.restored.onnx, or ARCHIVE.int8.onnx …]"),
    options.force_option,
    options.max_size_option,
    options.scratch_option,
    options.quiet_option,
    options.verbose_option,
)  # fmt: skip
def decompress(
    archive: str,
    format: Format,  # noqa: A002
    nearest: bool,
    convert_activations: bool,
    model_path: str | None,
    max_size: int,
    force: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Restore the ONNX model in ARCHIVE (- for stdin).

    A model above 2 GiB gets its data in a second file, such as FILE.1a2b3c4d.data. The model that the archive was made
    from is never replaced, not even with --force.
    """
    options.check_format(format, nearest, convert_activations)
    if model_path is None:
        if archive == "-":
            raise click.UsageError("an archive from stdin has no name to derive the output's from; give -o FILE")
        model_path = f"{archive.removesuffix('.riqz')}.{'restored' if format == 'original' else format}.onnx"
    check_binary(model_path, force)
    if model_path != "-":
        check_outputs([model_path], [archive], force)

    from riq_cli.pipeline import converted
    from riq_cli.pipeline import decompress as restore

    with options.open_archive(archive, max_size) as opened:
        layers = opened.manifest.layers
        if model_path != "-":
            _refuse_original(Path(model_path), opened.manifest.source)
        with Wait("restoring layers", quiet, verbose) as wait, options.coding_executor(layers) as executor:
            model = restore(opened, progress=wait, executor=executor)
        with options.naming(archive, FormatError):
            found = None if format == "original" else converted(opened, model, format, nearest, convert_activations)
    model = model if found is None else found.model
    if model_path == "-":
        model.write(sys.stdout.buffer)
        return
    written = model.save(model_path, force)
    if not quiet and written[0].is_file():  # a pipe has no size
        told = ", and ".join(f"{file}: {human_size(file.stat().st_size)}" for file in written)
        say(told + ("; keep both together" if len(written) > 1 else ""), err=True)
    if not quiet and found is not None:
        say(*_notes(found, len(layers)), err=True)


def _notes(found: Converted, layers: int) -> list[str]:
    """What became of so many layers, in lines."""
    counts = ", ".join(f"{counted(count, 'layer')} as {kind}" for kind, count in found.stored.items())
    rest = layers - sum(found.stored.values())
    lines = [f"  stored     {counts or 'no layer in another format'}" + (f"; {rest} as they were" if rest else "")]
    if found.rounded:
        name, error = max(found.rounded.items(), key=lambda item: item[1])
        lines.append(
            f"  rounded    {counted(len(found.rounded), 'layer')}; relative error of weights at most {percent(error)}, "
            f"in {shortened(name)!r}"
        )
    if found.inexact:
        lines.append(f"  weights    of {counted(found.inexact, 'layer')} differ in the last digit from those in float")
    elif not found.rounded:
        lines.append("  weights    equal those in float, bit by bit")
    if found.contributed:
        lines.append("  operators  DequantizeLinear of com.microsoft: the model's opset has none for this")
    return lines


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
