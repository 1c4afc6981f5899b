"""The rules of LSTM, GRU and RNN: gradients of X, initial_h and initial_c, and those at the gates' pre-activations.

A rule is given an operation's inputs alone, so the forward pass is done again, keeping what the way back needs. Each
direction is worked on by itself with its steps in the order in which it reads them: views with the steps turned round
make the reverse direction a forward one, and what is written into such a view is in time order again.

Weights get no gradients here. At the gates, those of one weight are sums over steps and batch of two factors, and
whoever wants them can do with the factors: `gate_gradients` gives the one, the other is the input or the hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from riq_cli.model import Operation
from riq_cli.statistics.autodiff.arrays import floats, sigmoid
from riq_cli.statistics.autodiff.rule import Array, Floats, Gradients, NoRuleError, Rule

_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
_DIRECTIONS: dict[str, tuple[int, ...]] = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}
"""Each direction's stride through the steps."""

_X, _W, _R, _B, _LENGTHS, _INITIAL_H, _INITIAL_C, _PEEPHOLES = range(8)
_Y, _Y_H, _Y_C = range(3)


def gate_gradients(
    operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None]
) -> tuple[Floats, Floats]:
    """Gradients at the products with W and with R, each [probes, directions, steps, batch, gates·hidden].

    Gates are in ONNX's order, and step t is the one that reads X[t], in the reverse direction too. The two differ in
    GRU's gate h alone, with linear_before_reset: there the product with R is multiplied by the gate r afterwards.
    Without it, what R multiplies for this gate is not the hidden state but its product with r. Where the two do not
    differ they are one array. Without any gradient of an output there are no probes, and the arrays are empty.
    """
    back = _back(operation, inputs, gradients)
    return back.at_input, back.at_recurrent


def _rule(
    operation: Operation,
    inputs: Sequence[Array | None],
    gradients: Sequence[Floats | None],
    wanted: Sequence[bool],
) -> Gradients:
    found: Gradients = [None] * len(inputs)
    places = [place for place in (_X, _INITIAL_H, _INITIAL_C) if place < len(inputs) and wanted[place]]
    if not places or all(gradient is None for gradient in gradients):
        return found
    back = _back(operation, inputs, gradients)
    for place in places:
        if inputs[place] is None:
            continue
        if place == _X:
            found[place] = _gradient_of_x(back.at_input, _required(inputs, _W))
        else:
            found[place] = back.initial[place - _INITIAL_H]
    return found


RULES: dict[str, Rule] = dict.fromkeys(_ACTIVATIONS, _rule)


@dataclass(frozen=True)
class _Back:
    """What one way back gives: gradients at the products with W and with R, and those of the initial states."""

    at_input: Floats  # [probes, directions, steps, batch, gates·hidden]
    at_recurrent: Floats
    initial: list[Floats]  # of initial_h, and of initial_c if there is a cell: [probes, directions, batch, hidden]


@dataclass(frozen=True)
class _Start:
    """What one direction starts from. Steps are in the order in which it reads them."""

    products: Floats  # with W, its bias added: [steps, batch, gates·hidden]
    recurrent: Floats  # R: [gates·hidden, hidden]
    bias: Floats  # of R: [gates·hidden]
    hidden: Floats  # [batch, hidden]
    cell: Floats
    peepholes: Floats  # of the gates i, o and f: [3, hidden]


class _Recurrence(Protocol):
    """One direction, its forward pass done."""

    def back(self, step: int, state: list[Floats]) -> tuple[Floats, Floats, list[Floats]]:
        """From gradients of the state after a step: at the products with W and with R, and of the state before it.

        A state is the hidden state, and the cell if there is one: [probes, batch, hidden] each.
        """
        ...


class _LSTM:
    def __init__(self, start: _Start) -> None:
        self._recurrent, self._peepholes = start.recurrent, start.peepholes
        self._gates, self._cells, self._outer = [], [start.cell], []
        peephole_i, peephole_o, peephole_f = start.peepholes
        hidden, cell = start.hidden, start.cell
        for products in start.products:
            i, o, f, c = np.split(products + _times(hidden, start.recurrent.T) + start.bias, 4, axis=-1)
            i, f, c = sigmoid(i + peephole_i * cell), sigmoid(f + peephole_f * cell), np.tanh(c)
            cell = f * cell + i * c
            o = sigmoid(o + peephole_o * cell)
            outer = np.tanh(cell)
            hidden = o * outer
            self._gates.append((i, o, f, c))
            self._cells.append(cell)
            self._outer.append(outer)

    def back(self, step: int, state: list[Floats]) -> tuple[Floats, Floats, list[Floats]]:
        hidden, cell = state
        i, o, f, c = self._gates[step]
        before, outer = self._cells[step], self._outer[step]
        peephole_i, peephole_o, peephole_f = self._peepholes
        at_o = hidden * (outer * o * (1 - o))
        # The gate o looks through its peephole at the cell after the step, the others at the one before it.
        cell = cell + hidden * (o * (1 - outer * outer)) + at_o * peephole_o
        at_i = cell * (c * i * (1 - i))
        at_f = cell * (before * f * (1 - f))
        at_c = cell * (i * (1 - c * c))
        gates = np.concatenate([at_i, at_o, at_f, at_c], axis=-1)
        cell = cell * f + at_i * peephole_i + at_f * peephole_f
        return gates, gates, [_times(gates, self._recurrent), cell]


