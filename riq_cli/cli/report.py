"""`riq report`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from riq_cli.archive import Archive
from riq_cli.cli import difference as compared
from riq_cli.cli import fleet, markdown, options
from riq_cli.cli.help import FAILED, TARGET, Command, grouped
from riq_cli.cli.log import read_log
from riq_cli.cli.paths import FileOf, check_outputs, check_stdout, picture_type, write
from riq_cli.cli.quantities import parse_number, parse_ratio, parse_size
from riq_cli.cli.terminal import error_line, print_json, say, table
from riq_cli.errors import ArchiveError
from riq_cli.report import (
    PARTS,
    SortKey,
    Totals,
    cells,
    command,
    difference,
    facts,
    page,
    rows,
    totals,
    with_derived,
)  # fmt: skip
from riq_cli.text import counted, human_size, times

_NARROW = ("layer", "shape", "bits/weight", "bytes", "share")  # columns for a terminal of 80 characters
_ANY_SIZE = 1 << 100  # nothing is restored here, so that nothing needs a limit


@click.command(
    cls=Command,
    synopsis="ARCHIVE [NEW] | FOLDER [OPTIONS]",
    examples="""
riq report model.riqz
riq report model.riqz --wide
riq report model.riqz --sort rate | head
riq report model.riqz --html report.html
riq report model.riqz --html report.html --log search.jsonl
riq report model.riqz --plot rates.svg
riq report model.riqz --json | jq .totals.ratio
riq report model.riqz --max-size 2MB --min-ratio 8
riq report old.riqz new.riqz --markdown
riq report archives/ --min-ratio 8
""",
    target="an archive misses a bound",
    short_help="Rates, bytes and settings, layer by layer; or what changed.",
)
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE [NEW]", type=options.archives_type)
@grouped(
    "Output",
    click.option("--sort", type=click.Choice(["bytes", "rate", "name", "model"]), default="bytes", show_default=True,
                 help="Order of the layers: largest first, by name, or as in the model."),
    click.option("--wide", is_flag=True, help="Print all columns and whole names, wider than 80 characters."),
    click.option("--html", "page_path", type=options.output_type, metavar="FILE",
                 help="Write one self-contained page instead, - for stdout."),
    click.option("--log", "log_path", type=FileOf(".jsonl"), metavar="FILE",
                 help="Show the search and the command on the page, from the log of riq compress --log."),
    click.option("--plot", "picture", type=picture_type, metavar="FILE",
                 help="Draw the layers' bytes and rates: .png or .svg."),
    click.option("--markdown", "as_markdown", is_flag=True,
                 help="Print markdown, for a pull request or a job's summary."),
    options.json_option,
    options.force_option,
    options.quiet_option,
)  # fmt: skip
@grouped(
    "Bounds",
    click.option("--max-size", type=parse_size, metavar="SIZE", help="Exit with 3 if the archive is larger."),
    click.option("--min-ratio", type=parse_ratio, metavar="X",
                 help="Exit with 3 if the archive is above 1/X of the source."),
    click.option("--max-rate", type=parse_number, metavar="R",
                 help="Exit with 3 if layers take more than R bits/weight."),
)  # fmt: skip
def report(
    archives: tuple[str, ...],
    sort: SortKey,
    wide: bool,
    page_path: str | None,
    log_path: str | None,
    picture: str | None,
    as_markdown: bool,
    max_size: int | None,
    min_ratio: float | None,
    max_rate: float | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say what ARCHIVE holds: every layer's rate and bytes, the totals, and how it was made.

    With a second archive, say what changed from the first to NEW, in total and layer by layer. Of a folder, say what
    all archives below it come to.

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
            raise click.UsageError(f"{option} shows one archive; leave out one of the two")
    if log_path is not None and page_path is None:
        raise click.UsageError("--log is for the plot of the search on a page; give --html as well")
    check_stdout({"--json": as_json, "--markdown": as_markdown, "--html -": page_path == "-"})
    bounds = max_size, min_ratio, max_rate
    folders = [path for path in archives if Path(path).is_dir()]
    if folders:
        if len(archives) > 1 or page_path is not None or picture is not None or as_markdown:
            raise click.UsageError(f"{folders[0]}: a folder is reported alone, as a table or with --json")
        _report_folder(Path(folders[0]), sort, bounds, wide, as_json, quiet)
        return
    check_outputs((page_path, picture), (*archives, log_path), force)
    opened = [_opened(path) for path in archives]
    sums = totals(opened[-1])
    gates = _gates(sums, *bounds)
    if len(opened) == 2:
        document, lines = _compared(opened, archives, sort, as_markdown, wide)
    else:
        name = "model.riqz" if archives[0] == "-" else Path(archives[0]).name
        if page_path is not None:
            log = None if log_path is None else read_log(log_path, opened[0])
            with options.naming(archives[0], ArchiveError):
                write(page_path, page(opened[0], name, log).encode(), force, quiet)
        if picture is not None:
            write(picture, _drawn(opened[0], name, sort, Path(picture).suffix.lower()), force, quiet)
        document = as_document(opened[0], sort)
        lines = markdown.report(opened[0], name, sort) if as_markdown else text(opened[0], sort, wide)
    if as_json:
        print_json(document | {"gates": gates})
    elif as_markdown or (page_path is picture is None and not quiet):
        say(*lines)
    if said := _missed(gates):
        error_line(f"{archives[-1]}: {said}")
        raise click.exceptions.Exit(TARGET)


def _report_folder(
    folder: Path,
    sort: SortKey,
    bounds: tuple[int | None, float | None, float | None],
    wide: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say what the archives below a folder come to; bounds are for each of them.

    Raises:
        Exit: with 1 if one cannot be read, else with 3 if one misses a bound; each was told.
    """
    rows, codes = [], set()
    for path in sorted(folder.rglob("*.riqz")):
        try:
            archive = _opened(str(path))
        except ArchiveError as error:
            error_line(str(error))
            codes.add(FAILED)
            continue
        gates = _gates(totals(archive), *bounds)
        rows.append({"archive": str(path.relative_to(folder)), **fleet.row(archive), "gates": gates})
        if said := _missed(gates):
            error_line(f"{path}: {said}")
            codes.add(TARGET)
    if not rows and not codes:
        raise click.UsageError(f"{folder}: holds no archive (*.riqz)")
    rows, whole = fleet.in_order(rows, sort), fleet.sums(rows)
    if as_json:
        print_json({"archives": rows, "totals": whole})
    elif not quiet:
        say(*fleet.text(rows, whole, wide))
    if codes:
        raise click.exceptions.Exit(min(codes))


