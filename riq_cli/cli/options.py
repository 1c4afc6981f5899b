"""Options that several commands share, each defined once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riq_cli import limits
from riq_cli.cli.help import grouped
from riq_cli.cli.paths import FileOf, OutputFile, stdin
from riq_cli.cli.quantities import parse_dimension, parse_fraction, parse_number, parse_numbers, parse_size
from riq_cli.cli.terminal import warn_line
from riq_cli.errors import ArchiveError, RiqError
from riq_cli.remote import is_url, loaded

if TYPE_CHECKING:
    from riq_cli.archive import Archive, LayerEntry
    from riq_cli.calibration import Calibration
    from riq_cli.model import Layer, Model

# Above this many weights further processes are worth the time that it takes to start them.
_PARALLEL_WEIGHTS = 1 << 26

# Presets of pipeline, which help does not import: size of the archive and time of the search beside those of `small`,
# geometric means of `make bench-results`; and how they work.
PRESETS = {
    "fast": ("×1.56", "×0.12", "bin widths by norm, rounding to nearest"),
    "balanced": ("×1.12", "×0.45", "widths by measured deviations, GPTQ, trellis"),
    "small": ("×1.00", "×1.00", "the same, and gradients of the outputs"),
    "smallest": ("×0.99", "×1.51", "the same, with more samples, gradients and k"),
    "deployable": ("×1.07", "×0.70", "as small, for decompress --format int8"),
    "paper": ("×1.58", "×0.11", "the paper to the letter: Algorithm 1"),
    "uniform": ("×1.90", "×0.07", "the paper's baseline: k bins in every layer"),
}


model_type = FileOf(".onnx", allow_dash=True, urls=True)
archive_type = FileOf(".riqz", allow_dash=True)
archives_type = FileOf(".riqz", allow_dash=True, folders=True)
calibration_type = FileOf(".npz", ".npy", must_be_file=False, urls=True)  # or a folder, or module:callable
output_type = OutputFile()

calibration_option = click.option(
    "--calibration", type=calibration_type, metavar="DATA",
    help="Samples to measure on: .npz, .npy, a folder of images or ONNX test data, or module:callable. "
    "[default: random ones, which predict poorly]",
)  # fmt: skip
holdout_option = click.option(
    "--holdout", type=parse_fraction, metavar="SHARE",
    help="Share of the samples that nothing is fitted to, to check the solution. [default: 0.25; paper and uniform: 0]",
)  # fmt: skip
log_option = click.option(
    "--log", "log_path", type=click.Path(), metavar="FILE",
    help="Write the search as JSON lines, one for each evaluation and probe, as it goes.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
force_option = click.option("-f", "--force", is_flag=True, help="Replace an existing output file.")
scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS|FILE",
    help="Work on the cluster of this Dask scheduler: tcp://host:8786, or its scheduler file. Workers read the same "
    "paths; --threads is 1 there, unless it is given.",
)  # fmt: skip
follow_links_option = click.option(
    "--follow-links", is_flag=True,
    help="Read external data through links too, as hub caches have it; they could show any file of yours.",
)  # fmt: skip
max_size_option = click.option(
    "--max-size", type=parse_size, metavar="SIZE", default=limits.RESTORED, show_default="8GiB",
    help="Largest restored model to accept.",
)  # fmt: skip
scratch_option = click.option(
    "--scratch", type=click.Path(exists=True, file_okay=False, writable=True, resolve_path=True), metavar="FOLDER",
    expose_value=False, callback=lambda ctx, param, value: _put_temporary_files(value),
    help="For temporary files of models above 512 MB. [default: the system's folder for such, TMPDIR]",
)  # fmt: skip
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
verbose_option = click.option("-v", "--verbose", count=True, help="Print more; -vv also tracebacks.")

format_options = grouped(
    "Weights",
    click.option("--format", type=click.Choice(["original", "float32", "float16", "int8", "int4"]), default="original",
                 show_default=True,
                 help="How layers are stored. int8, int4: as integers, of archives by compress --preset deployable."),
    click.option("--nearest", is_flag=True, help="int8, int4: round layers that do not fit 8-bit integers."),
    click.option("--convert-activations", is_flag=True,
                 help="float16: convert what the graph computes, too, by onnxruntime's own tool."),
)  # fmt: skip

layer_options = grouped(
    "Layers",
    click.option("--min-size", type=click.IntRange(1), metavar="N",
                 help="Keep tensors with fewer weights exact. [default: by norm 256; else where it pays]"),
    click.option("--include", multiple=True, metavar="PATTERN", help="Code only layers of such names; repeatable."),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Keep layers of such names exact; repeatable."),
    click.option("--max-bits", type=click.IntRange(2, 16), metavar="R", help="At most 2^R levels in any layer."),
)  # fmt: skip

_running = (
    click.option("--dim", "dims", multiple=True, type=parse_dimension, metavar="NAME=N",
                 callback=lambda ctx, param, value: dict(value),
                 help="Size of a free dimension, for random data and images; repeatable."),
    click.option("--batch-size", type=click.IntRange(1), metavar="N", default=1, show_default=True,
                 help="Samples in one run."),
    click.option("--threads", type=click.IntRange(0), metavar="N", default=0, show_default="all",
                 help="Threads that onnxruntime uses."),
    click.option("--provider", metavar="NAME", default="CPUExecutionProvider", show_default=True,
                 help="onnxruntime's execution provider."),
    click.option("--custom-ops", multiple=True, type=FileOf(".so", ".dll", ".dylib"), metavar="LIBRARY",
                 help="Library that holds custom operators of the model; repeatable."),
)  # fmt: skip
session_options = grouped("Running", *_running)
running_options = grouped(
    "Measuring",
    click.option("--output", "outputs", multiple=True, metavar="NAME",
                 help="Measure the deviation on this tensor, inner ones allowed; repeatable. "
                 "[default: every float output, and what enters a final Softmax, Sigmoid, ArgMax …]"),
    *_running,
)  # fmt: skip

image_options = grouped(
    "Images",
    click.option("--mean", type=parse_numbers, metavar="X[,Y,Z]",
                 help="Subtracted from pixels after scaling, per channel. [default: 0]"),
    click.option("--std", type=parse_numbers, metavar="X[,Y,Z]",
                 help="What pixels are divided by after that, per channel. [default: 1]"),
    click.option("--scale", type=parse_number, metavar="X", help="Factor on pixels of 0…255. [default: 1/255]"),
    click.option("--channel-order", type=click.Choice(["rgb", "bgr"]), help="[default: rgb]"),
    click.option("--image-layout", type=click.Choice(["nchw", "nhwc"]), help="Order of axes. [default: nchw]"),
)  # fmt: skip
IMAGES = ("mean", "std", "scale", "channel_order", "image_layout")


def _put_temporary_files(folder: str | None) -> None:
    """Have this process, and those that it starts, write temporary files to a folder; None: to the system's."""
    if folder is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = folder


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that have a value; those left out are None."""
    return {name: value for name, value in options.items() if value is not None}


def taken(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The options of these names that have a value; all of these names are taken out of the others."""
    return given({name: options.pop(name, None) for name in names})


