"""Ifs that always go the same way, replaced by the branch that they take: its layers are then layers of the main graph.

Only in the main graph of a form can be observed what a layer multiplies. Branches of If are graphs of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx

from riq_cli.model.places import OWN_DOMAINS, attributes_of, put_nodes, rename
from riq_cli.model.session_form import SessionForm, keep_needed
from riq_cli.model.uses import operand

_INLINED = "riq/{}/{}"  # outputs of the If, name in the branch


def conditions(form: SessionForm) -> set[str]:
    """Names of the tensors that decide the Ifs of a form's main graph."""
    graph = onnx.ModelProto.FromString(form.model).graph
    return {operand(node, 0) for node in graph.node if _branches(node) is not None}


def inlined_form(form: SessionForm, values: Mapping[str, bool]) -> SessionForm:
    """The form in which branches that are taken stand in place of their Ifs.

    So do branches inside of these if their conditions are known too. Nodes and layers that only the other branches use
    are gone.

    Args:
        form: a hoisted form.
        values: known conditions, by name; Ifs with other conditions stay as they are.
    """
    model = onnx.ModelProto.FromString(form.model)
    graph = model.graph
    pending, nodes = list(reversed(graph.node)), []
    while pending:
        node = pending.pop()
        branches = _branches(node)
        value = values.get(operand(node, 0))
        if branches is None or value is None:
            nodes.append(node)
            continue
        branch = branches["then_branch" if value else "else_branch"]
        pending += reversed(_inline(graph, node, branch))
    put_nodes(graph, nodes)
    weights = keep_needed(graph, form.weights)
    return replace(form, model=model.SerializeToString(), weights=weights, hoisted=True)


def _branches(node: onnx.NodeProto) -> dict[str, onnx.GraphProto] | None:
    """The branches of an If by the names of their attributes; None if a node is no If, or one that nothing can run."""
    if node.op_type != "If" or node.domain not in OWN_DOMAINS or not operand(node, 0):
        return None
    branches = {name: graph for name, graph in attributes_of(node).items() if isinstance(graph, onnx.GraphProto)}
    outputs = {name: len(graph.output) for name, graph in branches.items()}
    return branches if outputs == dict.fromkeys(("then_branch", "else_branch"), len(node.output)) else None


def _inline(graph: onnx.GraphProto, node: onnx.NodeProto, branch: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that give a branch's outputs under the names of its If's; its initializers are moved to `graph`."""
    inner = [tensor.name for tensor in branch.initializer]
    inner += [tensor.values.name for tensor in branch.sparse_initializer]
    inner += [name for made in branch.node for name in made.output if name]
    names = {name: _INLINED.format(list(node.output), name) for name in inner}
    outputs = [(value.name, name) for value, name in zip(branch.output, node.output, strict=True) if name]
    names |= {value: name for value, name in outputs if value in names}
    rename(branch, names)
    graph.initializer.extend(branch.initializer)
    graph.sparse_initializer.extend(branch.sparse_initializer)
    # Values from outside of the branch, and those that it gives out twice.
    copies = [(names.get(value, value), name) for value, name in outputs if names.get(value) != name]
    return [*branch.node, *(onnx.helper.make_node("Identity", [value], [name]) for value, name in copies)]
