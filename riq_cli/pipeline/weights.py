"""All float tensors of a model that may be coded: their bin widths, what they cost, and their values once quantized."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from riq_cli.allocate.allocation import Allocation, Curve, expected_k
from riq_cli.decode.dequantize import Quantized, Width
from riq_cli.entropy.codes import Symbols
from riq_cli.entropy.rate import ENTRY_BITS, estimated_bits
from riq_cli.executors import available_threads, ordered
from riq_cli.memory import give_back_mapped_memory
from riq_cli.model import Layer, Matrix
from riq_cli.model.tensors import Array
from riq_cli.pipeline.settings import DEFAULT_MIN_SIZE, Settings
from riq_cli.quantize import scalar
from riq_cli.quantize.plan import LayerPlan
from riq_cli.scratch import HUGE, Scratch

_PIECE = 1 << 20  # weights that one thread quantizes at a time
_COUNTED = 1 << 22  # weights of a layer, evenly spaced rows of it, that stand for all where bits are estimated
_CURVE_ROWS = 64  # of a layer that stand for all of them in its curve
_HAIR = 1 + 1e-9
_DEFLATED = 0.92  # about what deflate leaves of float data in the skeleton

Result = TypeVar("Result")

Widths = list[float | None]  # of every layer; None: it stays exact
Shift = NDArray[np.float64]  # what is added to a bias, one number for each of its elements
Plans = Mapping[int, LayerPlan]  # of the layers that are not just rounded to the nearest at one bin width, by number


class Restored(NamedTuple):
    """The restored weights of a layer, about the bits that it takes, and what its bias takes over, if there is one."""

    values: Array
    bits: float
    shift: Shift | None


class Weights:
    """The layers of a model with what their bin widths depend on.

    `matrices` are the numbers of the layers that the paper quantizes, `vectors` those of the others that may be: 1-D
    or tiny. Both are finite and not all zero; layers of zeros are in `zeros`. `peaks` are the largest magnitudes.
    `most` is the largest magnitude of symbols of matrices in a deployable archive, else None. Above `HUGE` bytes, what
    is made of all layers is kept in temporary files.
    """

    def __init__(self, layers: Sequence[Layer], settings: Settings) -> None:
        """Measure norm and peak of every layer.

        Args:
            layers: candidates, in the order of the model.
            settings: bounds on levels and sizes of layers, stages that are left out, and threads.
        """
        self.layers, self.without = layers, settings.left_out
        self._scratch = Scratch() if sum(layer.values.nbytes for layer in layers) > HUGE else None
        self.threads = settings.threads or available_threads()
        min_size, max_bits = settings.min_size, settings.max_bits
        self.originals = [layer.values for layer in layers]
        self.sizes = [layer.size for layer in layers]
        self.norms = [scalar.norm(layer.values, layer.dtype) for layer in _passed_over(layers)]
        active = [number for number, norm in enumerate(self.norms) if 0 < norm < math.inf]
        self.matrices = [n for n in active if is_matrix(layers[n], min_size)]
        self.vectors = [n for n in active if not is_matrix(layers[n], min_size)]
        if not self.matrices:  # then they are all there is
            self.matrices, self.vectors = self.vectors, []
        self.zeros = [n for n, norm in enumerate(self.norms) if norm == 0 and is_matrix(layers[n], min_size)]
        self.not_finite = [
            n for n, norm in enumerate(self.norms) if not math.isfinite(norm) and is_matrix(layers[n], min_size)
        ]
        numbered = zip(active, _passed_over([layers[number] for number in active]), strict=True)
        self.peaks = {number: scalar.peak(layer.values, layer.dtype) for number, layer in numbered}
        self.most = settings.most
        self._finest = {number: self._finest_width(number, max_bits) for number in active}
        # How those are rounded that have no other plan; empty where that is to the nearest at one bin width.
        self._bound = {} if self.most is None else {n: _bound_plan(layers[n], self.most) for n in self.matrices}
        # Bits of layers by bin width: what was rounded to be measured need not be rounded to be counted.
        self._counted: WeakKeyDictionary[LayerPlan, dict[float, float]] = WeakKeyDictionary()

    @property
    def codable(self) -> list[int]:
        """Numbers of the matrices, and of those vectors that may take less room coded than exact."""
        return self.matrices + [number for number in self.vectors if self.exact_bits(number) > ENTRY_BITS]

    @property
    def largest(self) -> int:
        """Number of weights n* of the largest layer that the paper quantizes."""
        return max(self.sizes[number] for number in self.matrices)

    @property
    def total(self) -> int:
        """Number of weights in all layers that may be coded."""
        return sum(self.sizes)

    # ---- bin widths ----

    def expected_k(self, allocation: Allocation, distortion: float) -> float:
        """The k of an allocation at which all matrices together are turned by `distortion`."""
        norms, sizes = [self.norms[n] for n in self.matrices], [self.sizes[n] for n in self.matrices]
        return expected_k(norms, sizes, distortion, [allocation.shapes[n] for n in self.matrices])

    def norm_allocation(self, epsilon: float) -> Allocation:
        """The paper's: s_ℓ = ‖w_ℓ‖ for every matrix."""
        return Allocation("norm", {number: self.norms[number] for number in self.matrices}, epsilon)

    def uniform_allocation(self) -> Allocation:
        """The baseline of Fig. 4a: s_ℓ = max w_ℓ − min w_ℓ for every matrix, or |w_ℓ| if all its weights are equal."""
        shapes = {}
        for number in self.matrices:
            low, high = scalar.extremes(self.layers[number].values, self.layers[number].dtype)
            shapes[number] = (high - low) or abs(high)
        return Allocation("uniform", shapes)

    def widths(self, allocation: Allocation, k: float) -> Widths:
        """Bin width of every layer at k; any for one of zeros, None for one that takes no more room exact."""
        widths: Widths = [None] * len(self.layers)
        for number in self.zeros:
            widths[number] = 1.0
        for number in allocation.shapes:
            widths[number] = max(allocation.width(number, self.sizes[number], k), self._finest[number])
        for number in () if self.most is None else self.matrices:
            width = widths[number]
            widths[number] = None if width is None else float(scalar.short_width(width))
        return self.worthwhile(widths)

    def _finest_width(self, number: int, max_bits: int | None) -> float:
        """The smallest bin width that a layer may have: symbols stay exact in any arithmetic, and within `max_bits`."""
        layer, finest = self.layers[number], self.peaks[number] / scalar.SYMBOL_MAX
        if max_bits is None or self.most is not None:
            return finest
        low, high = scalar.extremes(layer.values, layer.dtype)
        # The remark in 4.1 of the paper, a hair wider: ties at both ends would make one level more.
        return max(finest, (high - low) / float(2**max_bits - 1) * _HAIR)

    def finest_widths(self) -> Widths:
        """The smallest bin width of every layer that may be coded; None for one that stays exact."""
        return [self._finest.get(number) for number in range(len(self.layers))]

    def worthwhile(self, widths: Widths) -> Widths:
        """The same widths, with None for vectors that take no more room exact in the skeleton than coded."""
        result = list(widths)
        for number in self.vectors:
            width = widths[number]
            if width is not None and self.coded_bits(number, width) >= self.exact_bits(number):
                result[number] = None
        return result

    # ---- bits ----

    def bits(self, widths: Widths, plans: Plans, pool: Executor) -> float:
        """About the bits of the archive that depend on bin widths: of coded layers, and of those that stay exact."""

        def of(number: int) -> float:
            width = widths[number]
            found = self.exact_bits(number) if width is None else self.coded_bits(number, width, plans.get(number))
            give_back_mapped_memory()
            return found

        return sum(self._mapped(of, range(len(widths)), pool))

    def coded_bits(self, number: int, width: float, plan: LayerPlan | None = None) -> float:
        """About the bits of one layer in the archive at a bin width."""
        layer, plan = self.layers[number], plan or self._bound.get(number)
        if plan is None or plan.is_elementwise:
            step = max(1, layer.size // _COUNTED)
            rows = slice(None, None, step if len(layer.shape) > 1 and layer.shape[0] >= step else 1)
            widths: Width = width if plan is None else plan.widths(layer, width)
            symbols = scalar.quantize(layer.values[rows], layer.dtype, _along(widths, rows))
            return self._estimated(number, plan, symbols.reshape(layer.values[rows].shape))
        if width not in self._counted.get(plan, {}):
            self.quantized(number, width, plan)
        return self._counted[plan][width]

    def _estimated(self, number: int, plan: LayerPlan | None, symbols: Symbols) -> float:
        """Bits of a layer of which these symbols, of all or some slices along the first axis, stand for all."""
        layer = self.layers[number]
        count, rows = (symbols.shape[0], layer.shape[0]) if symbols.ndim > 1 else (1, 1)
        scales = 0 if plan is None else sum(scale.values.size for scale in plan.scales)
        trellis, student = plan is not None and plan.trellis, "student" not in self.without
        bits = estimated_bits(symbols.reshape(count, -1), rows, None, trellis, scales, student)
        return layer.size / symbols.size * bits

    def exact_bits(self, number: int) -> float:
        """About the bits of one layer that stays exact in the skeleton."""
        return _DEFLATED * 8 * self.layers[number].values.nbytes

    # ---- memory ----

    def keep(self, values: Array) -> Array:
        """The same values, for as long as the search: of a huge model in a temporary file."""
        return values if self._scratch is None else self._scratch.kept(values)

    def buffers(self) -> list[Array]:
        """One array for each layer: room for `requantize`; in temporary files always the same."""
        return [np.empty_like(layer.values) for layer in self.layers] if self._scratch is None else self._spilled

    @cached_property
    def _spilled(self) -> list[Array]:
        assert self._scratch is not None
        return [self._scratch.empty(layer.shape, layer.values.dtype) for layer in self.layers]

    # ---- values ----

    def quantized(self, number: int, width: float, plan: LayerPlan | None, shift: Shift | None = None) -> Quantized:
        """The symbols of one layer at a bin width, with what is needed to restore them.

        Args:
            number: of the layer.
            width: bin width Δ.
            plan: how it is rounded; None: to the nearest.
            shift: what is added to the weights first; None: nothing.
        """
        layer, plan = self.layers[number], plan or self._bound.get(number)
        if plan is None or plan.is_elementwise:
            scales, values = () if plan is None else plan.scales, self.shifted(number, shift)
            if shift is not None:
                width = _wide_enough(values, layer.dtype, width)
            return scalar.nearest(values, layer.dtype, width, scales)
        quantized = plan.quantized(layer, width)
        counted = self._counted.setdefault(plan, {})
        if width not in counted:
            counted[width] = self._estimated(number, plan, quantized.symbols.reshape(layer.shape))
        return quantized

    def shifted(self, number: int, shift: Shift | None) -> Array:
        """The original weights of one layer, or those with `shift` added, finite, in storage type."""
        layer = self.layers[number]
        return layer.values if shift is None else scalar.added(layer.values, shift.reshape(layer.shape), layer.dtype)

    def alone(self, number: int, width: float, plan: LayerPlan | None) -> dict[int, Array]:
        """What the model holds otherwise than the original when one layer is quantized alone."""
        layer, width = self.layers[number], max(width, self._finest[number])
        plan = plan or self._bound.get(number)
        if plan is None or plan.is_elementwise:  # without the symbols, which are as large as the layer
            out = np.empty(layer.shape, layer.values.dtype)
            scalar.requantize(layer.values, layer.dtype, width if plan is None else plan.widths(layer, width), out)
            return {number: out}
        changed = {number: self.quantized(number, width, plan).restored(layer.dtype, layer.shape).reshape(layer.shape)}
        if plan.bias is not None:
            changed[plan.bias] = self.shifted(plan.bias, plan.shift(layer, changed[number]))
        return changed

    def curve(self, number: int, middle: float, plan: LayerPlan | None) -> Curve:
        """The rate–distortion curve of one layer around a bin width."""
        layer, plan = self.layers[number], plan or LayerPlan.nearest(self.layers[number])
        found = Curve.of(
            lambda width: plan.sampled(layer, width, _CURVE_ROWS), layer.size, middle, self._finest[number]
        )
        give_back_mapped_memory()
        return found

    def gains_by_trellis(self, number: int, width: float, plan: LayerPlan | None) -> bool:
        """Whether one layer takes fewer bits along a trellis, at equal error and about a bin width."""
        layer = self.layers[number]
        found = (plan or LayerPlan.nearest(layer)).with_trellis(layer, width).trellis
        give_back_mapped_memory()
        return found

    def restored(self, number: int, width: float, plan: LayerPlan) -> Restored:
        """The weights of one layer that is not just rounded to the nearest.

        Args:
            number: of the layer.
            width: bin width Δ.
            plan: how it is rounded.
        """
        layer = self.layers[number]
        values = self.quantized(number, width, plan).restored(layer.dtype, layer.shape).reshape(layer.shape)
        shift = None if plan.bias is None else plan.shift(layer, values)
        give_back_mapped_memory()
        return Restored(values, self._counted[plan][width], shift)

    def requantize(
        self, widths: Widths, plans: Plans, out: Sequence[Array], pool: Executor, workers: Executor | None = None
    ) -> list[Array]:
        """The restored weights ŵ of every layer: in `out`, from `buffers`, or the original where it stays exact.

        Args:
            widths: bin width of every layer; None: exact.
            plans: how layers are rounded.
            out: written to.
            pool: its threads work at the same time.
            workers: where layers with plans are rounded instead; None: nowhere else.
        """

        def piece(number: int, steps: Width, part: slice) -> None:
            layer = self.layers[number]
            scalar.requantize(layer.values[part], layer.dtype, _along(steps, part), out[number][part])
            give_back_mapped_memory()

        def whole(number: int) -> None:
            taken(number, self.restored(number, coded[number], plans[number]))

        def taken(number: int, found: Restored) -> None:
            plan = plans[number]
            out[number][...] = found.values
            self._counted.setdefault(plan, {})[coded[number]] = found.bits
            if plan.bias is not None and found.shift is not None:
                shifts[plan.bias] = found.shift

        plans = {**self._bound, **plans}
        coded = {number: width for number, width in enumerate(widths) if width is not None}
        planned = [number for number in coded if number in plans and not plans[number].is_elementwise]
        planned.sort(key=lambda number: -self.sizes[number])
        shifts: dict[int, Shift] = {}
        if workers is None:
            list(self._mapped(whole, planned, pool))
        else:
            arguments = planned, [coded[n] for n in planned], [plans[n] for n in planned]
            for number, found in zip(planned, ordered(workers, self.restored, *arguments), strict=True):
                taken(number, found)
        others = coded.keys() - planned - shifts.keys()
        jobs = [
            (number, plans[number].widths(self.layers[number], width) if number in plans else width, part)
            for number, width in coded.items()
            if number in others
            for part in _parts(self.layers[number])
        ]
        list(pool.map(piece, *zip(*jobs, strict=True)))
        for number, shift in shifts.items():
            values, dtype = self.shifted(number, shift), self.layers[number].dtype
            if number in coded:
                width = _wide_enough(values, dtype, coded[number])
                scalar.requantize(values, dtype, width, out[number])
            else:
                out[number][...] = values
        return [
            out[number] if number in coded or number in shifts else layer.values
            for number, layer in enumerate(self.layers)
        ]

    def _mapped(self, job: Callable[[int], Result], numbers: Iterable[int], pool: Executor) -> Iterator[Result]:
        """What a job returns for each of some layers, the largest first: no thread is left with one in the end.

        The largest take turns in one thread, as many as make up its share of the work: two at a time, each with several
        arrays of its size, would be the most memory that all of compress takes.
        """
        by_size = sorted(numbers, key=lambda number: -self.sizes[number])
        share = sum(self.sizes[number] for number in by_size) / self.threads
        sums = itertools.accumulate(self.sizes[number] for number in by_size)
        turns = max(sum(total <= share for total in sums), 1)
        runs = [by_size[:turns], *([number] for number in by_size[turns:])]
        return itertools.chain.from_iterable(pool.map(lambda run: [job(number) for number in run], runs))


def _passed_over(layers: Iterable[Layer]) -> Iterator[Layer]:
    """One layer after the other; the memory of each is given back when the next one is asked for."""
    for layer in layers:
        yield layer
        give_back_mapped_memory()


def _bound_plan(layer: Layer, most: int) -> LayerPlan:
    """Nearest rounding to symbols of such magnitude, with rows along the first axis that has several indices."""
    axis = next((axis for axis, length in enumerate(layer.shape) if length > 1), 0)
    rows = layer.shape[axis]
    matrix = Matrix(layer.shape, tuple(range(len(layer.shape))), (1, rows, layer.size // rows), None, (axis,))
    return replace(LayerPlan.of(layer, matrix), most=most)


def is_matrix(layer: Layer, min_size: int | None) -> bool:
    """Whether the paper quantizes a layer: weights of two axes or more, and not tiny."""
    return len(layer.shape) >= 2 and layer.size >= (DEFAULT_MIN_SIZE if min_size is None else min_size)


def _parts(layer: Layer) -> Iterator[slice]:
    """Parts of a layer along its first axis, each of about as many weights as a thread quantizes at a time."""
    rows = layer.shape[0]
    step = max(1, _PIECE * rows // layer.size)
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def _along(steps: Width, part: slice) -> Width:
    """The bin widths of a part of a layer."""
    return steps[part] if isinstance(steps, np.ndarray) and len(steps) > 1 else steps


def _wide_enough(shifted: Array, dtype: str, width: float) -> float:
    """The bin width, or a wider one where what was added to weights makes them so large that symbols were not exact."""
    return max(width, scalar.peak(shifted, dtype) / scalar.SYMBOL_MAX)
