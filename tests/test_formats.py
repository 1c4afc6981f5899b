"""Models in fewer bits compute what the restored model computes: from integers bit by bit, from float16 nearly."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import FORMS, feeds, float16, info, model, node, nodes, perceptron, save, tensor
from command import fails, riq
from hypothesis import given
from hypothesis import strategies as st

import riq_cli
from riq_cli.errors import CorruptArchive, FormatError, SettingsError
from riq_cli.limits import QUARTERS
from riq_cli.model import Layer, Model, Stored, with_stored
from riq_cli.pipeline import PRESETS, Settings, converted
from riq_cli.quantize.scalar import short_width
from riq_cli.text import human_size

SAMPLES = Path(__file__).parent.parent / "sample_models"
BFLOAT16 = "bfloat16"


def outputs(proto: bytes, inputs: list[dict[str, np.ndarray]]) -> list[object]:
    """All outputs, floats by their bytes, of a session that computes the graph as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # of constants, in another order of sums
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    found = [np.asarray(value) for feed in inputs for value in session.run(None, feed)]
    return [value.tolist() if value.dtype == object else value.tobytes() for value in found]


def inputs_of(proto: bytes) -> list[dict[str, np.ndarray]]:
    return feeds(onnx.ModelProto.FromString(proto))


def multiplied(values: np.ndarray, scales: np.ndarray, axis: int | None, dtype: str) -> np.ndarray:
    """The weights that integers stand for, in storage type; all products are exact in any type."""
    shape = [-1 if axis == number else 1 for number in range(values.ndim)]
    weights = values.astype(np.float32) * (scales if axis is None else scales.reshape(shape))
    if dtype == BFLOAT16:
        return (weights.view(np.uint32) >> 16).astype(np.uint16)
    return weights.astype(dtype)


def in_integers(layer: Layer, dtype: str, seed: int) -> tuple[Stored, Layer]:
    """A layer of random integers, in two forms."""
    generator = np.random.default_rng(seed)
    axis = len(layer.shape) - 1 if layer.shape else None
    values = generator.integers(-7, 8, layer.shape, np.int8)
    scales = np.exp2(generator.integers(-4, -1, () if axis is None else layer.shape[axis])).astype(np.float32)
    floats = multiplied(values, scales, axis, layer.dtype)
    return Stored(dtype, values, scales, axis), replace(layer, values=floats)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", sorted(set(FORMS) - {"not_finite"}))
def test_integers_take_the_place_of_a_layer_wherever_it_lives(name: str, dtype: str, tmp_path: Path) -> None:
    source = Model.load(save(FORMS[name](), tmp_path))
    chosen = [
        number
        for number, layer in enumerate(source.layers)
        if not layer.structural
        and not layer.is_quantized
        and (dtype == "int8" or not any(place.startswith("functions") for place in layer.places))
    ]
    pairs = {number: in_integers(source.layers[number], dtype, number) for number in chosen}
    floats = Model(source.skeleton, [pairs[n][1] if n in pairs else one for n, one in enumerate(source.layers)])
    stored = with_stored(floats, {number: stored for number, (stored, _) in pairs.items()})
    given = inputs_of(floats.to_bytes())
    assert outputs(stored.to_bytes(), given) == outputs(floats.to_bytes(), given)
    assert sum(layer.dtype == dtype for layer in stored.layers) == len(chosen)


@pytest.mark.parametrize(
    ("opset", "dtype", "axis", "domain"),
    [
        (9, "int8", None, "com.microsoft"),
        (10, "int8", None, ""),
        (12, "int8", 1, "com.microsoft"),
        (13, "int8", 1, ""),
        (20, "int4", 1, "com.microsoft"),
        (21, "int4", 1, ""),
    ],
)
def test_the_opset_stays_and_nodes_are_onnxruntimes_where_it_lacks_them(
    opset: int, dtype: str, axis: int | None, domain: str, tmp_path: Path
) -> None:
    weights = [tensor("w", np.ones((3, 5), np.float32))]
    proto = model(nodes("MatMul x w > y"), [info("x", 2, 3)], [info("y", 2, 5)], weights, opset=opset)
    source = Model.load(save(proto, tmp_path))
    scales = np.full(() if axis is None else 5, 0.5, np.float32)
    stored = with_stored(source, {0: Stored(dtype, np.full((3, 5), -6, np.int8), scales, axis)}).to_bytes()
    found = onnx.ModelProto.FromString(stored)
    assert [(item.domain, item.version) for item in found.opset_import] == [("", opset), (domain, 1)][
        : 1 + bool(domain)
    ]
    assert [(node.op_type, node.domain) for node in found.graph.node] == [("DequantizeLinear", domain), ("MatMul", "")]
    assert outputs(stored, [{"x": np.ones((2, 3), np.float32)}]) == [np.full((2, 5), -9, np.float32).tobytes()]


