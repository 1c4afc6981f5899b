"""Bin widths → archive: every layer quantized and coded, the rest in the skeleton."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from itertools import repeat

import numpy as np

from riq_cli.archive import Archive, LayerEntry, Manifest, SkeletonEntry, deflate
from riq_cli.memory import give_back_mapped_memory, mapped_memory_given_back
from riq_cli.model import Model
from riq_cli.pipeline.checkpoint import Checkpoint
from riq_cli.pipeline.layer_entry import encode_layer
from riq_cli.pipeline.progress import Progress, Report
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.weights import Plans, Shift, Weights, Widths
from riq_cli.quantize.plan import LayerPlan
from riq_cli.scratch import HUGE, explained, temporary_file
from riq_cli.version import VERSION


def assembled(
    model: Model,
    weights: Weights,
    widths: Widths,
    plans: Plans,
    settings: Settings,
    progress: Report,
    executor: Executor | None,
    checkpoint: Checkpoint,
    workers: Executor | None,
) -> Archive:
    """The archive at these bin widths; layers without one go back into the skeleton, NaN and infinity stay raw.

    Args:
        model: with the layers that may be coded.
        weights: of these layers.
        widths: bin width of every layer; None: it stays exact.
        plans: how errors are compensated.
        settings: what the manifest says was asked for.
        progress: called after every layer.
        executor: where streams are encoded; None: here.
        checkpoint: keeps coded layers.
        workers: where layers are quantized and coded, with their streams; None: here.
    """
    layers = model.layers
    biases = {plan.bias for number, plan in plans.items() if widths[number] is not None}
    coded = [
        number
        for number, width in enumerate(widths)
        if width is not None or number in biases or number in weights.not_finite
    ]
    total, done = sum(layers[number].size for number in coded), 0
    shifts: dict[int | None, Shift] = {}
    encoded: dict[int, tuple[LayerEntry, Sequence[memoryview]]] = {}
    planned = [number for number in coded if number in plans]
    for numbers in (planned, [number for number in coded if number not in plans]):  # in which biases are
        found = checkpoint.mapped(
            "coding", workers, coded_layer, numbers, map(widths.__getitem__, numbers), map(plans.get, numbers),
            map(shifts.get, numbers), repeat(model), repeat(weights), repeat(executor if workers is None else None),
        )  # fmt: skip
        for number, (entry, sections, taken) in zip(numbers, found, strict=True):
            encoded[number] = entry, [weights.keep(np.frombuffer(section, np.uint8)).data for section in sections]
            if taken is not None:
                shifts[plans[number].bias] = taken
            give_back_mapped_memory()
            done += entry.size
            progress(Progress("coding", done, total))
    entries = [encoded[number][0] for number in coded]
    stored_sections = [section for number in coded for section in encoded[number][1]]
    places = {layers[number].places for number in coded}
    skeleton = model.select(lambda layer: layer.places in places).skeleton_bytes()
    stored = deflate(skeleton)
    manifest = Manifest(
        skeleton=SkeletonEntry(len(stored), len(skeleton), zlib.crc32(skeleton)),
        layers=tuple(entries),
        source={} if model.source is None else asdict(model.source),
        settings=settings.recorded(),
        creator=f"riq {VERSION}",
    )
    if sum(layer.values.nbytes for layer in layers) <= HUGE:
        return Archive.build(manifest, [stored, *stored_sections])
    with explained(), mapped_memory_given_back():
        return Archive.build(manifest, [stored, *stored_sections], temporary_file())


def coded_layer(
    number: int,
    width: float | None,
    plan: LayerPlan | None,
    shift: Shift | None,
    model: Model,
    weights: Weights,
    executor: Executor | None,
) -> tuple[LayerEntry, Sequence[bytes], Shift | None]:
    """The entry and the sections of a layer, and what its bias takes over; see `assembled`."""
    layer = replace(model.layers[number], values=weights.shifted(number, shift))  # so it is stored if it stays raw
    if width is None:
        return *encode_layer(layer, None, executor), None
    quantized, taken = weights.quantized(number, width, plan, shift), None
    if plan is not None and plan.bias is not None:
        taken = plan.shift(layer, quantized.restored(layer.dtype, layer.shape).reshape(layer.shape))
    return *encode_layer(layer, quantized, executor, weights.without), taken
