"""`riq sweep`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli import options
from riq_cli.cli.help import Command, grouped
from riq_cli.cli.job import on_cluster, seen_from
from riq_cli.cli.log import search_log, step_record
from riq_cli.cli.paths import check_outputs, check_stdout, picture_type, refuse_sources, write
from riq_cli.cli.progress import Wait
from riq_cli.cli.quantities import parse_number, parse_numbers, parse_targets
from riq_cli.cli.terminal import print_json, say
from riq_cli.errors import CalibrationError, Interrupted, PointsError
from riq_cli.files import growing_file
from riq_cli.memory import give_back_large_arrays
from riq_cli.points import HEADER, Point, key, read_points
from riq_cli.report import fixed_rate, totals
from riq_cli.text import counted, fingerprint, human_size

if TYPE_CHECKING:
    from riq_cli.calibration import Calibration
    from riq_cli.model import Model
    from riq_cli.pipeline import Outcome, Progress, Settings

_DEVIATIONS = "0.02,0.01,0.005,0.002,0.001"
_PRESETS = ("paper", "small")
_ANOTHER_FILE = "use --force to replace it, or name another file with -o"


def _parse_presets(text: str) -> tuple[str, ...]:
    """Names of presets from a text such as paper,small."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in options.PRESETS:
            raise click.BadParameter(f"no preset is named {name!r}; there are {', '.join(options.PRESETS)}")
    return names


