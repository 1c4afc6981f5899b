"""Gradients through LSTM, GRU and RNN, and at their gates, against differences of what onnxruntime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradients import PROBES, Node, apply_rule, check

from riq_cli.model import Operation
from riq_cli.statistics.autodiff import gate_gradients
from riq_cli.statistics.autodiff.rule import NoRuleError

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, SIZE, HIDDEN = 6, 2, 4, 5
BARE = ("B", "sequence_lens", "initial_h", "initial_c", "P")
Usage = tuple[str, list[Any], dict[str, Any]]  # kind, inputs, attributes


def usage(kind: str, left_out: tuple[str, ...] = (), **attributes: Any) -> Usage:
    """An operation with all inputs but those left out."""
    rows, count = GATES[kind] * HIDDEN, 2 if attributes.get("direction") == "bidirectional" else 1
    shapes = {"X": (STEPS, BATCH, SIZE), "W": (count, rows, SIZE), "R": (count, rows, HIDDEN), "B": (count, 2 * rows)}
    shapes |= {"sequence_lens": (BATCH,), "initial_h": (count, BATCH, HIDDEN)}
    if kind == "LSTM":
        shapes |= {"initial_c": (count, BATCH, HIDDEN), "P": (count, 3 * HIDDEN)}
    random = np.random.default_rng(0)
    values = {name: random.normal(0, 0.6, shape).astype(np.float32) for name, shape in shapes.items()}
    values["sequence_lens"] = np.full(BATCH, STEPS, np.int32)
    inputs = [None if name in left_out else value for name, value in values.items()]
    return kind, inputs, {"hidden_size": HIDDEN, **attributes}


def outputs(kind: str) -> tuple[str, ...]:
    return ("Y", "Y_h", "Y_c") if kind == "LSTM" else ("Y", "Y_h")


def states(inputs: list[Any]) -> list[int]:
    """Numbers of X, initial_h and initial_c, where they are there."""
    return [place for place in (0, 5, 6) if place < len(inputs) and inputs[place] is not None]


def at_gates(kind: str, inputs: list[Any], attributes: dict[str, Any], gradients: list[Any]) -> Any:
    names = tuple("" if value is None else f"x{i}" for i, value in enumerate(inputs))
    return gate_gradients(Operation(kind, names, outputs(kind), attributes, 14), inputs, gradients)


USAGES = {
    **{
        f"{name}-{direction}": usage(kind, left_out, direction=direction, **attributes)
        for direction in ("forward", "reverse", "bidirectional")
        for name, kind, left_out, attributes in (
            ("LSTM", "LSTM", ("sequence_lens", "P"), {}),
            ("LSTM-peepholes", "LSTM", (), {}),
            ("GRU", "GRU", (), {}),
            ("GRU-linear", "GRU", ("sequence_lens",), {"linear_before_reset": 1}),
            ("RNN", "RNN", (), {}),
        )
    },
    **{f"{kind}-bare": usage(kind, BARE) for kind in GATES},
    "RNN-mixed": usage("RNN", direction="bidirectional", activations=["Tanh", "Relu"]),
    "LSTM-named": usage("LSTM", direction="bidirectional", activations=["sigmoid", "Tanh", "tanh"] * 2, layout=0),
}
each_usage = pytest.mark.parametrize(("kind", "inputs", "attributes"), USAGES.values(), ids=USAGES.keys())


@each_usage
def test_gradients_are_what_differences_show(kind: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    check(kind, inputs, attributes, 14, states(inputs), outputs(kind), single=True)


@pytest.mark.parametrize("kind", GATES)
def test_outputs_may_have_no_gradient_or_be_left_out(kind: str) -> None:
    _, inputs, attributes = usage(kind, direction="bidirectional")
    names = outputs(kind)
    for kept in range(len(names)):
        without = [place for place in range(len(names)) if place != kept]
        wanted = states(inputs)[: 2 if kept < 2 else 3]
        check(kind, inputs, attributes, 14, wanted, names, without, single=True)
    check(kind, inputs, attributes, 14, states(inputs), ["Y"], single=True)
    check(kind, inputs, attributes, 14, states(inputs), ["", "Y_h"], single=True)


@pytest.mark.parametrize("kind", GATES)
def test_large_values_and_half_precision(kind: str) -> None:
    _, inputs, attributes = usage(kind)
    gradients = Node(kind, inputs, attributes, 14, outputs(kind)).gradients(inputs)
    large = apply_rule(kind, [inputs[0] * 1e4, *inputs[1:]], gradients, attributes)
    assert all(gradient is None or np.isfinite(gradient).all() for gradient in large)
    halves = [x.astype(np.float16) if x.dtype == np.float32 else x for x in inputs]
    floats = [x.astype(np.float32) if x.dtype == np.float16 else x for x in halves]
    (of_halves, *_), (of_floats, *_) = (apply_rule(kind, given, gradients, attributes) for given in (halves, floats))
    np.testing.assert_array_equal(of_halves, of_floats)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("LSTM", {"layout": 1}),
        ("GRU", {"clip": 3.0}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"direction": "sideways"}),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}),
        ("RNN", {"activations": ["Sigmoid"]}),
        ("RNN", {"direction": "bidirectional", "activations": ["Tanh"]}),
    ],
)
def test_unknown_usages_have_no_rule(kind: str, attributes: dict[str, Any]) -> None:
    _, inputs, usual = usage(kind)
    gradients = Node(kind, inputs, usual, 14, outputs(kind)).gradients(inputs)
    with pytest.raises(NoRuleError, match=kind):
        apply_rule(kind, inputs, gradients, usual | attributes)
    with pytest.raises(NoRuleError, match=kind):
        at_gates(kind, inputs, usual | attributes, gradients)


@pytest.mark.parametrize("kind", GATES)
def test_shorter_sequences_have_no_rule(kind: str) -> None:
    _, inputs, attributes = usage(kind)
    inputs[4] = np.array([STEPS, STEPS - 1], np.int32)
    with pytest.raises(NoRuleError, match="lengths"):
        apply_rule(kind, inputs, [np.zeros((1, STEPS, 1, BATCH, HIDDEN), np.float32)], attributes)


# ---- At the gates ---------------------------------------------------------------------------------------------------


def hidden_before(inputs: list[Any], y: np.ndarray, attributes: dict[str, Any], direction: int) -> np.ndarray:
    """The hidden state before each step, steps in time order: [steps, batch, hidden]."""
    y = y[:, direction]
    first = np.zeros_like(y[0]) if len(inputs) < 6 or inputs[5] is None else inputs[5][direction]
    goes_back = attributes.get("direction") == "reverse" or direction == 1
    return np.stack([*y[1:], first] if goes_back else [first, *y[:-1]])


def reset_gate(inputs: list[Any], direction: int, before: np.ndarray) -> Any:
    part = slice(HIDDEN, 2 * HIDDEN)
    w, r = inputs[1][direction, part], inputs[2][direction, part]
    bias = 0 if inputs[3] is None else inputs[3][direction].reshape(2, -1)[:, part].sum(axis=0)
    return 1 / (1 + np.exp(-(inputs[0] @ w.T + before @ r.T + bias)))


@each_usage
def test_gradients_at_the_gates_are_those_of_the_weights(
    kind: str, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    node = Node(kind, inputs, attributes, 14, outputs(kind))
    gradients, y = node.gradients(inputs), node.run(inputs)[0]
    assert y is not None
    at_input, at_recurrent = at_gates(kind, inputs, attributes, gradients)
    directions, rows, _ = inputs[1].shape
    assert at_input.shape == at_recurrent.shape == (PROBES, directions, STEPS, BATCH, rows)
    assert at_input.dtype == at_recurrent.dtype == np.float32
    random, linear = np.random.default_rng(2), attributes.get("linear_before_reset")
    for _ in range(3):
        change = random.uniform(-1, 1, inputs[1].shape) / 3
        shown = np.einsum("pdtbg,dgi,tbi->p", at_input, change, inputs[0])
        node.assert_along(inputs, 1, change, gradients, shown)
        change, shown = random.uniform(-1, 1, inputs[2].shape) / 3, np.zeros(PROBES)
        for direction in range(directions):
            before = hidden_before(inputs, y, attributes, direction)
            product = before @ change[direction].T
            if kind == "GRU" and not linear:
                reset = reset_gate(inputs, direction, before)
                product[..., 2 * HIDDEN :] = (reset * before) @ change[direction, 2 * HIDDEN :].T
            shown += np.einsum("ptbg,tbg->p", at_recurrent[:, direction], product)
        node.assert_along(inputs, 2, change, gradients, shown)


@each_usage
def test_gradients_at_the_gates_are_those_of_each_step(
    kind: str, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    """Step for step, not just in sum: the gradient of X[t] comes from the gates at t alone."""
    node = Node(kind, inputs, attributes, 14, outputs(kind))
    gradients, y = node.gradients(inputs), node.run(inputs)[0]
    assert y is not None
    at_input, at_recurrent = at_gates(kind, inputs, attributes, gradients)
    of_x = apply_rule(kind, inputs, gradients, attributes)[0]
    np.testing.assert_allclose(np.einsum("pdtbg,dgi->ptbi", at_input, inputs[1]), of_x, rtol=1e-4, atol=1e-5)
    if not attributes.get("linear_before_reset"):
        assert at_input is at_recurrent
        return
    new = slice(2 * HIDDEN, None)
    np.testing.assert_array_equal(at_input[..., : new.start], at_recurrent[..., : new.start])
    for direction in range(len(inputs[1])):
        reset = reset_gate(inputs, direction, hidden_before(inputs, y, attributes, direction))
        expected = at_input[:, direction, ..., new] * reset
        np.testing.assert_allclose(at_recurrent[:, direction, ..., new], expected, rtol=1e-4, atol=1e-6)


def test_without_gradients_there_are_no_probes() -> None:
    kind, inputs, attributes = usage("GRU", linear_before_reset=1)
    for array in at_gates(kind, inputs, attributes, [None, None]):
        assert array.shape == (0, 1, STEPS, BATCH, 3 * HIDDEN)