class _GRU:
    def __init__(self, start: _Start, linear_before_reset: bool) -> None:
        self._linear_before_reset = linear_before_reset
        split = 2 * start.hidden.shape[-1]
        self._of_gates, self._of_new = start.recurrent[:split], start.recurrent[split:]
        bias_of_gates, bias_of_new = start.bias[:split], start.bias[split:]
        self._steps = []
        hidden = start.hidden
        for products in start.products:
            gates = sigmoid(products[:, :split] + _times(hidden, self._of_gates.T) + bias_of_gates)
            z, r = np.split(gates, 2, axis=-1)
            if linear_before_reset:
                reset = _times(hidden, self._of_new.T) + bias_of_new
                new = np.tanh(products[:, split:] + r * reset)
            else:
                reset = hidden
                new = np.tanh(products[:, split:] + _times(r * reset, self._of_new.T) + bias_of_new)
            self._steps.append((z, r, new, hidden, reset))
            hidden = (1 - z) * new + z * hidden

    def back(self, step: int, state: list[Floats]) -> tuple[Floats, Floats, list[Floats]]:
        (hidden,) = state
        z, r, new, before, reset = self._steps[step]
        at_new = hidden * ((1 - z) * (1 - new * new))
        at_z = hidden * ((before - new) * z * (1 - z))
        # `reset` is what the gate r multiplies: the product with R, or the hidden state that goes into this product.
        if self._linear_before_reset:
            at_reset, at_product = at_new, at_new * r
            through = _times(at_product, self._of_new)
        else:
            at_reset, at_product = _times(at_new, self._of_new), at_new
            through = at_reset * r
        gates = np.concatenate([at_z, at_reset * (reset * r * (1 - r))], axis=-1)
        hidden = hidden * z + through + _times(gates, self._of_gates)
        at_input = np.concatenate([gates, at_new], axis=-1)
        at_recurrent = np.concatenate([gates, at_product], axis=-1) if self._linear_before_reset else at_input
        return at_input, at_recurrent, [hidden]


class _RNN:
    def __init__(self, start: _Start, activation: str) -> None:
        self._recurrent = start.recurrent
        self._slopes = []
        hidden = start.hidden
        for products in start.products:
            inner = products + _times(hidden, start.recurrent.T) + start.bias
            hidden = np.tanh(inner) if activation == "tanh" else np.maximum(inner, 0)
            slope = 1 - hidden * hidden if activation == "tanh" else (hidden > 0).astype(np.float32)
            self._slopes.append(slope)

    def back(self, step: int, state: list[Floats]) -> tuple[Floats, Floats, list[Floats]]:
        gate = state[0] * self._slopes[step]
        return gate, gate, [_times(gate, self._recurrent)]


def _back(operation: Operation, inputs: Sequence[Array | None], gradients: Sequence[Floats | None]) -> _Back:
    _check(operation, inputs)
    strides = _DIRECTIONS[_direction(operation)]
    steps, batch, _ = _required(inputs, _X).shape
    _, rows, hidden = _required(inputs, _R).shape
    probes = next((len(gradient) for gradient in gradients if gradient is not None), 0)
    shape = (probes, len(strides), steps, batch, rows)
    at_input = np.empty(shape, np.float32)
    # Only here the two differ, and they are large.
    at_recurrent = np.empty(shape, np.float32) if _linear_before_reset(operation) else at_input
    finals = (_Y_H, _Y_C) if operation.kind == "LSTM" else (_Y_H,)
    initial = [np.zeros((probes, len(strides), batch, hidden), np.float32) for _ in finals]
    of_steps = _of_output(gradients, _Y)
    for direction, stride in enumerate(strides):
        recurrence = _recurrence(operation, inputs, direction, stride)
        states = [state[:, direction] for state in initial]
        for state, final in zip(states, (_of_output(gradients, place) for place in finals), strict=True):
            if final is not None:
                state[...] = final[:, direction]
        _steps_back(
            recurrence,
            None if of_steps is None else of_steps[:, ::stride, direction],
            states,
            at_input[:, direction, ::stride],
            at_recurrent[:, direction, ::stride],
        )
    return _Back(at_input, at_recurrent, initial)


