"""Which layers of a model may be coded."""

from __future__ import annotations

import fnmatch

from riq_cli.codec.settings import Settings
from riq_cli.codec.weights import is_matrix
from riq_cli.model import Layer, Model

_REMAINS = 0.1  # share of float weights below which a quantized model is left as it is


def candidates(model: Model, settings: Settings) -> Model:
    """The model with only those layers that may be coded; the others go back into the skeleton, exact."""

    def wanted(layer: Layer) -> bool:
        if layer.is_quantized or layer.structural:
            return False
        if settings.allocation != "measured" and not is_matrix(layer, settings.min_size):
            return False
        if settings.min_size is not None and layer.size < settings.min_size:
            return False
        if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in settings.exclude):
            return False
        return not settings.include or any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in settings.include)

    chosen = model.select(wanted)
    size = sum(layer.values.nbytes for layer in chosen.layers)
    if model.is_quantized and not settings.include and size < _REMAINS * chosen.nbytes:
        return model.select(lambda layer: False)
    return chosen
