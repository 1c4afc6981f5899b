"""Ifs that take one branch on all samples: the branch in their place computes the same, and its layers take part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import (
    BOOL,
    FORMS,
    SATURATED,
    Random,
    constant,
    feeds,
    graph,
    if_nested,
    info,
    matmul,
    matrix,
    model,
    node,
    save,
    tensor,
    unknown,
)

import riq_cli as riq
from riq_cli.errors import ModelError
from riq_cli.model import Model, SessionForm, linear_layers
from riq_cli.runtime import Observer, Runtime, inlined

BUILDERS = FORMS | {name: builder for name, (builder, _) in SATURATED.items()}
WITH_IF = sorted(name for name, build in BUILDERS.items() if any(item.op_type == "If" for item in build().graph.node))
RUNTIME = Runtime(threads=1)

Samples = list[tuple[dict[str, np.ndarray], int]]


class Inlined:
    """A model's form before and after its Ifs are inlined, on samples with these flags."""

    def __init__(self, proto: onnx.ModelProto, folder: Path, *flags: dict[str, bool]) -> None:
        self.model = Model.load(save(proto, folder))
        self.weights = [layer.values for layer in self.model.layers]
        self.samples: Samples = []
        for feed, values in zip(feeds(proto, len(flags)), flags, strict=True):
            self.samples.append((feed | {name: np.array(value) for name, value in values.items()}, 1))
        self.hoisted = self.model.session_form()
        self.form = inlined(self.hoisted, self.weights, self.samples, RUNTIME)
        self.graph = onnx.ModelProto.FromString(self.form.model).graph

    @property
    def ifs(self) -> list[onnx.NodeProto]:
        return [item for item in self.graph.node if item.op_type == "If"]

    @property
    def linear(self) -> set[str]:
        return {self.model.layers[number].name for number in linear_layers(self.form, self.model.layers)[1]}

    def outputs(self, form: SessionForm) -> list[dict[str, np.ndarray]]:
        run = Observer(form, self.weights, self.samples, RUNTIME).runner(form.measured)
        return [run(number) for number in range(len(self.samples))]

    def computes_the_same(self) -> bool:
        pairs = zip(self.outputs(self.hoisted), self.outputs(self.form), strict=True)
        return self.form.measured == self.hoisted.measured and all(
            np.array_equal(truth[name], found[name]) for truth, found in pairs for name in self.form.measured
        )


def flags(proto: onnx.ModelProto, value: bool) -> dict[str, bool]:
    return {item.name: value for item in proto.graph.input if item.type.tensor_type.elem_type == BOOL}


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", WITH_IF)
def test_the_branch_that_is_taken_computes_the_same_in_the_main_graph(name: str, value: bool, tmp_path: Path) -> None:
    proto = BUILDERS[name]()
    found = Inlined(proto, tmp_path, *[flags(proto, value)] * 2)
    assert not found.ifs
    assert found.form.hoisted
    assert found.computes_the_same()


@pytest.mark.parametrize(
    ("values", "layers", "left"),
    [
        ([(True, True)] * 2, {"w", "middle"}, []),  # w lies in the main graph and in a branch of the inner If
        ([(False, True)] * 2, {"w", "middle", "deep"}, []),
        ([(True, False), (False, False)], {"w", "low"}, []),
        ([(True, True), (False, True)], {"middle"}, ["inner"]),
        ([(True, True), (True, False)], set(), ["outer"]),
    ],
)
def test_layers_of_branches_that_all_samples_take_are_linear_layers(
    values: Sequence[tuple[bool, bool]], layers: set[str], left: list[str], tmp_path: Path
) -> None:
    found = Inlined(if_nested(), tmp_path, *({"flag": flag, "outer": outer} for flag, outer in values))
    assert found.linear == layers
    assert [item.input[0] for item in found.ifs] == left
    assert found.computes_the_same()


