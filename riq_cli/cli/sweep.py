"""`riq sweep`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli import options, paths
from riq_cli.cli import points as points_file
from riq_cli.cli.help import Command, grouped
from riq_cli.cli.log import search_log, step_record
from riq_cli.cli.paths import check_outputs, check_stdout, picture_type, refuse_sources
from riq_cli.cli.quantities import parse_number, parse_numbers, parse_targets
from riq_cli.cli.terminal import ProgressBar, print_json, say, warn_line
from riq_cli.errors import CalibrationError, Interrupted
from riq_cli.memory import give_back_large_arrays
from riq_cli.points import Point
from riq_cli.report import fixed_rate, totals
from riq_cli.text import counted, fingerprint, human_size

if TYPE_CHECKING:
    from riq_cli.calibration import Calibration
    from riq_cli.model import Model
    from riq_cli.pipeline import Outcome, Progress, Settings

_DEVIATIONS = "0.02,0.01,0.005,0.002,0.001"
_PRESETS = ("paper", "small")


@click.command(
    cls=Command,
    synopsis="MODEL [--calibration DATA] [-o FILE] [--plot FILE] [OPTIONS]",
    examples=r"""
riq sweep model.onnx --calibration samples.npz
riq sweep model.onnx --calibration samples.npz --validation heldout.npz \
    -o curve.csv --plot curve.svg
