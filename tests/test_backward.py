"""Gradients through whole graphs: what onnxruntime gives for slightly different weights judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import BOOL, Random, feeds, graph, info, model, node, nodes, save, tensor, unknown
from onnx import helper

from riq_cli.model import GateOutput, Model, Operation, linear_layers, operations
from riq_cli.runtime import Observer, Runtime
from riq_cli.statistics.autodiff import Backward, Gradients, gate_gradients
from riq_cli.statistics.autodiff.backward import RULES, Values, start

STEP = 3e-3
SEED = 5
WHOLE = 1 << 30  # bytes


class Net:
    """A model with some samples, and gradients through it."""

    def __init__(self, proto: onnx.ModelProto, folder: Path, samples: int = 2, rows: int = 1) -> None:
        self.model = Model.load(save(proto, folder))
        self.form, self.linear = linear_layers(self.model.session_form(), self.model.layers)
        self.layers = [layer.values for layer in self.model.layers]
        self.numbers = {layer.name: number for number, layer in enumerate(self.model.layers)}
        self.rows = [rows] * samples
        self.samples = [(feed, rows) for feed in feeds(proto, samples)]
        self.observer = Observer(self.form, self.layers, self.samples, runtime=Runtime(threads=1))
        self.operations, constants = operations(self.form)
        constants |= {name: self.layers[number] for name, number in self.form.weights}
        self.products: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self.beside: dict[tuple[str, ...], list[str]] = {}
        for number, item in self.linear.items():
            for index, (entering, leaving) in enumerate(item.products):
                self.products.setdefault(leaving.operation, []).append((number, index))
                self.beside.setdefault(leaving.operation, []).append(entering.tensor)
        self.backward = Backward(self.operations, constants, self.form.measured, list(self.products))
        self.gradients: dict[tuple[str, int], np.ndarray] = {}  # of the weights: layer, run → [probes, *matrices]
        self.groups: dict[tuple[str, int], list[np.ndarray]] = {}
        self.seen: list[tuple[tuple[str, ...], int]] = []
        self.steps: list[tuple[int, int]] = []
        self.runs: list[list[str]] = []
        self.known: set[tuple[str, ...]] = set()

    def run(self, budget: int = WHOLE, probes: int | None = None) -> Net:
        self.known = self.backward.run(
            self.observe,
            self.observer.sizes,
            self.rows,
            self.beside,
            self.found,
            lambda done, total: self.steps.append((done, total)),
            budget,
            SEED,
            probes,
        )
        return self

    def observe(self, names: Sequence[str]) -> Callable[[int], Values]:
        self.runs.append(list(names))
        return self.observer.runner(names)

    def found(self, operation: Operation, run: int, values: Values, gradients: Gradients) -> None:
        chunk = self.seen.count((operation.outputs, run))  # probes may go back some at a time
        self.seen.append((operation.outputs, run))
        for number, index in self.products[operation.outputs]:
            matrix = self.linear[number].matrix
            entering, leaving = self.linear[number].products[index]
            gradient = gradients[0]
            if isinstance(leaving, GateOutput):
                inputs = [values[name] if name else None for name in operation.inputs]
                gradient = gate_gradients(operation, inputs, gradients)[leaving.of_state]
            assert gradient is not None
            at = np.stack([leaving.rows(probe, matrix.shape[0]) for probe in gradient]).astype(np.float64)
            total = at.swapaxes(2, 3) @ entering.rows(values[entering.tensor]).astype(np.float64)
            key = self.model.layers[number].name, run
            groups = self.groups.setdefault(key, [])
            groups[chunk:] = [groups[chunk] + total if chunk < len(groups) else total]
            self.gradients[key] = np.concatenate(groups)

    @property
    def known_layers(self) -> set[str]:
        """Layers all of whose products are known."""
        return {
            self.model.layers[number].name
            for number, item in self.linear.items()
            if all(leaving.operation in self.known for _, leaving in item.products)
        }

    def outputs(self, layer: str, change: np.ndarray) -> list[list[np.ndarray]]:
        """For every run the measured outputs, with a change of a layer."""
        layers = list(self.layers)
        values = layers[self.numbers[layer]]
        layers[self.numbers[layer]] = (values + change).astype(values.dtype)
        observer = Observer(self.form, layers, self.samples, runtime=Runtime(threads=1))
        run = observer.runner(self.form.measured)
        return [list(run(number).values()) for number in range(len(self.samples))]

    def projected(self, outputs: Sequence[np.ndarray], run: int, probes: int) -> np.ndarray:
        """Σ ⟨v, y / ‖y‖⟩ over outputs, and over rows of a batch, for every v that this run draws."""
        random = np.random.default_rng((SEED, run))
        total = np.zeros(probes)
        for y in outputs:
            flat = y.astype(np.float64).reshape(self.rows[run] if self.rows[run] > 1 else 1, -1)
            vectors = random.standard_normal((probes, *flat.shape))
            total += (vectors * flat / np.linalg.norm(flat, axis=1, keepdims=True)).sum(axis=(1, 2))
        return total

    def assert_gradients(self, *layers: str, tolerance: float = 1e-2) -> None:
        """Of these layers, in every run: those along two directions, found by central differences."""
        assert {name for name, _ in self.gradients} >= set(layers)
        for layer in layers:
            number = self.numbers[layer]
            values, matrix = self.layers[number], self.linear[number].matrix
            for seed in range(2):
                direction = np.random.default_rng(seed).uniform(-1, 1, values.shape)
                there, back = (self.outputs(layer, step * direction) for step in (STEP, -STEP))
                for run in range(len(self.rows)):
                    found = self.gradients[layer, run]
                    expected = self.projected(there[run], run, len(found)) - self.projected(back[run], run, len(found))
                    expected /= 2 * STEP
                    shown = (found * matrix.view(direction)).sum(axis=(1, 2, 3))
                    assert np.linalg.norm(expected) > 1e-3
                    error = np.linalg.norm(shown - expected) / np.linalg.norm(expected)
                    assert error < tolerance, (layer, run, shown, expected)


# ---- graphs ---------------------------------------------------------------------------------------------------------


def written(
    text: str,
    inputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Any],
    outputs: str = "y",
    dtype: Any = np.float32,
    **options: Any,
) -> onnx.ModelProto:
    """A model of nodes as text; `weights` are arrays, or shapes of random ones."""
    r, kind = Random(0), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    arrays = {name: r(*value, dtype=dtype) if isinstance(value, tuple) else value for name, value in weights.items()}
    tensors = [tensor(name, array) for name, array in arrays.items()]
    return model(nodes(text), inputs, [unknown(name, kind) for name in outputs.split()], tensors, **options)


def residual() -> onnx.ModelProto:
    return written(
        """Conv x w1 b1 > a pads=[1,1,1,1]; BatchNormalization a scale shift mean variance > n; Sigmoid n > g;
        Mul n g > h; Conv h w2 > c pads=[1,1,1,1] group=2; Add c h > s;
        AveragePool s > p kernel_shape=[2,2] strides=[2,2]; ConvTranspose p w3 > u strides=[2,2];
        Concat u h > j axis=1; GlobalAveragePool j > q; Flatten q > f; Gemm f w4 b4 > y transB=1 alpha=0.5""",
        [info("x", 2, 3, 6, 6)],
        {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 4, 3, 3), "w3": (8, 6, 2, 2), "w4": (5, 14), "b4": (5,)}
        | {name: np.abs(Random(1)(8)) + 0.5 for name in ("scale", "shift", "mean", "variance")},
    )


def attention() -> onnx.ModelProto:
    heads = (
        f"MatMul x w{name} > {name}1; Reshape {name}1 split > {name}2; Transpose {name}2 > {name} perm={order}; "
        for name, order in (("q", "[0,2,1,3]"), ("k", "[0,2,3,1]"), ("v", "[0,2,1,3]"))
    )
    return written(
        "".join(heads)
        + """MatMul q k > s; Mul s half > t; Softmax t > p axis=-1; MatMul p v > o1; Transpose o1 > o2 perm=[0,2,1,3];
        Reshape o2 join > o3; MatMul o3 wo > o; Add o x > r; LayerNormalization r scale shift > y""",
        [info("x", 1, 5, 8)],
        {f"w{name}": (8, 8) for name in "qkvo"}
        | {"split": np.array([0, 0, 2, 4]), "join": np.array([0, 0, 8]), "half": np.array(0.5, np.float32)}
        | {"scale": np.abs(Random(1)(8)) + 0.5, "shift": (8,)},
    )


def two_outputs(dtype: Any = np.float32) -> onnx.ModelProto:
    """The first output is computed with further."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    text = "MatMul x w1 > a; Tanh a > y; MatMul y w2 > b; Sin b > c; Sub c a > z"
    return written(text, [info("x", 3, 6, dtype=kind)], {"w1": (6, 5), "w2": (5, 5)}, "y z", dtype)


