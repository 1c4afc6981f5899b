"""Gradients through LSTM, GRU and RNN, against differences of what onnxruntime gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.recurrent import RULES, gate_gradients
from riq_cli.statistics.autodiff.rule import Floats, Gradients, NoRuleError

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")
STEPS, BATCH, SIZE, HIDDEN, PROBES = 6, 2, 4, 5, 3
STEP = 3e-3
"""Of the differences: smaller, and float32 is too coarse; larger, and ReLUs pass through zero on the way."""


@dataclass(frozen=True)
class Case:
    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()  # inputs

    @property
    def directions(self) -> int:
        return 2 if self.attributes.get("direction") == "bidirectional" else 1

    @property
    def outputs(self) -> tuple[str, ...]:
        return OUTPUTS if self.kind == "LSTM" else OUTPUTS[:2]

    def inputs(self, steps: int = STEPS, seed: int = 0) -> dict[str, np.ndarray]:
        rows = GATES[self.kind] * HIDDEN
        shapes: dict[str, tuple[int, ...]] = {
            "X": (steps, BATCH, SIZE),
            "W": (self.directions, rows, SIZE),
            "R": (self.directions, rows, HIDDEN),
            "B": (self.directions, 2 * rows),
            "initial_h": (self.directions, BATCH, HIDDEN),
        }
        if self.kind == "LSTM":
            shapes |= {"initial_c": (self.directions, BATCH, HIDDEN), "P": (self.directions, 3 * HIDDEN)}
        random = np.random.default_rng(seed)
        values = {name: random.normal(0, 0.6, shape).astype(np.float32) for name, shape in shapes.items()}
        values["sequence_lens"] = np.full(BATCH, steps, np.int32)
        return {name: values[name] for name in INPUTS if name in values and name not in self.left_out}

    def operation(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Operation:
        names = [name if name in inputs else "" for name in INPUTS]
        while not names[-1]:
            names.pop()
        return Operation(self.kind, tuple(names), tuple(outputs), {"hidden_size": HIDDEN, **self.attributes}, 14)

    def given(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray | None]:
        return [inputs.get(name) for name in self.operation(inputs, ()).inputs]

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        """What onnxruntime gives."""
        operation = self.operation(inputs, self.outputs if outputs is None else outputs)
        node = onnx.helper.make_node(self.kind, operation.inputs, operation.outputs, **operation.attributes)
        infos = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ]
        results = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in operation.outputs if name
        ]
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "one", infos, results),
            opset_imports=[onnx.helper.make_opsetid("", 14)],
            ir_version=8,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [np.asarray(result) for result in session.run(None, dict(inputs))]

    def rule(self, inputs: Mapping[str, np.ndarray], gradients: Sequence[Floats | None]) -> dict[str, Floats | None]:
        operation = self.operation(inputs, self.outputs)
        wanted = [name in ("X", "initial_h", "initial_c") for name in operation.inputs]
        found = RULES[self.kind](operation, self.given(inputs), gradients, wanted)
        assert len(found) == len(operation.inputs)
        return dict(zip(operation.inputs, found, strict=True))


def usages() -> list[Any]:
    found = []
    for direction in ("forward", "reverse", "bidirectional"):
        way = {"direction": direction}
        twice = 2 if direction == "bidirectional" else 1
        plain = frozenset({"P", "sequence_lens"})
        found += [
            (f"LSTM-{direction}", Case("LSTM", way, plain)),
            (f"LSTM-peepholes-{direction}", Case("LSTM", way)),
            (f"GRU-{direction}", Case("GRU", way)),
            (f"GRU-linear-{direction}", Case("GRU", {**way, "linear_before_reset": 1}, plain)),
            (f"RNN-{direction}", Case("RNN", way)),
            (f"RNN-relu-{direction}", Case("RNN", {**way, "activations": ["Relu"] * twice}, plain)),
        ]
    bare = frozenset({"B", "P", "sequence_lens", "initial_h", "initial_c"})
    found += [(f"{kind}-bare", Case(kind, {}, bare)) for kind in GATES]
    found.append(("RNN-mixed", Case("RNN", {"direction": "bidirectional", "activations": ["Tanh", "Relu"]})))
    named = {"direction": "bidirectional", "activations": ["sigmoid", "Tanh", "tanh"] * 2, "layout": 0}
    found.append(("LSTM-named", Case("LSTM", named)))
    return [pytest.param(case, id=name) for name, case in found]


each_usage = pytest.mark.parametrize("case", usages())


def probes_of(outputs: Sequence[np.ndarray], seed: int = 1) -> Gradients:
    random = np.random.default_rng(seed)
    return [random.standard_normal((PROBES, *output.shape), np.float32) for output in outputs]


def directions(shape: tuple[int, ...], count: int = 6, seed: int = 2) -> Floats:
    """Unit vectors."""
    found = np.random.default_rng(seed).standard_normal((count, *shape), np.float32)
    return np.asarray(found / np.sqrt((found**2).sum(axis=tuple(range(1, found.ndim)), keepdims=True)))


def difference(
    case: Case, inputs: Mapping[str, np.ndarray], name: str, direction: Floats, gradients: Sequence[Floats | None]
) -> np.ndarray:
    """By how much each probe's <g, outputs> grows when one input moves along the direction."""
    up = case.run({**inputs, name: inputs[name] + np.float32(STEP) * direction})
    down = case.run({**inputs, name: inputs[name] - np.float32(STEP) * direction})
    total = np.zeros(PROBES)
    for gradient, high, low in zip(gradients, up, down, strict=True):
        if gradient is not None:
            change = (high.astype(np.float64) - low) / (2 * STEP)
            total += (gradient * change).sum(axis=tuple(range(1, gradient.ndim)))
    return total


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """Close to each other, seen from the usual size of what is compared."""
    assert np.shape(found) == np.shape(expected)
    scale = float(np.sqrt(np.mean(np.square(expected))))
    assert scale > 0
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=5e-3 * scale)


