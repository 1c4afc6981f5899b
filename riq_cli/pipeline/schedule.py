"""The phases that are to come, and about the seconds of each, from what one run of the model was seen to take.

The costs below are rough. Whoever shows them corrects them by what the phases so far took. They come from ten models of
0.1 to 25 million weights on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from riq_cli.pipeline.fitting import Fit
from riq_cli.pipeline.progress import Expected
from riq_cli.pipeline.samples import Roles
from riq_cli.pipeline.settings import Settings
from riq_cli.pipeline.weights import Weights

_LAYER = 0.01  # seconds that any work on a layer takes beside that on its weights
_NEAREST, _COMPENSATED, _TRELLIS = 2.5e-8, 1e-7, 2e-7  # seconds to round a weight …
_COMPENSATED_COLUMN, _TRELLIS_COLUMN = 2.5e-5, 1.5e-4  # … and, where errors are fed forward, a column
_PROBE, _CODE, _DECODE = 2e-7, 2.5e-7, 5e-8  # seconds for other work on a weight
_MOMENT = 3.5e-10  # seconds for each multiplication of columns, or of rows, in factors of their second moments
_BLOCK, _ROW_BLOCK = 2048, 1024  # columns, and rows, among which errors are fed forward
_BACK, _BACK_VARIED = 8.0, 10.0  # runs that gradients of one sample take, and those of its variations
_ROUGH, _SEARCH, _FINE, _BY_FORMULA = 5, 4, 5, 30  # evaluations of each search for k
_JUDGED, _MOVES = 16, 5  # evaluations of a search under a constraint, and in a fixed layout for each layer
_TRIES, _COUNTED = 3, 6  # archives until one fits a budget, and estimates of bits before each
_ROUGH_SAMPLES, _FORMULA_SAMPLES = 8, 16  # samples of an evaluation


def schedule(
    settings: Settings, weights: Weights, roles: Roles, fit: Fit | None, probed: int, differentiated: int, run: float
) -> tuple[Expected, ...]:
    """The phases of compress after the run of the original, in their order.

    Args:
        settings: what is asked for.
        weights: all layers that may be coded.
        roles: what each sample is for.
        fit: what plans of layers are fitted with; None: they are not.
        probed: samples on which layers are probed; 0: they are not.
        differentiated: samples on which gradients tell what layers cause, so that few are probed; 0: they do not.
        run: seconds that a run of the model on one sample takes.
    """
    total, layers, every = weights.total, len(weights.codable), len(roles.every)
    shapes = [] if fit is None else _shapes(fit)
    fed, columns = sum(map(math.prod, shapes)) or total, sum(columns for _, _, columns in shapes)
    nearest, coding = total * _NEAREST, layers * _LAYER + total * _CODE
    compensated = nearest + fed * _COMPENSATED + columns * _COMPENSATED_COLUMN
    trellis = nearest + fed * _TRELLIS + columns * _TRELLIS_COLUMN

    def search(evaluations: int, samples: int, rounding: float) -> Expected:
        if settings.layout is not None:
            evaluations = _MOVES * len(weights.matrices)
        elif settings.constraint is not None:
            evaluations = _JUDGED
        return Expected("search", evaluations * (min(samples, every) * run + rounding), evaluations)

    is_budget = bool(settings.ratio or settings.size or settings.rate)
    found = [Expected("coding", coding)] if is_budget else []  # of no weights, to see what the least is
    if settings.k is None and settings.layout is None and settings.is_free:
        found.append(search(_ROUGH, _ROUGH_SAMPLES, nearest))
        found += [] if fit is None else _fitting(fit, run)
        if fit is not None and differentiated:
            found.append(Expected("gradients", compensated + differentiated * _BACK * run))
            layers = len(set(weights.matrices) - fit.linear.keys())
        if probed:
            seconds = layers * (_LAYER + probed * run) + total * _PROBE
            found += [Expected("probe", seconds), Expected("reprobe", seconds)]
        found.append(search(_SEARCH, len(roles.unfitted), compensated))
        if settings.may_use_trellis:
            found += [Expected("trellis", trellis / 2), search(_FINE, every, trellis)]
    elif settings.k is None:
        found.append(search(_BY_FORMULA, _FORMULA_SAMPLES, nearest))
    coding += _COUNTED * trellis if is_budget else 0.0
    end = [Expected("coding", coding), Expected("decoding", total * _DECODE), Expected("search", every * run, 1)]
    return (*found, *end * (_TRIES if is_budget else 1))


def _shapes(fit: Fit) -> list[tuple[int, int, int]]:
    """Groups, rows and columns of the layers among whose columns errors are fed forward."""
    return [item.matrix.shape for item in fit.linear.values() if not item.is_table]


def _fitting(fit: Fit, run: float) -> Iterator[Expected]:
    """The phases in which plans of layers are fitted."""
    samples, is_varied = len(fit.samples.samples), bool(fit.effort.augmentation) and not fit.samples.lean
    gradients = [Expected("gradients", samples * _BACK * run)]
    if is_varied:
        gradients.append(Expected("gradients", samples * _BACK_VARIED * run))
    shapes = _shapes(fit)
    columns = sum(groups * columns * min(columns, _BLOCK) * (columns + rows) for groups, rows, columns in shapes)
    rows = sum(groups * rows * min(rows, _ROW_BLOCK) ** 2 for groups, rows, _ in shapes)
    if fit.takes_gradients and not fit.samples.lean:
        yield from gradients
    yield Expected("statistics", len(shapes) * _LAYER + columns * _MOMENT + samples * 4 * run)
    if fit.takes_gradients:
        yield from gradients
        yield Expected("rows", len(shapes) * _LAYER + rows * _MOMENT)