@pytest.mark.parametrize(
    ("axis", "opset", "text", "shape"),
    [
        (None, 13, "Gemm x w > y transB=1", [8, 5]),
        (0, 13, "Gemm x w > y transB=1", [8, 5]),
        (1, 13, "Gemm x w > y transB=1", [5, 8]),  # scales along what is summed
        (0, 12, "Gemm x w > y transB=1", [5, 8]),  # the opset's DequantizeLinear has no axis
        (0, 13, "Gemm x w > y transB=1; Identity w > v", [5, 8]),
        (0, 13, "Gemm x w > z transB=1; Relu z > y", [5, 8]),  # onnxruntime multiplies floats here
    ],
)
def test_a_transposed_matrix_is_stored_as_it_is_multiplied(
    axis: int | None, opset: int, text: str, shape: list[int], tmp_path: Path
) -> None:
    outs = [info("y", 2, 5), *([info("v", 5, 8)] if "v" in text else [])]
    weights = [tensor("w", np.zeros((5, 8), np.float32))]
    source = Model.load(save(model(nodes(text), [info("x", 2, 8)], outs, weights, opset=opset), tmp_path))
    one, layer = in_integers(source.layers[0], "int8", 0)
    if axis is None:
        scales = np.full((), 0.25, np.float32)
    else:
        scales = np.exp2(-np.arange(float(layer.shape[axis]))).astype(np.float32)
    floats = replace(layer, values=multiplied(one.values, scales, axis, "float32"))
    stored = with_stored(source, {0: Stored("int8", one.values, scales, axis)})
    found = {item.name: list(item.dims) for item in stored.skeleton.graph.initializer}
    assert found["w/int8"] == shape
    given = [{"x": np.eye(2, 8, dtype=np.float32)}]
    assert outputs(stored.to_bytes(), given) == outputs(Model(source.skeleton, [floats]).to_bytes(), given)


@pytest.mark.parametrize("opset", [12, 13])
@pytest.mark.parametrize(
    ("dtype", "axis", "tied", "first"),
    [
        ("int8", None, False, "Gather"),
        ("int8", 1, False, "Gather"),
        ("int8", 0, False, "DequantizeLinear"),  # scales of rows would have to be gathered too
        ("int8", 1, True, "DequantizeLinear"),  # for the MatMul alone
        ("float16", None, False, "Gather"),
    ],
)
def test_rows_of_a_table_are_converted_when_they_are_taken(
    dtype: str, axis: int | None, tied: bool, first: str, opset: int, tmp_path: Path
) -> None:
    text = "Gather w i > r; MatMul r w > y" if tied else "Gather w i > y"
    proto = model(
        nodes(text),
        [info("i", 2, 3, dtype=onnx.TensorProto.INT64)],
        [info("y", 2, 3, 8)],
        [tensor("w", np.zeros((8, 8), np.float32))],
        opset=opset,
    )
    source = Model.load(save(proto, tmp_path))
    values = np.random.default_rng(0).integers(-7, 8, (8, 8), np.int8)
    scales = np.exp2(-np.arange(1.0 if axis is None else 8.0)).astype(np.float32)
    scales = scales.reshape(()) if axis is None else scales
    one = Stored("float16", values.astype(np.float16)) if dtype == "float16" else Stored("int8", values, scales, axis)
    weights = values.astype(np.float32) if dtype == "float16" else multiplied(values, scales, axis, "float32")
    stored = with_stored(source, {0: one})
    kinds = [node.op_type for node in stored.skeleton.graph.node]
    assert kinds[0] == first and kinds.count("Gather") == 1
    assert len(kinds) == (4 if tied else 2)
    floats = Model(source.skeleton, [replace(source.layers[0], values=weights)])
    given = [{"i": np.array([[0, 7, 3], [5, 5, 1]], np.int64)}]
    assert outputs(stored.to_bytes(), given) == outputs(floats.to_bytes(), given)


