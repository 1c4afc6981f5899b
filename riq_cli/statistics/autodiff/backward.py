"""Samples → gradients of a model's outputs at its inner tensors, in bounded memory.

For a random vector v over an output y, gradients are those of ⟨v, y / ‖y‖⟩: what their outer products are on average
says how a small change of an inner tensor moves the output's direction, which is what the deviation measures. They are
taken back by reverse-mode differentiation (Baydin et al., 2018, https://arxiv.org/abs/1502.05767): operation by
operation, a rule gives the vector-Jacobian products.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from riq_cli.model import Operation
from riq_cli.statistics.autodiff import axes, elementwise, products, recurrent, reductions, shapes, windows
from riq_cli.statistics.autodiff.rule import Array, Call, Floats, Gradients, Rule

Values = Mapping[str, Array]
Observe = Callable[[Sequence[str]], Callable[[int], Values]]  # names of tensors → their values by number of the run
Found = Callable[[Operation, int, Values, Gradients], None]  # operation, number of the run, values, gradients

_PROBES = 16  # vectors v for each run
_SMALL = 1 << 20  # bytes of the largest tensor up to which there are so many
_SECTIONS = 8  # at most, about: each has a session of its own
_FAINT = 1e-36  # norm of an output below which single precision holds no gradients of its direction
_SHARE = 16  # of the budget, for the gradients at one tensor

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **shapes.RULES,
    **reductions.RULES,
    **products.RULES,
    **windows.RULES,
    **axes.RULES,
    **recurrent.RULES,
}

# A small change of what these read changes nothing that they write.
CONSTANT = {
    "And", "ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual",
    "IsInf", "IsNaN", "Less", "LessOrEqual", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "Range", "Round",
    "Shape", "Sign", "Size", "Xor",
}  # fmt: skip


class Backward:
    """Takes gradients back from the measured outputs to the outputs of some operations, the products of layers."""

    def __init__(
        self,
        operations: Sequence[Operation],
        constants: Values,
        measured: Sequence[str],
        products: Sequence[tuple[str, ...]],
    ) -> None:
        """Find the operations on all paths from the products to the measured outputs.

        Args:
            operations: of the graph, in the order in which they run.
            constants: values that no sample changes.
            measured: outputs that gradients are of.
            products: the operations at whose outputs gradients are wanted, each by its `outputs`.
        """
        self._constants, self._measured, self._products = constants, list(measured), set(products)
        self._dependent: set[str] = set()  # tensors that depend on some product
        for operation in operations:
            depends = not self._dependent.isdisjoint(operation.inputs) and operation.kind not in CONSTANT
            if depends or operation.outputs in self._products:
                self._dependent |= set(operation.outputs) - {""}
        reached = set(measured)
        self._path: list[Operation] = []  # from the outputs on
        for operation in reversed(operations):
            if not reached.isdisjoint(operation.outputs) and not self._dependent.isdisjoint(operation.outputs):
                self._path.append(operation)
                reached |= set(operation.inputs) & self._dependent

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
        runs: Sequence[int] | None = None,
    ) -> set[tuple[str, ...]]:
        """The products whose gradients are known: those from which only operations with rules lead to outputs.

        Args:
            observe: runs the model.
            sizes: bytes of tensors in one run.
            rows: samples in each run.
            beside: tensors whose values are wanted together with the gradients at a product.
            found: called for every product and run with the gradients of its outputs, [probes, *shape].
            progress: called with steps done and in all.
            budget: bytes of values that are held at the same time, about, and of gradients at a few tensors.
            seed: decides the random vectors, together with the number of the run.
            probes: random vectors for each run, at most; None: as many as second moments need.
            runs: numbers of those that are done; None: of all.
        """
        needs = [[*self._read(operation), *beside.get(operation.outputs, ())] for operation in self._path]
        # Those near the inputs first: they tend to be the larger ones.
        nbytes = sizes(list(dict.fromkeys(itertools.chain(*reversed(needs), self._measured))))
        if not self._path or not nbytes.keys() >= set(self._measured):
            return set()
        largest = max(nbytes.values()) or 1
        probes = max(1, min(probes or _PROBES, _PROBES * _SMALL // largest))
        together = max(1, min(probes, budget // _SHARE // largest))
        sections = self._sections(needs, nbytes, max(budget, sum(nbytes.values()) // _SECTIONS))
        observed = [observe(list(names)) for _, names in sections]
        unknown: set[str] = set()
        runs = range(len(rows)) if runs is None else runs
        steps, done = len(runs) * len(sections) * -(-probes // together), 0
        for run in runs:
            random = np.random.default_rng((seed, run))
            for begin in range(0, probes, together):
                pending: dict[str, Floats] = {}
                for number, (operations, _) in enumerate(sections):
                    values = {**self._constants, **observed[number](run)}
                    if number == 0:
                        for name in self._measured:
                            if name in self._dependent:
                                pending[name] = start(values[name], rows[run], min(together, probes - begin), random)
                    for operation in operations:
                        self._back(operation, values, pending, unknown, run, found)
                    done += 1
                    progress(done, steps)
        return self._products & {item.outputs for item in self._path if unknown.isdisjoint(item.outputs)}

    def _read(self, operation: Operation) -> Iterator[str]:
        """Names of the values that the rule of an operation reads, or who takes the gradients at its gates."""
        depends = not self._dependent.isdisjoint(operation.inputs)
        reads = operation.kind in (RULES if depends else recurrent.RULES)
        return (name for name in operation.inputs if reads and name and name not in self._constants)

    def _sections(
        self, needs: Sequence[Sequence[str]], nbytes: Mapping[str, int], budget: int
    ) -> list[tuple[list[Operation], dict[str, None]]]:
        """Consecutive operations whose values fit into the budget together, with the names of these values."""
        sections = [(list[Operation](), dict.fromkeys(self._measured))]
        for operation, need in zip(self._path, needs, strict=True):
            operations, held = sections[-1]
            names = dict.fromkeys(name for name in need if name in nbytes)
            if operations and names.keys() - held and sum(nbytes[name] for name in held | names) > budget:
                sections.append(([operation], names))
            else:
                operations.append(operation)
                held |= names
        return sections

    def _back(
        self,
        operation: Operation,
        values: Values,
        pending: dict[str, Floats],
        unknown: set[str],
        run: int,
        found: Found,
    ) -> None:
        """Take the pending gradients of an operation's outputs to its inputs; `unknown` are tensors that have none."""
        gradients: Gradients = [pending.pop(name, None) for name in operation.outputs]
        wanted = [name in self._dependent for name in operation.inputs]
        if not unknown.isdisjoint(operation.outputs):
            unknown |= set(itertools.compress(operation.inputs, wanted))
            return
        if all(gradient is None for gradient in gradients):
            return
        try:
            with np.errstate(all="ignore"):
                rule = RULES[operation.kind]  # without one, its outputs may be more than a product
                if operation.outputs in self._products:
                    found(operation, run, values, gradients)
                if any(wanted):
                    inputs = [values[name] if name else None for name in operation.inputs]
                    taken = rule(Call(operation, inputs, gradients, wanted))
                    for name, want, gradient in zip(operation.inputs, wanted, taken, strict=False):
                        if want and gradient is not None:
                            pending[name] = pending[name] + gradient if name in pending else gradient
        except MemoryError:
            raise  # or the archive would depend on how much is free
        except Exception:  # whatever is unforeseen in a model costs what gradients save, not the run
            unknown |= {*itertools.compress(operation.inputs, wanted), *operation.outputs}


def start(output: Array, rows: int, probes: int, random: np.random.Generator) -> Floats:
    """Gradients of ⟨v, y / ‖y‖⟩ at an output y for random v, [probes, *shape], one such sum for each row of a batch.

    They are v without its part along y, over ‖y‖: directions in which the output may turn.
    """
    batched = rows > 1 and output.ndim > 0 and output.shape[0] == rows
    flat = output.astype(np.float64).reshape(rows if batched else 1, -1)
    finite = np.isfinite(flat)
    flat = np.where(finite, flat, 0)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > _FAINT)
    directions = (flat * inverse).astype(np.float32)
    vectors = random.standard_normal((probes, *flat.shape)).astype(np.float32)
    vectors *= finite  # the deviation leaves other elements out
    vectors -= np.einsum("prn,rn->pr", vectors, directions)[..., None] * directions
    vectors *= inverse.astype(np.float32)
    return vectors.reshape(probes, *output.shape)
