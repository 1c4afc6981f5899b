"""Whether a gradient rule is right: central differences of one-node models in onnxruntime judge."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from riq_cli.model import Operation
from riq_cli.statistics.autodiff import elementwise, reductions, shapes
from riq_cli.statistics.autodiff.rule import Gradients, Rule

RULES: dict[str, Rule] = {**elementwise.RULES, **shapes.RULES, **reductions.RULES}
PROBES = 3
DIRECTIONS = 3
NO_ATTRIBUTES: Mapping[str, Any] = {}
RELEASE = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
# The judge of a rule is onnxruntime; it cannot judge where a release has no kernel, or one with a fault.
newer_kernels = pytest.mark.skipif(RELEASE < (1, 30), reason="onnxruntime has no such kernel yet, or a faulty one")
Values = Sequence[np.ndarray | None]


def spaced(*shape: int, seed: int = 0, step: float = 0.1) -> np.ndarray:
    """Numbers around zero, all different, in any order, none nearer than half a step to any multiple of it."""
    size = int(np.prod(shape))
    numbers = (np.arange(size) - size // 2 + 0.5) * step
    return np.random.default_rng(seed).permutation(numbers).reshape(shape)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2, shape)


def integers(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def label(value: Any) -> str:
    """Of a parameter of a test."""
    if isinstance(value, list):
        return " ".join("-" if item is None else str(np.shape(item)) for item in value)
    return str(value)


def is_float(value: np.ndarray | None) -> bool:
    return value is not None and value.dtype.kind == "f"


@dataclass(frozen=True)
class Node:
    """One node, and how to run it."""

    kind: str
    attributes: Mapping[str, Any]
    version: int
    outputs: tuple[str, ...]

    @property
    def domain(self) -> str:
        return self.kind.rpartition(":")[0]

    def operation(self, inputs: Values) -> Operation:
        version = 1 if self.domain else self.version
        return Operation(self.kind, self._names(inputs), self.outputs, dict(self.attributes), version)

    def session(self, inputs: Values) -> onnxruntime.InferenceSession:
        """Floats are what is fed to it, other inputs are constants."""
        names = self._names(inputs)
        kind = self.kind.rpartition(":")[2]
        node = helper.make_node(kind, names, self.outputs, domain=self.domain, **self.attributes)
        fed = {name: value for name, value in zip(names, inputs, strict=True) if is_float(value)}
        constants = [
            numpy_helper.from_array(value, name)
            for name, value in zip(names, inputs, strict=True)
            if value is not None and name not in fed
        ]
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in fed.items()
        ]
        results = [onnx.ValueInfoProto(name=name) for name in self.outputs if name]
        graph = helper.make_graph([node], "node", infos, results, constants)
        opsets = [helper.make_opsetid("", self.version), helper.make_opsetid("com.microsoft", 1)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, session: onnxruntime.InferenceSession, inputs: Values) -> list[np.ndarray | None]:
        named = zip(self._names(inputs), inputs, strict=True)
        results = iter(session.run(None, {name: np.asarray(value) for name, value in named if is_float(value)}))
        return [next(results) if name else None for name in self.outputs]

    def _names(self, inputs: Values) -> tuple[str, ...]:
        return tuple("" if value is None else f"input{i}" for i, value in enumerate(inputs))


def check(
    kind: str,
    inputs: Values,
    attributes: Mapping[str, Any] = NO_ATTRIBUTES,
    version: int = 17,
    wanted: Collection[int] | None = None,
    outputs: tuple[str, ...] = ("y",),
    without: Collection[int] = (),
    single: bool = False,
) -> None:
    """The rule's gradients of the `wanted` inputs, by default all floats, are those that differences show.

    Args:
        outputs: names of the node's outputs, "" for those left out.
        without: outputs that have no gradient, besides those left out and those of integers.
        single: in single precision even if onnxruntime has a kernel for double precision.
    """
    node = Node(kind, attributes, version, outputs)
    wanted = [i for i, value in enumerate(inputs) if is_float(value)] if wanted is None else wanted
    inputs, session = _session(node, inputs, single)
    results = node.run(session, inputs)
    random = np.random.default_rng(1)
    gradients = [
        random.standard_normal((PROBES, *result.shape), np.float32) if is_float(result) and i not in without else None
        for i, result in enumerate(results)
    ]
    found = _found(node, inputs, gradients, wanted)
    for i in wanted:
        x, gradient = inputs[i], found[i]
        assert x is not None
        assert gradient is not None, f"no gradient of input {i}"
        assert (gradient.dtype, gradient.shape) == (np.float32, (PROBES, *x.shape))
        for _ in range(DIRECTIONS):
            direction = random.uniform(-1, 1, x.shape)
            slopes = _slopes(node, session, inputs, i, direction)
            products = [
                (weights * slope).reshape(PROBES, -1)
                for weights, slope in zip(gradients, slopes, strict=True)
                if weights is not None and slope is not None
            ]
            expected = np.concatenate(products, axis=1)
            shown = (gradient.astype(float) * direction).reshape(PROBES, -1).sum(1)
            tolerance = (1e-2 if x.dtype == np.float32 else 1e-5) * (np.linalg.norm(expected, axis=1) + 1e-2)
            assert (np.abs(shown - expected.sum(1)) <= tolerance).all(), (i, shown, expected.sum(1))


def _slopes(
    node: Node, session: onnxruntime.InferenceSession, inputs: Values, place: int, direction: np.ndarray
) -> list[np.ndarray | None]:
    """How fast the outputs change as the input at `place` goes in a direction."""
    x = inputs[place]
    step = 1e-2 if x.dtype == np.float32 else 1e-5
    there, back = (
        node.run(session, [*inputs[:place], (x + way * direction).astype(x.dtype), *inputs[place + 1 :]])
        for way in (step, -step)
    )
    return [
        (after.astype(float) - before) / (2 * step) if is_float(after) else None
        for after, before in zip(there, back, strict=True)
    ]


def _session(node: Node, inputs: Values, single: bool) -> tuple[list[Any], onnxruntime.InferenceSession]:
    """With inputs in double precision, if there is a kernel for it and nothing speaks against."""
    if not single:
        with contextlib.suppress(NoKernel, Fail, InvalidGraph):
            typed = [value.astype(np.float64) if is_float(value) else value for value in inputs]
            return typed, node.session(typed)
    typed = [value.astype(np.float32) if is_float(value) else value for value in inputs]
    return typed, node.session(typed)


def _found(node: Node, inputs: Values, gradients: Sequence[np.ndarray | None], wanted: Collection[int]) -> Gradients:
    """By the rule, which leaves alone what it gets, and computes nothing that is not wanted or zero."""
    rule, operation = RULES[node.kind], node.operation(inputs)
    for value in (*inputs, *gradients):
        if value is not None:
            value.flags.writeable = False
    flags = [i in wanted for i in range(len(inputs))]
    assert rule(operation, inputs, [None] * len(gradients), flags) == [None] * len(inputs)
    assert rule(operation, inputs, gradients, [False] * len(inputs)) == [None] * len(inputs)
    found = rule(operation, inputs, gradients, flags)
    assert len(found) == len(inputs)
    assert all(value is None for value, flag in zip(found, flags, strict=True) if not flag)
    return found