def test_a_layer_in_an_attribute_that_is_no_constant_is_refused() -> None:
    """No model gives such an archive, but an archive can name any tensor of its skeleton."""
    value = onnx.TensorProto(dims=[1], data_type=onnx.TensorProto.FLOAT)
    skeleton = model([node("ConstantOfShape", "x", "y", value=value)], [info("x", 1)], [info("y", 1)])
    layer = Layer("w", "", ("graph.node[0].attribute[0].t",), "float32", (1,), np.ones(1, np.float32))
    with pytest.raises(CorruptArchive, match=r"'w': graph\.node\[0\]\.attribute\[0\]\.t is not a constant"):
        with_stored(Model(skeleton, [layer]), {})


def test_two_4_bit_integers_share_a_byte() -> None:
    stored = Stored("int4", np.array([[1, -1, 7], [-7, 0, -3]], np.int8)[:, :3].reshape(-1)[:5], np.float32(1))
    assert stored.data.tobytes() == bytes([0xF1, 0x97, 0x00])


@given(st.floats(1e-30, 1e30), st.integers(-127, 127))
def test_products_of_short_widths_and_8_bit_integers_are_exact(width: float, level: int) -> None:
    short = float(short_width(width))
    assert width <= short <= width * 1.004
    assert float(np.float32(level) * np.float32(short)) == level * short
    wider = short * QUARTERS[2]
    assert np.float32(level) * np.float32(wider) == np.float32(level * wider)


# ---- archives -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, samples, a deployable archive, and one of levels beyond 8 bits."""
    folder = tmp_path_factory.mktemp("formats")
    save(perceptron(0), folder)
    source = Model.load(folder / "model.onnx")
    rows = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    samples = riq_cli.Calibration.from_arrays({"x": rows})
    riq_cli.compress(source, samples, preset="deployable").save(folder / "deployable.riqz")
    riq_cli.compress(source, samples, preset="fast", k=5000.0, epsilon=0.0).save(folder / "fine.riqz")
    return folder


@pytest.fixture
def deployable(folder: Path) -> riq_cli.Archive:
    return riq_cli.Archive.open(folder / "deployable.riqz")


def test_a_deployable_archive_restores_exactly_from_8_bit_integers(deployable: riq_cli.Archive) -> None:
    floats = riq_cli.decompress(deployable)
    found = converted(deployable, floats, "int8")
    assert (dict(found.stored), found.rounded, found.inexact) == ({"int8": 2}, {}, 0)
    given = inputs_of(floats.to_bytes())
    assert outputs(found.model.to_bytes(), given) == outputs(floats.to_bytes(), given)
    assert riq_cli.decompress(deployable, format="int8").to_bytes() == found.model.to_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_bits": 4, "deviation": 0.03},
        {"allocation": "norm"},
        {"deviation": 3e-4},
        {"size": 4000},
        {"k": 3000.0, "allocation": "norm"},
    ],
    ids=str,
)
def test_no_goal_leads_beyond_the_integers(options: dict[str, Any], folder: Path) -> None:
    """The finest archive that they hold may be short of the target: that is an error."""
    rows = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    source, samples = Model.load(folder / "model.onnx"), riq_cli.Calibration.from_arrays({"x": rows})
    bits = options.get("max_bits", 8)
    archive = riq_cli.compress(source, samples, preset="deployable", **options)
    found = converted(archive, riq_cli.decompress(archive), "int4" if bits == 4 else "int8")
    assert (dict(found.stored), found.inexact) == ({f"int{bits}": 2}, 0)


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_a_session_that_makes_float_weights_of_integers_computes_what_the_float_file_computes(name: str) -> None:
    source = Model.load(SAMPLES / f"{name}.onnx")
    data = riq_cli.Calibration.load(SAMPLES / "calibration.npz")
    archive = riq_cli.compress(source, data, deployable=True, **PRESETS["fast"])
    with np.load(SAMPLES / "heldout.npz") as heldout:
        images = heldout["image"][:4]
    found = []
    for form in ("original", "int8"):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        proto = riq_cli.decompress(archive, format=form).to_bytes()
        session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"image": images})[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_layers_of_other_types_are_restored_exactly_too(dtype: str, tmp_path: Path) -> None:
    """The products with float32 scales are exact, so that a Cast behind them rounds once, as riq does."""
    weights = np.random.default_rng(0).standard_normal((64, 16))
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) if dtype != BFLOAT16 else onnx.TensorProto.BFLOAT16
    proto = model(
        nodes("Cast w > f to=FLOAT; MatMul x f > y"),
        [info("x", "batch", 64)],
        [info("y", "batch", 16)],
        [onnx.helper.make_tensor("w", number, weights.shape, weights.ravel().tolist())],
    )
    rows = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    samples = riq_cli.Calibration.from_arrays({"x": rows})
    archive = riq_cli.compress(Model.load(save(proto, tmp_path)), samples, preset="deployable", deviation=2e-4)
    floats = riq_cli.decompress(archive)
    found = converted(archive, floats, "int8")
    assert (dict(found.stored), found.inexact) == ({"int8": 1}, 0)
    given = inputs_of(floats.to_bytes())
    assert outputs(found.model.to_bytes(), given) == outputs(floats.to_bytes(), given)


