"""`riq verify`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli import constraints, options
from riq_cli.cli.help import TARGET, Command, grouped
from riq_cli.cli.paths import check_outputs, check_stdout, write
from riq_cli.cli.progress import Wait
from riq_cli.cli.quantities import parse_fraction
from riq_cli.cli.terminal import print_json, say, warn_line
from riq_cli.errors import SettingsError
from riq_cli.report import judgement, reservation, top1_text, verification_page, with_derived, worst_samples
from riq_cli.text import counted, deviation_text, shortened, standard_errors

if TYPE_CHECKING:
    from riq_cli.pipeline import Format
    from riq_cli.runtime import Deviation

_WORST = 5  # samples that -v names
_CHANCE = 3  # standard errors above a bound from which it is not by chance


@click.command(
    cls=Command,
    synopsis="ARCHIVE --against MODEL --calibration DATA [OPTIONS]",
    examples=r"""
riq verify model.riqz --against model.onnx --calibration heldout.npz
riq verify model.riqz --against model.onnx --calibration heldout.npz \
    --deviation 0.012 --json
riq verify model.riqz --against model.onnx --calibration heldout.npz \
    --labels heldout_labels.npy
riq verify model.riqz --against model.onnx --calibration heldout.npz \
    --html verified.html
riq verify model.riqz --against model.onnx --calibration heldout.npz \
    --format int8 --nearest
