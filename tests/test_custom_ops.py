"""Operators from libraries: registered in every session, and told where they are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import riq_cli as riq
from riq_cli.errors import ModelError, SettingsError
from riq_cli.pipeline import PRESETS
from tests import builders

DOMAIN = "ai.onnx.contrib"


@pytest.fixture(scope="module")
def library() -> str:
    """A library of custom operators, from a package that ships one for all who use onnxruntime."""
    extensions = pytest.importorskip("onnxruntime_extensions", reason="no library of custom operators is installed")
    return str(extensions.get_library_path())


def custom(folder: Path, kind: str = "NegPos") -> riq.Model:
    """y = |x W| V, with the magnitude from a custom operator that tells negative numbers from others."""
    nodes = [
        builders.node("MatMul", "x W", "a"),
        builders.node(kind, "a", "negative positive", domain=DOMAIN),
        builders.node("Sub", "positive negative", "m"),
        builders.node("MatMul", "m V", "y"),
    ]
    r = builders.Random(4)
    tensors = [builders.tensor("W", r(32, 32)), builders.tensor("V", r(32, 32))]
    ends = [builders.info("x", "N", 32)], [builders.info("y", "N", 32)]
    return riq.Model.load(builders.save(builders.model(nodes, *ends, tensors, domains=[(DOMAIN, 1)]), folder))


def samples() -> riq.Calibration:
    return riq.Calibration.from_arrays({"x": np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)})


@pytest.mark.parametrize("preset", ["fast", "small"])
def test_a_model_with_custom_operators_is_compressed_and_verified(preset: str, library: str, tmp_path: Path) -> None:
    model = custom(tmp_path)
    archive = riq.compress(model, samples(), custom_ops=(library,), **PRESETS[preset])
    result = archive.manifest.result
    assert 0 < result["deviation"] <= 0.01
    assert riq.verify(archive, model, samples(), custom_ops=[library]).mean == result["deviation"]
    assert "custom_ops" not in archive.manifest.settings  # where a library lies is no setting


def test_a_library_is_looked_for_where_the_user_is(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.so").symlink_to(library)
    monkeypatch.chdir(tmp_path)
    archive = riq.compress(custom(tmp_path), samples(), custom_ops=("own.so",), **PRESETS["fast"])
    assert archive.manifest.result["deviation"] <= 0.01


def test_a_missing_library_is_told_by_the_operator(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        riq.compress(custom(tmp_path), samples())
    assert str(error.value) == (
        "onnxruntime does not know the operator NegPos of the domain 'ai.onnx.contrib'; name the library that holds it "
        "with --custom-ops LIBRARY"
    )


def test_a_library_that_lacks_the_operator_is_told_too(library: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not know the operator Nowhere of the domain"):
        riq.compress(custom(tmp_path, "Nowhere"), samples(), custom_ops=(library,))


def test_a_library_that_is_not_there_or_is_none_is_named(tmp_path: Path) -> None:
    model = custom(tmp_path)
    with pytest.raises(SettingsError, match=r"missing\.so: no such file; --custom-ops takes a library"):
        riq.compress(model, samples(), custom_ops=(str(tmp_path / "missing.so"),))
    with pytest.raises(SettingsError, match=r"model\.onnx: onnxruntime cannot load it as a library of custom"):
        riq.compress(model, samples(), custom_ops=(str(tmp_path / "model.onnx"),))


# ---- strings --------------------------------------------------------------------------------------------------------


def with_strings(folder: Path, outputs: str) -> riq.Model:
    """A model of x and a text that gives both out, the number times a matrix."""
    nodes = [builders.node("MatMul", "x W", "y"), builders.node("Identity", "text", "said")]
    inputs = [builders.info("x", "N", 32), builders.info("text", "N", dtype=onnx.TensorProto.STRING)]
    kinds = {"y": builders.info("y", "N", 32), "said": builders.info("said", "N", dtype=onnx.TensorProto.STRING)}
    tensors = [builders.tensor("W", builders.Random(4)(32, 32))]
    return riq.Model.load(
        builders.save(builders.model(nodes, inputs, [kinds[name] for name in outputs.split()], tensors), folder)
    )


def texts(folder: Path) -> riq.Calibration:
    x = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    np.savez(folder / "samples.npz", x=x, text=np.array(["a", "bc", "ä", "", "d", "e", "f", "g"]))
    return riq.Calibration.load(folder / "samples.npz")


@pytest.mark.parametrize("preset", ["fast", "small"])
def test_string_outputs_are_left_out_and_string_inputs_are_fed(preset: str, tmp_path: Path) -> None:
    warnings: list[str] = []
    model = with_strings(tmp_path, "said y")
    archive = riq.compress(model, texts(tmp_path), warn=warnings.append, **PRESETS[preset])
    assert warnings == []
    assert (archive.manifest.result["probes"] > 0) == (preset == "small")
    (measured,) = archive.manifest.result["measured"]
    assert measured["name"] == "y"
    assert 0 < measured["mean"] <= 0.01
