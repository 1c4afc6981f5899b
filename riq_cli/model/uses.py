"""Who uses a value: which operators consume a layer, and how many ids a token input may take."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from riq_cli.model.places import scopes, subgraphs

# Operators that hand their first input on: same values, perhaps in another type or shape.
FORWARDING = frozenset(
    "Identity Cast Transpose Reshape Squeeze Unsqueeze Flatten Dropout Expand DequantizeLinear".split()
)

Scope = onnx.GraphProto | onnx.FunctionProto


class Uses:
    """For every scope of a model, the nodes that consume a value, those in subgraphs included."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index all nodes of a model."""
        self._index = {path: _consumers(scope) for path, scope in scopes(model)}

    def operators(self, scope: str, name: str) -> list[str]:
        """Operator types that work on a value, looking through those that only hand it on; sorted."""
        found = {node.op_type for node, _ in self.consumers(scope, name)}
        return sorted(found) or ["unused"]

    def consumers(self, scope: str, name: str) -> Iterator[tuple[onnx.NodeProto, int]]:
        """Nodes that work on a value and the number of the input it enters by, looking through FORWARDING ones."""
        index, seen, pending = self._index[scope], {name}, [name]
        while pending:
            for node, number in index.get(pending.pop(), ()):
                if node.op_type in FORWARDING and number == 0:
                    fresh = set(node.output) - seen
                    seen |= fresh
                    pending.extend(fresh)
                else:
                    yield node, number


def consumed(scope: Scope) -> set[str]:
    """Names of all values that nodes consume, those in subgraphs included."""
    return set(_consumers(scope))


def _consumers(scope: Scope) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    index: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in scope.node:
        for number, name in enumerate(node.input):
            index.setdefault(name, []).append((node, number))
        for _, graph in subgraphs(node):
            for name, uses in _consumers(graph).items():
                index.setdefault(name, []).extend(uses)
    return index