""",
    target="the deviation is above the bound",
    short_help="Measure the deviation on other data; exit 3 if above the bound.",
)
@click.argument("archive", type=options.archive_type)
@grouped(
    "What to measure",
    click.option("--against", required=True, type=options.model_type, metavar="MODEL", help="The original model."),
    click.option("--calibration", required=True, type=options.calibration_type, metavar="DATA",
                 help="Samples to measure on, as for riq compress."),
    click.option("--deviation", type=parse_fraction, metavar="D",
                 help="Bound. [default: the target the archive was made for]"),
)  # fmt: skip
@constraints.constraint_options
@options.format_options
@grouped("Model", options.follow_links_option)
@options.running_options
@options.image_options
@grouped(
    "Output",
    click.option("--html", "page_path", type=options.output_type, metavar="FILE",
                 help="Write one self-contained page as well, with the worst samples; - for stdout."),
    options.json_option,
    options.force_option,
    options.max_size_option,
    options.scratch_option,
    options.quiet_option,
    options.verbose_option,
)  # fmt: skip
def verify(
    archive: str,
    against: str,
    calibration: str,
    deviation: float | None,
    format: Format,  # noqa: A002
    nearest: bool,
    convert_activations: bool,
    follow_links: bool,
    page_path: str | None,
    max_size: int,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **running: Any,
) -> None:
    """Restore ARCHIVE in memory and measure how far its outputs are from the original's on given samples.

    With a constraint, also judge it as riq compress does, by default with the tolerance that ARCHIVE was made for;
    where that is of --max-flips or --max-kl, these options may be left out. Exits with 3 when the deviation is above
    the bound or the constraint is not kept: a gate for continuous integration.
    """
    from riq_cli.constraint import check_margin
    from riq_cli.pipeline import Verification

    if archive == against == "-":
        raise click.UsageError("only one of ARCHIVE and --against can come from stdin")
    check_stdout({"--json": as_json, "--html -": page_path == "-"})
    check_outputs((page_path,), (archive, against, calibration, *constraints.files(running)), force)
    options.check_format(format, nearest, convert_activations)
    images = options.image_options_for(running, calibration)
    asked = options.taken(running, constraints.OPTIONS)
    margin = asked.get("margin", 0.0)
    check_margin(margin)
    with options.open_archive(archive, max_size) as opened:
        manifest = opened.manifest
        constraint, data = constraints.load(asked, calibration, images, running["outputs"], manifest.settings)
        assert data is not None
        original = options.load_model(against, follow_links)
        if not quiet:
            options.warn_of_another_model(archive, opened, against, original)
        if not quiet and constraint is None and "objective" not in asked:
            _warn_of_unjudged(archive, manifest.settings.get("objective"))
        bound = manifest.settings.get("deviation") if deviation is None else deviation
        with options.coding_executor(manifest.layers) as executor, Wait("measuring", quiet) as wait:
            verification = Verification(
                opened, original, data, format=format, nearest=nearest, convert_activations=convert_activations,
                executor=executor, warn=wait.warn, needed=constraint is None or bound is not None, **running,
            )  # fmt: skip
            found = verification.deviation()
            judged = None if constraint is None else verification.judgement(constraint)
    if margin and bound is not None and found.samples.size < 2:
        raise SettingsError("a margin in standard errors needs two samples at least")
    within = bound is None or found.mean + margin * (found.standard_error or 0.0) <= bound
    holds = within and (judged is None or judged.holds)
    samples = found.by_sample.tolist() if found.is_measured else []
    document = {"archive": archive, "against": against, **with_derived(found.recorded())}
    document |= {} if format == "original" else {"format": format}
    document |= {"bound": bound, "margin": margin, "within": within, "holds": holds}
    document |= {} if judged is None else {"constraint": judged.recorded()}
    if page_path is not None:
        write(page_path, verification_page(document, samples).encode(), force, quiet)
    if as_json:
        print_json(document | {"samples": samples})
    elif not quiet and page_path != "-":
        say(*_text(document, found, reservation(manifest.calibration.get("kind"))))
        if verbose and found.is_measured:
            worst = (f"{number} ({value:.4g})" for number, value in worst_samples(samples, _WORST))
            say(f"  worst samples, numbered from 0: {', '.join(worst)}")
    if not holds:
        raise click.exceptions.Exit(TARGET)


def _text(document: Mapping[str, Any], found: Deviation, reserved: str) -> list[str]:
    """The lines of a verification for a terminal, from its document for JSON.

    Args:
        document: what `--json` prints.
        found: the deviation.
        reserved: what the samples that the archive was made on leave open, if anything.
    """
    if not found.is_measured:
        lines = [f"{document['archive']}: no float output to measure"]
    else:
        bound, margin, count = document["bound"], document["margin"], found.samples.size
        verdict = "" if bound is None else f", {'within' if document['within'] else 'ABOVE'} the bound of {bound:g}"
        verdict += f" with {standard_errors(margin)} added" if verdict and margin else ""
        mean = deviation_text(found.mean, found.standard_error)
        stored = f" as {document['format']}" if "format" in document else ""
        lines = [f"{document['archive']}{stored}: deviation {mean}{verdict}; {counted(count, 'sample')}"]
        if not document["within"] and found.standard_error:
            lines.append(f"  {_excess((found.mean - bound) / found.standard_error, count)}")
        if not document["within"] and reserved:
            lines.append("  the archive was made on random samples, which promise nothing; give riq compress real ones")
        if not document["within"] and "format" in document:
            lines.append(
                "  what the format rounds further is part of it; archives of --preset deployable need no rounding"
            )
    for tensor in found.tensors:
        mean = deviation_text(tensor.mean, tensor.standard_error)
        lines.append(f"  at {shortened(tensor.name)}: {mean}, worst sample {tensor.worst:.4g}")
    lines += [f"  top-1 kept on {top1_text(top1)} at {shortened(top1['name'])}" for top1 in found.top1]
    if "constraint" in document:
        lines.append(f"  constraint: {judgement(document['constraint'])}")
    return lines


def _warn_of_unjudged(archive: str, objective: str | None) -> None:
    """Say so where an archive was made to keep what needs labels or a function, and neither is given."""
    if objective in ("loss", "metric"):
        option = "--labels" if objective == "loss" else "--metric"
        warn_line(f"{archive}: was made to keep a {objective}, which is not judged without {option}; give it")


def _excess(errors: float, samples: int) -> str:
    """How far a mean is above its bound, in its standard errors, and what to do about it."""
    if errors < 0:
        return f"the mean of {samples} samples is within the bound, but by less than the margin"
    by = "less than one standard error" if errors < 1 else standard_errors(errors)
    advice = "a --margin or more samples" if errors < _CHANCE else "samples more like these, or a smaller --deviation"
    return f"above by {by} of {samples} samples; give riq compress {advice}"
