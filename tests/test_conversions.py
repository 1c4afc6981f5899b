"""Samples that nearly fit a model are taken with a note, or refused with what would make them fit."""

from __future__ import annotations

import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import riq_cli
from riq_cli.calibration import Calibration, ImageOptions
from riq_cli.constraint import MetricConstraint
from riq_cli.errors import CalibrationError, ConstraintError, Interrupted
from riq_cli.model import Model, ModelInput
from tests import builders
from tests.builders import info, node, tensor
from tests.command import riq

X = ModelInput("x", "float32", ("batch", 3))
IMAGE = ModelInput("image", "float32", ("batch", 3, 8, 8))


def taken(item: ModelInput, **arrays: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """What is fed for an input, all samples together, and what the user is told."""
    notes: list[str] = []
    samples = Calibration.from_arrays(arrays).samples([item], warn=notes.append)
    return np.concatenate([sample.feed[item.name] for sample in samples]), notes


def refused(item: ModelInput, said: str, **arrays: np.ndarray) -> None:
    with pytest.raises(CalibrationError) as caught:
        taken(item, **arrays)
    assert str(caught.value) == said


# ---- types ----


@pytest.mark.parametrize(
    ("given_type", "wanted"),
    [("float64", "float32"), ("float16", "float32"), ("float32", "float16"), ("float32", "float64"),
     ("int32", "int64"), ("int64", "int32"), ("uint8", "int64"), ("int64", "uint8"), ("bool", "int64")],
)  # fmt: skip
def test_floats_and_integers_of_another_width_are_converted_with_a_note(given_type: str, wanted: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 0]]).astype(given_type)
    result, notes = taken(ModelInput("x", wanted, ("batch", 3)), x=array)
    assert result.dtype == wanted
    np.testing.assert_array_equal(result, array)
    assert notes == [f"input 'x': the data is {given_type} and is taken as {wanted}"]


@pytest.mark.parametrize(
    ("array", "wanted"),
    [(np.array([[1e300, 0, 0]]), "float32"), (np.array([[1e5, 0, 0]], np.float32), "float16"),
     (np.array([[-1, 0, 0]]), "uint64"), (np.array([[300, 0, 0]]), "uint8"),
     (np.array([[2**63, 0, 0]], np.uint64), "int64")],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused(array: np.ndarray, wanted: str) -> None:
    said = f"input 'x': values of the {array.dtype.name} data are beyond {wanted}"
    refused(ModelInput("x", wanted, ("batch", 3)), said, x=array)


def test_values_that_are_infinite_already_stay() -> None:
    result, _ = taken(X, x=np.array([[np.inf, -np.inf, np.nan]]))
    np.testing.assert_array_equal(result, np.array([[np.inf, -np.inf, np.nan]], np.float32))


@given(
    st.lists(st.integers(-(2**63), 2**64 - 1), min_size=3, max_size=3),
    st.sampled_from(["int8", "int32", "uint16", "int64"]),
)
def test_integers_are_exact_or_refused(values: list[int], wanted: str) -> None:
    try:
        array = np.array([values])
    except OverflowError:
        return
    if array.dtype.kind not in "iu":  # as numpy has it for some mixtures
        return
    try:
        result, _ = taken(ModelInput("x", wanted, ("batch", 3)), x=array)
    except CalibrationError:
        assert any(not np.iinfo(wanted).min <= value <= np.iinfo(wanted).max for value in values)
    else:
        assert result.tolist() == [values]


def test_many_feeds_have_one_note() -> None:
    notes: list[str] = []
    Calibration.from_feeds([{"x": np.zeros((1, 3))}] * 5).samples([X], warn=notes.append)
    assert notes == ["input 'x': the data is float64 and is taken as float32"]


# ---- names and axes ----


def test_one_array_without_a_name_is_that_of_the_only_input() -> None:
    _, notes = taken(X, arr_0=np.zeros((2, 3), np.float32))
    assert notes == ["the only array of the data has no name and is taken for the only input, 'x'"]
    refused(X, "the data has arr_0, arr_1; the model's inputs are x float32[batch, 3]; "
            "name the arrays after the inputs",
            arr_0=np.zeros((2, 3)), arr_1=np.zeros((2, 3)))  # fmt: skip
    assert taken(ModelInput("arr_0", "float32", (None, 3)), arr_0=np.zeros((2, 3), np.float32))[1] == []


@pytest.mark.parametrize(
    ("shape", "order"),
    [((24, 8, 8, 3), (0, 3, 1, 2)), ((8, 8, 3), None), ((3, 8, 8, 24), (3, 0, 1, 2)),
     ((24, 1, 8, 8, 3), (0, 1, 4, 2, 3)), ((24, 8, 8, 4), None)],
)  # fmt: skip
def test_axes_that_only_need_another_order_are_named(shape: tuple[int, ...], order: tuple[int, ...] | None) -> None:
    item = IMAGE if len(shape) < 5 else ModelInput("image", "float32", (1, 3, 8, 8))
    takes = "image float32[batch, 3, 8, 8]" if len(shape) < 5 else "image float32[1, 3, 8, 8]"
    ends = (
        ", samples along its batch axis, or along one axis more in front"
        if order is None
        else f"; it fits after .transpose{order}"
    )
    refused(item, f"input 'image': the data has shape {list(shape)}, the model takes {takes}{ends}",
            image=np.zeros(shape, np.float32))  # fmt: skip
    if order is not None:
        taken(item, image=np.zeros(shape, np.float32).transpose(order))


def test_axes_of_whole_feeds_are_named_too() -> None:
    with pytest.raises(CalibrationError, match=r"it fits after \.transpose\(1, 0\)$"):
        Calibration.from_feeds([{"x": np.zeros((3, 5), np.float32)}]).samples([X])


# ---- bfloat16 ----


def bfloat16_input() -> onnx.ModelProto:
    """y = relu(float(b) W) V, of a bfloat16 input b."""
    generator = np.random.default_rng(7)
    weights = [tensor(name, generator.standard_normal((64, 64)).astype(np.float32) / 8) for name in "WV"]
    nodes = [
        node("Cast", "b", "x", to=1),
        node("MatMul", "x W", "a"),
        node("Relu", "a", "r"),
        node("MatMul", "r V", "y"),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("b", "N", 64, dtype=onnx.TensorProto.BFLOAT16)], [info("y", "N", 64)], weights
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=8)


