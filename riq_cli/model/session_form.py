"""The form of a model that a session runs: layers as initializers of the main graph whose data comes from outside.

onnxruntime can replace the data of main-graph initializers when a session starts, without a copy of the file; it cannot
reach Constant nodes and subgraphs. For the search, those layers are hoisted: a fresh initializer in the main graph, and
an Identity where the tensor was. For the last measurement nothing is hoisted: that is the model as it is restored.

In these forms nodes come in the order in which they can run, noise is looked up instead of drawn, and inputs and
outputs that are bfloat16 become float32. The exact form changes nothing of that kind: it is for use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from riq_cli.model.layer import Layer
from riq_cli.model.noise import feed_noise
from riq_cli.model.places import Place, constant_places, drop, find_tensor, put_nodes, scopes, subgraphs
from riq_cli.model.saturation import give_out, measured_tensors, take_floats
from riq_cli.model.tensors import ONNX_TYPES, Array
from riq_cli.model.topology import Key, called_by, callees_first, function_calls, key_of, nodes_of, sort_nodes
from riq_cli.model.types import inner_floats, tensor_types, type_name
from riq_cli.model.uses import captured, consumed

SMALL = 1024  # bytes below which a tensor stays inside: onnxruntime must see those that decide shapes
_HOISTED = "riq/layer{}"
_CONSTANT_NODE = re.compile(r"graph\.node\[\d+\]\.attribute\[\d+\]\.t")  # of the main graph


@dataclass(frozen=True)
class SessionForm:
    """A serialized model, the layers that it takes from outside, and the outputs to measure.

    `weights` holds for each such initializer its name and the number of the layer; `hoisted` tells whether any layer
    is elsewhere than in the model itself. The first `own` outputs of the model are those of the file. Layers of a form
    that is `fed` are inputs instead.
    """

    model: bytes
    weights: tuple[tuple[str, int], ...]
    measured: tuple[str, ...]
    hoisted: bool
    own: int
    fed: bool = False


def session_form(
    skeleton: onnx.ModelProto, layers: Sequence[Layer], outputs: Sequence[str], values: Sequence[Array] | None = None
) -> SessionForm:
    """The form of a model that a session runs.

    Args:
        skeleton: the model without its layers' data; not changed.
        layers: where the data belongs.
        outputs: tensors to measure; empty for the default.
        values: data of the layers, to be put where nothing is hoisted; None to hoist every layer.
    """
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    own = len(model.graph.output)
    measured = measured_tensors(model, outputs)  # first, so that it is the same however layers are given
    weights: list[tuple[str, int]] = []
    inside: list[tuple[str, int]] = []
    for number, layer in enumerate(layers):
        for place in layer.places:
            if place.startswith("graph.initializer") and layer.dtype != "int4":  # which sessions do not take
                tensor = find_tensor(model, place)
                _take_from_outside(tensor)
                weights.append((tensor.name, number))
            elif values is not None:
                find_tensor(model, place).raw_data = values[number].tobytes()
            else:
                inside.append((place, number))
    if inside:
        weights += _hoist(model, layers, inside)
    weights = _without_unused(model.graph, weights)
    take_floats(model)
    sort_nodes(model)
    feed_noise(model)
    return SessionForm(model.SerializeToString(), tuple(weights), tuple(measured), bool(inside), own)


def exact_form(skeleton: onnx.ModelProto, layers: Sequence[Layer]) -> SessionForm:
    """The form that computes, bit for bit, what a session of the model's own file computes; it measures nothing.

    From outside come the large initializers of the main graph and the large values of its Constant nodes, which
    onnxruntime makes initializers as it reads a file. Everything else is inside: a weight of a subgraph that is hoisted
    may be run by another kernel.

    Args:
        skeleton: the model without its layers' data; not changed.
        layers: where the data belongs, with their values.
    """
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    weights: list[tuple[str, int]] = []
    constants: list[tuple[str, int]] = []
    for number, layer in enumerate(layers):
        for place in layer.places:
            tensor = find_tensor(model, place)
            if layer.values.nbytes < SMALL:
                tensor.raw_data = layer.values.tobytes()
            elif place.startswith("graph.initializer"):
                _take_from_outside(tensor)
                weights.append((tensor.name, number))
            elif _CONSTANT_NODE.fullmatch(place):
                constants.append((place, number))
            else:
                tensor.raw_data = layer.values.tobytes()
    if constants:
        weights += _hoist(model, layers, constants)
        model.ir_version = skeleton.ir_version  # initializers that are inputs too stay constants, if they were
    weights = _without_unused(model.graph, weights)
    return SessionForm(model.SerializeToString(), tuple(weights), (), bool(constants), len(model.graph.output))


def own_form(form: SessionForm) -> SessionForm:
    """The form with the outputs of the file alone, without inner tensors that are measured besides."""
    if not form.own:
        return form
    model = onnx.ModelProto.FromString(form.model)
    del model.graph.output[form.own :]
    weights = _without_unused(model.graph, form.weights)
    return replace(form, model=model.SerializeToString(), weights=tuple(weights))


def measurable(form: SessionForm, most: int) -> tuple[dict[str, str], list[str]]:
    """Types of the file's own outputs by name, and `most` inner float tensors, those nearest to the outputs first."""
    model = onnx.ModelProto.FromString(form.model)
    types = tensor_types(model)
    kinds = {output.name: type_name(output, types) for output in model.graph.output[: form.own]}
    return kinds, inner_floats(model, types, most)