def _opened(path: str) -> Archive:
    with options.open_archive(path, _ANY_SIZE) as archive:
        return archive


def _gates(sums: Totals, max_size: int | None, min_ratio: float | None, max_rate: float | None) -> list[dict[str, Any]]:
    """The bounds that were asked for, as --json prints them; what is not known does not keep one."""
    asked = (
        ("max-size", max_size, sums.archive_bytes),
        ("min-ratio", min_ratio, sums.ratio),
        ("max-rate", max_rate, sums.rate),
    )
    return [
        {
            "gate": name,
            "bound": bound,
            "found": found,
            "holds": found is not None and (found >= bound if name == "min-ratio" else found <= bound),
        }
        for name, bound, found in asked
        if bound is not None
    ]


def _missed(gates: Iterable[Mapping[str, Any]]) -> str:
    """What is wrong with the gates that do not hold, in words; nothing if all do."""
    return "; ".join(map(_miss, (gate for gate in gates if not gate["holds"])))


def _miss(gate: Mapping[str, Any]) -> str:
    bound, found = gate["bound"], gate["found"]
    if gate["gate"] == "max-size":
        return f"{found:,} bytes ({human_size(found)}) are above --max-size {bound:,}"
    if gate["gate"] == "max-rate":
        return f"{found:.4g} bits/weight are above --max-rate {bound:g}"
    if found is None:
        return "the archive does not say how large its source is, so --min-ratio cannot be checked"
    return f"a ratio of {found:.4g} is below --min-ratio {bound:g}"


def _compared(
    opened: Sequence[Archive], archives: Sequence[str], sort: SortKey, as_markdown: bool, wide: bool
) -> tuple[dict[str, Any], list[str]]:
    """The difference for JSON and in lines, which name the archives by their paths where their names are the same."""
    found = difference(opened[0], opened[1], sort)
    names = [Path(path).name for path in archives]
    old, new = archives if names[0] == names[1] else names
    lines = compared.as_markdown(found, old, new) if as_markdown else compared.text(found, old, new, wide)
    paths = {side: {"archive": path} | found[side] for side, path in zip(("old", "new"), archives, strict=True)}
    return found | paths, lines


def _drawn(archive: Archive, name: str, sort: SortKey, suffix: str) -> bytes:
    from riq_cli import plots

    layers = rows(archive, sort)
    if not layers:
        raise click.UsageError(f"{name} holds no coded layers; there is nothing to draw")
    return plots.layer_rates(layers, totals(archive).rate, name, suffix)


def as_document(archive: Archive, sort: SortKey) -> dict[str, Any]:
    """The report as --json prints it."""
    manifest = archive.manifest
    return {
        "layers": rows(archive, sort),
        "totals": asdict(totals(archive)),
        "result": with_derived(manifest.result),
        "calibration": dict(manifest.calibration),
        "settings": dict(manifest.settings),
        "source": dict(manifest.source),
        "creator": manifest.creator,
        "command": command(manifest),
    }


def text(archive: Archive, sort: SortKey, wide: bool) -> list[str]:
    """The lines of the report for a terminal."""
    layers = [cells(row) for row in rows(archive, sort)]
    lines = ["nothing to code: the model has no float weights large enough; all of it is in the skeleton"]
    if layers:
        columns = [key for key in layers[0] if wide or key in _NARROW]
        lines = table(columns, [[layer[key] for key in columns] for layer in layers], 4 if wide else 2, not wide)
    sums = totals(archive)
    whole = human_size(sums.archive_bytes)
    if sums.ratio is not None and sums.source_bytes is not None:
        whole += f", {times(sums.ratio)} than the source ({human_size(sums.source_bytes)})"
    counts = f"{counted(sums.layers, 'layer')}, {sums.weights:,} weights at {sums.rate:.3g} bits/weight"
    parts = [
        (f"  {PARTS[part]} ({part})", human_size(size), f"{size / sums.archive_bytes:.1%}") for part, size in sums.parts
    ]
    lines += [
        "",
        *([f"{counts}; ×{sums.ratio_eq2:.2f} by eq. (2)"] if layers else []),
        f"{whole}:",
        *table(("", "", ""), parts, left=1)[1:],
    ]
    if found := facts(archive):
        lines += ["", *(f"{title}: {fact}" for title, fact in found)]
        lines += ["", f"again with: {command(archive.manifest)}"]
    return lines
