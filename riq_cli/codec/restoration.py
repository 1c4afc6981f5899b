"""Archive → model, and the deviation of what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

from riq_cli.archive import Archive
from riq_cli.calibration import Calibration
from riq_cli.codec.layers import decode_layer
from riq_cli.codec.settings import Progress, Report
from riq_cli.evaluator import DEFAULT_PROVIDER, Deviation, Evaluator
from riq_cli.model import Model


def decompress(archive: Archive, *, progress: Report | None = None, executor: Executor | None = None) -> Model:
    """The restored model: every layer at `cast(symbol · Δ)`, everything else byte for byte as it was.

    Args:
        archive: opened, or fresh from compress.
        progress: called after every layer.
        executor: where streams are decoded; None: here.

    Raises:
        CorruptArchive: a checksum or a size does not agree.
    """
    layers = []
    total, done = sum(entry.size for entry in archive.manifest.layers), 0
    for entry, sections in archive.layer_sections():
        layers.append(decode_layer(entry, sections, executor))
        done += entry.size
        if progress:
            progress(Progress("decoding", done, total))
    return Model.from_skeleton(archive.skeleton(), layers)


def verify(
    archive: Archive,
    model: Model,
    calibration: Calibration,
    *,
    outputs: Sequence[str] | None = None,
    dims: Mapping[str, int] | None = None,
    batch_size: int = 1,
    threads: int = 0,
    provider: str = DEFAULT_PROVIDER,
    executor: Executor | None = None,
) -> Deviation:
    """How far the outputs of the restored model are from the original's, on given samples.

    Args:
        archive: restored in memory.
        model: the original.
        calibration: samples, at best ones that the search did not see.
        outputs: tensors on which to measure; None: those that compress was told, or its default.
        dims, batch_size, threads, provider: as in `Settings`.
        executor: where streams are decoded; None: here.

    Raises:
        ArchiveError, ModelError, CalibrationError, SettingsError: see there.
    """
    samples = calibration.samples(model.inputs, dims, batch_size)
    if outputs is None:
        outputs = archive.manifest.settings.get("outputs", ())
    names = {place for entry in archive.manifest.layers for place in entry.tensors}
    original = model.select(lambda layer: names.issuperset(layer.places))
    evaluator = Evaluator(
        original.session_form(outputs, hoist=False),
        [layer.values for layer in original.layers],
        samples,
        threads=threads,
        provider=provider,
        strict=bool(outputs),
    )
    return measure_restored(evaluator, decompress(archive, executor=executor), outputs)


def measure_restored(
    evaluator: Evaluator, restored: Model, outputs: Sequence[str], among: Sequence[int] | None = None
) -> Deviation:
    """Deviation of a model in the form that ships: no layer is hoisted, each is where it will be in the file."""
    form = restored.session_form(outputs, hoist=False)
    return evaluator.deviation(form, [layer.values for layer in restored.layers], among)
