"""Where the deviation is measured: a model's float outputs, and the pre-activations behind saturated ones.

Behind a final Softmax or Sigmoid the deviation is near 0 until a class flips, so a search on such outputs fits the few
calibration samples. The tensor that enters the activation shows the error.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import onnx

from riq_cli.errors import SettingsError
from riq_cli.model.places import constant_places, rename, scopes, subgraphs
from riq_cli.model.tensors import FLOAT_TYPES
from riq_cli.model.types import tensor_types
from riq_cli.model.uses import operand

_SATURATING = frozenset("Softmax LogSoftmax Sigmoid HardSigmoid Hardmax ArgMax ArgMin TopK".split())
_RESHAPING = frozenset(["Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Expand"])
# Activations in pieces: an operator and its operands, where x is what enters the activation.
_NUMBER, _EXP = "a number", ("Exp", "x")
_SHIFTED = ("Sub", "unshifted", ("ReduceMax", "what it is shifted by"))
_SOFTMAX = (
    ("Div", _EXP, ("ReduceSum", _EXP)),
    ("Sub", "x", ("Log", ("ReduceSum", _EXP))),
    ("Sub", "x", ("ReduceLogSumExp", "x")),
)
_DENOMINATOR = ("Add", _NUMBER, ("Exp", ("Neg", "x")))
_LOGISTIC = (("Div", _NUMBER, _DENOMINATOR), ("Reciprocal", _DENOMINATOR))  # x / (1 + exp(−x)) is SiLU
_FORWARDING = frozenset("Identity Cast Transpose Reshape Squeeze Unsqueeze Flatten Dropout Slice Split".split())
_ENDS, _PARTS = 64, 8  # of an output that are looked at, and measured, at most: more are heads of one number each


class ActivationFunction(NamedTuple):
    """An activation function at the end of a computation.

    Attributes:
        operator: its type; of one in pieces, Softmax or Sigmoid.
        axis: along which it works; None where the node says none, and it is the operator's default.
        before: the tensor that enters it.
    """

    operator: str
    axis: int | None
    before: str


def measured_tensors(model: onnx.ModelProto, names: Sequence[str] = ()) -> list[str]:
    """Names of the tensors on which to measure the deviation, if any; inner ones become outputs of `model`.

    Args:
        model: changed in place.
        names: tensors to measure instead of the default: every float output, and the pre-activation behind each
            output, or part of one, that ends in a saturating operator.

    Raises:
        SettingsError: a name that no tensor of the main graph has.
    """
    graph = model.graph
    outputs = {output.name for output in graph.output}
    if names:
        known = {name for node in graph.node for name in node.output if name}
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, 3) or sorted(outputs)
                raise SettingsError(f"no tensor {name!r} in the model's main graph; did you mean {', '.join(close)}?")
        tensors = list(dict.fromkeys(names))
    else:
        floats = [output.name for output in graph.output if _is_float(output)]
        numbers = single_numbers(model)
        inner = [name for output in graph.output for name in pre_activations(graph, output.name, numbers)]
        tensors = list(dict.fromkeys(floats + inner))
    give_out(model, tensors)
    return tensors


def give_out(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make tensors of the main graph outputs of `model`, which is changed; those in bfloat16 come out as float32."""
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    for name in _bfloat16(model, names):
        _give_as_float(model.graph, name)


def pre_activations(graph: onnx.GraphProto, name: str, numbers: Collection[str]) -> list[str]:
    """The tensors that enter the saturating operators at the end of `name`'s computation.

    There are several where an output is joined of parts, such as the boxes and the scores of a detector: large numbers
    of the one part hide errors of the other. Of many parts none is given. An If whose branches end in such operators
    gets one more output for the tensor (`graph` is changed). `numbers` are the names of the constants that are a single
    number, in whatever graph.
    """
    producers = producers_of(graph)
    ends, found = [name], list[str]()
    for end in ends:  # a Concat adds to them
        if len(ends) > _ENDS:
            return []
        name, before, seen = end, None, set[str]()
        while name in producers and name not in seen:
            seen.add(name)
            node = producers[name]
            if node.op_type in _FORWARDING:
                name = operand(node, 0)
            elif node.op_type == "Concat" and before is None:
                ends.extend(node.input)
            elif node.op_type == "If":
                before = _through_branches(node, list(node.output).index(name), numbers) or before
            elif (function := activation(node, producers, numbers)) is not None:
                name = before = function.before
        found.extend([] if before is None or before in found else [before])
    return found if len(found) <= _PARTS else []


