"""`riq report`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from riq_cli.archive import Archive
from riq_cli.cli import options
from riq_cli.cli.terminal import finite, human_size, printable, shortened, table
from riq_cli.report import SortKey, Totals, rows, totals


@click.command(
    epilog="""\b
Examples:
  riq report model.riqz
  riq report model.riqz --sort size | head
  riq report model.riqz --json | jq .totals.ratio
""",
    short_help="Rates, bytes and settings, layer by layer.",
)
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--sort",
    type=click.Choice(["model", "size", "rate", "name"]),
    default="model",
    show_default=True,
    help="Order of the layers.",
)
@options.max_size_option
@options.json_option
def report(archive: str, sort: SortKey, max_size: int, as_json: bool) -> None:
    """Say what ARCHIVE holds: every layer's rate and bytes, the totals, and how it was made.

    Only the manifest is read, so that large archives report at once.
    """
    with options.open_archive(archive, max_size) as opened:
        click.echo(json.dumps(_document(opened, sort), indent=2) if as_json else _text(opened, sort))


def _document(archive: Archive, sort: SortKey) -> dict[str, Any]:
    manifest = archive.manifest
    return {
        "layers": rows(archive, sort),
        "totals": asdict(totals(archive)),
        "result": {key: finite(v) if isinstance(v, float) else v for key, v in manifest.result.items()},
        "calibration": dict(manifest.calibration),
        "settings": dict(manifest.settings),
        "source": dict(manifest.source),
        "creator": manifest.creator,
    }


_HEADER = ("layer", "op", "shape", "coding", "symbols", "bin width", "entropy", "bits/weight", "bytes", "share")
_CODES = 6  # where the column of codes goes, in archives that have any


def _text(archive: Archive, sort: SortKey) -> str:
    blocks, layers = [], rows(archive, sort)
    header: tuple[str, ...] = _HEADER
    lines: list[tuple[str, ...]] = [
        (
            printable(row["name"]),
            printable(row["op"]),
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
    if any(row["scales"] or row["classes"] for row in layers):
        header = (*header[:_CODES], "codes", *header[_CODES:])
        lines = [(*line[:_CODES], _codes(row), *line[_CODES:]) for line, row in zip(lines, layers, strict=True)]
    if lines:
        blocks.append(table(header, lines, left=4))
    else:
        blocks.append("nothing to code: the model has no float weights large enough; all of it is in the skeleton")
    blocks.append(_totals(totals(archive)))
    if archive.manifest.result:
        blocks.append(_made(archive))
    return "\n\n".join(blocks)


def _codes(row: dict[str, Any]) -> str:
    """How many codes say more of a layer: "64+576, 64 classed" are two scales, and classes of 64 slices."""
    parts = ["+".join(str(scale["codes"]) for scale in row["scales"])] if row["scales"] else []
    if row["classes"]:
        parts.append(f"{row['classes']['codes']} classed")
    return ", ".join(parts) or "-"


def _totals(sums: Totals) -> str:
    parts = (
        ("streams", sums.stream_bytes),
        ("tables", sums.table_bytes),
        *([("codes", sums.code_bytes)] if sums.code_bytes else []),
        ("skeleton", sums.skeleton_bytes),
        ("manifest", sums.manifest_bytes + sums.header_bytes),
    )
    breakdown = ", ".join(f"{name} {human_size(size)} ({size / sums.archive_bytes:.1%})" for name, size in parts)
    lines = [
        f"{sums.layers} layers, {sums.weights:,} weights at {sums.rate:.3g} bits/weight; "
        f"×{sums.ratio_eq2:.2f} by eq. (2)",
        f"{human_size(sums.archive_bytes)}: {breakdown}",
    ]
    if sums.ratio is not None and sums.source_bytes is not None:
        lines.append(f"×{sums.ratio:.2f} smaller than the source ({human_size(sums.source_bytes)})")
    return "\n".join(lines)


def _made(archive: Archive) -> str:
    manifest = archive.manifest
    result, calibration = manifest.result, manifest.calibration
    lines = []
    for tensor in result.get("measured", ()):
        lines.append(
            f"deviation {tensor['mean']:.4g}, worst sample {tensor['worst']:.4g} at {shortened(str(tensor['name']))}"
        )
    if "holdout" in result:
        lines.append(f"held out of the search: {result['holdout']:.4g} on {result['holdout_samples']} samples")
    lines.append(
        f"calibration: {calibration.get('samples')} samples, {calibration.get('kind')}, "
        f"SHA-256 {str(calibration.get('sha256'))[:16]}…"
    )
    lines.append(
        f"search: {result.get('allocation')} allocation, {result.get('rounding', 'nearest')} rounding, "
        f"k = {result.get('k', 0):.5g}, "
        f"epsilon = {result.get('epsilon', 0):g}; {result.get('evaluations')} evaluations, "
        f"{result.get('probes')} probes"
    )
    settings = ", ".join(f"{key} = {value}" for key, value in sorted(manifest.settings.items()))
    lines.append(f"settings: {printable(settings)}; {printable(manifest.creator)}")
    return "\n".join(lines)
