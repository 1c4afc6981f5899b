"""`riq report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from riq_cli.archive import Archive, LayerEntry
from riq_cli.cli import difference as compared
from riq_cli.cli import markdown, options
from riq_cli.cli.gates import check, gate_options, gates
from riq_cli.cli.help import Command, grouped
from riq_cli.cli.log import logged_trace
from riq_cli.cli.paths import FileOf, check_outputs, check_stdout
from riq_cli.cli.pictures import picture_type, write_picture
from riq_cli.cli.terminal import print_json, say, table
from riq_cli.errors import ArchiveError
from riq_cli.files import atomic_write
from riq_cli.report import (
    Difference,
    SortKey,
    Totals,
    codes,
    command,
    difference,
    judgement,
    layers_at,
    page,
    reservation,
    rows,
    totals,
)  # fmt: skip
from riq_cli.text import estimate, fingerprint, human_size, shortened, shown

_ANY_SIZE = 1 << 100  # nothing is restored here, so that nothing needs a limit


@click.command(
    cls=Command,
    synopsis="ARCHIVE [NEW] [OPTIONS]",
    examples="""
riq report model.riqz
riq report model.riqz --sort size | head
riq report model.riqz --html report.html
riq report model.riqz --html report.html --log search.jsonl
riq report model.riqz --plot rates.svg
riq report model.riqz --json | jq .totals.ratio
riq report model.riqz --max-size 2MB --min-ratio 8
riq report old.riqz new.riqz --markdown
""",
    target="the archive misses a bound",
    short_help="Rates, bytes and settings, layer by layer; or what changed.",
)
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE [NEW]", type=options.archive_type)
@grouped(
    "Output",
    click.option("--sort", type=click.Choice(["model", "size", "rate", "name"]),
                 help="Order of the layers. [default: model; of two archives and in markdown: size]"),
    click.option("--html", "page_path", type=options.output_type, metavar="FILE",
                 help="Write one self-contained page instead, - for stdout."),
    click.option("--log", "log_path", type=FileOf(".jsonl"), metavar="FILE",
                 help="Plot the search on the page, from the log that riq compress --log wrote."),
    click.option("--plot", "picture", type=picture_type, metavar="FILE", help="Draw the layers' rates: .png or .svg."),
    click.option("--markdown", "as_markdown", is_flag=True,
                 help="Print markdown, for a pull request or a job's summary."),
    options.json_option,
    options.force_option,
)  # fmt: skip
@gate_options
def report(
    archives: tuple[str, ...],
    sort: SortKey | None,
    page_path: str | None,
    log_path: str | None,
    picture: str | None,
    as_markdown: bool,
    max_size: int | None,
    min_ratio: float | None,
    max_rate: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Say what ARCHIVE holds: every layer's rate and bytes, the totals, and how it was made.

    With a second archive, say what changed from the first to NEW, in total and layer by layer.

    Exits with 3 when the archive (the second of two) misses --max-size, --min-ratio or --max-rate: a gate for
    continuous integration. Only the manifest is read, so that large archives report at once; --html reads the layers'
    tables too, and decodes parts of the largest layers. With --html or --plot, nothing is printed unless it is asked
    for.
    """
    if len(archives) > 2:
        raise click.UsageError(f"one archive to report on, or two to compare; {len(archives)} were given")
    if archives.count("-") > 1:
        raise click.UsageError("only one of two archives can come from stdin")
    for option, written in (("--html", page_path), ("--plot", picture)):
        if written is not None and len(archives) > 1:
            raise click.UsageError(f"{option} shows one archive; leave one of the two away")
    if log_path is not None and page_path is None:
        raise click.UsageError("--log is for the plot of the search on a page; give --html as well")
    check_stdout({"--json": as_json, "--markdown": as_markdown, "--html -": page_path == "-"})
    check_outputs((page_path, picture), (*archives, log_path), force)
    opened = [_opened(path) for path in archives]
    checked = gates(totals(opened[-1]), max_size, min_ratio, max_rate)
    if len(opened) == 2:
        found = difference(opened[0], opened[1], sort or "size")
        document, lines = compared.document(found, *archives), _difference(found, archives, as_markdown)
    else:
        name = "model.riqz" if archives[0] == "-" else Path(archives[0]).name
        if page_path is not None:
            trace = None if log_path is None else logged_trace(log_path, opened[0])
            with options.naming(archives[0], ArchiveError):
                _write_page(page(opened[0], name, _symbol_counts, trace), page_path, force)
        if picture is not None:
            _draw(opened[0], name, sort or "model", picture, force)
        document = _document(opened[0], name, sort or "model")
        lines = (
            markdown.report(opened[0], name, sort or "size").split("\n") if as_markdown
            else _lines(opened[0], sort or "model")
        )  # fmt: skip
    if as_json:
        print_json(document | {"gates": [gate.document() for gate in checked]})
    elif page_path is picture is None or as_markdown:
        say(*lines)
    check(archives[-1], checked)


def _opened(path: str) -> Archive:
    with options.open_archive(path, _ANY_SIZE) as archive:
        return archive


def _difference(found: Difference, archives: tuple[str, ...], as_markdown: bool) -> list[str]:
    """The lines of the difference, with the archives' names, or their paths where the names are the same."""
    names = [Path(path).name for path in archives]
    old, new = archives if names[0] == names[1] else names
    return compared.as_markdown(found, old, new).split("\n") if as_markdown else compared.text(found, old, new)