def sequence() -> onnx.ModelProto:
    return written(
        """MatMul x w0 > a; LSTM a w1 r1 b1 > b hidden_size=3 direction="bidirectional"; Transpose b > c perm=[0,2,1,3];
        Reshape c join > d; GRU d w2 r2 _ _ first > e last hidden_size=4 linear_before_reset=1; Squeeze e one > f;
        MatMul f w3 > g; Add g last > y""",
        [info("x", 4, 2, 5), info("first", 1, 2, 4)],
        {"w0": (5, 6), "w1": (2, 12, 6), "r1": (2, 12, 3), "b1": (2, 24), "w2": (1, 12, 6), "r2": (1, 12, 4)}
        | {"w3": (4, 4), "join": np.array([0, 0, -1]), "one": np.array([1])},
    )


def shared() -> onnx.ModelProto:
    return written("MatMul x w > a; Tanh a > b; MatMul b w > c; Softsign c > y", [info("x", 3, 6)], {"w": (6, 6)})


def determinant(left_out: bool = False) -> onnx.ModelProto:
    """Nothing is known of what lies before a Det; or before a DFT that leaves an input out."""
    strange = (
        "Unsqueeze m last > m1; DFT m1 _ axis > m2; ReduceSum m2 > d keepdims=0"
        if left_out
        else "Det m > d0; ReduceSum d0 > d keepdims=0"
    )
    return written(
        f"""MatMul x w0 > a; Tanh a > b; MatMul b w1 > c; Reshape c cube > m; {strange};
        MatMul x w2 > e; Tanh e > f; MatMul f w3 > g; Add g d > y""",
        [info("x", 2, 6)],
        {"w0": (6, 6), "w1": (6, 9), "w2": (6, 6), "w3": (6, 6)}
        | {"cube": np.array([2, 3, 3]), "last": np.array([3]), "axis": np.array(2)},
        opset=20,
    )


