"""Archive → model, and the deviation of what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import cached_property, partial
from typing import Any

from riq_cli.archive import Archive, LayerEntry
from riq_cli.calibration import Calibration
from riq_cli.constraint import Constraint, Judge, Judgement
from riq_cli.decode import decode_layers
from riq_cli.memory import give_back_free_memory, give_back_mapped_memory
from riq_cli.model import Model
from riq_cli.pipeline.formats import Format, converted
from riq_cli.pipeline.progress import Progress, Report, Warn
from riq_cli.pipeline.settings import Settings
from riq_cli.runtime import Array, Deviation, Evaluator
from riq_cli.scratch import HUGE, Scratch
from riq_cli.session import restored


def decompress(
    archive: Archive,
    *,
    format: Format = "original",  # noqa: A002
    nearest: bool = False,
    convert_activations: bool = False,
    progress: Report | None = None,
    executor: Executor | None = None,
) -> Model:
    """The restored model: every layer at `cast(symbol · Δ)`, everything else byte for byte as it was.

    Above `HUGE` bytes of weights, these are in temporary files and not in memory.

    Args:
        archive: opened, or fresh from compress.
        format: `original`, or how layers are stored instead, see `converted`.
        nearest, convert_activations: see `converted`.
        progress: called after every layer.
        executor: where layers are decoded; None: here.

    Raises:
        CorruptArchive: a checksum or a size does not agree.
        FormatError: the format does not hold some layers, and `nearest` is false.
    """

    def decoded() -> Iterator[tuple[LayerEntry, Array]]:
        total, done = sum(entry.size for entry in archive.manifest.layers), 0
        for entry, values in decode_layers(archive, executor):
            yield entry, values
            done += entry.size
            if progress:
                progress(Progress("decoding", done, total))

    model = restored(archive, decoded(), Scratch() if archive.manifest.restored > HUGE else None)
    return model if format == "original" else converted(archive, model, format, nearest, convert_activations).model


class Verification:
    """The model that an archive restores, beside the original on given samples; it is restored once."""

    def __init__(
        self,
        archive: Archive,
        model: Model,
        calibration: Calibration,
        *,
        format: Format = "original",  # noqa: A002
        nearest: bool = False,
        convert_activations: bool = False,
        executor: Executor | None = None,
        warn: Warn | None = None,
        needed: bool = True,
        **options: Any,
    ) -> None:
        """Run the original.

        Args:
            archive: restored in memory, when it is measured or judged.
            model: the original.
            calibration: samples, at best ones that the search did not see.
            format, nearest, convert_activations: as in `decompress`: what is measured is that file, as onnxruntime runs
                it.
            executor: where streams are decoded; None: here.
            warn: called with what the user should know.
            needed: refuse a model without anything to measure; if not, the deviation is that of no tensor.
            options: `outputs`, `dims`, `batch_size`, `threads`, `provider` and `custom_ops` of `Settings`. Without
                `outputs`, they are those that compress was given.

        Raises:
            ModelError, CalibrationError, SettingsError: see there.
        """
        settings = Settings(**options)
        self._outputs = settings.outputs or archive.manifest.settings.get("outputs", ())
        samples = calibration.samples(model.inputs, settings.dims, settings.batch_size, warn)
        names = {place for entry in archive.manifest.layers for place in entry.tensors}
        original = model.select(lambda layer: names.issuperset(layer.places))
        form = original.session_form(self._outputs, hoist=False)
        self._originals = [layer.values for layer in original.layers]
        self._evaluator = Evaluator(
            form, self._originals, samples, settings.runtime, strict=bool(self._outputs), needed=needed
        )
        if warn is not None:
            self._evaluator.warn_of_undefined(warn)
        give_back_mapped_memory()
        self._restore = partial(
            decompress, archive, format=format, nearest=nearest, convert_activations=convert_activations,
            executor=executor,
        )  # fmt: skip

    @cached_property
    def _restored(self) -> Model:
        return self._restore()

    def deviation(self) -> Deviation:
        """How far the outputs of the restored model are from the original's.

        Raises:
            ArchiveError, ModelError, CalibrationError: see there.
        """
        return measure_restored(self._evaluator, self._restored, self._outputs)

    def judgement(self, constraint: Constraint) -> Judgement:
        """What a constraint says of the restored model; labels are those of the given samples.

        Raises:
            ArchiveError, ModelError, ConstraintError: see there.
        """
        judge = constraint.begin(self._evaluator.loaded(self._evaluator.original, self._originals))
        return judge_restored(judge, self._evaluator, self._restored, self._outputs)


def verify(archive: Archive, model: Model, calibration: Calibration, **options: Any) -> Deviation:
    """How far the outputs of the restored model are from the original's, on given samples.

    Args:
        archive, model, calibration: see `Verification`.
        options: `format`, `nearest`, `convert_activations`, `executor`, `warn` and `needed`, see there, and how the
            model is run: `outputs`, `dims`, `batch_size`, `threads`, `provider` and `custom_ops`.

    Raises:
        ArchiveError, ModelError, CalibrationError, SettingsError: see there.
    """
    return Verification(archive, model, calibration, **options).deviation()


def check(
    archive: Archive, model: Model, calibration: Calibration, constraint: Constraint, **options: Any
) -> Judgement:
    """What a constraint says of the restored model, on given samples.

    Args:
        archive, model, calibration, options: as in `verify`, but for `needed`.
        constraint: labels are those of the given samples.

    Raises:
        ArchiveError, ModelError, CalibrationError, SettingsError, ConstraintError: see there.
    """
    return Verification(archive, model, calibration, needed=False, **options).judgement(constraint)


def measure_restored(evaluator: Evaluator, restored: Model, outputs: Sequence[str]) -> Deviation:
    """Deviation of a model in the form that ships: no layer is hoisted, each is where it will be in the file."""
    form = restored.session_form(outputs, hoist=False)
    give_back_free_memory()  # decoding leaves much of it between small arrays, and onnxruntime copies all weights
    return evaluator.deviation(form, [layer.values for layer in restored.layers])


def judge_restored(
    judge: Judge, evaluator: Evaluator, restored: Model, outputs: Sequence[str], among: Sequence[int] | None = None
) -> Judgement:
    """What a constraint's judge says of a model in the form that ships."""
    form = restored.session_form(outputs, hoist=False)
    return judge(evaluator.loaded(form, [layer.values for layer in restored.layers], among))
