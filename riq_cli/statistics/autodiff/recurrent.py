"""The rules of LSTM, GRU and RNN: gradients of X, initial_h and initial_c, and those at the gates' pre-activations.

Only values of inputs are at hand, so the forward pass is done again, keeping what backpropagation through time needs.
The reverse direction is a forward one on views whose steps are in reverse order.

Weights get no gradients here. Those of W and R are sums, over steps and batch, of products of two factors:
`gate_gradients` gives the one, the other is the input or the hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.rule import Array, Call, Floats, Gradients, NoRuleError, Rule, sigmoid

_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
_DIRECTIONS = {"forward": [1], "reverse": [-1], "bidirectional": [1, -1]}  # strides through the steps
_X, _W, _R, _B, _LENGTHS, _INITIAL_H, _INITIAL_C, _PEEPHOLES = range(8)

State = list[Floats]  # the hidden state, and the cell if there is one
Back = Callable[[int, State], tuple[Floats, Floats, State]]
"""(step, gradients of the state after it) → those at the products with W and with R, and of the state before it."""


def gate_gradients(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None]
) -> tuple[Floats, Floats]:
    """Gradients at the products with W and with R, each [probes, directions, steps, batch, gates·hidden].

    Gates are in ONNX's order, and step t is the one that reads X[t], in the reverse direction too. The two differ in
    GRU's gate h alone, with linear_before_reset: there the product with R is multiplied by the gate r afterwards.
    Without it, what R multiplies for this gate is not the hidden state but its product with r. Where the two do not
    differ they are one array. Without any gradient of an output there are no probes, and the arrays are empty.
    """
    at_input, at_recurrent, _ = _through_time(Call(operation, inputs, gradients, ()))
    return at_input, at_recurrent


def _rule(call: Call) -> Gradients:
    found: Gradients = [None] * len(call.inputs)
    at_input, _, initial = _through_time(call)
    if call.wants(_X):
        parts = [_times(at_input[:, i], weights) for i, weights in enumerate(call.floats(_W))]
        found[_X] = sum(parts[1:], parts[0])
    for place, gradient in zip((_INITIAL_H, _INITIAL_C), initial, strict=False):
        if call.wants(place):
            found[place] = gradient
    return found


RULES: dict[str, Rule] = dict.fromkeys(_ACTIVATIONS, _rule)


def _through_time(call: Call) -> tuple[Floats, Floats, State]:
    """Gradients at the products with W and with R, and of the initial states [probes, directions, batch, hidden]."""
    strides, kind = _strides(call), call.operation.kind
    x, weights, recurrents = call.floats(_X), call.floats(_W), call.floats(_R)
    (steps, batch, _), (_, rows, hidden) = x.shape, recurrents.shape
    probes = next((len(gradient) for gradient in call.gradients if gradient is not None), 0)
    at_input = np.empty((probes, len(strides), steps, batch, rows), np.float32)
    at_recurrent = np.empty_like(at_input) if _linear_before_reset(call) else at_input
    initial = [np.zeros((probes, len(strides), batch, hidden), np.float32) for _ in range(1 + (kind == "LSTM"))]
    of_steps, *of_last = call.gradients
    for i, stride in enumerate(strides):
        biases = _part(call, _B, i, (2, rows))
        products = _times(x[::stride], weights[i].T) + biases[0]
        start = _part(call, _INITIAL_H, i, (batch, hidden))
        back = _FORWARD[kind](call, i, products, recurrents[i], biases[1], start)
        for state, last in zip(initial, of_last, strict=False):
            if last is not None:
                state[:, i] = last[:, i]
        current = [state[:, i] for state in initial]
        for step in reversed(range(steps)):
            time = step if stride > 0 else steps - 1 - step
            if of_steps is not None:
                current[0] = current[0] + of_steps[:, time, i]
            at_input[:, i, time], at_recurrent[:, i, time], current = back(step, current)
        for state, first in zip(initial, current, strict=True):
            state[:, i] = first
    return at_input, at_recurrent, initial


# Forward passes of one direction, from the products with W [steps, batch, gates·hidden] and the initial hidden state.


def _lstm(call: Call, direction: int, products: Floats, recurrent: Floats, bias: Floats, hidden: Floats) -> Back:
    cell = _part(call, _INITIAL_C, direction, hidden.shape)
    peephole_i, peephole_o, peephole_f = _part(call, _PEEPHOLES, direction, (3, hidden.shape[1]))
    steps = []
    for product in products:
        before = cell
        i, o, f, c = np.split(product + _times(hidden, recurrent.T) + bias, 4, axis=-1)
        i, f, c = sigmoid(i + peephole_i * cell), sigmoid(f + peephole_f * cell), np.tanh(c)
        cell = f * cell + i * c
        o = sigmoid(o + peephole_o * cell)
        outer = np.tanh(cell)
        hidden = o * outer
        steps.append((i, o, f, c, before, outer))

    def back(step: int, state: State) -> tuple[Floats, Floats, State]:
        hidden, cell = state
        i, o, f, c, before, outer = steps[step]
        at_o = hidden * (outer * o * (1 - o))
        # The gate o looks through its peephole at the cell after the step, the others at the one before it.
        cell = cell + hidden * (o * (1 - outer * outer)) + at_o * peephole_o
        at_i = cell * (c * i * (1 - i))
        at_f = cell * (before * f * (1 - f))
        at_c = cell * (i * (1 - c * c))
        gates = np.concatenate([at_i, at_o, at_f, at_c], axis=-1)
        return gates, gates, [_times(gates, recurrent), cell * f + at_i * peephole_i + at_f * peephole_f]

    return back


def _gru(call: Call, direction: int, products: Floats, recurrent: Floats, bias: Floats, hidden: Floats) -> Back:
    linear, split = _linear_before_reset(call), 2 * hidden.shape[1]
    of_gates, of_new = recurrent[:split], recurrent[split:]
    steps = []
    for product in products:
        z, r = np.split(sigmoid(product[:, :split] + _times(hidden, of_gates.T) + bias[:split]), 2, axis=-1)
        # What the gate r multiplies: the product with R, or the hidden state that goes into this product.
        reset = _times(hidden, of_new.T) + bias[split:] if linear else hidden
        inner = r * reset if linear else _times(r * reset, of_new.T) + bias[split:]
        new = np.tanh(product[:, split:] + inner)
        steps.append((z, r, new, hidden, reset))
        hidden = (1 - z) * new + z * hidden

    def back(step: int, state: State) -> tuple[Floats, Floats, State]:
        (hidden,) = state
        z, r, new, before, reset = steps[step]
        at_new = hidden * ((1 - z) * (1 - new * new))
        at_z = hidden * ((before - new) * z * (1 - z))
        at_reset = at_new if linear else _times(at_new, of_new)
        gates = np.concatenate([at_z, at_reset * (reset * r * (1 - r))], axis=-1)
        at_input = np.concatenate([gates, at_new], axis=-1)
        if not linear:
            return at_input, at_input, [hidden * z + at_reset * r + _times(gates, of_gates)]
        at_recurrent = np.concatenate([gates, at_new * r], axis=-1)
        return at_input, at_recurrent, [hidden * z + _times(at_recurrent, recurrent)]

    return back


def _rnn(call: Call, direction: int, products: Floats, recurrent: Floats, bias: Floats, hidden: Floats) -> Back:
    tanh = call.attributes.get("activations", ["tanh"] * 2)[direction].lower() == "tanh"
    slopes = []
    for product in products:
        inner = product + _times(hidden, recurrent.T) + bias
        hidden = np.tanh(inner) if tanh else np.maximum(inner, 0)
        slopes.append(1 - hidden * hidden if tanh else (hidden > 0).astype(np.float32))

    def back(step: int, state: State) -> tuple[Floats, Floats, State]:
        gate = state[0] * slopes[step]
        return gate, gate, [_times(gate, recurrent)]

    return back


_FORWARD = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _strides(call: Call) -> list[int]:
    """Each direction's stride through the steps; refuses what the formulas here do not cover."""
    kind, attributes = call.operation.kind, call.attributes
    strides = _DIRECTIONS.get(attributes.get("direction", "forward"), [])
    if not strides or "clip" in attributes or attributes.get("layout") or attributes.get("input_forget"):
        raise NoRuleError(f"{kind} with an unknown direction, clip, layout or input_forget")
    usual = _ACTIVATIONS[kind] * len(strides)
    activations = [name.lower() for name in attributes.get("activations", usual)]
    if activations != usual and (kind != "RNN" or [name.replace("relu", "tanh") for name in activations] != usual):
        raise NoRuleError(f"{kind} with the activations {', '.join(activations)}")
    lengths = call.optional(_LENGTHS)
    if lengths is not None and np.any(lengths != len(call.value(_X))):
        raise NoRuleError(f"{kind} with sequences of different lengths")
    return strides


def _linear_before_reset(call: Call) -> bool:
    return call.operation.kind == "GRU" and bool(call.attributes.get("linear_before_reset", 0))


def _part(call: Call, place: int, direction: int, shape: tuple[int, ...]) -> Floats:
    """What an input that may be left out holds for one direction."""
    value = call.optional(place)
    return np.zeros(shape, np.float32) if value is None else np.asarray(value[direction], np.float32).reshape(shape)


def _times(rows: Floats, matrix: Floats) -> Floats:
    """A product of the last axis with a matrix, in one call; numpy would loop over the axes in front."""
    product: Floats = rows.reshape(-1, matrix.shape[0]) @ matrix
    return product.reshape(*rows.shape[:-1], matrix.shape[1])