def branch(around: bool) -> onnx.ModelProto:
    """What w1 makes enters an If by its branches alone; with `around` it goes to the output beside the If as well."""
    then = graph(nodes("Tanh h > o"), [], [unknown("o")], name="then")
    other = graph(nodes("Sin h > o"), [], [unknown("o")], name="else")
    proto = written(
        f"MatMul x w1 > h; Identity x > z; Add z {'h' if around else 'x'} > s; MatMul s w2 > y",
        [info("x", 2, 6), info("flag", dtype=BOOL)],
        {"w1": (6, 6), "w2": (6, 4)},
    )
    proto.graph.node[1].CopyFrom(node("If", "flag", "z", then_branch=then, else_branch=other))
    return proto


GRAPHS = {  # builder, rows in a sample, layers
    "residual": (residual, 2, ("w1", "w2", "w3", "w4")),
    "attention": (attention, 1, ("wq", "wk", "wv", "wo")),
    "two outputs": (two_outputs, 3, ("w1", "w2")),
    "one row": (two_outputs, 1, ("w1", "w2")),
    "sequence": (sequence, 1, ("w0", "w1", "r1", "w2", "r2", "w3")),
    "shared": (shared, 3, ("w",)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_are_what_differences_show(name: str, tmp_path: Path) -> None:
    build, rows, layers = GRAPHS[name]
    net = Net(build(), tmp_path, rows=rows).run()
    assert net.known_layers == set(layers) == {net.model.layers[number].name for number in net.linear}
    assert net.known == set(net.products)
    net.assert_gradients(*layers)


@pytest.mark.parametrize("name", GRAPHS)
def test_within_a_small_budget_they_are_the_same(name: str, tmp_path: Path) -> None:
    build, rows, layers = GRAPHS[name]
    whole, parts = Net(build(), tmp_path, rows=rows).run(), Net(build(), tmp_path, rows=rows).run(1)
    assert parts.known == whole.known
    assert len(whole.runs) == 1
    assert len(parts.runs) > len(layers)
    assert max(map(len, parts.runs)) < len(whole.runs[0])
    assert parts.gradients.keys() == whole.gradients.keys()
    assert len(parts.steps) == 16 * len(parts.runs) * len(parts.samples)
    if len(whole.form.measured) > 1:  # a few vectors of each are drawn by turns
        return
    for key, expected in whole.gradients.items():
        np.testing.assert_allclose(parts.gradients[key], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("budget", [1, 500, WHOLE])
def test_progress_counts_runs_of_all_sections(budget: int, tmp_path: Path) -> None:
    net = Net(residual(), tmp_path, samples=3, rows=2).run(budget)
    total = 3 * len(net.runs) * (1 if budget == WHOLE else 16)
    assert net.steps == [(done, total) for done in range(1, total + 1)]


def test_in_other_precisions(tmp_path: Path) -> None:
    half, single, double = (
        Net(two_outputs(dtype), tmp_path, rows=3).run() for dtype in (np.float16, np.float32, np.float64)
    )
    double.assert_gradients("w1", "w2", tolerance=1e-4)
    assert half.gradients.keys() == single.gradients.keys()
    for key, expected in single.gradients.items():
        np.testing.assert_allclose(half.gradients[key], expected, atol=2e-2 * np.abs(expected).max())


def test_large_tensors_take_fewer_probes(tmp_path: Path) -> None:
    """16, or as many as make 16 MB at the largest tensor, here of 4 MB; and never more than are asked for."""
    proto = written("MatMul x w > a; Tanh a > b; ReduceMean b > y axes=[0]", [info("x", 4096, 8)], {"w": (8, 256)})
    for probes, expected in ((None, 4), (3, 3), (8, 4)):
        net = Net(proto, tmp_path, samples=1).run(probes=probes)
        assert len(net.gradients["w", 0]) == expected
    net.assert_gradients("w")


def test_a_product_is_found_once_in_every_run(tmp_path: Path) -> None:
    net = Net(shared(), tmp_path, samples=3).run()
    assert sorted(net.seen) == sorted((outputs, run) for outputs in (("a",), ("c",)) for run in range(3))


def test_without_products_nothing_is_found(tmp_path: Path) -> None:
    net = Net(written("Add x w > y", [info("x", 2, 300)], {"w": (2, 300)}), tmp_path).run()
    assert not net.known and not net.seen


# ---- what has no rule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, WHOLE])
@pytest.mark.parametrize("left_out", [False, True])
def test_nothing_is_known_of_what_lies_before_an_operation_without_a_rule(
    left_out: bool, budget: int, tmp_path: Path
) -> None:
    assert not {"Det", "DFT"} & RULES.keys()
    net = Net(determinant(left_out), tmp_path, rows=2).run(budget)
    assert {net.model.layers[number].name for number in net.linear} == {"w0", "w1", "w2", "w3"}
    assert net.known_layers == {"w2", "w3"}
    net.assert_gradients("w2", "w3")


@pytest.mark.parametrize("around", [False, True])
def test_nothing_is_known_of_what_a_branch_reads(around: bool, tmp_path: Path) -> None:
    net = Net(branch(around), tmp_path).run()
    assert net.known_layers == {"w2"}
    net.assert_gradients("w2")


def test_a_rule_that_fails_costs_what_lies_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Gradients:
        raise RuntimeError("unforeseen")

    monkeypatch.setitem(RULES, "Softmax", failing)
    net = Net(attention(), tmp_path).run()
    assert net.known_layers == {"wv", "wo"}
    net.assert_gradients("wv", "wo")


def test_products_that_no_output_depends_on_are_not_known(tmp_path: Path) -> None:
    """Neither those that lead nowhere, nor those that only decide which element is the largest."""
    proto = written(
        """MatMul x w1 > nowhere; MatMul x w2 > b; ArgMax b > i axis=1 keepdims=1; Cast i > c to=FLOAT; MatMul x w3 > d;
        Add c d > y""",
        [info("x", 2, 6)],
        {"w1": (6, 6), "w2": (6, 6), "w3": (6, 6)},
    )
    net = Net(proto, tmp_path).run()
    assert net.known_layers == {"w3"}
    assert {outputs for outputs, _ in net.seen} == {("d",)}
    net.assert_gradients("w3")


def test_a_product_with_an_activation_inside_has_no_gradient_of_its_own(tmp_path: Path) -> None:
    """At the output of a FusedConv, the gradient is not that at its product: even of the first operation."""
    proto = written(
        """FusedConv x w1 > a domain="com.microsoft" activation="Relu"; GlobalAveragePool a > p; Flatten p > f;
        MatMul f w2 > y""",
        [info("x", 1, 3, 5, 5)],
        {"w1": (8, 3, 3, 3), "w2": (8, 4)},
        domains=[("com.microsoft", 1)],
    )
    net = Net(proto, tmp_path).run()
    assert {net.model.layers[number].name for number in net.linear} == {"w1", "w2"}
    assert net.known_layers == {"w2"}


def test_an_output_that_is_left_out_does_not_move_an_input_that_is(tmp_path: Path) -> None:
    """Both have the empty name: nothing goes from the one to the other."""
    proto = written(
        "LSTM x w1 r1 > states h left hidden_size=4; DFT z _ axis > z2; ReduceSum z2 > d keepdims=0; Add h d > y",
        [info("x", 3, 2, 5), info("z", 1, 1, 6, 1)],
        {"w1": (1, 16, 5), "r1": (1, 16, 4), "axis": np.array(2)},
        opset=20,
    )
    proto.graph.node[0].output[2] = ""
    net = Net(proto, tmp_path).run()
    assert net.known_layers == {"w1", "r1"}
    net.assert_gradients("w1", "r1")


# ---- start ----------------------------------------------------------------------------------------------------------


def test_gradients_at_an_output_do_not_lead_along_it() -> None:
    y = np.random.default_rng(0).standard_normal((3, 4, 5), np.float32)
    found = start(y, 1, 7, np.random.default_rng(1))
    assert (found.dtype, found.shape) == (np.float32, (7, 3, 4, 5))
    np.testing.assert_allclose((found * y).sum(axis=(1, 2, 3)), 0, atol=1e-5)
    vectors, length = np.random.default_rng(1).standard_normal((7, 60)), np.linalg.norm(y)
    flat = y.reshape(-1).astype(float) / length
    expected = (vectors - np.outer(vectors @ flat, flat)) / length
    np.testing.assert_allclose(found.reshape(7, -1), expected, rtol=1e-5, atol=1e-7)


def test_every_row_of_a_batch_has_a_direction_of_its_own() -> None:
    y = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    y[1] *= 1000
    y[2] = 0
    found = start(y, 3, 50, np.random.default_rng(1))
    np.testing.assert_allclose((found * y).sum(axis=2), 0, atol=1e-5)
    assert np.abs(found[:, 1]).max() < np.abs(found[:, 0]).max() / 100
    assert not found[:, 2].any(), "nothing has no direction"
    assert start(y, 2, 1, np.random.default_rng(1)).shape == (1, 3, 4)


def test_outputs_fainter_than_single_precision_have_no_gradients() -> None:
    assert not start(np.full((1, 4), 1e-42, np.float32), 1, 2, np.random.default_rng(1)).any()
    assert np.isfinite(start(np.full((1, 4), 1e-35, np.float32), 1, 2, np.random.default_rng(1))).all()


def test_numbers_that_are_not_finite_do_not_spoil_the_others() -> None:
    y = np.array([[1.0, np.nan, 2.0, -np.inf]], np.float32)
    found = start(y, 1, 5, np.random.default_rng(0))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0, 0] + 2 * found[:, 0, 2], 0, atol=1e-5)


# ---- Observer.runner, Observer.sizes --------------------------------------------------------------------------------


def test_runs_show_some_tensors_of_every_sample(tmp_path: Path) -> None:
    net = Net(two_outputs(), tmp_path, samples=3)
    run = net.observer.runner(["c", "x", "a"])
    found = [run(number) for number in range(3)]
    assert [list(values) for values in found] == [["c", "x", "a"]] * 3
    for values, (feed, _) in zip(found, net.samples, strict=True):
        a = feed["x"] @ net.layers[net.numbers["w1"]]
        np.testing.assert_array_equal(values["x"], feed["x"])
        np.testing.assert_allclose(values["a"], a, rtol=1e-5, atol=1e-6)
        expected = np.sin(np.tanh(a) @ net.layers[net.numbers["w2"]])
        np.testing.assert_allclose(values["c"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lean", [False, True])
def test_sizes_are_bytes_of_the_first_sample(lean: bool, tmp_path: Path) -> None:
    net = Net(sequence(), tmp_path)
    observer = Observer(net.form, net.layers, net.samples, runtime=Runtime(threads=1), lean=lean)
    assert observer.sizes(["a", "b", "f", "x"]) == {"a": 4 * 48, "b": 4 * 48, "f": 4 * 32, "x": 4 * 40}
    assert observer.sizes([]) == {}


def test_runs_are_the_same_with_layers_as_inputs(tmp_path: Path) -> None:
    net = Net(sequence(), tmp_path)
    lean = Observer(net.form, net.layers, net.samples, runtime=Runtime(threads=1), lean=True)
    runs = net.observer.runner(["g", "b"]), lean.runner(["g", "b"])
    for number in range(len(net.samples)):
        one, other = (run(number) for run in runs)
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5, atol=1e-6)
