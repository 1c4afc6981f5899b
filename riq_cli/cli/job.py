"""One model to compress: what its options ask for, and the archive that comes out."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli import constraints, options
from riq_cli.errors import CheckpointError, Interrupted, TargetError
from riq_cli.files import completed
from riq_cli.memory import give_back_large_arrays
from riq_cli.remote import is_url

if TYPE_CHECKING:
    from riq_cli.archive import Archive
    from riq_cli.calibration import Calibration
    from riq_cli.constraint import Constraint
    from riq_cli.model import Model
    from riq_cli.pipeline import Checkpoint, FixedLayout, OnCluster, Progress, Settings

    Load = Callable[[], tuple[Model, Calibration | None, Settings]]


def prepared(
    model: str, calibration: str | None, preset: str | None, follow_links: bool, settings: dict[str, Any]
) -> tuple[Model, Calibration | None, Settings]:
    """The model, its samples, and the settings.

    Args:
        model: its file or URL, or - for stdin.
        calibration: where the samples are; None: there are none.
        preset: its name; None: the default.
        follow_links: whether external data is read through links.
        settings: all other options by name; those of images and of a constraint are taken out.
    """
    give_back_large_arrays()
    images = options.image_options_for(settings, calibration)
    asked = options.taken(settings, constraints.OPTIONS)
    constraint, data = constraints.load(asked, calibration, images, settings["outputs"])
    wanted = wanted_settings(preset, settings, constraint, asked.get("margin"))
    return options.load_model(model, follow_links), data, wanted


def prepared_from(
    folder: str, model: str, calibration: str | None, preset: str | None, follow_links: bool, settings: dict[str, Any]
) -> tuple[Model, Calibration | None, Settings]:
    """What `prepared` gives, on a worker: its own folder is another than the one that paths are relative to."""
    seen = partial(seen_from, folder)
    settings = {
        **settings,
        "labels": settings["labels"] and seen(settings["labels"]),
        "custom_ops": tuple(map(seen, settings["custom_ops"])),
    }
    return prepared(seen(model), calibration and seen(calibration), preset, follow_links, settings)


def seen_from(folder: str, path: str) -> str:
    """A path of a folder from anywhere; what is none there, such as a URL, a function or a key of samples, stays."""
    if is_url(path):
        return path
    file = path.rpartition(":")[0]  # a folder of this name is a package that holds a function
    is_there = Path(folder, path).exists() or (bool(file) and Path(folder, file).is_file())
    return str(Path(folder, path)) if is_there else path


def wanted_settings(
    preset: str | None, given: dict[str, Any], constraint: Constraint | None, margin: float | None
) -> Settings:
    """The settings that a preset and other options come to.

    Raises:
        UsageError, SettingsError: they do not go together.
    """
    from riq_cli.pipeline import PRESETS, Settings

    layout = _layout(given)
    chosen = PRESETS[preset or "small"] | options.given(given)
    if given["k"] is not None and (preset or given["allocation"]):
        options.check_k(chosen["allocation"])
    if given["activation_method"] and not given["activations"]:
        raise click.UsageError("--activation-method belongs to --activations int8")
    return Settings(layout=layout, constraint=constraint, margin=margin, **chosen)


def _layout(given: dict[str, Any]) -> FixedLayout | None:
    """The fixed layout, if one is asked for, taken out of the options."""
    asked = options.taken(given, ("bits", "per_channel", "variant", "mu"))
    if not given.pop("fixed"):
        for name in asked:
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to --layout fixed")
        return None
    from riq_cli.pipeline import FixedLayout

    return FixedLayout(**asked)


@contextlib.contextmanager
def on_cluster(scheduler: str | None, load: Load) -> Iterator[OnCluster | None]:
    """The cluster of a scheduler, whose workers load the same job; None: there is none."""
    if scheduler is None:
        yield None
        return
    from riq_cli.cluster import cluster
    from riq_cli.pipeline import OnCluster

    with cluster(scheduler) as found:
        yield OnCluster(found, load)


def made(
    model: Model,
    calibration: Calibration | None,
    wanted: Settings,
    progress: Callable[[Progress], None] | None,
    warn: Callable[[str], None],
    checkpoint: Checkpoint,
    cluster: OnCluster | None = None,
) -> Archive:
    """The archive of a model; layers are coded in processes where they are large."""
    from riq_cli.pipeline import compress

    if calibration is None and not all(layer.is_quantized or layer.structural for layer in model.layers):
        warn(
            "no --calibration: measured on random samples, which predict real data poorly (the paper's Fig. 1a); "
            "give real ones for a promise that holds on them"
        )
    with options.coding_executor(model.layers) as executor:
        return compress(model, calibration, wanted, progress=progress, warn=warn, executor=executor,
                        on_cluster=cluster, checkpoint=checkpoint)  # fmt: skip


def checkpoint_path(archive: str, k: float | None, warn: Callable[[str], None]) -> str | None:
    """Where the checkpoint of an archive lies; None where nothing is kept.

    That is for stdout and devices, where k is given, and, with a warning, where the name would be too long.
    """
    is_file = archive != "-" and (Path(archive).is_file() or not Path(archive).exists())
    if not is_file or k is not None:
        return None
    path = f"{archive}.checkpoint"
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            warn(f"{path}: its name is too long, so nothing is kept that --resume could go on from")
            return None
    return path


@contextlib.contextmanager
def resumable(archive: str, path: str | None, resume: bool, warn: Callable[[str], None]) -> Iterator[Checkpoint]:
    """The checkpoint of a run, to remove when its archive is written; a block that fails says how to go on.

    Args:
        archive: the file that the run writes.
        path: of the checkpoint; None: nothing is kept.
        resume: go on from what is there.
        warn: called with how to go on after an error.
    """
    from riq_cli.pipeline import Checkpoint

    checkpoint = Checkpoint(path, resume)
    try:
        yield checkpoint
    except Interrupted as error:
        if not checkpoint.is_there:
            raise
        if str(Path(archive)) in completed():
            checkpoint.remove()
            raise
        again = "the same command" + ("" if resume else " with --resume")
        raise Interrupted(error.number, f"interrupted; {again} goes on from {path}") from error
    except TargetError:  # whatever was measured, it would be missed again
        checkpoint.remove()
        raise
    except CheckpointError:  # it is of another run
        raise
    except Exception:
        if checkpoint.is_there:
            warn(f"{path}: keeps what was done before the error; --resume goes on from it")
        raise