@click.command(
    cls=Command,
    synopsis="MODEL [--calibration DATA] [-o FILE] [--plot FILE] [OPTIONS]",
    examples=r"""
riq sweep model.onnx --calibration samples.npz
riq sweep model.onnx --calibration samples.npz --validation heldout.npz \
    -o curve.csv --plot curve.svg
riq sweep model.onnx --calibration samples.npz --presets paper,uniform --json
riq sweep model.onnx --calibration samples.npz --deviations 0.01,0.001
riq sweep model.onnx --calibration samples.npz --scheduler tcp://host:8786
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
                 help="Instead: these k of the norm allocation, without a search; for paper, fast and uniform."),
    click.option("--presets", type=_parse_presets, metavar="NAME,…",
                 help="Curves: presets of compress. [default: paper,small; with --k: paper]"),
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
@grouped("More machines", options.scheduler_option)
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
    options.scratch_option,
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
    scheduler: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **settings: Any,
) -> None:
    """Compress MODEL for one target after the other and say what each costs; the archives are not kept.

    Layers are probed and error compensation is fitted once for each preset. A sweep that was interrupted goes on where
    it stopped: points that FILE holds, of the same model, samples and settings, are not computed again. A target that
    is out of reach is a point too, with the best deviation that was measured.
    """
    images = options.image_options_for(settings, calibration, validation)
    if scheduler is not None:
        options.for_workers(model, settings)
    path = None if csv_path in (None, "-") else csv_path
    presets = presets or (_PRESETS if ks is None else ("paper",))
    check_stdout({"--json": as_json, "-o -": csv_path == "-"})
    outputs = (path, picture, log_path)
    check_outputs(outputs, (model, calibration, validation), force, goes_on=(path,))
    if picture is not None:
        from riq_cli import plots

        plots.require()
    kept, size = ([], 0) if path is None or force else _present(path)
    give_back_large_arrays()
    from riq_cli.calibration import Calibration
    from riq_cli.pipeline import sweep as sweep_model
    from riq_cli.pipeline.progress import once

    ks, deviations = ks and tuple(dict.fromkeys(ks)), tuple(dict.fromkeys(deviations))  # each is one point
    curves = {preset: _goals(preset, ks, deviations, options.given(settings)) for preset in presets}
    source = options.load_model(model, follow_links)
    refuse_sources(outputs, source.external_files)
    data = Calibration.random() if calibration is None else options.load_calibration(calibration, images)
    judge = None if validation is None else options.load_calibration(validation, images)

    assert source.source is not None, "it was loaded from a file"
    identity = {
        "model": fingerprint(source.source.sha256),
        "calibration": _named(data, calibration or "random samples", source, settings),
        "validated": "" if judge is None else _named(judge, str(validation), source, settings),
    }
    for other in (point.model for point in kept if point.model != identity["model"]):
        raise PointsError(
            f"{path}: holds points of another model (SHA-256 {other}…, not {identity['model']}…); {_ANOTHER_FILE}"
        )
    wait = Wait("running the original", quiet, verbose)
    warn = once(wait.warn)  # each curve may have the same to say
    if calibration is None:
        warn("no --calibration: measured on random samples, which predict real data poorly (the paper's Fig. 1a)")
    points, present = list(kept), {key(asdict(point)) for point in kept}
    asked = [key(_asked(preset, goal, identity)) for preset, goals in curves.items() for goal in goals]
    if not quiet and (there := sum(goal in present for goal in asked)):
        say(f"{path}: holds {there} of {counted(len(asked), 'point')} already", err=True)
    try:
        with (
            search_log(log_path, force) as log,
            _lines(path, size, as_json) as add,
            options.coding_executor(source.layers) as executor,
            wait,
        ):

            def tell(step: Progress) -> None:
                wait(replace(step, expected=()))  # of one goal of many
                log(step_record(step))

            for preset, goals in curves.items():
                missing = [goal for goal in goals if key(_asked(preset, goal, identity)) not in present]
                targets = sorted(goal.deviation for goal in goals if goal.deviation is not None)
                about = targets[len(targets) // 2] if targets else None  # of all: a resumed sweep finds the same points
                load = partial(_loaded_from, os.getcwd(), model, calibration, images, follow_links, goals[0])
                with on_cluster(scheduler, load) as cluster:
                    for outcome in sweep_model(source, data, missing, about=about, validation=judge, progress=tell,
                                               warn=warn, executor=executor, on_cluster=cluster):  # fmt: skip
                        point = _point(_asked(preset, outcome.settings, identity), outcome)
                        points.append(point)
                        with wait.hidden():
                            add(point)
                            if not quiet:
                                say(_summary(point), err=True)
    except Interrupted as error:
        again = "the same command" + (" without --force" if force else "")
        hint = "" if path is None else f"; {again} goes on with {path}"
        message = f"interrupted after {counted(len(points), 'point')}{hint}"
        raise Interrupted(error.number, message) from error
    if as_json:
        print_json({"model": model, "points": [asdict(point) for point in points]})
    if picture is not None:
        drawn = plots.picture("curve", {Path(model).name: points}, Path(picture).suffix.lower())
        write(picture, drawn, force, quiet)


def _loaded_from(
    folder: str,
    model: str,
    calibration: str | None,
    images: Mapping[str, Any],
    follow_links: bool,
    settings: Settings,
) -> tuple[Model, Calibration | None, Settings]:
    """What is compressed, on a worker: its own folder is another than the one that paths are relative to."""
    seen = partial(seen_from, folder)
    data = None if calibration is None else options.load_calibration(seen(calibration), images)
    custom_ops = tuple(map(seen, settings.custom_ops))
    return options.load_model(seen(model), follow_links), data, replace(settings, custom_ops=custom_ops)


def _named(samples: Calibration, path: str, source: Model, settings: Mapping[str, Any]) -> str:
    """Kind and digest of the samples that a model is run on; errors name where they are from."""
    from riq_cli.calibration import digest

    with options.naming(path, CalibrationError):
        fitted = samples.samples(source.inputs, settings["dims"], settings["batch_size"])
    return f"{samples.kind} {digest(fitted)}"


def _present(path: str) -> tuple[list[Point], int]:
    """The points of a CSV to go on with, and its bytes up to the last whole line; none of a file that is not there."""
    if not Path(path).exists():
        return [], 0
    try:
        return read_points(path)
    except PointsError as error:
        raise PointsError(f"{path}: exists already and is no sweep to go on with: {error}; {_ANOTHER_FILE}") from error


@contextlib.contextmanager
def _lines(path: str | None, size: int, as_json: bool) -> Iterator[Callable[[Point], object]]:
    """What writes a point: behind `size` bytes of the file, or to stdout unless that is for JSON."""
    if path is None:
        if not as_json:
            click.echo(HEADER, nl=False)
        yield lambda point: None if as_json else click.echo(point.line(), nl=False)
        return
    with growing_file(path, overwrite=True, keep=size) as file:
        if size == 0:
            file.write(HEADER.encode())
        yield lambda point: file.write(point.line().encode())


def _goals(
    preset: str, ks: Sequence[float] | None, deviations: Sequence[float], given: dict[str, Any]
) -> list[Settings]:
    from riq_cli.pipeline import PRESETS, Settings

    chosen: dict[str, Any] = PRESETS[preset] | given
    if ks is None:
        return [Settings(deviation=target, **chosen) for target in deviations]
    options.check_k(chosen["allocation"])
    return [Settings(k=k, **chosen) for k in ks]


def _asked(preset: str, goal: Settings, identity: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a goal's point that are known before anything is measured."""
    from riq_cli.pipeline import PRESETS

    fixed = PRESETS[preset]
    asked = {name: value for name, value in goal.recorded().items() if name != "deviation" and fixed.get(name) != value}
    if goal.allocation == "uniform":
        asked.pop("epsilon", None)
    words = "; ".join(f"{name}={value}" for name, value in sorted(asked.items()) if value not in (None, [], {}))
    return {"preset": preset, "target": goal.deviation, "settings": words, **identity}


def _point(asked: Mapping[str, Any], outcome: Outcome) -> Point:
    """The point of an outcome, as it comes back from the CSV."""
    archive = outcome.archive
    found: dict[str, Any] = dict.fromkeys(("rate", "fixed_rate", "ratio", "bytes", "k", "epsilon"))
    if archive is not None:
        sums, result = totals(archive), archive.manifest.result
        found = {"rate": sums.rate, "fixed_rate": fixed_rate(archive), "ratio": sums.ratio, "bytes": archive.size,
                 "k": result.get("k"), "epsilon": result.get("epsilon")}  # fmt: skip
    return Point(
        **asked,
        **found,
        reached=None if asked["target"] is None else archive is not None,
        deviation=outcome.deviation,
        validation=None if outcome.validation is None else outcome.validation.mean,
        evaluations=outcome.evaluations,
        probes=outcome.probes,
        seconds=round(outcome.seconds, 3),
    ).rounded()


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