def test_a_bfloat16_input_takes_float32_and_random_samples(tmp_path: Path) -> None:
    model = builders.save(bfloat16_input(), tmp_path)
    loaded = Model.load(model)
    assert loaded.inputs == (ModelInput("b", "bfloat16", ("N", 64)),)
    samples = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    for data in (None, Calibration.from_arrays({"b": samples}), Calibration.from_arrays({"b": samples.astype(float)})):
        archive = riq_cli.compress(loaded, data, k=100, allocation="norm", rounding="nearest")
        assert 0 < archive.manifest.result["deviation"] < 0.05
    assert riq_cli.verify(archive, loaded, Calibration.from_arrays({"b": samples})).mean < 0.05


def test_what_a_session_takes_for_bfloat16_is_rounded_to_it(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    loaded = Model.load(builders.save(bfloat16_input(), tmp_path))
    bits = samples.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    form = loaded.session_form(["x"], hoist=False)
    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(loaded.layers[number].values) for _, number in form.weights]
    options.add_external_initializers([name for name, _ in form.weights], values)
    (x,) = onnxruntime.InferenceSession(form.model, options).run(["x"], {"b": samples})
    np.testing.assert_array_equal(x, rounded)


# ---- images ----


@pytest.mark.parametrize(
    "error", [SyntaxError("broken PNG file"), struct.error("unpack"), ValueError("bad"), MemoryError(),
              RuntimeError("x"), Image.DecompressionBombError("Image size exceeds limit"), EOFError()],
)  # fmt: skip
def test_whatever_pillow_raises_names_the_image(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(CalibrationError) as caught:
        Calibration.load(tmp_path).samples([IMAGE])
    assert (
        str(caught.value) == f"{tmp_path / 'a.png'}: cannot be read as an image: {str(error) or type(error).__name__}"
    )


def test_a_huge_image_is_refused_or_taken_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    for bound, refuses in ((1000, False), (100, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", bound)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if refuses:
                with pytest.raises(CalibrationError, match=r"a\.png: cannot be read as an image: Image size"):
                    Calibration.load(tmp_path).samples([IMAGE])
            else:
                assert len(Calibration.load(tmp_path, ImageOptions()).samples([IMAGE])) == 1


# ---- functions of the user's own ----


class Odd(BaseException):
    """No Exception."""


@pytest.mark.parametrize("error", [SystemExit(3), Odd("odd"), GeneratorExit(), ValueError("bad")])
def test_whatever_a_function_raises_is_its_error(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise error

    said = f"{type(error).__name__}: {str(error) or type(error).__name__}"
    monkeypatch.setitem(sys.modules, "odd_data", type(sys)("odd_data"))
    monkeypatch.setattr(sys.modules["odd_data"], "samples", fail, raising=False)
    with pytest.raises(CalibrationError) as caught:
        Calibration.load("odd_data:samples").samples([X])
    assert str(caught.value) == f"odd_data:samples: {said}"
    model = Model.load(builders.save(builders.dense(), tmp_path))
    with pytest.raises(ConstraintError) as told:
        riq_cli.compress(model, settings=riq_cli.Settings(constraint=MetricConstraint(fail)))
    assert str(told.value).endswith(f": {said}")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(15)])
def test_an_interruption_is_none(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise error

    monkeypatch.setitem(sys.modules, "odd_data", type(sys)("odd_data"))
    monkeypatch.setattr(sys.modules["odd_data"], "samples", fail, raising=False)
    with pytest.raises(type(error)):
        Calibration.load("odd_data:samples").samples([X])


def test_commands_show_the_notes(tmp_path: Path) -> None:
    builders.save(builders.dense(), tmp_path)
    np.savez(tmp_path / "samples.npz", np.random.default_rng(0).standard_normal((8, 16)))
    notes = [
        "riq: warning: the only array of the data has no name and is taken for the only input, 'x'",
        "riq: warning: input 'x': the data is float64 and is taken as float32",
    ]
    done = riq(
        "compress", "model.onnx", "--calibration", "samples.npz", "--k", "30", "--preset", "fast", folder=tmp_path
    )
    assert done.stderr.decode().splitlines()[:2] == notes
    done = riq("verify", "model.riqz", "--against", "model.onnx", "--calibration", "samples.npz", folder=tmp_path)
    assert done.stderr.decode().splitlines() == notes
