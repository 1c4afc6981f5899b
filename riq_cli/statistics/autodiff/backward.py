"""Samples → gradients of a model's outputs at its inner tensors, in bounded memory.

For a random vector v over an output y, gradients are those of ⟨v, y / ‖y‖⟩: what their outer products are on average
tells how a small change of an inner tensor moves the output's direction, which is what the deviation measures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from riq_cli.model import Operation
from riq_cli.statistics.autodiff import recurrent
from riq_cli.statistics.autodiff.rule import Array, Floats, Gradients
from riq_cli.statistics.autodiff.rules import RULES, STOPS

Values = Mapping[str, Array]
Observe = Callable[[Sequence[str]], Callable[[int], Values]]  # names of tensors → their values by number of the run
Found = Callable[[Operation, int, Values, Gradients], None]  # told of an operation, a sample, values, and gradients

_PROBES = 16  # vectors v for each sample
_SMALL = 1 << 20  # bytes of the largest tensor up to which there are so many
_STRETCHES = 8  # at most, about: each has a session of its own
_SHARE = 16  # of the budget, for the gradients at one tensor


class Backward:
    """Takes gradients back from the measured outputs through all operations that lie behind some products."""

    def __init__(
        self,
        operations: Sequence[Operation],
        constants: Values,
        measured: Sequence[str],
        products: Sequence[tuple[str, ...]],
    ) -> None:
        """Find the way.

        Args:
            operations: of the graph, in the order in which they run.
            constants: values that no sample changes.
            measured: outputs that gradients are of.
            products: the operations at whose outputs gradients are wanted, each by its `outputs`.
        """
        self._constants, self._measured = constants, list(measured)
        self._wanted = set(products)
        self._moving: set[str] = set()  # tensors that a change of some layer changes
        for operation in operations:
            behind = not self._moving.isdisjoint(operation.inputs) and operation.kind not in STOPS
            if behind or operation.outputs in self._wanted:
                self._moving |= set(operation.outputs) - {""}
        reached = set(measured)
        self._way: list[Operation] = []  # from the outputs on
        for operation in reversed(operations):
            if not reached.isdisjoint(operation.outputs) and not self._moving.isdisjoint(operation.outputs):
                self._way.append(operation)
                reached |= set(operation.inputs) & self._moving

    def run(
        self,
        observe: Observe,
        sizes: Callable[[Sequence[str]], Mapping[str, int]],
        rows: Sequence[int],
        beside: Mapping[tuple[str, ...], Sequence[str]],
        found: Found,
        progress: Callable[[int, int], None],
        budget: int,
        seed: int = 0,
        probes: int | None = None,
    ) -> set[tuple[str, ...]]:
        """The products whose gradients are known: those that only operations with rules lie behind.

        Args:
            observe: runs the model.
            sizes: bytes of tensors in one run.
            rows: samples in each run.
            beside: tensors whose values are wanted together with the gradients at a product.
            found: called for every product and run with the gradients of its outputs, [probes, *shape].
            progress: called with steps done and in all.
            budget: bytes of values that are held at the same time, about, and of gradients at a few tensors.
            seed: decides the random vectors, together with the number of the run.
            probes: random vectors for each run, at most; None: as many as tell enough of second moments.
        """
        needs = [
            [
                *self._inputs(operation),
                *(beside.get(operation.outputs, ()) if operation.outputs in self._wanted else ()),
            ]
            for operation in self._way
        ]
        # Those near the inputs first: they tend to be the larger ones.
        nbytes = sizes(list(dict.fromkeys(itertools.chain(*reversed(needs), self._measured))))
        if not self._way or not nbytes.keys() >= set(self._measured):
            return set()
        needs = [[name for name in need if name in nbytes] for need in needs]
        share = budget // _SHARE
        budget = max(budget, sum(nbytes.values()) // _STRETCHES)
        largest = max(nbytes.values()) or 1
        probes = max(1, min(probes or _PROBES, _PROBES * _SMALL // largest))
        together = max(1, min(probes, share // largest))
        unknown: set[str] = set()
        stretches = list(_stretches(needs, nbytes, budget))
        values_of = []
        for first, last in stretches:
            wanted = itertools.chain(self._measured if first == 0 else (), *needs[first:last])
            values_of.append(observe(list(dict.fromkeys(wanted))))
        steps, done = len(rows) * len(stretches) * -(-probes // together), 0
        for number, count in enumerate(rows):
            random = np.random.default_rng((seed, number))
            for begin in range(0, probes, together):
                pending: dict[str, Floats] = {}
                for (first, last), values_at in zip(stretches, values_of, strict=True):
                    values = {**self._constants, **values_at(number)}
                    if first == 0:
                        pending = {
                            name: start(values[name], count, min(together, probes - begin), random)
                            for name in self._measured
                            if name in self._moving
                        }
                    for operation in self._way[first:last]:
                        self._back(operation, values, pending, unknown, number, found)
                    done += 1
                    progress(done, steps)
        return self._wanted & {operation.outputs for operation in self._way if unknown.isdisjoint(operation.outputs)}

    def _inputs(self, operation: Operation) -> Iterator[str]:
        """Names of the values that the rule of an operation reads."""
        moving = not self._moving.isdisjoint(operation.inputs)
        reads = operation.kind in RULES if moving else operation.kind in recurrent.RULES
        return (name for name in operation.inputs if reads and name and name not in self._constants)

    def _back(
        self,
        operation: Operation,
        values: Values,
        pending: dict[str, Floats],
        unknown: set[str],
        number: int,
        found: Found,
    ) -> None:
        gradients: Gradients = [pending.pop(name, None) for name in operation.outputs]
        moving = [name in self._moving for name in operation.inputs]
        if not unknown.isdisjoint(operation.outputs):
            unknown |= set(itertools.compress(operation.inputs, moving))
            return
        if all(gradient is None for gradient in gradients):
            return
        try:
            with np.errstate(all="ignore"):
                rule = RULES[operation.kind]  # without one, more than a product may lie before its outputs
                if operation.outputs in self._wanted:
                    found(operation, number, values, gradients)
                if any(moving):
                    inputs = [values[name] if name else None for name in operation.inputs]
                    taken = rule(operation, inputs, gradients, moving)
                    for name, moves, gradient in zip(operation.inputs, moving, taken, strict=False):
                        if moves and gradient is not None:
                            pending[name] = pending[name] + gradient if name in pending else gradient
        except MemoryError:
            raise  # or the archive would depend on how much is free
        except Exception:  # whatever is unforeseen in a model costs what gradients save, not the run
            unknown |= {*itertools.compress(operation.inputs, moving), *operation.outputs}


def start(output: Array, rows: int, probes: int, random: np.random.Generator) -> Floats:
    """Gradients of ⟨v, y / ‖y‖⟩ at an output y for random v, [probes, *shape], one such sum for each row of a batch."""
    batched = rows > 1 and output.ndim > 0 and output.shape[0] == rows
    flat = output.astype(np.float64).reshape(rows if batched else 1, -1)
    finite = np.isfinite(flat)
    flat = np.where(finite, flat, 0)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    directions = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 0)
    vectors: np.ndarray[Any, np.dtype[Any]] = random.standard_normal((probes, *flat.shape))
    vectors *= finite  # the deviation leaves other elements out
    vectors -= np.einsum("prn,rn->pr", vectors, directions)[..., None] * directions
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return vectors.astype(np.float32).reshape(probes, *output.shape)


def _stretches(needs: Sequence[Sequence[str]], nbytes: Mapping[str, int], budget: int) -> Iterator[tuple[int, int]]:
    """Runs of operations whose values fit into the budget together; at least one operation each."""
    first, held, total = 0, set[str](), 0
    for number, need in enumerate(needs):
        added = set(need) - held
        size = sum(nbytes.get(name, 0) for name in added)
        if number > first and size and total + size > budget:  # so every stretch has something to look at
            yield first, number
            first, held, total = number, set(), 0
            added = set(need)
            size = sum(nbytes.get(name, 0) for name in added)
        held |= added
        total += size
    yield first, len(needs)
