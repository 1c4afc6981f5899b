"""A model's local functions, and which of them call which."""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping, Sequence

import onnx

from riq_cli.errors import ModelError
from riq_cli.model.places import subgraphs

Key = tuple[str, str, str]  # domain, name and overload of a function


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
