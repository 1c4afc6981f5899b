"""Nodes in an order in which they cannot run one after the other: what onnxruntime runs, riq compresses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

import riq_cli as riq
from riq_cli.model.places import scopes
from riq_cli.model.topology import sort_nodes
from riq_cli.pipeline import PRESETS
from tests import builders


def reorder(scope: onnx.GraphProto | onnx.FunctionProto, order: list[int]) -> None:
    nodes = [onnx.NodeProto.FromString(scope.node[index].SerializeToString()) for index in order]
    del scope.node[:]
    scope.node.extend(nodes)


def reverse(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same with the nodes of all graphs, subgraphs and functions in reverse."""
    for _, scope in reversed(list(scopes(proto))):
        reorder(scope, list(range(len(scope.node)))[::-1])
    return proto


def chain(order: list[int]) -> onnx.ModelProto:
    """y = relu(x w0) w1 …, nodes in some order."""
    layers = len(order) // 2
    nodes = []
    for n in range(layers):
        nodes.append(builders.node("MatMul", f"a{n} w{n}", f"m{n}"))
        nodes.append(builders.node("Relu", f"m{n}", "y" if n == layers - 1 else f"a{n + 1}"))
    r = builders.Random(1)
    weights = [builders.tensor(f"w{n}", r(16, 16)) for n in range(layers)]
    ends = [builders.info("a0", "N", 16)], [builders.info("y", "N", 16)]
    proto = builders.model(nodes, *ends, weights)
    reorder(proto.graph, order)
    return proto


def run(serialized: bytes, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    found: list[np.ndarray] = onnxruntime.InferenceSession(serialized, options).run(None, feed)
    return found


@given(st.permutations(range(8)))
def test_any_order_is_brought_into_the_one_order_of_a_chain(order: list[int]) -> None:
    proto = chain(order)
    sort_nodes(proto)
    assert proto == chain(list(range(8)))


@pytest.mark.parametrize("name", builders.FORMS)
def test_what_is_in_order_stays(name: str) -> None:
    proto = builders.FORMS[name]()
    sort_nodes(proto)
    assert proto == builders.FORMS[name]()


@pytest.mark.parametrize("name", builders.FORMS)
def test_reversed_graphs_subgraphs_and_functions_compute_the_same(name: str) -> None:
    proto = builders.FORMS[name]()
    mixed = reverse(builders.FORMS[name]())
    sort_nodes(mixed)
    for feed in builders.feeds(proto):
        for one, other in zip(run(proto.SerializeToString(), feed), run(mixed.SerializeToString(), feed), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_cycle_stays_for_onnxruntime_to_tell() -> None:
    proto = chain([3, 2, 1, 0])
    proto.graph.node[3].input[0] = "y"
    before = proto.SerializeToString()
    sort_nodes(proto)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("preset", ["fast", "small"])
def test_an_unsorted_model_is_compressed_and_restored_in_its_own_order(preset: str, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((16, 16)).astype(np.float32)
    data = riq.Calibration.from_arrays({"a0": x})
    model = riq.Model.load(builders.save(chain([3, 1, 2, 0]), tmp_path))
    archive = riq.compress(model, data, **PRESETS[preset])
    assert archive.manifest.result["deviation"] <= 0.01
    assert [node.output[0] for node in riq.decompress(archive).skeleton.graph.node] == ["y", "a1", "m1", "m0"]