def _steps_back(
    recurrence: _Recurrence, of_steps: Floats | None, states: list[Floats], at_input: Floats, at_recurrent: Floats
) -> None:
    """Takes `states` from the last step's to the initial ones, in place, and fills in the gradients at the products."""
    current = list(states)
    for step in reversed(range(at_input.shape[1])):
        if of_steps is not None:
            current[0] = current[0] + of_steps[:, step]
        at_input[:, step], at_recurrent[:, step], current = recurrence.back(step, current)
    for state, first in zip(states, current, strict=True):
        state[...] = first


def _recurrence(operation: Operation, inputs: Sequence[Array | None], direction: int, stride: int) -> _Recurrence:
    start = _start(inputs, direction, stride)
    if operation.kind == "LSTM":
        return _LSTM(start)
    if operation.kind == "GRU":
        return _GRU(start, _linear_before_reset(operation))
    return _RNN(start, _activations(operation)[direction])


def _start(inputs: Sequence[Array | None], direction: int, stride: int) -> _Start:
    x = floats(_required(inputs, _X)[::stride])
    weights = floats(_required(inputs, _W)[direction])
    recurrent = floats(_required(inputs, _R)[direction])
    rows, hidden = recurrent.shape
    state = (x.shape[1], hidden)
    biases = _optional(inputs, _B, direction, (2, rows))
    return _Start(
        products=_times(x, weights.T) + biases[0],
        recurrent=recurrent,
        bias=biases[1],
        hidden=_optional(inputs, _INITIAL_H, direction, state),
        cell=_optional(inputs, _INITIAL_C, direction, state),
        peepholes=_optional(inputs, _PEEPHOLES, direction, (3, hidden)),
    )


def _gradient_of_x(at_input: Floats, weights: Array) -> Floats:
    found = _times(at_input[:, 0], floats(weights[0]))
    for direction in range(1, at_input.shape[1]):
        found += _times(at_input[:, direction], floats(weights[direction]))
    return found


def _check(operation: Operation, inputs: Sequence[Array | None]) -> None:
    """Refuses what the formulas here do not say."""
    if _direction(operation) not in _DIRECTIONS:
        raise NoRuleError(f"{operation.kind} with the direction {_direction(operation)}")
    for attribute in ("layout", "input_forget"):
        if operation.attributes.get(attribute, 0):
            raise NoRuleError(f"{operation.kind} with {attribute}")
    if "clip" in operation.attributes:
        raise NoRuleError(f"{operation.kind} with clip")
    activations = _activations(operation)
    usual = _ACTIVATIONS[operation.kind] * len(_DIRECTIONS[_direction(operation)])
    relu = operation.kind == "RNN" and tuple(name.replace("relu", "tanh") for name in activations) == usual
    if activations != usual and not relu:
        raise NoRuleError(f"{operation.kind} with the activations {', '.join(activations)}")
    lengths = _input(inputs, _LENGTHS)
    if lengths is not None and np.any(lengths != len(_required(inputs, _X))):
        raise NoRuleError(f"{operation.kind} with sequences of different lengths")


def _direction(operation: Operation) -> str:
    return str(operation.attributes.get("direction", "forward"))


def _linear_before_reset(operation: Operation) -> bool:
    return operation.kind == "GRU" and bool(operation.attributes.get("linear_before_reset", 0))


def _activations(operation: Operation) -> tuple[str, ...]:
    usual = _ACTIVATIONS[operation.kind] * len(_DIRECTIONS[_direction(operation)])
    return tuple(name.lower() for name in operation.attributes.get("activations", usual))


def _input(inputs: Sequence[Array | None], place: int) -> Array | None:
    return inputs[place] if place < len(inputs) else None


def _required(inputs: Sequence[Array | None], place: int) -> Array:
    array = _input(inputs, place)
    if array is None:
        raise NoRuleError(f"its input {place} is left out")
    return array


def _optional(inputs: Sequence[Array | None], place: int, direction: int, shape: tuple[int, ...]) -> Floats:
    array = _input(inputs, place)
    return np.zeros(shape, np.float32) if array is None else floats(array[direction]).reshape(shape)


def _of_output(gradients: Sequence[Floats | None], place: int) -> Floats | None:
    return gradients[place] if place < len(gradients) else None


def _times(rows: Floats, matrix: Floats) -> Floats:
    """A product of the last axis with a matrix, in one call; numpy would loop over the axes in front."""
    product: Floats = rows.reshape(-1, matrix.shape[0]) @ matrix
    return product.reshape(*rows.shape[:-1], matrix.shape[1])
