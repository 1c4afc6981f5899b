"""Gradient rules: one table of small graphs, held against differences through onnxruntime; and what it cannot judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gradients import OLD_KERNELS, PROBES, apply_rule, check, is_float
from onnx import TensorProto

from riq_cli.statistics.autodiff import axes, windows
from riq_cli.statistics.autodiff.backward import RULES
from riq_cli.statistics.autodiff.rule import NoRuleError

Case = tuple[Any, ...]  # kind, inputs, attributes, version
FAR = 2**63 - 1
MS = "com.microsoft:"


def spaced(*shape: int, seed: int = 0, step: float = 0.1) -> np.ndarray:
    """Numbers around zero, all different, in any order, none nearer than half a step to any multiple of it."""
    size = int(np.prod(shape))
    numbers = (np.arange(size) - size // 2 + 0.5) * step
    return np.random.default_rng(seed).permutation(numbers).reshape(shape)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2, shape)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def normals(*shapes: Sequence[int]) -> list[np.ndarray]:
    return [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def scalar(number: float) -> np.ndarray:
    return np.array(number)


def label(value: Any) -> str:
    """Of a parameter of a test."""
    return " ".join("-" if x is None else str(np.shape(x)) for x in value) if isinstance(value, list) else str(value)


X, FLAT, IMAGE, ROWS = spaced(2, 3, 4), spaced(6, 13), spaced(2, 8, 2, 4), spaced(2, 3, 8, step=0.07)
CHANNELS = spaced(2, 6, 3, 2, step=0.05)
P3, P6, P8, P38 = positive(3, seed=5), positive(6, seed=5), positive(8, seed=5), positive(3, 8, seed=5)

# ---- The table ------------------------------------------------------------------------------------------------------

ELEMENTWISE: list[Case] = [
    *((kind, [FLAT], {}, 13) for kind in ("Neg", "Abs", "Exp", "Erf", "Tanh", "Sin", "Cos", "Relu", "Sigmoid")),
    *((kind, [positive(5, 7)], {}, 13) for kind in ("Sqrt", "Log", "Reciprocal")),
    *((kind, [FLAT], {}, 18) for kind in ("Softplus", "Softsign", "HardSwish", "Mish", "Identity")),
    *((kind, [FLAT], {}, 16) for kind in ("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid")),
    *((kind, [FLAT], {"alpha": 0.4}, 16) for kind in ("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu")),
    ("Selu", [FLAT], {"gamma": 2.0}, 6),
    ("HardSigmoid", [FLAT], {"alpha": 0.5, "beta": 0.4}, 6),
    ("Gelu", [FLAT], {}, 20),
    ("Gelu", [FLAT], {"approximate": "tanh"}, 20),
    *((MS + kind, [FLAT], {}, 17) for kind in ("Gelu", "FastGelu", "QuickGelu")),
    *((MS + kind, [X, spaced(4)], {}, 17) for kind in ("FastGelu", "BiasGelu")),
    (MS + "QuickGelu", [FLAT], {"alpha": 1.1}, 17),
    ("Trilu", [FLAT], {}, 14),
    ("Trilu", [FLAT], {"upper": 0}, 14),
    ("Trilu", [X, scalar(1)], {"upper": 0}, 14),
    ("Trilu", [X, scalar(-1)], {}, 14),
    ("Clip", [FLAT], {}, 6),
    ("Clip", [FLAT], {"min": -1.0, "max": 0.8}, 6),
    ("Clip", [FLAT, scalar(-1.0), scalar(0.8)], {}, 13),
    ("Clip", [FLAT, None, scalar(0.8)], {}, 13),
    ("Dropout", [X], {}, 13),
    ("Dropout", [X], {"ratio": 0.3}, 7),
    ("Cast", [X], {"to": TensorProto.DOUBLE}, 13),
]
BROADCAST: list[Case] = [
    *(
        (kind, [positive(*left), positive(*right, seed=1)], {}, 13)
        for kind in ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean")
        for left, right in (
            ((4, 5), (4, 5)), ((2, 3, 4), (4,)), ((4,), (2, 3, 4)), ((2, 1, 4), (3, 1)), ((), (2, 3)),
            ((1, 3, 2, 2), (3, 1, 1)), ((1,), (1, 1)),
        )
    ),
    *((kind, [positive(2, 3, 4)], {}, 13) for kind in ("Min", "Max", "Sum", "Mean")),
    *((kind, [X, positive(4), positive(3, 1), spaced(1, 1, 4)], {}, 13) for kind in ("Min", "Max", "Sum", "Mean")),
    ("PRelu", [X, positive(3, 1)], {}, 16),
    ("PRelu", [X, positive(1)], {}, 9),
    ("PRelu", [X, positive(2, 3, 4)], {}, 16),
    ("Where", [np.arange(12).reshape(3, 4) % 3 == 0, spaced(3, 4), spaced(4, seed=1)], {}, 16),
    ("Where", [np.array([[True], [False]]), scalar(0.5), spaced(1, 3)], {}, 9),
]  # fmt: skip
SHAPES: list[Case] = [
    ("Reshape", [X, ints(4, -1)], {}, 14),
    ("Flatten", [X], {"axis": 2}, 9),
    ("Squeeze", [spaced(1, 3, 1)], {"axes": [0]}, 11),
    ("Squeeze", [spaced(1, 3, 1)], {}, 13),
    ("Unsqueeze", [X, ints(-1)], {}, 13),
    ("Transpose", [X], {}, 13),
    ("Transpose", [X], {"perm": [2, 0, 1]}, 13),
    ("Expand", [spaced(3, 1), ints(2, 1, 4)], {}, 13),
    ("Tile", [X, ints(2, 1, 3)], {}, 13),
    ("Concat", [X, spaced(2, 1, 4), spaced(2, 5, 4)], {"axis": 1}, 13),
    ("Concat", [X, spaced(2, 3, 2)], {"axis": -1}, 11),
    ("Concat", [X], {"axis": 0}, 4),
    ("Slice", [X], {"starts": [1, 0], "ends": [2, -1], "axes": [1, 2]}, 9),
    ("Slice", [X, ints(1), ints(FAR)], {}, 10),
    ("Slice", [X, ints(-2, 0), ints(9, 4), ints(-2, 2), ints(1, 2)], {}, 13),
    ("Slice", [X, ints(-1), ints(-FAR), ints(2), ints(-1)], {}, 13),
    ("Slice", [X, ints(9, -2), ints(0, -9), ints(2, 1), ints(-2, -1)], {}, 13),
    ("Slice", [X, ints(-9), ints(-FAR), ints(2), ints(-1)], {}, 13),
    ("Gather", [X, ints(2, 0, 2, -1, 2)], {"axis": 1}, 13),
    ("Gather", [X, ints(3, -4)], {"axis": -1}, 11),
    ("Gather", [X, ints(3, 3, 1)], {"axis": -1}, 11),
    ("Gather", [X, scalar(1)], {}, 13),
    ("Gather", [spaced(7, 3), np.array([[0, 6, 0], [5, -1, 0]], np.int32)], {}, 1),
    ("Gather", [spaced(7), ints(3, 3, 1)], {}, 13),
    ("GatherElements", [X, np.array([[[0, 2, 0, -1]], [[1, 1, 1, 1]]])], {"axis": 1}, 13),
    ("GatherElements", [spaced(3, 4), np.array([[3, 3, -4, 0, 3], [1, 1, 1, 1, 1]])], {"axis": -1}, 11),
    ("GatherND", [X, np.array([[0, 1], [1, -1], [0, 1]])], {}, 13),
    ("GatherND", [X, np.array([[[0, 1, 2]], [[1, 2, -1]]])], {}, 12),
    ("GatherND", [X, np.array([[2], [-3]])], {"batch_dims": 1}, 13),
    ("GatherND", [X, np.array([[[[3], [0]]] * 3] * 2)], {"batch_dims": 2}, 13),
    ("DepthToSpace", [IMAGE], {"blocksize": 2}, 1),
    ("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "CRD"}, 11),
    ("SpaceToDepth", [IMAGE], {"blocksize": 2}, 13),
    ("Pad", [X], {"pads": [0, 1, 2, 0, 0, 1]}, 2),
    ("Pad", [X], {"pads": [0, 1, 2, 0, 1, 1], "mode": "reflect"}, 2),
    ("Pad", [X, ints(0, 1, -1, 1, -1, 1), scalar(0.7)], {}, 13),
    ("Pad", [X, ints(0, 2, 3, 0, 1, 2)], {"mode": "reflect"}, 13),
    ("Pad", [X, ints(3, 2, 0, 0, 4, 2)], {"mode": "edge"}, 13),
    ("Pad", [X, ints(1, 2), scalar(0.7), ints(-1)], {}, 18),
    ("Pad", [X, ints(1, 0, 2, 3), None, ints(2, 0)], {"mode": "edge"}, 18),
    ("Pad", [X, ints(0, 2, 3, 0, 1, 2)], {"mode": "wrap"}, 19),
]
REDUCTIONS: list[Case] = [
    *(
        (kind, [positive(2, 3, 4), *rest], attributes, version)
        for kind in sorted(kind for kind in RULES if kind.startswith("Reduce") and kind != "ReduceSum")
        for rest, attributes, version in (
            ([], {}, 13), ([], {"axes": [-1, 0]}, 12), ([], {"axes": [-2], "keepdims": 0}, 1), ([ints(1)], {}, 18),
            ([ints(0, -1)], {"keepdims": 0}, 18),
        )
    ),
    *((kind, [spaced(3, 5)], {"axes": [1]}, 13) for kind in ("ReduceL1", "ReduceL2", "ReduceProd", "ReduceMin")),
    ("ReduceSum", [X], {"axes": [1]}, 11),
    ("ReduceSum", [X, ints(0, -1)], {"keepdims": 0}, 13),
    *((kind, [spaced(*shape)], {}, 17)
      for kind in ("GlobalAveragePool", "GlobalMaxPool")
      for shape in ((2, 3, 5), (1, 2, 3, 4), (1, 2, 3, 2, 2))),
    *(("CumSum", [X, scalar(axis)], {"exclusive": exclusive, "reverse": reverse}, 14)
      for axis in (0, -1) for exclusive in (0, 1) for reverse in (0, 1)),
    *((kind, [X], attributes, version)
      for kind in ("Softmax", "LogSoftmax")
      for attributes in ({}, {"axis": 0}, {"axis": -2})
      for version in (1, 11, 13)),
]  # fmt: skip
NORMALIZATIONS: list[Case] = [
    ("LayerNormalization", [ROWS, P8, P8], {}, 17),
    ("LayerNormalization", [ROWS, P8], {"epsilon": 0.1}, 17),
    ("LayerNormalization", [ROWS, P38, P38], {"axis": 1}, 17),
    ("SimplifiedLayerNormalization", [ROWS, P8], {"axis": -1, "epsilon": 0.1}, 17),
    ("InstanceNormalization", [CHANNELS, P6, P6], {}, 6),
    ("InstanceNormalization", [ROWS, P3, P3], {"epsilon": 0.1}, 6),
    ("GroupNormalization", [CHANNELS, P3, P3], {"num_groups": 3}, 18),
    ("GroupNormalization", [CHANNELS, P6, P6], {"num_groups": 3}, 21),
    ("GroupNormalization", [ROWS, P3, P3], {"num_groups": 3, "epsilon": 0.1}, 21),
    (MS + "SkipLayerNormalization", [ROWS, ROWS[::-1], P8], {}, 17),
    (MS + "SkipLayerNormalization", [ROWS, ROWS[:1], P8, P8, P8], {"epsilon": 0.1}, 17),
    (MS + "SkipLayerNormalization", [ROWS, ROWS[0], P8, None, P8], {}, 17),
    *(
        ("BatchNormalization", [normal(*shape), P3, P3, normal(3), P3], {"epsilon": 1e-3}, version)
        for shape in ((2, 3), (2, 3, 5), (2, 3, 5, 6))
        for version in (9, 15)
    ),
]
PRODUCTS: list[Case] = [
    *(
        ("MatMul", normals(left, right), {}, 17)
        for left, right in (
            ((3, 4), (4, 5)), ((2, 6, 3, 4), (4, 5)), ((2, 6, 3, 4), (1, 1, 4, 5)), ((3, 4), (2, 4, 5)),
            ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((6, 3, 4), (2, 1, 4, 5)), ((2, 3, 4), (1, 4, 5)),
            ((4,), (4, 5)), ((4,), (2, 4, 5)), ((2, 3, 4), (4,)), ((4,), (4,)), ((1, 1, 4), (4, 5)),
        )
    ),
    *(
        ("Gemm", normals((4, 3) if a else (3, 4), (5, 4) if b else (4, 5), *bias),
         {"transA": a, "transB": b, **more}, 17)
        for a in (0, 1)
        for b in (0, 1)
        for bias, more in (([], {}), ([(5,)], {"alpha": 0.5, "beta": -2.0}), ([(3, 1)], {}), ([()], {}))
    ),
    ("Gemm", [*normals((3, 4), (4, 5)), None], {}, 17),
    *(
        (MS + "FusedMatMul", normals((*one, *((4, 3) if a else (3, 4))), (*two, *((5, 4) if b else (4, 5)))),
         {"transA": a, "transB": b, "alpha": 0.25}, 17)
        for a in (0, 1) for b in (0, 1) for one, two in (((), ()), ((), (2,)), ((2, 3), (3,)))
    ),
    *(
        ("Einsum", normals(*shapes), {"equation": equation}, 17)
        for equation, shapes in (
            ("ij,kj->ki", [(3, 4), (5, 4)]), ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
            ("bhij,bhjd->bihd", [(2, 3, 4, 6), (2, 3, 6, 5)]), ("b i d , h d -> b h i", [(2, 4, 5), (3, 5)]),
            ("i,j->ij", [(3,), (4,)]), ("i,i->", [(3,), (3,)]), ("ij,ij->ij", [(3, 4), (3, 4)]),
            ("ij,k->jk", [(3, 4), (5,)]), ("ijk,il->lj", [(3, 4, 5), (3, 2)]), ("Bij,jk->Bik", [(2, 3, 4), (4, 5)]),
            ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]), ("...ij,jk->...ik", [(6, 2, 3, 4), (4, 5)]),
            ("ij->ji", [(3, 4)]),
        )
    ),
]  # fmt: skip
CONVOLUTIONS: list[Case] = [
    *(
        ("Conv", normals(x, kernel, kernel[:1]), attributes, 17)
        for x, kernel, attributes in (
            ((2, 3, 7, 8), (4, 3, 1, 1), {}),
            ((2, 3, 7, 8), (4, 3, 1, 1), {"strides": [2, 2]}),
            ((2, 3, 7, 8), (4, 3, 1, 1), {"pads": [1, 0, 0, 2]}),
            ((2, 3, 9, 8), (4, 3, 3, 2), {"pads": [2, 0, 1, 3], "strides": [2, 3], "dilations": [2, 3]}),
            ((1, 3, 9, 8), (4, 3, 3, 3), {"strides": [4, 4]}),
            ((1, 4, 9, 8), (4, 1, 3, 3), {"strides": [2, 2], "group": 4, "pads": [1, 1, 1, 1]}),
            ((2, 4, 9, 8), (4, 1, 5, 3), {"dilations": [2, 1], "group": 4, "pads": [4, 1, 4, 1]}),
            ((2, 4, 9, 8), (8, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
            ((2, 4, 9, 8), (6, 2, 3, 3), {"group": 2, "strides": [1, 2]}),
            ((2, 4, 9, 8), (6, 2, 1, 1), {"group": 2}),
            ((2, 3, 7, 8), (4, 3, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
            ((2, 3, 7, 8), (4, 3, 2, 3), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
            ((2, 3, 7, 8), (4, 3, 4, 3), {"auto_pad": "VALID", "strides": [2, 3]}),
            ((2, 3, 2, 2), (4, 3, 7, 7), {"pads": [3, 3, 3, 3]}),
            ((2, 3, 9), (4, 3, 3), {"pads": [1, 0], "strides": [2]}),
            ((2, 2, 5, 6, 7), (4, 2, 3, 2, 3), {"pads": [1, 0, 1, 1, 1, 1], "strides": [1, 2, 2]}),
        )
    ),
    *(
        ("ConvTranspose", normals(x, kernel, (kernel[1] * attributes.get("group", 1),)), attributes, 17)
        for x, kernel, attributes in (
            ((2, 3, 5, 6), (3, 4, 1, 1), {}),
            ((2, 3, 5, 6), (3, 4, 2, 2), {"strides": [2, 2]}),
            ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 2]}),
            ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [3, 2], "dilations": [2, 3]}),
            ((2, 4, 5, 6), (4, 1, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 4}),
            ((2, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "group": 2}),
            ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [10, 12]}),
            ((2, 3, 5, 6), (3, 4, 4, 3), {"strides": [2, 2], "output_shape": [11, 12], "output_padding": [1, 0]}),
            ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
            ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
            ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "VALID"}),
            ((2, 3, 5), (3, 4, 3), {"strides": [2], "pads": [1, 1]}),
        )
    ),
]  # fmt: skip
POOLS = (  # shape, attributes
    ((2, 3, 8, 9), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 1]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [3, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
    ((2, 3, 8, 9), {"kernel_shape": [1, 1], "strides": [2, 2]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [3, 2], "auto_pad": "VALID"}),
    ((2, 3, 15), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ((2, 3, 5, 6, 7), {"kernel_shape": [2, 3, 2], "strides": [1, 2, 2], "pads": [1, 0, 1, 0, 1, 1]}),
)
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
SIZES = ((2, 3, 7, 10), (2, 3, 3, 1), (2, 3, 11, 4))
SMOOTH = [normal(2, 3, 5, 7), None, None]


def resized(mode: str, coordinates: str, **more: Any) -> dict[str, Any]:
    return {"mode": mode, "coordinate_transformation_mode": coordinates, **more}


RESIZES: list[Case] = [
    *(
        ("Resize", [*SMOOTH, ints(*sizes)], resized(mode, coordinates), 17)
        for mode in ("linear", "cubic") for coordinates in COORDINATES for sizes in SIZES
    ),
    ("Resize", [*SMOOTH[:2], np.array([1, 1, 1.7, 0.6], np.float32)], {"mode": "cubic", "exclude_outside": 1}, 17),
    ("Resize", [*SMOOTH[:2], np.array([1, 1, 1.7, 0.6], np.float32)], {"mode": "cubic", "cubic_coeff_a": -0.5}, 17),
    *(
        ("Resize", [normal(*shape), None, np.array(scales, np.float32)], resized(mode, "half_pixel"), 17)
        for shape, mode, scales in (
            ((2, 3, 4, 5, 6), "linear", (1, 1, 2, 1.5, 2)), ((2, 3, 4, 5, 6), "nearest", (1, 1, 2, 1.5, 2)),
            ((4, 5), "linear", (2, 1.5)), ((2, 3, 8), "nearest", (1, 1, 2)), ((2, 3), "nearest", (2, 2)),
            ((1, 1, 200, 170), "linear", (1, 1, 2, 1.7)), ((1, 1, 200, 170), "nearest", (1, 1, 2, 0.9)),
        )
    ),
    *(
        (kind, [normal(2, 3, 4, 6), np.array(scales, np.float32)], {"mode": mode}, version)
        for kind, version, scales in (("Resize", 10, (1, 1, 0.7, 0.4)), ("Resize", 10, (1, 1, 1.5, 3)),
                                      ("Upsample", 9, (1, 1, 1.5, 3)))
        for mode in ("nearest", "linear")
    ),
    ("Upsample", [normal(2, 3, 4, 6)], {"mode": "linear", "scales": [1.0, 1.0, 1.5, 3.0]}, 7),
]  # fmt: skip
NEWER: list[Case] = [  # what older releases of onnxruntime have no kernel for, or a faulty one
    ("Swish", [FLAT], {}, 24),
    ("Swish", [FLAT], {"alpha": 1.3}, 24),
    *((kind, [positive(3, 4)], {"noop_with_empty_axes": 1}, 18) for kind in ("ReduceMean", "ReduceMax", "ReduceL2")),
    ("RMSNormalization", [ROWS, P38], {"axis": 1, "epsilon": 0.1}, 23),
    (MS + "SkipSimplifiedLayerNormalization", [ROWS, ROWS[::-1], P8, P8], {}, 17),
    ("Einsum", normals((3, 4, 5)), {"equation": "ijk->kj"}, 17),
    *(
        ("MaxPool", [spaced(*shape)], attributes, 17)
        for shape, attributes in (
            *POOLS,
            ((2, 3, 12, 13), {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [2, 3], "pads": [2, 1, 2, 1]}),
            ((2, 1, 20, 20), {"kernel_shape": [17, 17]}),
        )
    ),
    *(
        ("AveragePool", [normal(*shape)], {**attributes, "count_include_pad": padding}, 19)
        for padding in (0, 1)
        for shape, attributes in (
            *POOLS,
            ((2, 3, 12, 13), {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [2, 1, 2, 1]}),
            ((1, 2, 301), {"kernel_shape": [5], "strides": [2], "pads": [2, 2]}),
        )
    ),
    *(
        ("Resize", [*SMOOTH, ints(*sizes)], resized("nearest", coordinates, nearest_mode=rounding), 17)
        for coordinates in COORDINATES
        for rounding in ("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
        for sizes in SIZES
    ),
    *(
        ("Resize", [normal(1, 1, 1, size), None, None, ints(1, 1, 1, length)],
         resized("nearest", "half_pixel", nearest_mode=rounding), 17)
        for rounding in ("round_prefer_floor", "round_prefer_ceil")
        for size, length in ((7, 38), (14, 19), (20, 6), (513, 1026), (65, 513), (640, 427))
    ),
    ("Resize", [*SMOOTH[:2], np.array([1, 1, 1.3, 0.5], np.float32)], resized("linear", "half_pixel_symmetric"), 19),
    ("Resize", [*SMOOTH, ints(8, 9)], {"mode": "linear", "axes": [2, -1]}, 18),
]  # fmt: skip
TABLE = [*ELEMENTWISE, *BROADCAST, *SHAPES, *REDUCTIONS, *NORMALIZATIONS, *PRODUCTS, *CONVOLUTIONS, *RESIZES]
SINGLE = ("GroupNormalization", "Resize", "Upsample")  # of which kernels for double precision compute in single


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "version"), [*TABLE, *([] if OLD_KERNELS else NEWER)], ids=label
)
def test_gradients_are_what_differences_show(
    kind: str, inputs: list[Any], attributes: dict[str, Any], version: int
) -> None:
    floats = [i for i, value in enumerate(inputs) if is_float(value)]
    check(
        kind, inputs, attributes, version, floats[:1] if kind in ("Resize", "Upsample") else None, single=kind in SINGLE
    )


OUTPUTS: list[tuple[Any, ...]] = [  # kind, inputs, attributes, version, outputs, those without a gradient, wanted
    ("Dropout", [X], {}, 13, ("y", "mask"), (), None),
    *(
        ("Split", inputs, attributes, version, ("a", "b", "c"), without, None)
        for without in ((), (0,), (1, 2))
        for inputs, attributes, version in (
            ([spaced(2, 6)], {"axis": 1}, 11), ([spaced(2, 6)], {"axis": -1, "split": [1, 3, 2]}, 2),
            ([spaced(6, 2), ints(0, 4, 2)], {}, 13), ([spaced(2, 8)], {"axis": 1, "num_outputs": 3}, 18),
        )
    ),
    *(
        ("TopK", inputs, attributes, version, ("values", "indices"), (), None)
        for inputs, attributes, version in (
            ([X], {"k": 2, "axis": 1}, 1), ([X, ints(3)], {}, 10), ([X, ints(2)], {"axis": 1, "largest": 0}, 11),
            ([X, ints(1)], {"axis": -2, "sorted": 0}, 11),
        )
    ),
    ("LayerNormalization", [ROWS, P8, P8], {}, 17, ("y", "mean", "deviation"), (1, 2), None),
]  # fmt: skip
for skipping, others in (("SkipLayerNormalization", 3), ("SkipSimplifiedLayerNormalization", 2)):
    for without in ((), (0,), (3,)):
        wanted = [0, 1, others + 1] if 0 in without else None
        if not OLD_KERNELS:
            inputs = [ROWS, ROWS[:1], *[P8] * others]
            OUTPUTS.append((MS + skipping, inputs, {}, 17, ("y", "", "", "sum"), without, wanted))


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "version", "outputs", "without", "wanted"), OUTPUTS, ids=label
)
def test_gradients_of_several_outputs(
    kind: str, inputs: Any, attributes: Any, version: int, outputs: Any, without: Any, wanted: Any
) -> None:
    check(kind, inputs, attributes, version, wanted, outputs, without)


def test_gradients_of_some_inputs() -> None:
    for exponent in (scalar(2.0), ints(3)):  # of a base below zero, the power is no function of the exponent
        check("Pow", [spaced(5, 5), exponent], version=15, wanted=[0])
    check("CastLike", [X, np.zeros(1)], version=15, wanted=[0])


def test_every_rule_is_in_the_table() -> None:
    kinds = {case[0] for case in (*TABLE, *NEWER, *OUTPUTS)} | {MS + "SkipSimplifiedLayerNormalization", "CastLike"}
    rounding, elsewhere = {"QuantizeLinear", "DequantizeLinear"}, {"LSTM", "GRU", "RNN"}
    assert kinds | rounding | {MS + kind for kind in rounding} | elsewhere == set(RULES)


@pytest.mark.parametrize(("groups", "outputs"), [(1, 6), (96, 96), (96, 192)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_in_parts(monkeypatch: pytest.MonkeyPatch, groups: int, outputs: int, stride: int) -> None:
    monkeypatch.setattr(windows, "_BUFFER", 2000)
    attributes = {"group": groups, "strides": [stride] * 2, "pads": [1, 1, 1, 1]}
    check("Conv", normals((3, 96, 9, 10), (outputs, 96 // groups, 3, 3)), attributes, wanted=[0])


def test_axes_are_mapped_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axes, "_BLOCK", 3)
    check("Resize", [*SMOOTH, ints(2, 3, 11, 4)], {"mode": "cubic"}, wanted=[0], single=True)
    check("Pad", [X, ints(0, 2, 3, 0, 1, 2)], {"mode": "reflect"})


# ---- What onnxruntime cannot judge ----------------------------------------------------------------------------------


def of_ones(kind: str, *inputs: Any, shape: Any = None, **attributes: Any) -> list[Any]:
    """Gradients of all inputs, from a gradient of ones."""
    values = [None if value is None else np.asarray(value) for value in inputs]
    if shape is None:
        shape = np.broadcast_shapes(*(value.shape for value in values if value is not None))
    return apply_rule(kind, values, [np.ones((PROBES, *shape), np.float32)], attributes)


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


@pytest.mark.parametrize(
    ("kind", "inputs", "expected"),
    [
        ("Sqrt", [f32(0, 4)], [0, 0.25]), ("Log", [f32(0, 4)], [0, 0.25]), ("Reciprocal", [f32(0, -2)], [0, -0.25]),
        ("Exp", [f32(1e4, -1e4)], [0, 0]), ("Div", [f32(1, 1), f32(0, 2)], [0, 0.5]),
        ("Pow", [f32(0, 0), f32(0, 0.5)], [0, 0]), ("Pow", [f32(-1, 4), f32(0.5, 0.5)], [0, 0.25]),
        ("Max", [f32(1, 2), f32(1, 1)], [0.5, 1]), ("Min", [f32(1, 2), f32(1, 1)], [0.5, 0]),
        ("Where", [np.array([True, False]), np.full(2, -1e300), np.zeros(2)], [0, 0]),
        ("Add", [np.full(2, -1e300), np.zeros(2)], [1, 1]), ("Cast", [np.ones(2)], None),
    ],
)  # fmt: skip
def test_derivatives_at_odd_places(kind: str, inputs: list[np.ndarray], expected: list[float] | None) -> None:
    """Those that are infinite or undefined count as zero, and inputs that are equally extreme get equal parts."""
    found = of_ones(kind, *inputs, to=TensorProto.INT64) if kind == "Cast" else of_ones(kind, *inputs)
    if expected is None:
        assert found == [None]
    else:
        np.testing.assert_allclose(found[0], [expected] * PROBES, rtol=1e-6)
        assert all(np.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize(
    ("kind", "x", "expected"),
    [
        ("ReduceMax", [1, 3, 3], [0, 0.5, 0.5]), ("ReduceMin", [1, 1, 3], [0.5, 0.5, 0]), ("ReduceL2", [0, 0], [0, 0]),
        ("ReduceProd", [2, 0, 3], [0, 6, 0]), ("ReduceProd", [2, 0, 0], [0, 0, 0]),
        ("ReduceLogSumExp", [-np.inf, 5, 1000], [0, 0, 1]), ("ReduceL1", [-2, 0, 3], [-1, 0, 1]),
    ],
)  # fmt: skip
def test_reductions_at_odd_places(kind: str, x: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(of_ones(kind, f32(*x), shape=(1,))[0], [f32(*expected)] * PROBES)


@pytest.mark.parametrize("kind", sorted({case[0] for case in ELEMENTWISE} - {"Trilu", "Cast"}))
def test_values_beyond_all_bounds_do_no_harm(kind: str) -> None:
    assert np.isfinite(of_ones(kind, f32(-np.inf, np.inf, -3e38, 3e38, 1000, -1000), to=1)[0]).all()


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_what_is_masked_out_of_a_softmax_does_no_harm(kind: str) -> None:
    assert np.isfinite(of_ones(kind, f32(-np.inf, 1, -3.4e38, 2))[0]).all()


def test_of_equal_elements_the_first_wins_a_max_pool() -> None:
    x, gradient = np.zeros((1, 1, 4, 4), np.float32), np.ones((1, 1, 1, 2, 2), np.float32)
    (found,) = apply_rule("MaxPool", [x], [gradient], {"kernel_shape": [2, 2], "strides": [2, 2]})
    assert found is not None
    assert found[0, 0, 0].tolist() == [[1, 0, 1, 0], [0] * 4, [1, 0, 1, 0], [0] * 4]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
@pytest.mark.parametrize("case", [("Tanh", [(3, 4)], {}, (3, 4)), ("Mul", [(3, 4), (4,)], {}, (3, 4)),
    ("MatMul", [(3, 4), (4, 5)], {}, (3, 5)), ("Conv", [(2, 4, 6, 6), (4, 1, 3, 3), (4,)], {"group": 4}, (2, 4, 4, 4)),
    ("ConvTranspose", [(2, 4, 6, 6), (4, 8, 3, 3)], {}, (2, 8, 8, 8)),
    ("MaxPool", [(2, 4, 6, 6)], {"kernel_shape": [3, 3]}, (2, 4, 4, 4)),
    ("BatchNormalization", [(2, 4, 6), (4,), (4,), (4,), (4,)], {}, (2, 4, 6))], ids=lambda case: case[0])  # fmt: skip
def test_gradients_are_of_single_precision(case: Any, kind: Any) -> None:
    """Whatever the inputs are; and the gradient may be one that is repeated, not writable."""
    name, shapes, attributes, out = case
    given = [np.abs(x).astype(kind) for x in normals(*shapes)]
    gradient = np.broadcast_to(normal(*out).astype(np.float32), (2, *out))
    found = apply_rule(name, given, [gradient], attributes)
    same = apply_rule(name, [value.astype(np.float32) for value in given], [gradient.copy()], attributes)
    for value, other in zip(found, same, strict=True):
        assert value is not None and value.dtype == np.float32
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"])
def test_what_is_arranged_otherwise_comes_back_as_a_view(kind: str) -> None:
    gradient, x = np.ones((2, 3, 4), np.float32), np.ones((4, 3) if kind == "Transpose" else (3, 4), np.float32)
    (found,) = apply_rule(kind, [x], [gradient])
    assert found is not None and found.base is gradient


@pytest.mark.parametrize(
    ("dtype", "to", "passes"),
    [(np.float32, TensorProto.FLOAT16, True), (np.float16, TensorProto.BFLOAT16, True),
     (np.float32, TensorProto.BOOL, False), (np.int64, TensorProto.FLOAT, False)],
)  # fmt: skip
def test_casts_to_and_from_integers_stop_gradients(dtype: Any, to: int, passes: bool) -> None:
    (found,) = of_ones("Cast", np.ones(2, dtype), to=to)
    assert (found is not None) == passes


def test_gradients_go_straight_through_a_grid_but_for_what_is_clipped() -> None:
    """An int8 grid of steps 0.05 around 3 holds −6.55 … 6.2; without a zero point it is of uint8."""
    step, zero = np.array(0.05, np.float32), np.array(3, np.int8)
    found = of_ones("QuantizeLinear", f32(-7, -6.55, 0.26, 6.2, 7), step, zero)[0]
    np.testing.assert_allclose(found[0], [0, 20, 20, 20, 0], rtol=1e-6)
    found = of_ones("DequantizeLinear", np.array([-128, 8, 127], np.int8), step, zero)[0]
    np.testing.assert_array_equal(found[0], [step] * 3)
    steps, x = f32(0.5, 0.25), np.array([[0, -1], [127.5, 1], [128, 63.75]], np.float32)
    found = of_ones("QuantizeLinear", x, steps, axis=-1)[0]
    np.testing.assert_array_equal(found[0], [[2, 0], [2, 4], [0, 4]])
    found = of_ones("DequantizeLinear", x.astype(np.uint8), steps, axis=-1)[0]
    np.testing.assert_array_equal(found[0], [steps] * 3)


UNKNOWN: list[Case] = [  # kind, inputs, attributes, message
    ("Dropout", [X, scalar(0.5), np.array(True)], {}, "training"),
    ("Add", [X, X], {"axis": 0, "broadcast": 1}, "axis"),
    ("Add", [X, None], {}, "without its input 1"),
    ("QuantizeLinear", [X, X], {"block_size": 2}, "blocks"),
    ("Tile", [X, ints(2), ints(1)], {}, "before opset 6"),
    ("TopK", [X, ints(4)], {"sorted": 0}, "in no order"),
    ("Pad", [X], {"pads": [0, 0, -1, 0, 0, 0], "mode": "edge"}, "edge with a negative"),
    ("Pad", [X], {}, "without pads"),
    ("Slice", [X], {}, "without starts"),
    ("Gather", [X, None], {}, "without its input 1"),
    ("Concat", [X, None], {}, "without its input 1"),
    ("BatchNormalization", [X, P3, P3, P3, P3], {"training_mode": 1}, "in training"),
    (MS + "FusedMatMul", [X, X], {"transBatchA": 1}, "batch axes"),
    ("Einsum", [spaced(3, 3)], {"equation": "ii->i"}, "diagonal"),
    ("Einsum", [spaced(3, 4), spaced(4, 5)], {"equation": "ij,jk"}, "explicit output"),
    ("Einsum", [spaced(3, 4)] * 3, {"equation": "ij,jk,kl->il"}, "two operands"),
    ("Einsum", [spaced(1, 3, 4), spaced(2, 4, 5)], {"equation": "...ij,...jk->...ik"}, "broadcasts"),
    *(
        ("Resize", [X, None, None, ints(2, 3, 4)], attributes, "Resize with")
        for attributes in ({"antialias": 1}, {"keep_aspect_ratio_policy": "not_larger"})
    ),
    *(
        ("Resize", [X, None, None, ints(2, 3, 5)], attributes, "Resize with")
        for attributes in (
            {"mode": "other"}, {"nearest_mode": "other"}, {"coordinate_transformation_mode": "tf_crop_and_resize"},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs", "attributes", "message"), UNKNOWN, ids=label)
def test_what_no_rule_knows_is_said(kind: str, inputs: Any, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(NoRuleError, match=message):
        apply_rule(kind, inputs, [np.ones((1, *X.shape), np.float32)], attributes)


def test_statistics_of_a_normalization_have_no_rule() -> None:
    one = np.ones((1, 2, 3), np.float32)
    for first in (None, one):
        with pytest.raises(NoRuleError, match="whose mean or deviation is used"):
            apply_rule("LayerNormalization", [one[0], one[0, 0]], [first, one[..., :1]])