def assert_gradients_are_differences(
    case: Case, inputs: Mapping[str, np.ndarray], gradients: Sequence[Floats | None]
) -> None:
    given = case.rule(inputs, gradients)
    for name, gradient in given.items():
        if name not in inputs or name not in ("X", "initial_h", "initial_c"):
            assert gradient is None
            continue
        assert gradient is not None
        assert gradient.dtype == np.float32
        assert gradient.shape == (PROBES, *inputs[name].shape)
        along = directions(inputs[name].shape)
        assert_same(
            [(gradient * d).sum(axis=tuple(range(1, gradient.ndim)), dtype=np.float64) for d in along],
            [difference(case, inputs, name, d, gradients) for d in along],
        )


# ---- The rules ------------------------------------------------------------------------------------------------------


@each_usage
def test_gradients_are_what_differences_say(case: Case) -> None:
    inputs = case.inputs()
    assert_gradients_are_differences(case, inputs, probes_of(case.run(inputs)))


@pytest.mark.parametrize(("kind", "kept"), [(kind, kept) for kind in GATES for kept in Case(kind).outputs])
def test_none_stands_for_zeros(kind: str, kept: str) -> None:
    case = Case(kind, {"direction": "bidirectional"})
    inputs = case.inputs()
    every = probes_of(case.run(inputs))
    some = [gradient if name == kept else None for name, gradient in zip(case.outputs, every, strict=True)]
    assert_gradients_are_differences(case, inputs, some)


@pytest.mark.parametrize("kind", GATES)
def test_outputs_may_be_left_out(kind: str) -> None:
    case = Case(kind, {"direction": "bidirectional"})
    inputs = case.inputs()
    of_steps, of_last, *_ = probes_of(case.run(inputs))
    wanted = [True] * len(case.given(inputs))
    for names, fewer, full in [(("Y",), [of_steps], [of_steps]), (("", "Y_h"), [None, of_last], [None, of_last, None])]:
        found = RULES[kind](case.operation(inputs, names), case.given(inputs), fewer, wanted)
        for gradient, expected in zip(found, case.rule(inputs, full).values(), strict=True):
            np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("kind", GATES)