def observed_form(form: SessionForm, tensors: Sequence[str]) -> SessionForm:
    """The part of a form that computes some tensors of its main graph, which are measured instead of its outputs."""
    model = onnx.ModelProto.FromString(form.model)
    del model.graph.output[:]
    give_out(model, tensors)
    weights = keep_needed(model.graph, form.weights)
    return SessionForm(model.SerializeToString(), weights, tuple(tensors), True, 0)


def keep_needed(graph: onnx.GraphProto, weights: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Those weights of a form on which outputs of its graph depend.

    Args:
        graph: the form's main graph; nodes that no output needs are removed, and the other weights.
        weights: names of all its layers, and their numbers.
    """
    needed, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):  # in graphs, nodes come before those that use them
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed |= set(node.input).union(*(captured(inner) for _, inner in subgraphs(node)))
    put_nodes(graph, reversed(kept))
    return tuple(_without_unused(graph, weights))


def _hoist(model: onnx.ModelProto, layers: Sequence[Layer], inside: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Move tensors from Constant nodes, subgraphs and functions to the main graph; returns their names there."""
    weights: list[tuple[str, int]] = []
    needed: dict[str, list[str]] = {}  # function → names of layers that its body uses
    numbers, graphs = dict(inside), dict(scopes(model))
    by_scope: dict[str, list[Place]] = {}
    for place in constant_places(model):
        if place.path in numbers:
            by_scope.setdefault(place.scope, []).append(place)
    for path, places in reversed(
        list(by_scope.items())
    ):  # inner scopes first: their messages move with an outer's edit
        scope, copies = graphs[path], []
        for place in places:
            name = place.value_name if path == "graph" else _HOISTED.format(len(weights))
            weights.append((name, numbers[place.path]))
            if path != "graph":
                copies.append(onnx.helper.make_node("Identity", [name], [place.value_name]))
            if path.startswith("functions"):
                needed.setdefault(path.split(".")[0], []).append(name)
        moved = {place.value_name for place in places}
        if isinstance(scope, onnx.GraphProto):
            drop(scope.initializer, moved)
        put_nodes(scope, [*copies, *(node for node in scope.node if moved.isdisjoint(node.output))])
    if needed:
        _pass_to_functions(model, needed)
    for name, number in weights:
        layer = layers[number]
        tensor = model.graph.initializer.add(name=name, dims=layer.shape, data_type=ONNX_TYPES[layer.dtype])
        _take_from_outside(tensor)
    model.ir_version = max(model.ir_version, 4)  # from then on initializers need not be graph inputs
    return weights


def _pass_to_functions(model: onnx.ModelProto, needed: dict[str, list[str]]) -> None:
    """Hand main-graph initializers down to the functions that use them, as further inputs, call by call."""
    names = {key_of(function): needed.get(f"functions[{index}]", []) for index, function in enumerate(model.functions)}
    arity = {key_of(function): len(function.input) for function in model.functions}
    calls = function_calls(model)
    complete: dict[Key, list[str]] = {}
    for key in callees_first(calls):
        inherited = [name for called in calls[key] for name in complete[called]]
        complete[key] = list(dict.fromkeys(names[key] + inherited))
    for scope in [model.graph, *model.functions]:
        for node in nodes_of(scope):
            added = complete.get(called_by(node))
            if added:
                node.input.extend([""] * (arity[called_by(node)] - len(node.input)))
                node.input.extend(added)
    for function in model.functions:
        function.input.extend(complete[key_of(function)])


def _without_unused(graph: onnx.GraphProto, weights: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those weights that something uses; the others are removed, since a session drops them and then misses them."""
    used = {output.name for output in graph.output} | consumed(graph)
    unused = {name for name, _ in weights} - used
    drop(graph.initializer, unused)
    drop(graph.input, unused)  # up to IR 3 initializers are inputs as well
    return [(name, number) for name, number in weights if name in used]


def _take_from_outside(tensor: onnx.TensorProto) -> None:
    """Mark a tensor as external data; the session is given the data itself, no file is read."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="given-to-the-session")
