"""The order of nodes: every node after those whose outputs it takes, as ONNX asks for and onnxruntime does not."""

from __future__ import annotations

import graphlib

import onnx

from riq_cli.model.places import put_nodes, scopes, subgraphs
from riq_cli.model.uses import Scope, captured


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
