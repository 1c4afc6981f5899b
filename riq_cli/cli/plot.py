"""`riq plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from riq_cli.cli import options
from riq_cli.cli.help import Command, grouped
from riq_cli.cli.paths import FileOf, check_outputs, picture_type, write
from riq_cli.errors import PointsError
from riq_cli.points import read_points

if TYPE_CHECKING:
    from riq_cli.plots import Kind

_KINDS = ("curve", "coder", "k", "epsilon", "prediction")


@click.command(
    cls=Command,
    synopsis="KIND CSV… -o FILE [OPTIONS]",
    examples="""
riq plot curve curve.csv -o curve.svg
riq plot curve cnn.csv lstm.csv --rate -o models.svg
riq plot coder curve.csv -o coder.png  # riq sweep --presets paper,uniform
riq plot k k.csv -o k.svg              # riq sweep --epsilon 0 --k 30,100,300
riq plot epsilon k.csv -o epsilon.svg  # … and --epsilon 0.01 into k.csv too
riq plot prediction p.csv -o p.svg     # riq sweep --validation
""",
    short_help="Draw what riq sweep has found: the figures of the paper.",
)
@click.argument("kind", type=click.Choice(_KINDS), metavar="KIND")
@click.argument("sweeps", nargs=-1, required=True, type=FileOf(".csv"), metavar="CSV…")
@grouped(
    "Output",
    click.option("-o", "picture", type=picture_type, required=True, metavar="FILE", help="Picture: .png or .svg."),
    click.option("--title", metavar="TEXT", help="What the picture is of. [default: the CSV's name, if it is one]"),
    click.option("--rate", is_flag=True, help="curve: draw bits/weight in place of the compression ratio."),
    options.force_option,
    options.quiet_option,
    options.verbose_option,
)
def plot(
    kind: Kind,
    sweeps: tuple[str, ...],
    picture: str,
    title: str | None,
    rate: bool,
    force: bool,
    quiet: bool,
    verbose: int,
) -> None:
    """Draw a figure of the paper from the CSV of one sweep or more.

    \b
    curve       size over deviation for each preset or model (Fig. 4c)
    coder       rate with and without the entropy coder (Fig. 4a)
    k           deviation over k with a fit of a/k² (Fig. 2a)
    epsilon     what ε0 does to deviation and size over k (Fig. 2b)
    prediction  deviation on validation samples over the target (Fig. 1a)

    The rate of each layer (Fig. 4b) is drawn by riq report --plot.
    """
    if rate and kind != "curve":
        raise click.UsageError("--rate belongs to curve")
    if len(set(sweeps)) < len(sweeps):
        raise click.UsageError("a CSV is named twice")
    check_outputs([picture], sweeps, force)
    distinct = len({Path(path).stem for path in sweeps}) == len(sweeps)
    found = {}
    for path in sweeps:
        try:
            points, _ = read_points(path)
        except PointsError as error:
            raise PointsError(f"{path}: is not the CSV of a sweep: {error}") from error
        if not points:
            raise PointsError(f"{path}: holds no points yet")
        found[Path(path).stem if distinct else str(Path(path).with_suffix(""))] = points

    from riq_cli import plots

    data = plots.picture("rate" if rate else kind, found, Path(picture).suffix.lower(), title)
    write(picture, data, force, quiet)
