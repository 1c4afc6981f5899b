"""`riq compress`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli import constraints, options
from riq_cli.cli.batch import compress_batch
from riq_cli.cli.help import Command, grouped
from riq_cli.cli.job import checkpoint_path, made, on_cluster, prepared, prepared_from, resumable
from riq_cli.cli.log import search_log, step_record, trace
from riq_cli.cli.paths import check_binary, check_outputs, check_stdout, refuse_sources
from riq_cli.cli.progress import Wait
from riq_cli.cli.quantities import parse_bits, parse_number, parse_ratio, parse_size, parse_target
from riq_cli.cli.terminal import print_json, say
from riq_cli.remote import is_url, without_query
from riq_cli.report import judgement, layers_at, reservation, searched, top1_text, totals, with_derived
from riq_cli.text import counted, deviation_text, human_size, percent, shortened, times

if TYPE_CHECKING:
    from riq_cli.archive import Archive
    from riq_cli.pipeline import Progress


class _Layout(click.Choice[str]):
    """The layouts of weights; one of images is another option's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The layout."""
        if value in ("nchw", "nhwc"):
            self.fail(f"{value!r} is the order of the axes of images; write --image-layout {value}", param, ctx)
        return super().convert(value, param, ctx)


_TOP1_KEPT = 0.99  # share of the choices below which the summary gives advice


