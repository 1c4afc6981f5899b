"""Which layers of a model may be coded."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from riq_cli.model import Layer, Model
from riq_cli.pipeline.progress import Warn
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.weights import is_matrix
from riq_cli.text import counted, shortened

_REMAINS = 0.1  # share of float weights below which a quantized model is left as it is
_STRUCTURAL = "single numbers, or values that tell an operator what to do"
_NAMED = 3  # layers that a warning names; of more it says how many


def candidates(model: Model, settings: Settings, warn: Warn) -> Model:
    """The model with only those layers that may be coded; the others go back into the skeleton, exact.

    Args:
        model: not changed.
        settings: sizes and names of layers that are wanted.
        warn: told of patterns that name no layer, of names that are not unique, and of layers that cannot be coded,
            though they are included or matrices.
    """
    for pattern in (*settings.include, *settings.exclude):
        if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in model.layers):
            there = f"; there are {_listed(model.layers)}" if model.layers else ""
            warn(f"no layer is named {pattern!r}{there}")
    for name in model.repeated_names:
        warn(
            f"the model gives the name {shortened(name)!r} to several tensors, which are kept exact: "
            "which of them is used depends on the version of onnxruntime; rename or remove the others"
        )
    exact: dict[str, list[Layer]] = {}  # by the reason

    def wanted(layer: Layer) -> bool:
        if _matches(layer, settings.exclude) or (settings.include and not _matches(layer, settings.include)):
            return False
        reason = _reason(layer, settings)
        if reason is not None:
            exact.setdefault(reason, []).append(layer)
        return reason is None

    chosen = model.select(wanted)
    if not settings.include:  # then only those are told of that one would expect to be coded
        exact = {_STRUCTURAL: [layer for layer in exact.get(_STRUCTURAL, ()) if is_matrix(layer, None)]}
    for reason, layers in exact.items():
        if layers:
            kind = "included layer" if settings.include else "layer"
            warn(f"{counted(len(layers), kind)} kept exact, {reason}: {_listed(layers)}")
    size = sum(layer.values.nbytes for layer in chosen.layers)
    if model.is_quantized and not settings.include and size < _REMAINS * chosen.nbytes:
        return model.select(lambda layer: False)
    return chosen


def _listed(layers: Sequence[Layer]) -> str:
    """The names of the first layers, and how many more there are."""
    names = ", ".join(repr(shortened(layer.name)) for layer in layers[:_NAMED])
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return names + more


def _matches(layer: Layer, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in patterns)


def _reason(layer: Layer, settings: Settings) -> str | None:
    """Why a layer cannot be coded; None if it can."""
    if layer.is_quantized:
        return "scales or biases of quantized operators"
    if layer.structural:
        return _STRUCTURAL
    if settings.min_size is not None and layer.size < settings.min_size:
        return f"fewer than {settings.min_size} weights (--min-size)"
    if settings.allocation != "measured" and not is_matrix(layer, settings.min_size):
        return f"no matrices of enough weights for {settings.allocation} allocation"
    return None
