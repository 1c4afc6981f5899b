"""The order of nodes: every node after those whose outputs it takes, as ONNX asks for and onnxruntime does not."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import onnx

from riq_cli.model.places import put_nodes, scopes, subgraphs
from riq_cli.model.uses import Scope, captured


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put the nodes of every graph, subgraph and function in an order in which they can run.

    Nodes that are in order already stay where they are. So do those of a graph with a cycle, which nothing can run.

    Args:
        model: changed in place.
    """
    for _, scope in reversed(list(scopes(model))):  # inner scopes first: their messages move with an outer's edit
        order = _order(scope)
        if order is not None:
            put_nodes(scope, [scope.node[index] for index in order])


def _order(scope: Scope) -> list[int] | None:
    """Numbers of the nodes in an order in which they can run; None if they are in one, or if there is none."""
    producers = {name: index for index, node in enumerate(scope.node) for name in node.output if name}
    before = [_producers_of(node, producers) for node in scope.node]
    if all(max(needed, default=-1) < index for index, needed in enumerate(before)):
        return None
    after: list[list[int]] = [[] for _ in before]
    for index, needed in enumerate(before):
        for producer in needed:
            after[producer].append(index)
    missing = [len(needed) for needed in before]
    ready = [index for index, count in enumerate(missing) if not count]
    found = _drained(ready, after, missing)
    return found if len(found) == len(before) else None


def _producers_of(node: onnx.NodeProto, producers: dict[str, int]) -> set[int]:
    """Numbers of the nodes whose outputs a node takes, itself or in its subgraphs."""
    names = set(node.input).union(*(captured(graph) for _, graph in subgraphs(node)))
    return {producers[name] for name in names if name in producers}


def _drained(ready: list[int], after: Sequence[Sequence[int]], missing: list[int]) -> list[int]:
    """Numbers of nodes in the order in which they get ready, the smallest first of those that are ready together."""
    found = []
    while ready:
        index = heapq.heappop(ready)
        found.append(index)
        for follower in after[index]:
            missing[follower] -= 1
            if not missing[follower]:
                heapq.heappush(ready, follower)
    return found