@click.command(
    cls=Command,
    synopsis="MODEL [--calibration DATA] [--deviation D] [-o FILE] [OPTIONS]",
    examples=r"""
riq compress model.onnx --calibration samples.npz --deviation 0.01
riq compress model.onnx --calibration images/ \
    --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
riq compress model.onnx --calibration mydata:samples --exclude '*embedding*'
riq compress model.onnx --calibration samples.npz --size 500kB --json
riq compress model.onnx --calibration samples.npz -o small.riqz --log s.jsonl
cat model.onnx | riq compress - --calibration samples.npz -o model.riqz
riq compress model.onnx --calibration samples.npz --max-flips 1%
riq compress model.onnx --calibration samples.npz --labels labels.npy \
    --max-loss-increase 1% --margin 1
riq compress model.onnx --calibration samples.npz \
    --metric evaluation:accuracy --max-drop 0.004
riq compress --batch models/ --calibration '{folder}/{stem}.npz' -o archives/
riq compress --batch models.txt --scheduler tcp://host:8786 -o archives/
""",
    target="no archive keeps the target",
    table=("Presets (size and time beside small)", [(name, "  ".join(row)) for name, row in options.PRESETS.items()]),
    short_help="Model to archive: the smallest that keeps the deviation.",
)
@click.argument("model", type=options.model_type, required=False)
@grouped(
    "Goal",
    click.option("--deviation", type=parse_target, metavar="D",
                 help="How far outputs may move: cosine distance [default: 0.01]"),
    click.option("--ratio", type=parse_ratio, metavar="X",
                 help="Instead: the least deviation in 1/X of the model's bytes."),
    click.option("--size", type=parse_size, metavar="SIZE",
                 help="Instead: the least deviation in 500kB, 5MB …"),
    click.option("--rate", type=parse_number, metavar="R",
                 help="Instead: the least deviation at R bits/weight."),
    click.option("--k", type=parse_number, metavar="K",
                 help="Instead: this k of the norm allocation, without a search."),
)  # fmt: skip
@grouped("Samples", options.calibration_option, options.holdout_option)
@grouped(
    "Method",
    click.option("--preset", type=click.Choice(options.PRESETS), help="How much work: see below. [default: small]"),
    click.option("--allocation", type=click.Choice(["norm", "measured", "uniform"]),
                 help="Bin widths: by norm, as in the paper; by the deviation that each layer causes; by range."),
    click.option("--rounding", type=click.Choice(["nearest", "compensated", "trellis", "directed"]),
                 help="compensated: later columns of a layer make up for errors of earlier ones. trellis: the same, "
                 "and the symbol of a weight moves the bins of those after it. directed: in a fixed layout, all "
                 "weights of a layer up or down, as the loss falls."),
    click.option("--search", type=click.Choice(["bisection", "algorithm1"]),
                 help="How k is found: algorithm1 is the paper's, to the letter."),
    click.option("--epsilon", type=parse_number, metavar="E",
                 help="ε0 of eq. (7). [default: 0.01 or 0, the smaller archive]"),
    click.option("--without", multiple=True, metavar="STAGE", hidden=True, help="Leave a stage out; repeatable."),
)  # fmt: skip
@grouped(
    "Activations",
    click.option("--activations", type=click.Choice(["int8"]),
                 help="int8: what weights multiply is brought to 8-bit integers, too; D bounds both."),
    click.option("--activation-method", type=click.Choice(["minmax", "entropy", "percentile"]),
                 help="How the ranges of these integers are found. [default: minmax]"),
)  # fmt: skip
@constraints.constraint_options
@grouped(
    "Layout",
    click.option("--layout", "fixed", type=_Layout(["fixed"]),
                 help="fixed: every layer at one of --bits, chosen greedily by the loss or metric."),
    click.option("--bits", type=parse_bits, metavar="LIST", help="Fixed layout: widths. [default: 4,8,float]"),
    click.option("--per-channel", is_flag=True, default=None,
                 help="Fixed layout: bins over each channel's own range."),
    click.option("--variant", type=click.Choice(["R", "B"]),
                 help="Fixed layout: R tries a layer's least bits first, B 8 bits first. [default: R]"),
    click.option("--mu", type=parse_number, metavar="M",
                 help="Fixed layout: keep layers in float where the loss's slope in their inputs is smaller."),
)  # fmt: skip
@options.layer_options
@grouped("Model", options.follow_links_option)
@grouped(
    "Many models",
    click.option("--batch", type=click.Path(exists=True), metavar="FOLDER|LIST",
                 help="Instead of MODEL: all *.onnx below a folder, or those of a list, a path in each line. {folder} "
                 "and {stem} in --calibration and --labels stand for the folder and the name of each."),
    click.option("--jobs", type=click.IntRange(1), metavar="N", help="Models at the same time. [default: 1]"),
    options.scheduler_option,
)  # fmt: skip
@options.running_options
@options.image_options
@grouped(
    "Output",
    click.option("-o", "archive_path", type=options.output_type, metavar="FILE",
                 help="Archive to write, - for stdout; with --batch, the folder of all. [default: MODEL.riqz]"),
    click.option("--resume", is_flag=True,
                 help="Go on from FILE.checkpoint, which a run of this command left there that did not end."),
    options.force_option,
    options.json_option,
    options.log_option,
    options.scratch_option,
    options.quiet_option,
    options.verbose_option,
)  # fmt: skip
def compress(
    model: str | None,
    calibration: str | None,
    archive_path: str | None,
    resume: bool,
    preset: str | None,
    log_path: str | None,
    batch: str | None,
    jobs: int | None,
    scheduler: str | None,
    follow_links: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **settings: Any,
) -> None:
    """Compress MODEL (- for stdin) into the smallest archive whose outputs, once restored, move no further than D."""
    began = time.monotonic()
    if scheduler is not None:
        options.for_workers(model, settings)
    if batch is not None:
        if model is not None:
            raise click.UsageError("MODEL is one model, and --batch names several; give one of them")
        if log_path is not None:
            raise click.UsageError("--log is of one model; leave it out with --batch")
        if jobs is not None and scheduler is not None:
            raise click.UsageError("--jobs is of this machine; with --scheduler, each thread of a worker has a model")
        given = {"preset": preset, "follow_links": follow_links, "settings": settings}
        compress_batch(batch, calibration, archive_path, jobs or 1, scheduler, force, resume, as_json, quiet, given)
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL': a file, - for stdin, or --batch for several")
    if jobs is not None:
        raise click.UsageError("--jobs belongs to --batch")
    if archive_path is None and model == "-":
        raise click.UsageError("a model from stdin has no name to derive the archive's from; give -o FILE")
    path = archive_path or str(
        Path(without_query(model).rpartition("/")[2] if is_url(model) else model).with_suffix(".riqz")
    )
    check_binary(path, force)
    check_stdout({"--json": as_json, "-o -": path == "-"})
    wait = Wait("running the original", quiet, verbose)
    kept_at = checkpoint_path(path, settings["k"], wait.warn)
    if resume and path == "-":
        raise click.UsageError("--resume goes on from a file beside the archive, and stdout has none; give -o FILE")
    outputs, sources = (path, log_path, kept_at), (model, calibration, *constraints.files(settings))
    check_outputs(outputs, sources, force, goes_on=(kept_at, log_path) if resume else (kept_at,))

    load = partial(prepared_from, os.getcwd(), model, calibration, preset, follow_links, dict(settings))
    source, data, wanted = prepared(model, calibration, preset, follow_links, settings)
    refuse_sources(outputs, source.external_files)
    records: list[dict[str, Any]] = []
    with search_log(log_path, force, resume) as log:

        def tell(step: Progress) -> None:
            if step.phase == "resumed" and not quiet:
                with wait.hidden():
                    found = f"{counted(step.done, 'step')} that took {step.value:.0f} s"
                    say(f"riq: goes on from {kept_at}, which holds {found}", err=True)
            wait(step)
            if record := step_record(step):
                log(record)
                records.append(record)

        with resumable(path, kept_at, resume, wait.warn) as checkpoint:
            with wait, on_cluster(scheduler, load) as cluster:
                archive = made(source, data, wanted, tell, wait.warn, checkpoint, cluster)
            if path == "-":
                archive.write(sys.stdout.buffer)
                sys.stdout.flush()  # what fails here is told before, and not after, that it was done
            else:
                archive.save(path, force)
            checkpoint.remove()
        facts = _facts(archive, model, path, time.monotonic() - began, records)
        facts["stage_seconds"] = {phase: round(seconds, 3) for phase, seconds in wait.seconds.items()}
        log({"phase": "result"} | {key: value for key, value in facts.items() if not key.endswith("trace")})
    if as_json:
        print_json(facts)
    elif not quiet:
        say(*_summary(facts, verbose), err=True)


