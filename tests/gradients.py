"""Whether a gradient rule is right: central differences of one-node models in onnxruntime judge."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.backward import RULES
from riq_cli.statistics.autodiff.rule import Call, Gradients

PROBES = 3
RELEASE = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
# The judge of a rule is onnxruntime; it cannot judge where a release has no kernel, or one with a fault.
OLD_KERNELS = RELEASE < (1, 30)
Values = Sequence[np.ndarray | None]


def is_float(value: np.ndarray | None) -> bool:
    return value is not None and value.dtype.kind == "f"


def apply_rule(
    kind: str,
    inputs: Values,
    gradients: Sequence[Any],
    attributes: Mapping[str, Any] | None = None,
    version: int = 17,
    wanted: Collection[int] | None = None,
) -> Gradients:
    """Gradients of all inputs, by the rule of an operation; `wanted`: numbers of inputs, by default all."""
    flags = [value is not None and (wanted is None or i in wanted) for i, value in enumerate(inputs)]
    names = ("x",) * len(inputs), ("y",) * len(gradients)
    operation = Operation(kind, *names, attributes or {}, 1 if ":" in kind else version)
    with np.errstate(all="ignore"):
        found = RULES[kind](Call(operation, inputs, gradients, flags))
    return [*found, *[None] * len(inputs)][: len(inputs)]


class Node:
    """A model of one node: floats are fed to it, other inputs are constants."""

    def __init__(
        self, kind: str, inputs: Values, attributes: Mapping[str, Any], version: int, outputs: Sequence[str]
    ) -> None:
        domain, _, name = kind.rpartition(":")
        self._names, self._outputs = ["" if value is None else f"x{i}" for i, value in enumerate(inputs)], outputs
        node = helper.make_node(name, self._names, outputs, domain=domain, **attributes)
        infos, constants = [], []
        for name, value in zip(self._names, inputs, strict=True):
            if value is not None and is_float(value):
                kind_of = helper.np_dtype_to_tensor_dtype(value.dtype)
                infos.append(helper.make_tensor_value_info(name, kind_of, value.shape))
            elif value is not None:
                constants.append(numpy_helper.from_array(value, name))
        results = [onnx.ValueInfoProto(name=name) for name in outputs if name]
        opsets = [helper.make_opsetid("", version), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(
            helper.make_graph([node], "node", infos, results, constants), opset_imports=opsets, ir_version=10
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)

    def run(self, inputs: Values) -> list[np.ndarray | None]:
        feeds = {name: value for name, value in zip(self._names, inputs, strict=True) if is_float(value)}
        results = iter(self._session.run(None, feeds))
        return [next(results) if name else None for name in self._outputs]

    def gradients(self, inputs: Values, without: Collection[int] = ()) -> list[Any]:
        """Random ones of all outputs of floats, [probes, *shape]; None for others, and for those in `without`."""
        random = np.random.default_rng(1)
        return [
            random.standard_normal((PROBES, *result.shape), np.float32)
            if result is not None and is_float(result) and i not in without
            else None
            for i, result in enumerate(self.run(inputs))
        ]

    def assert_along(
        self, inputs: Values, place: int, direction: np.ndarray, gradients: Sequence[Any], shown: np.ndarray
    ) -> None:
        """As an input goes in a direction, Σ ⟨gradient, output⟩ changes as fast as is shown, for every probe."""
        x = inputs[place]
        assert x is not None
        step = 1e-2 if x.dtype == np.float32 else 1e-5
        ahead, behind = (
            self.run([*inputs[:place], np.asarray(x + sign * direction, x.dtype), *inputs[place + 1 :]])
            for sign in (step, -step)
        )
        parts = [
            (gradient * ((after.astype(float) - before) / (2 * step))).reshape(PROBES, -1)
            for gradient, after, before in zip(gradients, ahead, behind, strict=True)
            if gradient is not None and after is not None and before is not None
        ]
        expected = np.concatenate(parts, axis=1)
        tolerance = (3e-3 if x.dtype == np.float32 else 1e-5) * (np.linalg.norm(expected, axis=1) + 1e-2)
        assert (np.abs(shown - expected.sum(1)) <= tolerance).all(), (place, shown, expected.sum(1))


def check(
    kind: str,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any] | None = None,
    version: int = 17,
    wanted: Collection[int] | None = None,
    outputs: Sequence[str] = ("y",),
    without: Collection[int] = (),
    single: bool = False,
) -> None:
    """The rule's gradients of the `wanted` inputs, by default all floats, are those that differences show.

    Args:
        outputs: names of the node's outputs, "" for those left out.
        without: outputs that have no gradient, besides those left out and those of integers.
        single: in single precision even if onnxruntime has a kernel for double precision.
    """
    attributes = attributes or {}
    inputs = [None if value is None else np.asarray(value) for value in inputs]
    wanted = [i for i, value in enumerate(inputs) if is_float(value)] if wanted is None else wanted
    typed = [value.astype(np.float32) if is_float(value) else value for value in inputs]
    node = None
    if not single:  # in double precision, if there is a kernel for it
        with contextlib.suppress(NoKernel, Fail, InvalidGraph):
            doubles = [value.astype(np.float64) if is_float(value) else value for value in inputs]
            node, typed = Node(kind, doubles, attributes, version, outputs), doubles
    node = node or Node(kind, typed, attributes, version, outputs)
    gradients = node.gradients(typed, without)
    for value in (*typed, *gradients):
        if value is not None:
            value.flags.writeable = False  # rules leave alone what they get
    found = apply_rule(kind, typed, gradients, attributes, version, wanted)
    random = np.random.default_rng(2)
    for i in wanted:
        gradient, shape = found[i], typed[i].shape
        assert gradient is not None, f"no gradient of input {i}"
        assert (gradient.dtype, gradient.shape) == (np.float32, (PROBES, *shape))
        alone = apply_rule(kind, typed, gradients, attributes, version, [i])[i]
        np.testing.assert_array_equal(gradient, alone)
        for _ in range(3):
            direction = random.uniform(-1, 1, shape)
            shown = (gradient.astype(float) * direction).reshape(PROBES, -1).sum(1)
            node.assert_along(typed, i, direction, gradients, shown)
