"""Linear layers: the matrices times the rows are what the operators give out, by onnxruntime, bias left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import (
    FORMS,
    Random,
    constant,
    feeds,
    graph,
    info,
    matrix,
    model,
    node,
    save,
    tensor,
    unknown,
)

from riq_cli.evaluator import Observer
from riq_cli.model import Linear, Model, SessionForm, linear_layers

Arrange = Callable[[np.ndarray], np.ndarray]


class Found:
    """A model's linear layers by the names of their tensors, and what onnxruntime gives for any tensor."""

    def __init__(self, proto: onnx.ModelProto, folder: Path, samples: int = 2) -> None:
        self.model = Model.load(save(proto, folder))
        self.form, by_number = linear_layers(self.model.session_form(), self.model.layers)
        self.numbers = {layer.name: number for number, layer in enumerate(self.model.layers)}
        self.linear = {self.model.layers[number].name: linear for number, linear in by_number.items()}
        self.samples = [(feed, 1) for feed in feeds(proto, samples)]

    def values(self, name: str) -> np.ndarray:
        return self.model.layers[self.numbers[name]].values

    def observed(self, name: str) -> list[np.ndarray]:
        observer = Observer(self.form, [layer.values for layer in self.model.layers], self.samples, threads=1)
        return [value for _, _, value in observer.activations([name])]

    def products(self, name: str, number: int = 0) -> list[np.ndarray]:
        """W @ x for every row, [groups, rows, positions], one for each sample."""
        linear = self.linear[name]
        entering = linear.inputs[number]
        matrices = linear.matrix.view(self.values(name))
        assert matrices.shape == linear.matrix.shape
        result = []
        for activation in self.observed(entering.tensor):
            rows = entering.rows(activation)
            assert rows.dtype in (np.float32, np.float64)
            assert rows.shape == (matrices.shape[0], entering.positions(activation.shape), matrices.shape[2])
            result.append(matrices @ rows.swapaxes(1, 2))
        return result


def assert_products(found: Found, layer: str, output: str, arrange: Arrange, number: int = 0) -> None:
    """The layer's products are the operator's output, which `arrange` makes [groups, rows, positions]."""
    wanted = [arrange(value) for value in found.observed(output)]
    assert wanted
    for product, truth in zip(found.products(layer, number), wanted, strict=True):
        assert product.shape == truth.shape
        np.testing.assert_allclose(product, truth, rtol=1e-4, atol=1e-5)
    view = found.linear[layer].matrix.view(found.values(layer))
    restored = found.linear[layer].matrix.restore(view.copy(), found.values(layer).shape)
    np.testing.assert_array_equal(restored, found.values(layer))


def channels(groups: int) -> Arrange:
    """Of an output [batch, rows, …]."""

    def arrange(value: np.ndarray) -> np.ndarray:
        return np.moveaxis(value, 1, 0).reshape(groups, value.shape[1] // groups, -1)

    return arrange


def last(value: np.ndarray) -> np.ndarray:
    """Of an output […, rows]."""
    return value.reshape(-1, value.shape[-1]).T[None]


def one(
    op: str, weight: np.ndarray, x: Sequence[int], inputs: str = "x w", opset: int = 17, **attributes: Any
) -> onnx.ModelProto:
    """A model of one operator."""
    domains = [("com.microsoft", 1)] if attributes.get("domain") else []
    return model(
        [node(op, inputs, "y", **attributes)],
        [info("x", *x)],
        [unknown("y")],
        [tensor("w", weight)],
        domains=domains,
        opset=opset,
    )


# ---- Conv -----------------------------------------------------------------------------------------------------------

CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    # input, weight, attributes
    ((2, 3, 6, 7), (5, 3, 3, 3), {}),
    ((1, 3, 6, 7), (5, 3, 1, 1), {}),
    ((1, 3, 6, 7), (5, 3, 1, 1), {"strides": [2, 3]}),
    ((2, 3, 6, 7), (5, 3, 3, 2), {"pads": [1, 0, 2, 1]}),
    ((1, 3, 9, 8), (5, 3, 3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    ((1, 3, 9, 8), (5, 3, 2, 3), {"dilations": [3, 2]}),
    ((1, 3, 9, 8), (5, 3, 2, 3), {"dilations": [2, 1], "strides": [1, 2], "pads": [2, 2, 2, 2]}),
    ((2, 6, 6, 7), (4, 3, 3, 3), {"group": 2}),
    ((2, 6, 6, 7), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    ((2, 6, 6, 7), (12, 1, 3, 3), {"group": 6, "strides": [2, 2]}),
    *(
        ((1, 3, *size), (5, 3, 3, 4), {"auto_pad": word, "strides": strides})
        for word in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for size in ((7, 8), (8, 9))
        for strides in ([1, 1], [2, 2], [3, 1])
    ),
    ((2, 4, 11), (6, 4, 3), {"pads": [1, 1], "strides": [2]}),
    ((2, 4, 11), (6, 2, 3), {"group": 2, "dilations": [2]}),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), {"pads": [1, 0, 1, 0, 1, 1], "strides": [1, 2, 2]}),
    ((1, 2, 4, 4), (3, 2, 3, 3), {"pads": [4, 4, 4, 4]}),  # windows that lie in the pad alone
]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("x", "weight", "attributes"), CONVOLUTIONS)
def test_conv(
    x: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any], fused: bool, tmp_path: Path
) -> None:
    domain = {"domain": "com.microsoft"} if fused else {}
    proto = one("FusedConv" if fused else "Conv", Random(0)(*weight), x, **attributes, **domain)
    found = Found(proto, tmp_path)
    assert_products(found, "w", "y", channels(attributes.get("group", 1)))


TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 4, 5), (3, 4, 3, 3), {}),
    ((1, 3, 4, 5), (3, 4, 2, 2), {"strides": [2, 2]}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 3], "pads": [1, 0, 1, 2]}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((1, 3, 4, 5), (3, 4, 3, 2), {"dilations": [2, 3], "strides": [1, 2]}),
    ((2, 6, 4, 5), (6, 2, 3, 3), {"group": 3, "strides": [2, 2]}),
    ((1, 6, 4, 5), (6, 1, 4, 4), {"group": 6, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 3, 7), (3, 4, 4), {"strides": [2], "pads": [1, 1]}),
    ((1, 2, 3, 4, 2), (2, 3, 2, 2, 2), {"strides": [2, 1, 2]}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [8, 10]}),
    ((1, 3, 4, 5), (3, 4, 4, 3), {"strides": [3, 2], "output_shape": [11, 10], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "VALID"}),
]


@pytest.mark.parametrize(("x", "weight", "attributes"), TRANSPOSED)
def test_conv_transpose(
    x: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any], tmp_path: Path
) -> None:
    found = Found(one("ConvTranspose", Random(0)(*weight), x, **attributes), tmp_path)
    assert_products(found, "w", "y", channels(attributes.get("group", 1)))


# ---- Gemm, MatMul ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "other", "alpha"), list(itertools.product([0, 1], [0, 1], [1.0, 0.5])))
@pytest.mark.parametrize("op", ["Gemm", "FusedMatMul", "FusedGemm"])
@pytest.mark.parametrize("left", [False, True])
def test_gemm(op: str, left: bool, own: int, other: int, alpha: float, tmp_path: Path) -> None:
    weight = Random(0)(6, 4)
    x = (4 if own == other else 6, 3)
    if left:  # w [6, 4] or its transpose, times x
        inner = 6 if own else 4
        x = (3, inner) if other else (inner, 3)
        attributes = {"transA": own, "transB": other}
    else:
        inner = 4 if own else 6
        x = (inner, 3) if other else (3, inner)
        attributes = {"transA": other, "transB": own}
    domain: dict[str, Any] = {} if op == "Gemm" else {"domain": "com.microsoft"}
    if op == "FusedGemm":
        domain |= {"activation": "LeakyRelu", "activation_alpha": 1.0}  # which changes nothing
    proto = one(op, weight, x, "w x" if left else "x w", alpha=alpha, **attributes, **domain)
    found = Found(proto, tmp_path)
    assert_products(found, "w", "y", (lambda y: y[None]) if left else last)
    columns = 0 if bool(own) == left else 1
    assert found.linear["w"].matrix.column_axes == (columns,)
    assert found.linear["w"].matrix.row_axes == (1 - columns,)


@pytest.mark.parametrize("x", [(6,), (3, 6), (2, 3, 6), (2, 2, 3, 6)])
def test_matmul_by_a_matrix_on_the_right(x: tuple[int, ...], tmp_path: Path) -> None:
    found = Found(one("MatMul", Random(0)(6, 4), x), tmp_path)
    assert_products(found, "w", "y", last)


@pytest.mark.parametrize("x", [(6,), (6, 3), (2, 6, 3), (2, 2, 6, 3)])
def test_matmul_by_a_matrix_on_the_left(x: tuple[int, ...], tmp_path: Path) -> None:
    found = Found(one("MatMul", Random(0)(4, 6), x, "w x"), tmp_path)
    assert_products(
        found, "w", "y", lambda y: y[None, :, None] if y.ndim == 1 else np.moveaxis(y, -2, 0).reshape(1, 4, -1)
    )


@pytest.mark.parametrize("left", [False, True])
def test_matmul_by_a_vector(left: bool, tmp_path: Path) -> None:
    proto = one("MatMul", Random(0)(6), (2, 6, 3) if left else (2, 3, 6), "w x" if left else "x w")
    found = Found(proto, tmp_path)
    assert found.linear["w"].matrix.shape == (1, 1, 6)
    assert_products(found, "w", "y", lambda y: y.reshape(1, 1, -1))


BATCHED = [  # weight, x, axes of the output that are groups
    ((3, 6, 4), (3, 2, 6), (0,)),
    ((3, 6, 4), (5, 3, 2, 6), (1,)),
    ((3, 6, 4), (5, 1, 2, 6), (1,)),
    ((3, 6, 4), (2, 6), (0,)),
    ((2, 3, 6, 4), (2, 3, 5, 6), (0, 1)),
    ((2, 1, 6, 4), (2, 3, 5, 6), (0,)),
    ((1, 6, 4), (2, 5, 6), ()),
]


@pytest.mark.parametrize(("weight", "x", "groups"), BATCHED)
def test_matmul_by_a_stack_of_matrices(
    weight: tuple[int, ...], x: tuple[int, ...], groups: tuple[int, ...], tmp_path: Path
) -> None:
    found = Found(one("MatMul", Random(0)(*weight), x), tmp_path)
    count = int(np.prod(weight[:-2]))

    def arrange(y: np.ndarray) -> np.ndarray:
        rest = [axis for axis in range(y.ndim - 1) if axis not in groups]
        return y.transpose(*groups, y.ndim - 1, *rest).reshape(count, 4, -1)

    assert_products(found, "w", "y", arrange)


def test_matmul_by_a_stack_of_matrices_on_the_left(tmp_path: Path) -> None:
    found = Found(one("MatMul", Random(0)(3, 4, 6), (2, 3, 6, 5), "w x"), tmp_path)
    assert_products(found, "w", "y", lambda y: y.transpose(1, 2, 0, 3).reshape(3, 4, -1))