def _facts(
    archive: Archive, model: str, path: str, seconds: float, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What compress tells, as --json prints it.

    Its `trace` is not in the archive: it is taken from the steps of the search, whose lines for a log are `records`. So
    is the `constraint_trace`, under a constraint; a fixed layout is searched without k and has none.
    """
    manifest = archive.manifest
    result = manifest.result
    facts = {
        "model": model,
        "archive": path,
        "command": shlex.join(["riq", *sys.argv[1:]]),
        **with_derived(result),
        "target": manifest.settings.get("deviation"),
        "settings": {key: value for key, value in manifest.settings.items() if value is not None},
        "calibration": dict(manifest.calibration),
        **asdict(totals(archive)),
        "seconds": round(seconds, 3),
        "trace": trace(records, result),
    }
    if "constraint" in result and "layout" not in result:
        facts["constraint_trace"] = trace(records, result, "constraint")
    return facts


def _advice(facts: Mapping[str, Any]) -> list[str]:
    """A line that says what to do where the top-1 changes too often, or where samples are too few to tell.

    With the deviation as the goal: on more than 1 % of the choices, those held out if any are. Random samples tell
    nothing of it.
    """
    flips = facts.get("constraint", {})
    if "changed" in flips and flips["high"] > 2 * flips["limit"]:
        return [
            f"  advice     few samples ({flips['samples']:,}) for {percent(flips['limit'])}: on others, "
            f"{percent(flips['high'])} may change; give more, or --max-kl, for which each of them counts"
        ]
    seen = facts.get("holdout_top1") or facts.get("top1")
    has_other_goal = not {"objective", "ratio", "size", "rate", "k"}.isdisjoint(facts["settings"])
    if not seen or has_other_goal or facts["calibration"]["kind"] == "random":
        return []
    top1 = min(seen, key=lambda one: one["share"])
    if top1["share"] >= _TOP1_KEPT:
        return []
    choices = f"{top1['choices'] - top1['kept']:,} of {top1['choices']:,} choices"
    held = " held out" if "holdout_top1" in facts else ""
    smaller = f"{facts['target'] / 4:.2g}"  # flips go with the relative error, the root of the deviation
    return [
        f"  advice     top-1 changed on {choices}{held} ({percent(1 - top1['share'])}): --max-flips 1% or "
        f"--max-kl 0.01 bounds that, --deviation {smaller} about halves it"
    ]


def _summary(facts: dict[str, Any], verbose: int) -> list[str]:
    source = "the model on stdin" if facts["model"] == "-" else facts["model"]
    ratio = f", {times(facts['ratio'])} than {source}" if facts["ratio"] else ""
    lines = [f"{facts['archive']}: {human_size(facts['archive_bytes'])}{ratio} ({human_size(facts['source_bytes'])})"]
    if "constraint" in facts:
        lines.append(f"  constraint {judgement(facts['constraint'])}")
    if "constraint_holdout" in facts:
        lines.append(f"    held out: {judgement(facts['constraint_holdout'])}")
    if "deviation" in facts:
        bound = f" ≤ {facts['target']:g}" if facts["target"] is not None else ""
        samples, kind = facts["calibration"]["samples"], facts["calibration"]["kind"]
        lines.append(
            f"  deviation  {deviation_text(facts['deviation'], facts['standard_error'], bound)}; "
            + (counted(samples, "random sample") if kind == "random" else f"{counted(samples, 'sample')} ({kind})")
            + reservation(kind)
        )
        if "holdout" in facts:
            held = deviation_text(facts["holdout"], facts["holdout_standard_error"])
            lines.append(f"    held out: {held} on {facts['holdout_samples']} of these samples")
        for tensor in facts["measured"]:
            mean = deviation_text(tensor["mean"], tensor["standard_error"])
            lines.append(f"    at {shortened(tensor['name'])}: {mean}, worst sample {tensor['worst']:.4g}")
    for tensor in facts.get("top1", ()):
        lines.append(f"  top-1      kept on {top1_text(tensor)} at {shortened(tensor['name'])}")
    for tensor in facts.get("holdout_top1", ()):
        lines.append(f"    held out: {top1_text(tensor)} at {shortened(tensor['name'])}")
    lines += _advice(facts)
    lines.append(
        f"  layers     {facts['layers']}, {facts['weights']:,} weights at {facts['rate']:.3g} bits/weight; "
        f"×{facts['ratio_eq2']:.2f} by eq. (2)"
        if facts["layers"]
        else "  layers     none is coded: all of the model is stored as it is"
    )
    if "k" in facts:
        lines.append(f"  search     {searched(facts)}, {facts['seconds']:.1f} s")
    if "layout" in facts:
        lines.append(f"  layout     {layers_at(facts['layout'])}")
    if verbose:
        lines += [f"    k {k:<10g} deviation {value:.4g}" for k, value in facts["trace"]]
        lines += [f"    k {k:<10g} constraint {value:.4g}" for k, value in facts.get("constraint_trace", ())]
    return lines