riq sweep model.onnx --calibration samples.npz --presets paper,uniform --json
riq sweep model.onnx --calibration samples.npz --deviations 0.01,0.001
riq sweep model.onnx --calibration samples.npz --epsilon 0 --k 30,100,300,1000
""",
    short_help="The rate–distortion curve: size over deviation, for each preset.",
)
@click.argument("model", type=options.model_type)
@grouped(
    "Points",
    click.option("--deviations", type=parse_targets, default=_DEVIATIONS, show_default=True, metavar="D,…",
                 help="Targets, one point each."),
    click.option("--k", "ks", type=parse_numbers, metavar="K,…",
                 help="Instead: these k of the norm allocation, without a search; not for preset small."),
    click.option("--presets", type=options.parse_presets, metavar="NAME,…",
                 help="Curves: paper, fast, uniform, small. [default: paper,small; with --k: paper]"),
    click.option("--epsilon", type=parse_number, metavar="E", help="ε0 of eq. (7), in place of the presets'."),
)  # fmt: skip
@grouped(
    "Samples",
    options.calibration_option,
    click.option("--validation", type=options.calibration_type, metavar="DATA",
                 help="Further samples that every archive is measured on."),
    options.holdout_option,
)  # fmt: skip
@options.layer_options
@grouped("Model", options.follow_links_option)
@options.running_options
@options.image_options
@grouped(
    "Output",
    click.option("-o", "csv_path", type=options.output_type, metavar="FILE",
                 help="CSV to write, line by line; a sweep that is there is gone on with. [default: stdout]"),
    click.option("--plot", "picture", type=picture_type, metavar="FILE", help="Draw the curve: .png or .svg."),
    options.force_option,
    options.json_option,
    options.log_option,
    options.quiet_option,
    options.verbose_option,
)  # fmt: skip
def sweep(
    model: str,
    calibration: str | None,
    deviations: tuple[float, ...],
    ks: tuple[float, ...] | None,
    presets: tuple[str, ...] | None,
    validation: str | None,
    csv_path: str | None,
    picture: str | None,
    log_path: str | None,
    follow_links: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    images: dict[str, Any],
    **settings: Any,
) -> None:
    """Compress MODEL for one target after the other and say what each costs; the archives are not kept.

    Layers are probed and error compensation is fitted once for each preset. A sweep that was interrupted goes on where
    it stopped: points that FILE holds, of the same model, samples and settings, are not computed again. A target that
    is out of reach is a point too, with the best deviation that was measured.
    """
    path = None if csv_path in (None, "-") else csv_path
    presets = presets or (_PRESETS if ks is None else ("paper",))
    check_stdout({"--json": as_json, "-o -": csv_path == "-"})
    outputs = (path, picture, log_path)
    check_outputs(outputs, (model, calibration, validation), force, goes_on=path)
    if picture is not None:
        from riq_cli import plots

        plots.require()
    kept, size = ([], 0) if path is None or force else points_file.present(path)

    from riq_cli.calibration import Calibration, digest
    from riq_cli.pipeline.settings import once

    ks, deviations = ks and tuple(dict.fromkeys(ks)), tuple(dict.fromkeys(deviations))  # each is one point
    curves = [(preset, _goals(preset, ks, deviations, options.given(settings))) for preset in presets]
    source = options.load_model(model, follow_links)
    refuse_sources(outputs, source.external_files)
    data = Calibration.random() if calibration is None else options.load_calibration(calibration, images)
    judge = None if validation is None else options.load_calibration(validation, images)
    bar = ProgressBar(quiet)

    @once  # each curve may have the same to say
    def warn(message: str) -> None:
        if not quiet:
            bar.close()
            warn_line(message)

    def named(samples: Calibration, path: str) -> str:
        with options.naming(path, CalibrationError):
            fitted = samples.samples(source.inputs, settings["dims"], settings["batch_size"])
        return f"{samples.kind} {digest(fitted)}"

    assert source.source is not None, "it was loaded from a file"
    validated = "" if judge is None else named(judge, str(validation))
    identity = fingerprint(source.source.sha256), named(data, calibration or "random samples"), validated
    points_file.check_model(path, kept, identity[0])
    if calibration is None:
        warn("no --calibration: measured on random samples, which predict real data poorly (the paper's Fig. 1a)")
    points = list(kept)
    try:
        with (
            search_log(log_path, force) as log,
            points_file.lines(path, size, as_json) as write,
            options.coding_executor(sum(layer.size for layer in source.layers)) as executor,
            contextlib.closing(bar),
        ):

            def tell(step: Progress) -> None:
                bar(step)
                if record := step_record(step):
                    log(record)

            for preset, goals in curves:
                for point in _computed(preset, goals, identity, points, source, data, judge,
                                       progress=tell, warn=warn, executor=executor):  # fmt: skip
                    points.append(point)
                    write(point)
                    bar.close()
                    if not quiet:
                        say(_summary(point), err=True)
    except Interrupted as error:
        again = "the same command" + (" without --force" if force else "")
        hint = "" if path is None else f"; {again} goes on with {path}"
        message = f"interrupted after {counted(len(points), 'point')}{hint}"
        raise Interrupted(error.number, message) from error
    if as_json:
        print_json({"model": model, "points": [point.document() for point in points]})
    if picture is not None:
        from riq_cli import plots

        drawn = plots.picture("curve", {Path(model).name: points}, Path(picture).suffix.lower())
        paths.write(picture, drawn, force, quiet)


def _goals(
    preset: str, ks: Sequence[float] | None, deviations: Sequence[float], given: dict[str, Any]
) -> list[Settings]:
    give_back_large_arrays()
    from riq_cli.pipeline import PRESETS, Settings

    chosen: dict[str, Any] = PRESETS[preset] | given
    if ks is None:
        return [Settings(deviation=target, **chosen) for target in deviations]
    if PRESETS[preset]["allocation"] == "measured":
        raise click.UsageError(f"--k has no meaning for the measured allocation of preset {preset}")
    return [Settings(k=k, **chosen) for k in ks]


def _computed(
    preset: str,
    goals: list[Settings],
    identity: tuple[str, str, str],
    present: Sequence[Point],
    source: Model,
    data: Calibration,
    judge: Calibration | None,
    **means: Any,
) -> Iterator[Point]:
    """The points of a preset that are not present yet."""
    from riq_cli.pipeline import sweep as sweep_model

    targets = sorted(goal.deviation for goal in goals if goal.deviation is not None)
    about = targets[len(targets) // 2] if targets else None  # of all: a resumed sweep finds the same points
    keys = {point.key for point in present}
    missing = [goal for goal in goals if _point(preset, goal, identity).key not in keys]
    for outcome in sweep_model(source, data, missing, about=about, validation=judge, **means):
        yield _filled(_point(preset, outcome.settings, identity), outcome).rounded()


def _point(preset: str, goal: Settings, identity: tuple[str, str, str]) -> Point:
    """The point of a goal before anything is measured."""
    from riq_cli.pipeline import PRESETS

    fixed = PRESETS[preset]
    asked = {key: value for key, value in goal.recorded().items() if key != "deviation" and fixed.get(key) != value}
    if goal.allocation == "uniform":
        asked.pop("epsilon", None)
    words = "; ".join(f"{key}={value}" for key, value in sorted(asked.items()) if value not in (None, [], {}))
    empty = dict.fromkeys(
        ("reached", "deviation", "validation", "rate", "fixed_rate", "ratio", "bytes", "k", "epsilon")
    )
    model, calibration, validated = identity
    return Point(preset=preset, target=goal.deviation, **empty, evaluations=0, probes=0, seconds=0.0,
                 model=model, calibration=calibration, validated=validated, settings=words)  # fmt: skip


def _filled(point: Point, outcome: Outcome) -> Point:
    archive = outcome.archive
    point = replace(
        point,
        reached=None if point.target is None else archive is not None,
        deviation=outcome.deviation,
        validation=None if outcome.validation is None else outcome.validation.mean,
        evaluations=outcome.evaluations,
        probes=outcome.probes,
        seconds=round(outcome.seconds, 3),
    )
    if archive is None:
        return point
    sums, result = totals(archive), archive.manifest.result
    return replace(
        point,
        rate=sums.rate,
        fixed_rate=fixed_rate(archive),
        ratio=sums.ratio,
        bytes=archive.size,
        k=result.get("k"),
        epsilon=result.get("epsilon"),
    )


def _summary(point: Point) -> str:
    goal = point.preset
    if point.target is not None:
        goal += f" {point.target:g}"
    elif point.k is not None:
        goal += f", k = {point.k:g}"
    if point.reached is False:
        best = "" if point.deviation is None else f": the best deviation is {point.deviation:.4g}"
        return f"{goal}: out of reach{best}; {point.seconds:.1f} s"
    assert point.bytes is not None and point.deviation is not None
    ratio = "" if point.ratio is None else f", ×{point.ratio:.2f}"
    validation = "" if point.validation is None else f", {point.validation:.4g} on validation data"
    return (
        f"{goal}: {human_size(point.bytes)}{ratio}, deviation {point.deviation:.4g}{validation}; {point.seconds:.1f} s"
    )
