"""Sessions straight from archives compute what the restored file computes, to the last bit, and keep no weights."""

from __future__ import annotations

import gc
import io
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import FORMS, SATURATED, feeds, model, node, save
from builders import info as value_info

import riq_cli as riq
from riq_cli.archive import Archive
from riq_cli.errors import CorruptArchive, ModelError, SettingsError
from riq_cli.session import open_session
from tests import builders
from tests.memory import growth, on_linux

Session = onnxruntime.InferenceSession
CPU = ["CPUExecutionProvider"]
BUILDERS = {**FORMS, **{name: builder for name, (builder, _) in SATURATED.items()}}
SAMPLES = Path(__file__).parent.parent / "sample_models"


def options() -> onnxruntime.SessionOptions:
    result = onnxruntime.SessionOptions()
    result.intra_op_num_threads = 1
    result.log_severity_level = 4
    return result


def outputs(session: onnxruntime.InferenceSession, proto: onnx.ModelProto) -> list[list[np.ndarray]]:
    return [session.run(None, feed) for feed in feeds(proto)]


def assert_same(found: Session, file: Session, proto: onnx.ModelProto) -> None:
    assert [item.name for item in found.get_inputs()] == [item.name for item in file.get_inputs()]
    assert [item.name for item in found.get_outputs()] == [item.name for item in file.get_outputs()]
    for ours, theirs in zip(outputs(found, proto), outputs(file, proto), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def large(name: str) -> onnx.ModelProto:
    """Of the models that builders make, one whose tensors are all above what stays inside."""
    side = 40
    weights = builders.Random(0)
    if name == "initializer":
        nodes, tensors = [node("MatMul", "x w", "y")], [builders.tensor("w", weights(side, side))]
    else:
        nodes, tensors = [builders.constant("w", weights(side, side)), node("MatMul", "x w", "y")], []
    return model(nodes, [value_info("x", 1, side)], [value_info("y", 1, side)], tensors)


# Also with all tensors from outside, but for Resize's scales, which decide a shape.
CASES = [(name, small) for name in BUILDERS for small in (1024, 0) if (name, small) != ("resize", 0)]


@pytest.mark.parametrize(("name", "small"), CASES)
def test_a_model_in_memory_computes_what_its_file_computes(
    name: str, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riq_cli.model.session_form.SMALL", small)
    proto = BUILDERS[name]()
    file = onnxruntime.InferenceSession(proto.SerializeToString(), options(), CPU)
    assert_same(open_session(riq.Model.load(save(proto, tmp_path)), CPU, options()), file, proto)


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_a_session_of_an_archive_computes_what_the_restored_file_computes(name: str, tmp_path: Path) -> None:
    original = riq.Model.load(SAMPLES / f"{name}.onnx")
    archive = riq.compress(original, preset="fast", k=100)
    archive.save(tmp_path / "model.riqz")
    riq.decompress(archive).save(tmp_path / "restored.onnx")
    file = onnxruntime.InferenceSession(tmp_path / "restored.onnx", options(), CPU)
    proto = onnx.load(tmp_path / "restored.onnx")
    assert_same(riq.load_session(tmp_path / "model.riqz", CPU, options()), file, proto)
    before = sorted(tmp_path.iterdir())
    default = onnxruntime.InferenceSession(tmp_path / "restored.onnx", providers=CPU)
    assert_same(riq.load_session(archive, CPU), default, proto)
    assert sorted(tmp_path.iterdir()) == before  # no file


@pytest.mark.parametrize("place", ["initializer", "constant"])
@pytest.mark.parametrize("ir_version", [3, 8])
def test_a_large_weight_comes_from_outside_and_stays_constant(place: str, ir_version: int, tmp_path: Path) -> None:
    proto = large(place)
    proto.ir_version = ir_version
    if place == "initializer" and ir_version < 4:
        proto.graph.input.append(value_info("w", 40, 40))
    loaded = riq.Model.load(save(proto, tmp_path))
    form = loaded.exact_form()
    assert [number for _, number in form.weights] == [0]
    assert len(form.model) < 1024
    session = open_session(loaded, CPU)
    assert_same(session, onnxruntime.InferenceSession(proto.SerializeToString(), providers=CPU), proto)
    assert session.get_overridable_initializers() == []


def test_weights_end_with_the_callers_options(tmp_path: Path) -> None:
    proto = large("initializer")
    loaded, given = riq.Model.load(save(proto, tmp_path)), options()
    values = loaded.layers[0].values.copy()
    object.__setattr__(loaded.layers[0], "values", values)
    alive = weakref.ref(values)
    session = open_session(loaded, CPU, given)
    expected = outputs(session, proto)
    del loaded, values
    gc.collect()
    assert alive() is not None  # the options refer to it
    with pytest.raises(SettingsError, match="hold the weights of another session; make new ones"):
        open_session(riq.Model.load(save(proto, tmp_path, "again.onnx")), CPU, given)
    del given, session
    gc.collect()
    assert alive() is None
    session = open_session(riq.Model.load(tmp_path / "again.onnx"), CPU)
    gc.collect()
    np.testing.assert_array_equal(outputs(session, proto), expected)


@pytest.mark.parametrize("kind", [type(None), onnxruntime.SessionOptions])
def test_nothing_of_the_weights_is_kept_without_options_or_after_them(kind: type, tmp_path: Path) -> None:
    loaded = riq.Model.load(save(large("initializer"), tmp_path))
    values = loaded.layers[0].values.copy()
    object.__setattr__(loaded.layers[0], "values", values)
    alive = weakref.ref(values)
    session = open_session(loaded, CPU, kind())
    del loaded, values
    gc.collect()
    assert alive() is None
    with pytest.raises(Exception, match="External"):  # onnxruntime's own, instead of weights that have gone
        session.set_providers(CPU)


def test_what_goes_wrong(tmp_path: Path) -> None:
    archive = riq.compress(riq.Model.load(save(builders.dense(), tmp_path)), preset="fast", k=30)
    file = io.BytesIO()
    archive.write(file)
    data = bytearray(file.getvalue())
    data[-5] ^= 1
    with pytest.raises(CorruptArchive, match="the archive is damaged"):
        riq.load_session(Archive.open(io.BytesIO(bytes(data))))
    with pytest.raises(SettingsError, match=r"onnxruntime has no 'GPU' here; it has .*CPUExecutionProvider"):
        riq.load_session(tmp_path / "nowhere.riqz", [("GPU", {})])  # before anything is read
    unknown = model([node("Nope", "x", "y", domain="test")], [value_info("x", 1)], [value_info("y", 1)], [])
    unknown.opset_import.add(domain="test", version=1)
    with pytest.raises(ModelError, match=r"does not know the operator Nope|onnxruntime cannot run the model"):
        open_session(riq.Model.load(save(unknown, tmp_path, "unknown.onnx")), CPU)


@on_linux
def test_a_session_takes_little_more_memory_than_one_of_the_file(tmp_path: Path) -> None:
    weights = builders.Random(0)
    nodes = [node("MatMul", f"{'xab'[n]} w{n}", "aby"[n]) for n in range(3)]
    tensors = [builders.tensor(f"w{n}", weights(1200, 1200)) for n in range(3)]
    path = save(model(nodes, [value_info("x", 1, 1200)], [value_info("y", 1, 1200)], tensors), tmp_path)
    riq.compress(riq.Model.load(path), preset="fast", k=3000).save(tmp_path / "model.riqz")
    riq.decompress(Archive.open(tmp_path / "model.riqz")).save(tmp_path / "restored.onnx")
    for figure, beside in (("VmHWM", tensors[0].ByteSize()), ("VmRSS", 0)):
        taken = growth(
            "import riq_cli.session as riq",
            "session = riq.load_session(sys.argv[1])",
            tmp_path / "model.riqz",
            figure=figure,
        )
        file = growth(
            "import riq_cli.session, onnxruntime",
            "session = onnxruntime.InferenceSession(sys.argv[1])",
            tmp_path / "restored.onnx",
            figure=figure,
        )
        assert taken < 1.3 * file + beside + (16 << 20 if beside else 0), figure
