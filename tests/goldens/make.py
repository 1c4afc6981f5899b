"""Writes the golden archives and `goldens.json`, what must come out of them.

Goldens are inputs of decoders and are kept for ever: this script adds those that do not exist and never touches one
that does, so that an encoder may improve while every archive ever written stays readable. What must come out is
computed here from the weights with numpy and ml_dtypes, not with a decoder.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from riq_cli.archive import Archive, Manifest, SkeletonEntry, deflate
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.codes import Codes
from riq_cli.model import Layer
from riq_cli.pipeline.layer_entry import encode_layer
from riq_cli.quantize.scalar import nearest

FOLDER = Path(__file__).parent
RECORD = FOLDER / "goldens.json"
ONNX_TYPES = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
NUMPY_TYPES = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}

GOLDENS: dict[str, Callable[[], Golden]] = {}


@dataclass(frozen=True)
class Weights:
    """A tensor to be coded: its values, bin width (None: raw), places (none: the next initializer), codes, trellis."""

    name: str
    dtype: str
    values: NDArray[Any]
    width: float | None
    places: tuple[str, ...] = ()
    scales: tuple[Codes, ...] = ()
    trellis: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Golden:
    """A skeleton (None: one initializer for each layer) and its weights."""

    weights: tuple[Weights, ...]
    skeleton: onnx.ModelProto | None = None


def golden(make: Callable[[], Golden]) -> Callable[[], Golden]:
    GOLDENS[f"v1-{make.__name__.replace('_', '-')}.riqz"] = make
    return make


def normal(seed: int, *shape: int, scale: float = 1.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


@golden
def float16() -> Golden:
    return Golden((Weights("w", "float16", normal(1, 40, 30), 0.25),))


@golden
def bfloat16() -> Golden:
    return Golden((Weights("w", "bfloat16", normal(2, 40, 30), 0.3),))


@golden
def float32() -> Golden:
    return Golden((Weights("w", "float32", normal(3, 4, 3, 5, 20), 0.1),))


@golden
def float64() -> Golden:
    return Golden((Weights("w", "float64", normal(4, 300), 0.01),))


@golden
def constant() -> Golden:
    weights = [
        Weights(f"{dtype} {value}", dtype, np.full((3, 5), value), 0.7)
        for dtype in ONNX_TYPES
        for value in (-2.2, -0.1, 0.0, 3.0)
    ]
    return Golden((*weights, Weights("scalar", "float32", np.array(0.4), 0.1)))


@golden
def raw() -> Golden:
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 65504, 1])
    return Golden(tuple(Weights(dtype, dtype, odd, None) for dtype in ONNX_TYPES))


@golden
def largest() -> Golden:
    """Products beyond the largest finite value of every type."""
    weights = []
    for dtype, storage in NUMPY_TYPES.items():
        top = float(ml_dtypes.finfo(storage).max)
        weights.append(Weights(f"{dtype} ans", dtype, np.array([top, -top, top / 3, 0, -top / 3]), 0.6 * top))
        weights.append(Weights(f"{dtype} constant", dtype, np.full(3, -top), 0.6 * top))
    return Golden(tuple(weights))


@golden
def gaps_and_outliers() -> Golden:
    values = np.rint(normal(5, 700)) * 5
    values[[3, 99, 300]] = [8388608, -8388608, 70000]
    return Golden((Weights("w", "float64", values, 1.0), Weights("two", "float32", np.sign(normal(6, 90)), 0.5)))


@golden
def many_symbols() -> Golden:
    return Golden((Weights("w", "float32", np.random.default_rng(7).laplace(scale=200, size=1500), 1.0),))


@golden
def skewed() -> Golden:
    values = np.zeros(5000)
    values[::999] = -1
    return Golden((Weights("rare", "float32", values, 1.0), Weights("first alone", "float16", np.arange(2.0), 1.0)))


@golden
def two_streams() -> Golden:
    values = np.zeros((1 << 20) + 9)
    values[[0, 5, (1 << 20) - 1, 1 << 20, (1 << 20) + 7]] = [1, -2, 3, -1, 2]
    return Golden((Weights("w", "float16", values, 1.0),))


@golden
def names() -> Golden:
    weights = [
        Weights(name, "float32", normal(8, 2, 3), 0.5) for name in ("", "größe/重み", 'quote " and \x1b', "a" * 300)
    ]
    return Golden(tuple(weights))


def codes(seed: int, low: int, high: int, *dims: int, axes: tuple[int, ...]) -> Codes:
    return Codes(axes, np.random.default_rng(seed).integers(low, high + 1, dims).astype(np.int32))


@golden
def scales() -> Golden:
    """Bin widths along one axis, two, both together and all; codes far out; one symbol; a stream for each dtype."""
    conv = normal(20, 12, 5, 3, 3)
    two = (codes(21, -9, 9, 12, axes=(0,)), codes(22, -3, 3, 5, 3, 3, axes=(1, 2, 3)))
    rows, same = codes(23, -2, 2, 30, axes=(0,)), Codes((1,), np.full(20, -5, np.int32))
    far = Codes((0,), np.array([-256, -255, 255, 256, 0, 1, 2, 3, -1], np.int32))
    alike = Codes((0,), np.array([0, 3, -6], np.int32))
    return Golden(
        (
            Weights("conv", "float32", conv, 0.1, scales=two),
            Weights("matrix", "float16", normal(24, 30, 20), 0.2, scales=(rows, same)),
            Weights("every weight", "bfloat16", normal(25, 70), 0.3, scales=(codes(26, -5, 5, 70, axes=(0,)),)),
            Weights("far", "float64", 2.0 ** (far.values / 4.0) * np.arange(-4.0, 5), 1.0, scales=(far,)),
            Weights(
                "one symbol", "float32", np.full((3, 4), 7) * 2.0 ** (alike.values[:, None] / 4), 7.0, scales=(alike,)
            ),
            Weights("axis between", "float32", normal(27, 4, 6, 5), 0.4, scales=(codes(28, -4, 4, 4, 5, axes=(0, 2)),)),
        )
    )


@golden
def trellis() -> Golden:
    """Lanes along one axis and along two, with scales, of one symbol, in every dtype."""
    scale = codes(40, -9, 9, 7, axes=(1,))
    return Golden(
        (
            Weights("rows", "float32", normal(42, 12, 30), 0.2, trellis=(0,)),
            Weights("columns", "float16", normal(43, 30, 7), 0.2, scales=(scale,), trellis=(1,)),
            Weights("taps", "bfloat16", normal(44, 5, 7, 3, 3), 0.3, (), (scale,), (0, 2)),
            Weights("one symbol", "float64", np.full((3, 9), 2.0), 2.0, trellis=(0,)),
        )
    )


@golden
def student() -> Golden:
    """Distributions: off centre, of magnitudes along axes, beside bin widths, in cells, of lanes, by pairs."""
    loud, quiet = (
        2.0 ** (codes(50, -8, 8, 40, axes=(0,)).values / 4),
        2.0 ** (codes(51, -6, 6, 50, axes=(0,)).values / 4),
    )
    widths = codes(52, -9, 9, 30, axes=(1,))
    pairs = 2.0 ** (codes(53, -6, 6, 2, 24, axes=(0, 1)).values / 4)
    return Golden(
        (
            Weights("rows and columns", "float32", normal(54, 40, 50) * loud[:, None] * quiet, 0.3),
            Weights("bin widths", "float16", normal(55, 40, 30), 0.1, scales=(widths,)),
            Weights("off centre", "bfloat16", 40 + 5 * normal(56, 90), 1.0),
            Weights("cells", "float64", normal(57, 80) * 1e5, 1.0),
            Weights("lanes", "float32", normal(58, 24, 40) * loud[:24, None], 0.2, trellis=(0,)),
            Weights("pairs", "float32", normal(59, 2, 24, 30) * pairs[:, :, None], 0.3),
            Weights("two symbols", "float32", np.sign(normal(60, 60)), 1.0),
        )
    )


@golden
def no_layers() -> Golden:
    return Golden(())


@golden
def places() -> Golden:
    def tensor(name: str, dtype: str, *dims: int) -> TensorProto:
        return TensorProto(name=name, data_type=ONNX_TYPES[dtype], dims=dims)

    def branch(name: str, node: onnx.NodeProto, *initializers: TensorProto) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [out], initializers)

    function = helper.make_function(
        "local",
        "offset",
        ["x"],
        ["y"],
        [
            helper.make_node("Constant", [], ["c"], value=tensor("c", "float32", 6)),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=tensor("c", "float32", 6)),
            helper.make_node(
                "If",
                ["which"],
                ["i"],
                then_branch=branch("a", helper.make_node("Identity", ["v"], ["t"]), tensor("v", "float32", 6)),
                else_branch=branch("b", helper.make_node("Constant", [], ["e"], value=tensor("e", "float32", 6))),
            ),
            helper.make_node("offset", ["i"], ["o"], domain="local"),
            helper.make_node("Sum", ["c", "o", "v", "copy"], ["y"]),
        ],
        "places",
        [helper.make_tensor_value_info("which", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [6])],
        [tensor("v", "float32", 6), tensor("copy", "float32", 6)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8, producer_name="golden")
    weights = (
        Weights("twice", "float32", normal(10, 6), 0.2, ("graph.initializer[0]", "graph.initializer[1]")),
        Weights("constant", "float32", normal(11, 6), 0.2, ("graph.node[0].attribute[0].t",)),
        Weights("else", "float32", normal(12, 6), 0.2, ("graph.node[1].attribute[0].g.node[0].attribute[0].t",)),
        Weights("then", "float32", normal(13, 6), 0.2, ("graph.node[1].attribute[1].g.initializer[0]",)),
        Weights("function", "float32", normal(14, 6), 0.2, ("functions[0].node[0].attribute[0].t",)),
    )
    return Golden(weights, model)


def skeleton_for(weights: tuple[Weights, ...]) -> onnx.ModelProto:
    """A model that passes its initializers on; without initializers, its input."""
    tensors = [
        TensorProto(name=f"w{number}", data_type=ONNX_TYPES[item.dtype], dims=item.values.shape)
        for number, item in enumerate(weights)
    ]
    inputs = [] if weights else [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    names = [tensor.name for tensor in tensors] or ["x"]
    nodes = [helper.make_node("Identity", [name], [f"y{number}"]) for number, name in enumerate(names)]
    types = [(tensor.data_type, list(tensor.dims)) for tensor in tensors] or [(TensorProto.FLOAT, [1])]
    outputs = [helper.make_tensor_value_info(f"y{number}", *kind) for number, kind in enumerate(types)]
    graph = helper.make_graph(nodes, "golden", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="golden")


def levels_of(symbols: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """What symbols stand for in quarters of a bin: each odd one turns the sign after next of its lane."""
    levels = np.empty_like(symbols)
    signs: dict[tuple[int, ...], tuple[int, int]] = {}
    for index in np.ndindex(symbols.shape):
        lane = tuple(index[axis] for axis in axes)
        sign, before = signs.get(lane, (1, 1))
        levels[index] = sign * (4 * symbols[index] + 1)
        signs[lane] = (-before if symbols[index] % 2 else before), sign
    return levels


def make(item: Golden) -> tuple[bytes, dict[str, Any]]:
    """The archive's bytes, and what must come out of it."""
    skeleton = (item.skeleton or skeleton_for(item.weights)).SerializeToString(deterministic=True)
    entries, sections, expected = [], [deflate(skeleton)], []
    for number, weights in enumerate(item.weights):
        with np.errstate(over="ignore"):
            stored = weights.values.astype("f4" if weights.dtype == "bfloat16" else weights.values.dtype)
            stored = stored.astype(NUMPY_TYPES[weights.dtype])
        restored = stored
        if weights.width is not None:
            top = float(ml_dtypes.finfo(NUMPY_TYPES[weights.dtype]).max)
            code = np.zeros(stored.shape, int)
            for item_codes in weights.scales:
                code += item_codes.values[
                    tuple(np.indices(stored.shape, sparse=True)[axis] for axis in item_codes.axes)
                ]
            widths = np.ldexp(weights.width * (2.0 ** (np.arange(4) / 4))[code % 4], code // 4)
            symbols = np.rint(stored.astype(np.float64) / widths)
            with np.errstate(over="ignore"):
                product = symbols * widths + 0.0
            if weights.trellis is not None:
                levels = levels_of(symbols.astype(int), weights.trellis)
                product = levels * (widths / 4)
            product = np.clip(product, -top, top)
            restored = product.astype("f4" if weights.dtype == "bfloat16" else "f8").astype(NUMPY_TYPES[weights.dtype])
        storage = stored.view(np.uint16) if weights.dtype == "bfloat16" else stored
        where = weights.places or (f"graph.initializer[{number}]",)
        layer = Layer(weights.name, "Identity", where, weights.dtype, stored.shape, storage)
        quantized = None
        if weights.width is not None:
            quantized = nearest(storage, weights.dtype, weights.width, weights.scales)
            if weights.trellis is not None:
                flat = levels.reshape(-1).astype(np.int32)
                quantized = Quantized(flat, weights.width, weights.scales, weights.trellis)
        entry, parts = encode_layer(layer, quantized, None)
        entries.append(entry)
        sections += parts
        expected.append(
            {
                "name": entry.name,
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "coding": entry.coding,
                "places": list(entry.tensors),
                "sha256": hashlib.sha256(restored.tobytes()).hexdigest(),
            }
        )
    manifest = Manifest(SkeletonEntry(len(sections[0]), len(skeleton), zlib.crc32(skeleton)), tuple(entries))
    file = io.BytesIO()
    Archive.build(manifest, sections).write(file)
    return file.getvalue(), {"skeleton": hashlib.sha256(skeleton).hexdigest(), "layers": expected}


def main() -> None:
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    for name, item in GOLDENS.items():
        path = FOLDER / name
        if path.exists() and name in record:
            print(f"{name}: exists, kept")
            continue
        data, record[name] = make(item())
        path.write_bytes(data)
        print(f"{name}: {len(data)} bytes")
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