def activation(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], numbers: Collection[str]
) -> ActivationFunction | None:
    """The activation function that ends in a node, whole or in the pieces that exporters write; None if none does.

    Args:
        node: of a graph.
        producers: that graph's nodes by their outputs.
        numbers: names of the constants that are a single number.
    """

    def made_by(name: str, op_type: str) -> onnx.NodeProto | None:
        """The node that made a value, if of that type; looks behind shapes that are changed in between."""
        for _ in producers:
            producer = producers.get(name)
            if producer is None or producer.op_type == op_type:
                return producer
            others = [entering for entering in producer.input if entering not in numbers]
            bounded = producer.op_type == "Max" and len(others) == 1  # max(x, −∞), as some exporters write it
            if not others or (not bounded and producer.op_type not in _RESHAPING):
                return None
            name = others[0]
        return None

    def fits(node: onnx.NodeProto, operands: Sequence[Any], found: dict[str, str]) -> bool:
        """Whether the inputs of a node are as a pattern has them; `found` holds the tensors that it names."""
        orders = (operands, operands[::-1]) if node.op_type == "Add" else (operands,)
        return any(all(is_made(operand(node, n), part, found) for n, part in enumerate(order)) for order in orders)

    def is_made(name: str, pattern: Any, found: dict[str, str]) -> bool:
        if pattern == _NUMBER:
            return name in numbers
        if isinstance(pattern, str):
            return found.setdefault(pattern, name) == name
        producer = made_by(name, pattern[0])
        return producer is not None and fits(producer, pattern[1:], found)

    if node.op_type in _SATURATING:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), None)
        return ActivationFunction(node.op_type, axis, operand(node, 0))
    if node.op_type == "Log":
        producer = producers.get(operand(node, 0))
        if producer is None or producer.op_type == "Log":
            return None
        return activation(producer, producers, numbers)
    for op_type, *operands in (*_SOFTMAX, *_LOGISTIC):
        found: dict[str, str] = {}
        if node.op_type == op_type and fits(node, operands, found):
            is_softmax = (op_type, *operands) in _SOFTMAX
            is_shifted = is_softmax and is_made(found["x"], _SHIFTED, found)
            before = found["unshifted" if is_shifted else "x"]
            return ActivationFunction("Softmax" if is_softmax else "Sigmoid", -1, before)
    return None


def _through_branches(node: onnx.NodeProto, number: int, numbers: Collection[str]) -> str | None:
    """Name of a new output of an If: each branch's pre-activation of its output `number`, or that output."""
    branches = [branch for _, branch in subgraphs(node)]
    if any(number >= len(branch.output) for branch in branches):
        return None  # no session runs this
    inner = [pre_activations(branch, branch.output[number].name, numbers) for branch in branches]
    if not any(inner) or max(map(len, inner)) > 1:  # of several parts there is no one tensor
        return None
    fresh = f"{node.output[number]}/pre_activation"
    for branch, names in zip(branches, inner, strict=True):
        copy = f"{fresh}/{branch.name}/{len(branch.node)}"
        name = names[0] if names else branch.output[number].name
        branch.node.append(onnx.helper.make_node("Identity", [name], [copy]))
        branch.output.append(onnx.ValueInfoProto(name=copy))
    node.output.append(fresh)
    return fresh


def producers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The nodes of a graph by the names of their outputs."""
    return {str(output): node for node in graph.node for output in node.output if output}


def single_numbers(model: onnx.ModelProto) -> set[str]:
    """Names of all constants of one element; which number it is may have been taken out of the skeleton."""
    numbers = {place.value_name for place in constant_places(model) if math.prod(place.tensor.dims) == 1}
    for _, scope in scopes(model):
        for node in scope.node:
            if node.op_type == "Constant" and any(attribute.name == "value_float" for attribute in node.attribute):
                numbers.update(node.output)
    return numbers


def _bfloat16(model: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Those outputs that are bfloat16; types that are not declared are inferred where that type occurs at all."""
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    kinds = {value.type.tensor_type.elem_type for value in values}
    if onnx.TensorProto.BFLOAT16 not in kinds.union(tensor.data_type for tensor in model.graph.initializer):
        return []
    types = tensor_types(model)
    return [name for name in names if types.get(name) == onnx.TensorProto.BFLOAT16]


def _give_as_float(graph: onnx.GraphProto, name: str) -> None:
    """Give an output out as float32, since sessions have no bfloat16 arrays; inside it gets another name."""
    inside = f"riq/bfloat16/{name}"
    rename(graph, {name: inside})
    graph.node.append(onnx.helper.make_node("Cast", [inside], [name], to=onnx.TensorProto.FLOAT))
    for value in (*graph.value_info, *graph.output):
        if value.name == name:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def take_floats(model: onnx.ModelProto) -> None:
    """Have the bfloat16 inputs of `model`, which is changed, taken as float32; inside they have another name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.BFLOAT16 and value.name not in constants:
            inside = f"riq/bfloat16/{value.name}"
            rename(model.graph, {value.name: inside})
            model.graph.node.append(onnx.helper.make_node("Cast", [value.name], [inside], to=onnx.TensorProto.BFLOAT16))
            kind.elem_type = onnx.TensorProto.FLOAT


def _is_float(output: onnx.ValueInfoProto) -> bool:
    kind = output.type.WhichOneof("value")
    # Without a declared type it may be float: the evaluator looks at what comes out.
    return kind is None or (kind == "tensor_type" and output.type.tensor_type.elem_type in (0, *FLOAT_TYPES))