def _symbol_counts(layer: LayerEntry, sections: Sequence[bytes]) -> Mapping[int, int]:
    """How often each symbol of a layer occurs, decoded; what decodes is imported where there is such a layer."""
    from riq_cli.decode.layers import symbol_counts

    return symbol_counts(layer, sections)


def _write_page(text: str, path: str, force: bool) -> None:
    if path == "-":
        click.echo(text, nl=False)
        return
    data = text.encode()
    with atomic_write(path, force) as file:
        file.write(data)
    say(f"{path}: {human_size(len(data))}", err=True)


def _draw(archive: Archive, name: str, sort: SortKey, path: str, force: bool) -> None:
    from riq_cli import plots

    layers = rows(archive, sort)
    if not layers:
        raise click.UsageError(f"{name} holds no coded layers; there is nothing to draw")
    write_picture(path, plots.layer_rates(layers, totals(archive).rate, name, Path(path).suffix.lower()), force)


def _document(archive: Archive, name: str, sort: SortKey) -> dict[str, Any]:
    manifest = archive.manifest
    return {
        "layers": rows(archive, sort),
        "totals": asdict(totals(archive)),
        "result": dict(manifest.result),
        "calibration": dict(manifest.calibration),
        "settings": dict(manifest.settings),
        "source": dict(manifest.source),
        "creator": manifest.creator,
        "command": command(manifest, name),
    }


_HEADER = ("layer", "op", "shape", "coding", "symbols", "bin width", "entropy", "bits/weight", "bytes", "share")
_CODES = 6  # where the column of codes goes, in archives that have any


def _lines(archive: Archive, sort: SortKey) -> list[str]:
    layers = rows(archive, sort)
    header: tuple[str, ...] = _HEADER
    lines: list[tuple[str, ...]] = [
        (
            row["name"],
            row["op"],
            "×".join(map(str, row["shape"])) + ("" if row["dtype"] == "float32" else f" {row['dtype']}"),
            row["coding"],
            str(row["symbols"] or "-"),
            "-" if row["bin_width"] is None else f"{row['bin_width']:.4g}",
            f"{row['entropy']:.2f}" if row["symbols"] else "-",
            f"{row['rate']:.2f}",
            str(row["bytes"]),
            f"{row['share']:.1%}",
        )
        for row in layers
    ]
    if any(row["scales"] or row["classes"] or row["magnitudes"] for row in layers):
        header = (*header[:_CODES], "codes", *header[_CODES:])
        told = [codes.brief(row) or "-" for row in layers]
        lines = [(*line[:_CODES], word, *line[_CODES:]) for line, word in zip(lines, told, strict=True)]
    nothing = "nothing to code: the model has no float weights large enough; all of it is in the skeleton"
    made = ["", *_made(archive)] if archive.manifest.result else []
    return [*(table(header, lines, left=4) if lines else [nothing]), "", *_totals(totals(archive)), *made]


def _totals(sums: Totals) -> list[str]:
    breakdown = ", ".join(f"{name} {human_size(size)} ({size / sums.archive_bytes:.1%})" for name, size in sums.parts)
    lines = [
        f"{sums.layers} layers, {sums.weights:,} weights at {sums.rate:.3g} bits/weight; "
        f"×{sums.ratio_eq2:.2f} by eq. (2)",
        f"{human_size(sums.archive_bytes)}: {breakdown}",
    ]
    if sums.ratio is not None and sums.source_bytes is not None:
        lines.append(f"×{sums.ratio:.2f} smaller than the source ({human_size(sums.source_bytes)})")
    return lines


def _made(archive: Archive) -> list[str]:
    manifest = archive.manifest
    result, calibration = manifest.result, manifest.calibration
    lines = []
    if "constraint" in result:
        lines.append(f"constraint: {judgement(result['constraint'])}")
    if "constraint_holdout" in result:
        lines.append(f"  held out: {judgement(result['constraint_holdout'])}")
    for tensor in result.get("measured", ()):
        lines.append(
            f"deviation {estimate(tensor['mean'], tensor.get('standard_error'))}, worst sample {tensor['worst']:.4g} "
            f"at {shortened(tensor['name'])}"
        )
    if "holdout" in result:
        held = estimate(result["holdout"], result.get("holdout_standard_error"))
        lines.append(f"held out: {held} on {shown(result.get('holdout_samples'), 'd')} samples")
    lines.append(
        f"calibration: {shown(calibration.get('samples'), 'd')} samples, {calibration.get('kind', '–')}"
        f"{reservation(calibration.get('kind'))}, "
        f"SHA-256 {fingerprint(calibration.get('sha256', '–'))}…"
    )
    lines.append(
        f"search: {result.get('allocation', '–')} allocation, {result.get('rounding', 'nearest')} rounding, "
        f"k = {shown(result.get('k'), '.5g')}, "
        f"epsilon = {shown(result.get('epsilon'), 'g')}; {shown(result.get('evaluations'), 'd')} evaluations, "
        f"{shown(result.get('probes'), 'd')} probes"
    )
    if "layout" in result:
        lines.append(f"layout: {layers_at(result['layout'])}")
    settings = ", ".join(f"{key} = {value}" for key, value in sorted(manifest.settings.items()) if value is not None)
    lines.append(f"settings: {settings}; {manifest.creator}")
    return lines
