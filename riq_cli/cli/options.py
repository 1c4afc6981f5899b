"""Options that several commands share, each defined once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from riq_cli import limits
from riq_cli.cli.terminal import warn_line
from riq_cli.errors import ArchiveError, RiqError

if TYPE_CHECKING:
    from riq_cli.archive import Archive
    from riq_cli.calibration import Calibration, ImageOptions

Command = TypeVar("Command", bound=Callable[..., Any])

# Above this many weights two processes are worth the time that it takes to start them.
_PARALLEL_WEIGHTS = 1 << 26


class Size(click.ParamType[int]):
    """A number of bytes: 500000, 500kB, 5MB, 2GiB."""

    name = "SIZE"
    _UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
              "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes that a text stands for."""
        if isinstance(value, int):
            return value
        text = str(value).strip()
        number = text.rstrip("bBkKmMgGiI ")
        unit = text[len(number) :].strip().lower()
        try:
            size = float(number) * self._UNITS[unit]
        except (ValueError, KeyError):
            self.fail(f"{value!r} is not a size; write 500kB, 5MB or 2GiB", param, ctx)
        return int(size)


class Dimension(click.ParamType[tuple[str, int]]):
    """A free dimension and its size: height=224."""

    name = "NAME=N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Name and size."""
        if isinstance(value, tuple):
            return value
        name, equals, number = str(value).rpartition("=")
        if not equals or not name or not number.isdigit() or int(number) < 1:
            self.fail(f"{value!r} is not a name and a size; write height=224", param, ctx)
        return name, int(number)


class Numbers(click.ParamType[tuple[float, ...]]):
    """One number, or one for each channel: 0.485,0.456,0.406."""

    name = "X[,Y,Z]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write 0.485,0.456,0.406", param, ctx)


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
force_option = click.option("-f", "--force", is_flag=True, help="Replace an existing output file.")
max_size_option = click.option(
    "--max-size", type=Size(), default=limits.RESTORED, show_default="8GiB", help="Largest restored model to accept."
)
verbosity_options = _together(
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("-v", "--verbose", count=True, help="Print more; -vv also tracebacks."),
)

running_options = _together(
    click.option(
        "--output",
        "outputs",
        multiple=True,
        metavar="NAME",
        help="Measure the deviation on this tensor, inner ones allowed; repeatable. "
        "[default: every float output, and what enters a final Softmax, Sigmoid, ArgMax …]",
    ),
    click.option(
        "--dim",
        "dims",
        multiple=True,
        type=Dimension(),
        help="Size of a free dimension, for random data and images; repeatable.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Samples in one run."),
    click.option(
        "--threads", type=click.IntRange(0), default=0, show_default="all", help="Threads that onnxruntime uses."
    ),
    click.option(
        "--provider", default="CPUExecutionProvider", show_default=True, help="onnxruntime's execution provider."
    ),
)

image_options = _together(
    click.option("--mean", type=Numbers(), help="Images: subtracted after scaling, per channel. [default: 0]"),
    click.option("--std", type=Numbers(), help="Images: divided by after that, per channel. [default: 1]"),
    click.option("--scale", type=float, help="Images: factor on pixels of 0…255. [default: 1/255]"),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Images: order of axes. [default: nchw]"),
    click.option("--channel-order", type=click.Choice(["rgb", "bgr"]), help="Images: [default: rgb]"),
)


def load_calibration(source: str, images: dict[str, Any]) -> Calibration:
    """The calibration data that the options describe."""
    from riq_cli.calibration import Calibration, ImageOptions

    given: dict[str, Any] = {name: value for name, value in images.items() if value is not None}
    options: ImageOptions = ImageOptions(**given)
    return Calibration.load(source, options)


@contextlib.contextmanager
def open_archive(path: str, max_size: int) -> Iterator[Archive]:
    """The archive in a file, or on stdin for `-`; errors inside of the block name the file."""
    from riq_cli.archive import Archive

    try:
        source: Any = click.get_binary_stream("stdin") if path == "-" else path
        with Archive.open(source, max_size) as archive:
            yield archive
    except ArchiveError as error:
        raise type(error)(f"{path}: {error}") from error


@contextlib.contextmanager
def coding_executor(weights: int) -> Iterator[Executor | None]:
    """Processes that code streams at the same time where the model is large; None where it is not.

    Processes, since the coder holds Python's global lock.
    """
    if weights < _PARALLEL_WEIGHTS:
        yield None
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from riq_cli.evaluator import available_threads

    with ProcessPoolExecutor(available_threads(), mp_context=get_context("spawn")) as executor:
        yield executor


def named(path: Path | str, error: RiqError) -> RiqError:
    """The same error with the file's name in front."""
    return type(error)(f"{path}: {error}")


__all__ = [
    "coding_executor",
    "force_option",
    "image_options",
    "json_option",
    "load_calibration",
    "max_size_option",
    "open_archive",
    "running_options",
    "verbosity_options",
    "warn_line",
]
