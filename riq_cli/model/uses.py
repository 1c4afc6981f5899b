"""Who uses a value: which operators consume a layer, and what for."""

from __future__ import annotations

import onnx

from riq_cli.model.places import scopes, subgraphs
from riq_cli.model.tensors import FLOAT_TYPES

# Operators that hand their first input on: same values, perhaps in another type or shape, or rounded to a grid.
FORWARDING = frozenset(
    ("Identity Cast Transpose Reshape Squeeze Unsqueeze Flatten Dropout Expand QuantizeLinear DequantizeLinear").split()
)

# Operators with inputs that say what to do, rather than being computed with: the number of the first such input; those
# behind it are of that kind too. Integers and conditions are not listed: only a Cast makes them of a float.
_STRUCTURAL = {
    "BatchNormalization": 4,  # the variance: under a root and a fraction line, it must stay positive
    "Clip": 1,
    "DequantizeLinear": 1,
    "Dropout": 1,
    "Equal": 0,
    "Greater": 0,
    "GreaterOrEqual": 0,
    "Less": 0,
    "LessOrEqual": 0,
    "MaxRoiPool": 1,
    "NonMaxSuppression": 2,
    "OneHot": 1,
    "Pad": 1,
    "Pow": 1,
    "QuantizeLinear": 1,
    "Range": 0,
    "Resize": 1,
    "RoiAlign": 1,
    "Tile": 1,
    "TopK": 1,
    "Upsample": 1,
}

_ROUNDING = frozenset(["Ceil", "Floor", "Round"])  # what they give may still be made an integer

Scope = onnx.GraphProto | onnx.FunctionProto
Use = tuple[onnx.NodeProto, int]  # a node and the number of the input by which it takes a value


def operand(node: onnx.NodeProto, number: int) -> str:
    """The name of a node's input; "" if it is left out, or missing in a model that no session runs."""
    return str(node.input[number]) if number < len(node.input) else ""


class Uses:
    """For every scope of a model, the nodes that consume a value, those in subgraphs included."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index all nodes of a model."""
        self._index = {path: uses_in(scope) for path, scope in scopes(model)}
        self._outputs = {path: _outputs(scope) for path, scope in scopes(model)}

    def operators(self, scope: str, name: str) -> list[str]:
        """Operator types that work on a value, looking through those that only hand it on; sorted.

        Without any it is "output" if a graph or branch gives the value out, else "unused".
        """
        found = {node.op_type for node, _ in self.consumers(scope, name)}
        names, _ = self._reach(scope, name)
        return sorted(found) or ["unused" if names.isdisjoint(self._outputs[scope]) else "output"]

    def consumers(self, scope: str, name: str) -> list[Use]:
        """Nodes that work on a value and the number of the input it enters by, looking through FORWARDING ones."""
        return [use for use in self._reach(scope, name)[1] if not _forwards(*use)]

    def is_structural(self, scope: str, name: str) -> bool:
        """Whether a float value tells some operator what to do, or is made an integer for such a purpose."""
        uses = self._reach(scope, name)[1]
        rounded = [output for node, _ in uses if node.op_type in _ROUNDING for output in node.output]
        behind = [node for output in rounded for node, _ in self._reach(scope, output)[1]]
        return any(_is_structural(*use) for use in uses) or any(map(_makes_integers, behind))

    def _reach(self, scope: str, name: str) -> tuple[set[str], list[Use]]:
        """The names of a value, its own and those under which it is handed on, and all uses of them."""
        uses: list[Use] = []
        names, pending = {name}, [name]
        while pending:
            found = self._index[scope].get(pending.pop(), ())
            uses += found
            fresh = {output for use in found if _forwards(*use) for output in use[0].output} - names
            names |= fresh
            pending += fresh
        return names, uses


def consumed(scope: Scope) -> set[str]:
    """Names of all values that nodes consume, those in subgraphs included."""
    return set(uses_in(scope))


def given_out(scope: Scope) -> set[str]:
    """Names of all values that a scope or a subgraph in it gives out."""
    inner = [given_out(inside) for node in scope.node for _, inside in subgraphs(node)]
    return _outputs(scope).union(*inner)


def captured(scope: Scope) -> set[str]:
    """Names that a branch may take from around it, among others: what nodes in it consume, and what it gives out."""
    return given_out(scope) | consumed(scope)


def uses_in(scope: Scope) -> dict[str, list[Use]]:
    """The uses of each value by the nodes of a scope, those in subgraphs included."""
    index: dict[str, list[Use]] = {}
    for node in scope.node:
        for number, name in enumerate(node.input):
            if name:
                index.setdefault(name, []).append((node, number))
        for _, graph in subgraphs(node):
            for name, uses in uses_in(graph).items():
                index.setdefault(name, []).extend(uses)
    return index


def _outputs(scope: Scope) -> set[str]:
    if isinstance(scope, onnx.FunctionProto):
        return set(scope.output)
    return {output.name for output in scope.output}


def _forwards(node: onnx.NodeProto, number: int) -> bool:
    return node.op_type in FORWARDING and number == 0


def _is_structural(node: onnx.NodeProto, number: int) -> bool:
    if node.op_type == "Cast":
        return _makes_integers(node)
    return node.op_type in _STRUCTURAL and number >= _STRUCTURAL[node.op_type]


def _makes_integers(node: onnx.NodeProto) -> bool:
    """Whether a node is a Cast to what is no float."""
    kinds = [attribute.i for attribute in node.attribute if attribute.name == "to"]
    return node.op_type == "Cast" and not any(kind in FLOAT_TYPES for kind in kinds)
