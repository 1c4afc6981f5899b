"""Archive → restored model."""

from __future__ import annotations

from collections.abc import Iterable

from riq_cli.archive import Archive, LayerEntry
from riq_cli.decode.dequantize import Array
from riq_cli.model import Layer, Model


def restored(archive: Archive, decoded: Iterable[tuple[LayerEntry, Array]]) -> Model:
    """The model of an archive, of its skeleton and its decoded layers.

    Raises:
        CorruptArchive: a checksum or a size does not agree.
        LimitExceeded: the parsed skeleton takes more memory than the archive was opened for.
    """
    layers = [Layer(entry.name, entry.op, entry.tensors, entry.dtype, entry.shape, values) for entry, values in decoded]
    room = None if archive.max_size is None else archive.max_size - sum(layer.values.nbytes for layer in layers)
    return Model.from_skeleton(archive.skeleton(), layers, room)
