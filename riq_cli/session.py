"""Archive → restored model → session of onnxruntime, without a file between them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor

from riq_cli.archive import Archive, LayerEntry
from riq_cli.decode import decode_layers
from riq_cli.decode.dequantize import Array
from riq_cli.memory import give_back_free_memory
from riq_cli.model import Layer, Model
from riq_cli.runtime import InferenceSession, Provider, SessionOptions, check_providers, start_exact
from riq_cli.scratch import Scratch


def load_session(
    archive: Archive | str | os.PathLike[str],
    providers: Sequence[Provider] | None = None,
    session_options: SessionOptions | None = None,
    *,
    executor: Executor | None = None,
) -> InferenceSession:
    """The session of an archive's model; its outputs are, bit for bit, those of the restored file. None is written.

    Until the session has started, the decoded weights are in memory beside what onnxruntime takes; later they are not.

    Args:
        archive: opened, or the path of one that may take `limits.RESTORED` bytes.
        providers: onnxruntime's execution providers, as its `InferenceSession` takes them. They cannot be changed
            later: the session no longer has the weights then.
        session_options: for this session alone, such as those with which custom operators were registered. Decoded
            weights are kept as long as these are; without them, nothing is kept.
        executor: where layers are decoded; None: here.

    Raises:
        ArchiveError: see `Archive.open` and `decompress`.
        SettingsError: a provider that onnxruntime lacks, or options of another session.
        ModelError: onnxruntime cannot run the model.
    """
    check_providers(providers or ())
    opened = archive if isinstance(archive, Archive) else Archive.open(archive)
    session = open_session(restored(opened, decode_layers(opened, executor)), providers, session_options)
    give_back_free_memory()  # that of the weights: onnxruntime has its own copy
    return session


def open_session(
    model: Model, providers: Sequence[Provider] | None = None, session_options: SessionOptions | None = None
) -> InferenceSession:
    """The session of a model in memory; see `load_session`."""
    return start_exact(model.exact_form(), [layer.values for layer in model.layers], providers, session_options)


def restored(archive: Archive, decoded: Iterable[tuple[LayerEntry, Array]], scratch: Scratch | None = None) -> Model:
    """The model of an archive, of its skeleton and its decoded layers.

    Args:
        archive: for its skeleton.
        decoded: its layers.
        scratch: where their weights are kept; None: in memory.

    Raises:
        CorruptArchive: a checksum or a size does not agree.
        LimitExceeded: the parsed skeleton takes more memory than the archive was opened for.
    """
    keep = (lambda values: values) if scratch is None else scratch.kept
    layers = [
        Layer(entry.name, entry.op, entry.tensors, entry.dtype, entry.shape, keep(values)) for entry, values in decoded
    ]
    room = None if archive.max_size is None else archive.max_size - sum(layer.values.nbytes for layer in layers)
    return Model.from_skeleton(archive.skeleton(), layers, room)