def test_only_what_is_wanted_is_given(kind: str) -> None:
    case = Case(kind)
    inputs = case.inputs()
    gradients = probes_of(case.run(inputs))
    operation = case.operation(inputs, case.outputs)
    for only in ("X", "initial_h", "W"):
        wanted = [name == only for name in operation.inputs]
        found = RULES[kind](operation, case.given(inputs), gradients, wanted)
        given = {name for name, gradient in zip(operation.inputs, found, strict=True) if gradient is not None}
        assert given == {only} - {"W"}
    nothing = RULES[kind](operation, case.given(inputs), [None] * len(gradients), [True] * len(operation.inputs))
    assert nothing == [None] * len(operation.inputs)


@each_usage
def test_what_comes_in_stays_as_it_is(case: Case) -> None:
    inputs = case.inputs()
    gradients = probes_of(case.run(inputs))
    for array in (*inputs.values(), *gradients):
        assert array is not None
        array.flags.writeable = False
    first = case.rule(inputs, gradients)
    for name, gradient in case.rule(inputs, gradients).items():
        np.testing.assert_array_equal(gradient, first[name])


@pytest.mark.parametrize("kind", GATES)
def test_one_step_and_large_values(kind: str) -> None:
    case = Case(kind, {"direction": "bidirectional"})
    inputs = case.inputs(steps=1)
    assert_gradients_are_differences(case, inputs, probes_of(case.run(inputs)))
    inputs["X"] = inputs["X"] * 1e4
    found = case.rule(inputs, probes_of(case.run(inputs)))
    assert all(gradient is None or np.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("kind", GATES)
def test_other_types_of_floats(kind: str) -> None:
    case = Case(kind)
    halves = {name: x.astype(np.float16) if x.dtype == np.float32 else x for name, x in case.inputs().items()}
    floats = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in halves.items()}
    gradients = probes_of(case.run(floats))
    for found, expected in zip(
        case.rule(halves, gradients).values(), case.rule(floats, gradients).values(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("LSTM", {"layout": 1}),
        ("GRU", {"clip": 3.0}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"direction": "sideways"}),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}),
        ("GRU", {"activations": ["Sigmoid", "Relu"]}),
        ("RNN", {"activations": ["Sigmoid"]}),
        ("RNN", {"direction": "bidirectional", "activations": ["Tanh"]}),
    ],
)
def test_unknown_usages_have_no_rule(kind: str, attributes: dict[str, Any]) -> None:
    case = Case(kind)
    inputs = case.inputs()
    gradients = probes_of(case.run(inputs))
    other = Case(kind, attributes)
    with pytest.raises(NoRuleError, match=kind):
        other.rule(inputs, gradients)
    with pytest.raises(NoRuleError, match=kind):
        gate_gradients(other.operation(inputs, case.outputs), case.given(inputs), gradients)


@pytest.mark.parametrize("kind", GATES)
def test_shorter_sequences_have_no_rule(kind: str) -> None:
    case = Case(kind)
    inputs = case.inputs()
    gradients = probes_of(case.run(inputs))
    inputs["sequence_lens"] = np.array([STEPS, STEPS - 1], np.int32)
    with pytest.raises(NoRuleError, match="lengths"):
        case.rule(inputs, gradients)


# ---- At the gates ---------------------------------------------------------------------------------------------------


def hidden_before(case: Case, inputs: Mapping[str, np.ndarray], direction: int) -> np.ndarray:
    """The hidden state before each step, steps in time order: [steps, batch, hidden]."""
    y = case.run(inputs)[0][:, direction]
    first = inputs["initial_h"][direction] if "initial_h" in inputs else np.zeros_like(y[0])
    if goes_back(case, direction):
        return np.stack([*y[1:], first])
    return np.stack([first, *y[:-1]])


