"""Which outputs of a model are a choice among classes: of their scores only the largest, the top-1, counts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import onnx

from riq_cli.model.places import opset_of
from riq_cli.model.saturation import activation, producers_of, single_numbers
from riq_cli.model.session_form import SessionForm
from riq_cli.model.uses import FORWARDING, operand

_SCORES = re.compile("logit|prob|score|class|label")
_NO_SCORES = re.compile("embed|feature|hidden|state|att(entio)?n|align|box")
_SOFTMAX = frozenset("Softmax LogSoftmax".split())
_LARGEST = frozenset("ArgMax Hardmax".split())
_SAME_AXES = frozenset("Identity Cast Dropout".split())
_OTHER_AXES = frozenset("Transpose Reshape Squeeze Unsqueeze Flatten".split())
_PRODUCTS = frozenset("Gemm MatMul MatMulInteger QLinearMatMul".split())
_CONVOLUTIONS = frozenset("Conv ConvInteger QLinearConv".split())
_AFTER_PRODUCTS = FORWARDING | frozenset("Add Sub Mul Div GlobalAveragePool ReduceMean".split())
_IMAGENET = 1000, 1001  # classes, without one for the background and with it
_RANKS = 2, 3  # [batch, class] and [batch, position, class]; of more axes, a name does not tell which has the classes


def class_axes(form: SessionForm) -> dict[str, int]:
    """The axes along which classes lie, by the names of those measured tensors that are a choice among classes.

    A choice is what a final Softmax or LogSoftmax makes, or where this is not measured, what enters it, and what enters
    a final ArgMax or Hardmax. An output [batch, …, class] that is a product with weights, perhaps scaled and with a
    bias, or [batch, class, …] of a convolution, is one too if its name speaks of logits, probabilities, scores, classes
    or labels, or if it has as many entries as ImageNet has classes. Without these signs it may be an embedding, and is
    none. Neither is what is called an embedding, feature, state, attention, alignment or box, nor what ends in a
    Sigmoid, whose classes do not exclude each other.
    """
    model = onnx.ModelProto.FromString(form.model)
    producers, numbers = producers_of(model.graph), single_numbers(model)
    default = -1 if opset_of(model) >= 13 else 1  # of Softmax, LogSoftmax and Hardmax
    found: dict[str, tuple[str, int]] = {}  # by the tensor that all scores are made of, so that none counts twice
    for output in model.graph.output:
        if _NO_SCORES.search(output.name.lower()):
            continue
        choices, scores = _choices(output.name, producers, numbers, default)
        if not choices and _is_called_choice(output):
            axis = _axis_of_product(output.name, producers)
            choices = [] if axis is None else [(output.name, axis)]
        for tensor, axis in choices:
            if tensor in form.measured:
                found.setdefault(scores, (tensor, axis))
                break
    return dict(found.values())


def _choices(
    name: str, producers: Mapping[str, onnx.NodeProto], numbers: Collection[str], default: int
) -> tuple[list[tuple[str, int]], str]:
    """Tensors that the operators at the end of an output make a choice, with their axes, and what enters the first.

    Args:
        name: of the output.
        producers: nodes of the graph by their outputs.
        numbers: names of the constants that are a single number.
        default: axis of a Softmax, LogSoftmax or Hardmax that has none; that of an ArgMax is 0.
    """
    found: list[tuple[str, int]] = []
    same = [name]  # tensors with the same axes
    while (node := producers.get(name)) is not None:
        if node.op_type in FORWARDING:
            name = operand(node, 0)
            same = [*same, name] if node.op_type in _SAME_AXES else [name]
            continue
        end = activation(node, producers, numbers)
        if end is None:
            break
        name = end.before
        axis = end.axis if end.axis is not None else 0 if end.operator == "ArgMax" else default
        if end.operator in _SOFTMAX:
            found += [(tensor, axis) for tensor in (*same, name)]
        elif end.operator in _LARGEST:
            found.append((name, axis))
        same = [name]
    return found, name


def _is_called_choice(output: onnx.ValueInfoProto) -> bool:
    """Whether the name of an output, or its number of entries, tells that these are scores of classes."""
    sizes = output.type.tensor_type.shape.dim
    if len(sizes) not in _RANKS:
        return False
    return bool(_SCORES.search(output.name.lower())) or sizes[-1].dim_value in _IMAGENET


def _axis_of_product(name: str, producers: Mapping[str, onnx.NodeProto]) -> int | None:
    """The axis of the classes in a product with weights, perhaps averaged, scaled or with a bias; None if it is none.

    A matrix product has them along its last axis, and a convolution along axis 1. Where the axes of a convolution are
    changed, its classes are taken to be the last.
    """
    axes = {name: 1}  # of the classes, if a convolution made that tensor
    names = [name]
    for name in names:  # which grows
        node = producers.get(name)
        if node is None:
            continue
        if node.op_type in _PRODUCTS:
            return -1
        if node.op_type in _CONVOLUTIONS:
            return axes[name]
        if node.op_type in _AFTER_PRODUCTS:
            new = [entering for entering in node.input if entering not in axes]
            axes |= dict.fromkeys(new, -1 if node.op_type in _OTHER_AXES else axes[name])
            names += new
    return None
