"""What has to come before what: nodes behind those whose outputs they take, functions behind those that they call.

ONNX asks for such an order of nodes, onnxruntime does not.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping, Sequence

import onnx

from riq_cli.errors import ModelError
from riq_cli.model.places import put_nodes, scopes, subgraphs
from riq_cli.model.uses import Scope, captured

Key = tuple[str, str, str]  # domain, name and overload of a function


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put the nodes of every graph, subgraph and function of `model` in an order in which they can run.

    Nodes that are in order already stay where they are. So do those of a graph with a cycle, which nothing can run.
    """
    for _, scope in reversed(list(scopes(model))):  # inner scopes first: their messages move with an outer's edit
        order = _order(scope)
        if order is not None:
            put_nodes(scope, [scope.node[index] for index in order])


def _order(scope: Scope) -> list[int] | None:
    """Numbers of the nodes in an order in which they can run; None if they are in one, or if there is none."""
    producers = {name: index for index, node in enumerate(scope.node) for name in node.output if name}
    needed = {
        index: {producers[name] for name in _taken(node) if name in producers} for index, node in enumerate(scope.node)
    }
    if all(max(before, default=-1) < index for index, before in needed.items()):
        return None
    try:
        return list(graphlib.TopologicalSorter(needed).static_order())
    except graphlib.CycleError:
        return None


def _taken(node: onnx.NodeProto) -> set[str]:
    """Names that a node takes, itself or in its subgraphs."""
    return set(node.input).union(*(captured(graph) for _, graph in subgraphs(node)))


def key_of(function: onnx.FunctionProto) -> Key:
    """What tells a function from others."""
    return function.domain, function.name, function.overload


def called_by(node: onnx.NodeProto) -> Key:
    """The function that a node calls, if there is one of that name."""
    return node.domain, node.op_type, node.overload


def nodes_of(scope: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph or function, those in subgraphs included."""
    yield from scope.node
    for node in scope.node:
        for _, graph in subgraphs(node):
            yield from nodes_of(graph)


def function_calls(model: onnx.ModelProto) -> dict[Key, list[Key]]:
    """For every function, the functions that it calls, once for each call."""
    known = set(map(key_of, model.functions))
    return {
        key_of(function): [called_by(node) for node in nodes_of(function) if called_by(node) in known]
        for function in model.functions
    }


def callees_first(calls: Mapping[Key, Sequence[Key]]) -> list[Key]:
    """All functions, each behind those that it calls.

    Raises:
        ModelError: one that calls itself, perhaps through others.
    """
    try:
        return list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        names = " → ".join(name for _, name, _ in reversed(error.args[1]))
        raise ModelError(f"a function of the model calls itself: {names}; nothing can run that") from None