def crowded() -> onnx.ModelProto:
    """Two nested Ifs whose branches use the same names for all they hold, and leave optional values out."""
    r = Random(0)

    def recurrent() -> onnx.GraphProto:
        return graph(
            [
                constant("R", r(1, 16, 4)),
                onnx.helper.make_node("LSTM", ["s", "W", "R", "", "", "state"], ["", "", "c"], hidden_size=4),
                node("Squeeze", "c zero", "o"),
                node("Neg", "o", "n"),
            ],
            [],
            [unknown("o"), unknown("n"), unknown("k")],
            [tensor("W", r(1, 16, 6)), tensor("zero", np.zeros(1, np.int64)), tensor("k", r(2, 2))],
        )

    def other() -> onnx.GraphProto:
        nodes = [node("ReduceMax", "x", name) for name in "onk"]
        return graph(nodes, [], [unknown(name) for name in "onk"])

    def outer() -> onnx.GraphProto:
        nodes = [
            node("ReduceMax", "x", "m", keepdims=0),
            node("Less", "low m", "p"),
            node("If", "p", "a b c", then_branch=recurrent(), else_branch=other()),
        ]
        return graph(nodes, [], [unknown(name) for name in "abc"])

    return model(
        [
            constant("zero1", np.zeros(1, np.int64)),
            node("Unsqueeze", "x zero1", "s"),
            node("If", "flag", "a0 b0 c0", then_branch=outer(), else_branch=other()),
            node("If", "flag", "a1 b1 c1", then_branch=outer(), else_branch=other()),
            node("Sub", "b0 a1", "y"),
        ],
        [info("x", "batch", 6), info("state", 1, None, 4), info("flag", dtype=BOOL)],
        [matrix("y"), matrix("b1"), matrix("c0")],
        [tensor("low", np.array(-100, np.float32))],
    )


def test_branches_of_the_same_names_stand_beside_each_other(tmp_path: Path) -> None:
    found = Inlined(crowded(), tmp_path, {"flag": True}, {"flag": True})
    assert not found.ifs
    assert len(found.linear) == 4  # W and R of each
    assert found.computes_the_same()


def test_nothing_runs_without_an_if(tmp_path: Path) -> None:
    form = Model.load(save(matmul(), tmp_path)).session_form()
    assert inlined(form, [], []) is form


def test_an_outer_value_given_out_twice_is_copied_though_onnxruntime_refuses_the_model(tmp_path: Path) -> None:
    branch = graph([], [], [unknown("h"), unknown("h")])
    proto = model(
        [node("Neg", "x", "h"), node("If", "flag", "y z", then_branch=branch, else_branch=branch)],
        [info("x", "batch", 6), info("flag", dtype=BOOL)],
        [info("y", "batch", 6), info("z", "batch", 6)],
    )
    found = Inlined(proto, tmp_path, {"flag": True})
    for name in ("y", "z"):
        assert np.array_equal(found.outputs(found.form)[0][name], -found.samples[0][0]["x"])
    with pytest.raises(ModelError):
        found.outputs(found.hoisted)


def test_layers_of_a_branch_are_compensated_and_those_that_no_sample_runs_are_not_crushed(tmp_path: Path) -> None:
    r = Random(0)

    def branch() -> onnx.GraphProto:
        return graph([node("MatMul", "x w", "o")], [], [unknown("o")], [tensor("w", r(48, 32))])

    proto = model(
        [node("If", "flag", "y", then_branch=branch(), else_branch=branch())],
        [info("x", "batch", 48), info("flag", dtype=BOOL)],
        [info("y", "batch", 32)],
    )
    inputs = r(32, 16, 6) @ r(6, 48) + r(32, 16, 48) / 4  # of few directions, so that columns make up for each other
    data = riq.Calibration.from_feeds([{"x": x, "flag": np.array(True)} for x in inputs])
    loaded = Model.load(save(proto, tmp_path))
    archive = riq.compress(loaded, data, deviation=0.003)
    assert "compensated" in archive.manifest.result["rounding"]
    other, taken = (  # attributes are sorted by name: the else branch comes first
        np.linalg.norm(restored.values - original.values) / np.linalg.norm(original.values)
        for original, restored in zip(loaded.layers, riq.decompress(archive).layers, strict=True)
    )
    assert other < 0.08 < taken