def image_options_for(options: dict[str, Any], *sources: str | None) -> dict[str, Any]:
    """The options of images that have a value, taken out of the others.

    Raises:
        UsageError: there are some, and every source of samples is an array file or a callable, or there is none.
    """
    images = taken(options, IMAGES)
    if images and all(map(_is_no_folder, sources)):
        option = next(iter(images)).replace("_", "-")
        raise click.UsageError(f"--{option} prepares a folder of images; arrays and functions give samples as they are")
    return images


def _is_no_folder(source: str | None) -> bool:
    """Whether samples are certainly not in a folder."""
    return source is None or Path(source).is_file() or (":" in source and not is_url(source))


def for_workers(model: str | None, settings: dict[str, Any]) -> None:
    """Set what is otherwise where a cluster works: a thread is all that a worker takes, unless more are asked for.

    Raises:
        UsageError: the model is on stdin, which workers cannot read.
    """
    if model == "-":
        raise click.UsageError("workers cannot read stdin; with --scheduler, give the path of a model")
    settings["threads"] = settings["threads"] or 1


def check_k(allocation: str) -> None:
    """Return nothing if an allocation has a k that can be given.

    Raises:
        UsageError: it has none.
    """
    if allocation == "measured":
        raise click.UsageError("--k has no meaning for the measured allocation; presets paper, fast and uniform have k")


def check_format(format: str, nearest: bool, convert_activations: bool) -> None:  # noqa: A002
    """Return nothing if the options of formats go with the one that is asked for.

    Raises:
        UsageError: it does not.
    """
    if nearest and format not in ("int8", "int4"):
        raise click.UsageError("--nearest belongs to --format int8 and int4")
    if convert_activations and format != "float16":
        raise click.UsageError("--convert-activations belongs to --format float16")


def load_calibration(source: str, images: Mapping[str, Any], without: str | None = None) -> Calibration:
    """The calibration data that the options describe, without one of an .npz file's arrays."""
    from riq_cli.calibration import Calibration, ImageOptions

    def load(path: Path | str) -> Calibration:
        return Calibration.load(path, ImageOptions(**images), without)

    return loaded(source, load) if is_url(source) else load(source)


def load_model(path: str, follow_links: bool) -> Model:
    """The model in a file or behind a URL, or on stdin for `-`."""
    from riq_cli.model import Model, files_beside

    if is_url(path):
        return loaded(path, partial(Model.load, follow_links=follow_links), files_beside)
    return Model.load(stdin() if path == "-" else path, follow_links)


def warn_of_another_model(path: str, archive: Archive, against: str, original: Model) -> None:
    """Say so if an archive was made from another file than the one that it is held against."""
    if original.source and archive.manifest.source.get("sha256") not in (None, original.source.sha256):
        warn_line(f"{against}: is not the file that {path} was made from (their SHA-256 differ)")


@contextlib.contextmanager
def open_archive(path: str, max_size: int) -> Iterator[Archive]:
    """The archive in a file, or on stdin for `-`; errors inside of the block name the file."""
    from riq_cli.archive import Archive

    source = stdin() if path == "-" else path
    with naming(path, ArchiveError), Archive.open(source, max_size) as archive:
        yield archive


@contextlib.contextmanager
def naming(path: str, kind: type[RiqError]) -> Iterator[None]:
    """A block whose errors of a kind name the file that they are about."""
    try:
        yield
    except kind as error:
        raise type(error)(f"{path}: {error}") from error


@contextlib.contextmanager
def coding_executor(layers: Iterable[Layer | LayerEntry]) -> Iterator[Executor | None]:
    """Processes that code the streams of layers at the same time where these are large; None where they are not.

    Processes, since the coder holds Python's global lock. A worker of a cluster may not start any.
    """
    if sum(layer.size for layer in layers) < _PARALLEL_WEIGHTS or multiprocessing.current_process().daemon:
        yield None
        return
    from riq_cli.executors import available_threads, interruptible, process_pool

    with interruptible(process_pool(available_threads())) as executor:
        yield executor