def goes_back(case: Case, direction: int) -> bool:
    return case.attributes.get("direction") == "reverse" or direction == 1


def reset_gate(inputs: Mapping[str, np.ndarray], direction: int, before: np.ndarray) -> np.ndarray:
    part = slice(HIDDEN, 2 * HIDDEN)
    w, r = inputs["W"][direction, part], inputs["R"][direction, part]
    bias = inputs["B"][direction].reshape(2, -1)[:, part].sum(axis=0) if "B" in inputs else 0
    return np.asarray(1 / (1 + np.exp(-(inputs["X"] @ w.T + before @ r.T + bias))))


def recurrent_products(case: Case, inputs: Mapping[str, np.ndarray], change: np.ndarray) -> np.ndarray:
    """What a change of R multiplies to at each step: [directions, steps, batch, gates·hidden]."""
    found = []
    for direction in range(case.directions):
        before = hidden_before(case, inputs, direction)
        products = before @ change[direction].T
        if case.kind == "GRU" and not case.attributes.get("linear_before_reset"):
            reset = reset_gate(inputs, direction, before)
            products[..., 2 * HIDDEN :] = (reset * before) @ change[direction, 2 * HIDDEN :].T
        found.append(products)
    return np.stack(found)


@each_usage
def test_gradients_at_the_gates_are_those_of_the_weights(case: Case) -> None:
    inputs = case.inputs()
    gradients = probes_of(case.run(inputs))
    at_input, at_recurrent = gate_gradients(case.operation(inputs, case.outputs), case.given(inputs), gradients)
    shape = (PROBES, case.directions, STEPS, BATCH, GATES[case.kind] * HIDDEN)
    assert at_input.shape == at_recurrent.shape == shape
    assert at_input.dtype == at_recurrent.dtype == np.float32
    changes = directions(inputs["W"].shape)
    assert_same(
        [np.einsum("pdtbg,dgi,tbi->p", at_input, change, inputs["X"]) for change in changes],
        [difference(case, inputs, "W", change, gradients) for change in changes],
    )
    changes = directions(inputs["R"].shape)
    assert_same(
        [np.einsum("pdtbg,dtbg->p", at_recurrent, recurrent_products(case, inputs, change)) for change in changes],
        [difference(case, inputs, "R", change, gradients) for change in changes],
    )


@each_usage
def test_gradients_at_the_gates_are_those_of_each_step(case: Case) -> None:
    """Step for step, not just in sum: the gradient of X[t] comes from the gates at t alone."""
    inputs = case.inputs()
    gradients = probes_of(case.run(inputs))
    at_input, at_recurrent = gate_gradients(case.operation(inputs, case.outputs), case.given(inputs), gradients)
    np.testing.assert_allclose(
        np.einsum("pdtbg,dgi->ptbi", at_input, inputs["W"]), case.rule(inputs, gradients)["X"], rtol=1e-4, atol=1e-5
    )
    linear = bool(case.attributes.get("linear_before_reset"))
    assert (at_input is at_recurrent) == (not linear)
    if linear:
        np.testing.assert_array_equal(at_input[..., : 2 * HIDDEN], at_recurrent[..., : 2 * HIDDEN])
        for direction in range(case.directions):
            reset = reset_gate(inputs, direction, hidden_before(case, inputs, direction))
            expected = at_input[:, direction, ..., 2 * HIDDEN :] * reset
            np.testing.assert_allclose(at_recurrent[:, direction, ..., 2 * HIDDEN :], expected, rtol=1e-4, atol=1e-6)


def test_without_gradients_there_are_no_probes() -> None:
    case = Case("GRU", {"linear_before_reset": 1})
    inputs = case.inputs()
    for array in gate_gradients(case.operation(inputs, case.outputs), case.given(inputs), [None, None]):
        assert array.shape == (0, 1, STEPS, BATCH, 3 * HIDDEN)
