"""`riq run`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riq_cli.archive import Archive
from riq_cli.cli import options
from riq_cli.cli.help import Command, grouped
from riq_cli.cli.paths import FileOf, check_binary, check_outputs, check_stdout, stdin
from riq_cli.cli.progress import Wait
from riq_cli.cli.terminal import print_json, say, table
from riq_cli.errors import ArchiveError, NotAnArchive
from riq_cli.files import atomic_write
from riq_cli.text import counted, human_size, shown

if TYPE_CHECKING:
    from riq_cli.model import Model


@click.command(
    cls=Command,
    synopsis="MODEL --input DATA [-o FILE] [OPTIONS]",
    examples="""
riq run model.riqz --input samples.npz
riq run model.riqz --input samples.npz -o outputs.npz
riq run model.onnx --input samples.npz --profile
cat model.riqz | riq run - --input samples.npz --json
""",
    short_help="Run an archive or a model on samples, for a quick look.",
)
@click.argument("model", type=FileOf(".riqz", ".onnx", allow_dash=True))
@grouped(
    "Samples",
    click.option("--input", "data", required=True, type=options.calibration_type, metavar="DATA",
                 help="Samples to run on, as --calibration of riq compress takes them."),
)  # fmt: skip
@grouped("Model", options.follow_links_option)
@options.session_options
@options.image_options
@grouped(
    "Output",
    click.option("-o", "output", type=options.output_type, metavar="FILE",
                 help=".npz file to write, output name → array; - for stdout. [default: print what they hold]"),
    click.option("--profile", is_flag=True, help="Also print how long decoding, starting and a sample take."),
    options.json_option,
    options.force_option,
    options.max_size_option,
    options.quiet_option,
)  # fmt: skip
def run(
    model: str,
    data: str,
    follow_links: bool,
    output: str | None,
    profile: bool,
    as_json: bool,
    force: bool,
    max_size: int,
    quiet: bool,
    **running: Any,
) -> None:
    """Run MODEL, an archive or an ONNX model (- for stdin), on samples, and show or write its outputs.

    An archive is run from memory: its outputs are, bit for bit, those of the restored file. An output with a row for
    each sample has the rows of all samples; another gets a first axis of samples. Where shapes differ from sample to
    sample, each has an array of its own, such as y[0].
    """
    check_stdout({"--json": as_json, "-o -": output == "-"})
    if output is not None:
        check_binary(output, force)
        check_outputs([output], [model, data], force)

    from riq_cli.calibration import write_npz
    from riq_cli.runtime import Runtime, stacked_outputs
    from riq_cli.session import open_session

    calibration = options.load_calibration(data, options.image_options_for(running, data))
    dims, batch_size = running.pop("dims"), running.pop("batch_size")
    runtime = Runtime(**running)
    runtime.check()
    seconds: dict[str, float] = {}
    with Wait("running the model", quiet) as wait:
        with _timed(seconds, "decode"):
            loaded = _loaded(model, max_size, follow_links)
        samples = calibration.samples(loaded.inputs, dims, batch_size, wait.warn)
        with _timed(seconds, "session"):
            session = open_session(loaded, [runtime.provider], runtime.options(patient=False, lean=False))
        with _timed(seconds, "run"):
            found = stacked_outputs(session, samples)
    count = sum(sample.rows for sample in samples)
    seconds["run"] /= count
    if output == "-":
        write_npz(sys.stdout.buffer, found)
    elif output is not None:
        with atomic_write(output, force) as file:
            write_npz(file, found)
        if not quiet:
            say(f"{output}: {counted(len(found), 'array')}, {human_size(Path(output).stat().st_size)}", err=True)
    rows = [_facts(name, array) for name, array in found.items()]
    if as_json:
        print_json({"model": model, "samples": count, "outputs": rows} | ({"seconds": seconds} if profile else {}))
        return
    if output is None and not quiet:
        say(*table(("output", "shape", "type", "min", "max", "mean"), [_cells(row) for row in rows], 3, narrow=True))
    if profile:
        say(f"decode   {seconds['decode']:8.3f} s", f"session  {seconds['session']:8.3f} s",
            f"run      {1000 * seconds['run']:8.3f} ms a sample, {counted(count, 'sample')}", err=True)  # fmt: skip


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - began


def _loaded(path: str, max_size: int, follow_links: bool) -> Model:
    """The model of an archive, or in a file; on stdin for `-`."""
    from riq_cli.decode import decode_layers
    from riq_cli.model import Model
    from riq_cli.session import restored

    source: Any = BytesIO(stdin().read()) if path == "-" else path
    try:
        with options.naming(path, ArchiveError):
            archive = Archive.open(source, max_size)
            with options.coding_executor(archive.manifest.layers) as executor:
                return restored(archive, decode_layers(archive, executor))
    except NotAnArchive:
        if path == "-":
            source.seek(0)
        return Model.load(source, follow_links)


def _facts(name: str, array: Any) -> dict[str, Any]:
    """What --json prints of an array; what has no numbers has neither least nor largest."""
    facts: dict[str, Any] = {"name": name, "shape": list(array.shape), "dtype": array.dtype.name}
    if array.size and array.dtype.kind in "biuf":
        facts |= {"min": float(array.min()), "max": float(array.max()), "mean": float(array.mean(dtype="float64"))}
    return facts


def _cells(row: Mapping[str, Any]) -> list[str]:
    shape = "×".join(map(str, row["shape"])) or "scalar"
    return [row["name"], shape, row["dtype"], *(shown(row.get(key)) for key in ("min", "max", "mean"))]