@pytest.mark.parametrize(("opset", "axis"), [(12, None), (13, 1)])
def test_the_scale_of_a_matrix_is_repeated_for_each_column(opset: int, axis: int | None, tmp_path: Path) -> None:
    """So that onnxruntime multiplies by its integers, and does not make floats of them in each run."""
    weights = [tensor("w", np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32))]
    proto = model(nodes("MatMul x w > y"), [info("x", "b", 64)], [info("y", "b", 16)], weights, opset=opset)
    rows = riq_cli.Calibration.from_arrays({"x": np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)})
    archive = riq_cli.compress(Model.load(save(proto, tmp_path)), rows, deployable=True, **PRESETS["fast"])
    stored = riq_cli.decompress(archive, format="int8").skeleton
    (scale,) = (onnx.numpy_helper.to_array(one) for one in stored.graph.initializer if one.name.endswith("scale"))
    assert scale.shape == (() if axis is None else (16,)) and np.ptp(scale) == 0
    (node,) = (node for node in stored.graph.node if node.op_type == "DequantizeLinear")
    assert [item.i for item in node.attribute] == ([] if axis is None else [axis])


def test_channels_of_very_different_range_have_scales_of_their_own(tmp_path: Path) -> None:
    """8 bits at one width would leave nothing of most of them, as in the depthwise layers of mobile networks."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((32, 1, 3, 3)) * np.exp2(-np.arange(32) / 2)[:, None, None, None]
    head = generator.standard_normal((4, 32)) * np.exp2(np.arange(32) / 2)
    proto = model(
        nodes("Conv x w > c group=32; GlobalMaxPool c > p; Flatten p > f; Gemm f v > y transB=1"),
        [info("x", "batch", 32, 6, 6)],
        [info("y", "batch", 4)],
        [tensor("w", weights.astype(np.float32)), tensor("v", head.astype(np.float32))],
    )
    rows = generator.standard_normal((16, 32, 6, 6)).astype(np.float32)
    archive = riq_cli.compress(
        Model.load(save(proto, tmp_path)),
        riq_cli.Calibration.from_arrays({"x": rows}),
        preset="deployable",
        deviation=1e-3,
    )
    found = converted(archive, riq_cli.decompress(archive), "int8")
    assert (dict(found.stored), found.inexact) == ({"int8": 1}, 0)  # the other has 128 weights and stays


def test_a_layer_that_integers_do_not_hold_is_an_error_or_rounded(folder: Path) -> None:
    archive = riq_cli.Archive.open(folder / "fine.riqz")
    with pytest.raises(FormatError) as caught:
        riq_cli.decompress(archive, format="int8")
    assert str(caught.value) == (
        "integers of 8 bits do not hold 2 layers with levels beyond ±127, such as 'w'; compress with --preset "
        "deployable, or round these layers to 8 bits with --nearest, which riq verify --nearest measures"
    )
    floats = riq_cli.decompress(archive)
    found = converted(archive, floats, "int8", nearest=True)
    for layer, integers in zip(floats.layers, found.model.layers, strict=True):
        assert integers.dtype == "int8"
        # Uniform errors of bins of an axis' peak / 127, the peak of 64 Gaussian weights being about 2.5.
        assert found.rounded[layer.name] == pytest.approx(2.5 / 127 / np.sqrt(12), rel=0.2)


def test_float32_is_the_original_where_that_is_float32(tmp_path: Path) -> None:
    archive = riq_cli.compress(Model.load(save(perceptron(0), tmp_path)), preset="fast")
    restored = riq_cli.decompress(archive)
    found = converted(archive, restored, "float32")
    assert (found.model, dict(found.stored), found.rounded) == (restored, {"float32": len(restored.layers)}, {})
    narrow = Model.load(save(float16(), tmp_path))
    with pytest.raises(FormatError, match=r"1 layer of the original is float16, such as 'w', .*; leave out"):
        riq_cli.decompress(riq_cli.compress(narrow, preset="fast", min_size=1), format="float32")


def test_float16_halves_the_weights_and_leaves_narrow_ones(tmp_path: Path) -> None:
    archive = riq_cli.compress(Model.load(save(perceptron(0), tmp_path)), preset="fast")
    floats = riq_cli.decompress(archive)
    found = converted(archive, floats, "float16")
    assert dict(found.stored) == {"float16": 2}
    assert all(error < 2.0**-11 for error in found.rounded.values())
    assert found.model.nbytes < 0.55 * floats.nbytes
    narrow = riq_cli.compress(Model.load(save(FORMS["float16"](), tmp_path)), preset="fast", min_size=1)
    restored = riq_cli.decompress(narrow)
    assert riq_cli.decompress(narrow, format="float16").to_bytes() == restored.to_bytes()


def test_float16_converts_what_the_graph_computes_where_that_is_asked_for(tmp_path: Path) -> None:
    archive = riq_cli.compress(Model.load(save(perceptron(0), tmp_path)), preset="fast")
    floats = riq_cli.decompress(archive).to_bytes()
    halves = riq_cli.decompress(archive, format="float16", convert_activations=True).to_bytes()
    proto = onnx.ModelProto.FromString(halves)
    assert {item.data_type for item in proto.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert [item.type.tensor_type.elem_type for item in proto.graph.input] == [onnx.TensorProto.FLOAT]
    feed = inputs_of(floats)[:1]
    ours, theirs = (np.frombuffer(bytes(outputs(one, feed)[0]), np.float32) for one in (halves, floats))
    assert 0 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 2.0**-9


def test_settings_that_integers_have_no_place_for_are_refused() -> None:
    with pytest.raises(SettingsError, match="max_bits = 9 does not fit"):
        Settings(deployable=True, max_bits=9)
    with pytest.raises(SettingsError, match="a trellis has levels"):
        Settings(deployable=True, rounding="trellis")


@pytest.mark.parametrize("kind", ["int8", "int4", "float16"])
def test_verify_measures_the_file_of_a_format(kind: str, folder: Path) -> None:
    np.savez(folder / "samples.npz", x=np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32))
    arguments = ("--against", "model.onnx", "--calibration", "samples.npz", "--json")
    found = [
        json.loads(riq("verify", "deployable.riqz", *arguments, *options, folder=folder).stdout)["deviation"]
        for options in ((), ("--format", kind))
    ]
    assert found[0] != found[1]  # kernels and activations of 8 bits, or weights of 16
    assert found[1] == pytest.approx(found[0], rel=0.02)
    missed = riq("verify", "deployable.riqz", *arguments[:-1], "--format", kind, "--deviation", "1e-9",
                 folder=folder)  # fmt: skip
    assert b"archives of --preset deployable need no rounding" in missed.stdout


def test_decompress_says_what_became_of_the_layers(folder: Path) -> None:
    done = riq("decompress", "deployable.riqz", "--format", "int8", folder=folder)
    size = human_size((folder / "deployable.int8.onnx").stat().st_size)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode().splitlines() == [
        f"deployable.int8.onnx: {size}",
        "  stored     2 layers as int8",
        "  weights    equal those in float, bit by bit",
    ]
    fails(
        1,
        "fine.riqz: integers of 8 bits do not hold 2 layers",
        "decompress",
        "fine.riqz",
        "--format",
        "int8",
        folder=folder,
    )
    done = riq("decompress", "fine.riqz", "--format", "int8", "--nearest", folder=folder)
    assert re.search(
        "rounded    2 layers; relative error of weights at most 0.[56]\\d? %, in '[wv]'", done.stderr.decode()
    )
    fails(2, "--nearest belongs to --format int8 and int4", "decompress", "fine.riqz", "--nearest", folder=folder)
