"""Calibration data: which samples come out of files, folders, callables and nothing at all."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import re
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import embedding, lstm, save, tensor
from PIL import Image

from riq_cli.calibration import Calibration, ImageOptions, Sample, digest, load_labels
from riq_cli.errors import CalibrationError
from riq_cli.model import Model, ModelInput

X = ModelInput("x", "float32", ("batch", 3))
STATE = ModelInput("state", "float32", (2, "batch", 4))
RATE = ModelInput("rate", "int64", ())
FIXED = ModelInput("x", "float32", (1, 3))
FOUR = ModelInput("x", "float32", (4, 3))
PICTURE = ModelInput("image", "float32", ("batch", 3, 2, 4))


def ramp(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """0, 1, 2, …"""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def npz(path: Path, **arrays: np.ndarray) -> Calibration:
    np.savez(path / "data.npz", **arrays)
    return Calibration.load(path / "data.npz")


def assert_samples(samples: Sequence[Sample], feeds: Sequence[dict[str, np.ndarray]], rows: Sequence[int]) -> None:
    assert [sample.rows for sample in samples] == list(rows)
    for sample, feed in zip(samples, feeds, strict=True):
        assert sample.feed.keys() == feed.keys()
        for name, array in feed.items():
            assert sample.feed[name].dtype == array.dtype
            np.testing.assert_array_equal(sample.feed[name], array, strict=True)


def message(*parts: str) -> str:
    """A pattern for these parts, in this order."""
    return ".*".join(map(re.escape, parts))


# ---- arrays ---------------------------------------------------------------------------------------------------------

Feeds = list[dict[str, np.ndarray]]
X3, X2, WHOLE, H = ramp(3, 3), ramp(2, 3), ramp(2, 5, 3), ramp(2, 3, 4)
ONE_STATE, OWN_STATES, IDS, CODE = ramp(2, 1, 4), ramp(2, 2, 1, 4), ramp(2, 7, dtype=np.int64), np.array(16000)
SEQUENCE, LONG, STATES = ramp(5, 2, 3), ramp(8, 3), ramp(2, 2, 4)
PAIR = [ModelInput(name, "int64", ("batch", "length")) for name in ("ids", "mask")]
TIME_FIRST = [ModelInput("x", "float32", (5, "batch", 3)), STATE]
TIME_NAMED = [ModelInput("x", "float32", ("time", "batch", 3)), STATE]


def rows_of(array: np.ndarray, size: int = 1, axis: int = 0, name: str = "x") -> Feeds:
    """Feeds of an array cut along an axis into pieces of a size."""
    return [{name: part} for part in np.split(array, range(size, array.shape[axis], size), axis)]


def together(*several: Feeds) -> Feeds:
    return [{name: array for feed in feeds for name, array in feed.items()} for feeds in zip(*several, strict=True)]


CUT: dict[str, tuple[list[ModelInput], dict[str, np.ndarray], int, Feeds, list[int]]] = {  # …, batch, feeds, rows
    "free batch axis": ([X], {"x": X3}, 1, rows_of(X3), [1] * 3),
    "batch of one": ([FIXED], {"x": X3}, 1, rows_of(X3), [1] * 3),
    "one axis more": ([X], {"x": WHOLE}, 1, [{"x": WHOLE[0]}, {"x": WHOLE[1]}], [1, 1]),
    "batches of two": ([X], {"x": X3}, 2, rows_of(X3, 2), [2, 1]),
    "batches of two, fixed": ([FIXED], {"x": X3}, 2, rows_of(X3), [1] * 3),
    "batches of two, one axis more": ([X], {"x": WHOLE}, 2, [{"x": WHOLE[0]}, {"x": WHOLE[1]}], [1, 1]),
    "fixed batches of four": ([FOUR], {"x": LONG}, 1, rows_of(LONG, 4), [4, 4]),
    "state": ([X, STATE], {"x": X3, "state": H}, 1, together(rows_of(X3), rows_of(H, 1, 1, "state")), [1] * 3),
    "state first, batches": (
        [STATE, X], {"x": X3, "state": H}, 2, together(rows_of(X3, 2), rows_of(H, 2, 1, "state")), [2, 1],
    ),
    "one state for all": (
        [X, STATE], {"x": X3, "state": ONE_STATE}, 1, together(rows_of(X3), [{"state": ONE_STATE}] * 3), [1] * 3,
    ),
    "one state for every row": (
        [X, STATE], {"x": X3, "state": ONE_STATE}, 2,
        together(rows_of(X3, 2), [{"state": np.repeat(ONE_STATE, 2, 1)}, {"state": ONE_STATE}]), [2, 1],
    ),
    "a state for each": (
        [X, STATE], {"x": X2, "state": OWN_STATES}, 1,
        together(rows_of(X2), [{"state": state} for state in OWN_STATES]), [1, 1],
    ),
    **{
        f"batch behind, {n}": (
            inputs, {"x": SEQUENCE, "state": STATES}, 1,
            together(rows_of(SEQUENCE, 1, 1), rows_of(STATES, 1, 1, "state")), [1, 1],
        )
        for n, inputs in enumerate((TIME_FIRST, TIME_NAMED))
    },
    "scalar": ([X, RATE], {"x": X2, "rate": CODE}, 1, together(rows_of(X2), [{"rate": CODE}] * 2), [1, 1]),
    "scalar, batches": ([X, RATE], {"x": X2, "rate": CODE}, 2, [{"x": X2, "rate": CODE}], [2]),
    "scalar for each": (
        [X, RATE], {"x": X2, "rate": np.array([8, 16])}, 2,
        together(rows_of(X2), [{"rate": np.array(8)}, {"rate": np.array(16)}]), [1, 1],
    ),
    "two of one symbol": (
        PAIR, {"ids": IDS, "mask": IDS + 1}, 1,
        together(rows_of(IDS, name="ids"), rows_of(IDS + 1, name="mask")), [1, 1],
    ),
    "no declared shape": (
        [X, ModelInput("a", "float32", None)], {"x": X2, "a": ramp(7)}, 1, together(rows_of(X2), [{"a": ramp(7)}] * 2),
        [1, 1],
    ),
    "size 0": (
        [X, ModelInput("past", "float32", (0, 3))], {"x": X2, "past": ramp(0, 3)}, 1,
        together(rows_of(X2), [{"past": ramp(0, 3)}] * 2), [1, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_arrays_are_cut_along_the_batch_axis(name: str, tmp_path: Path) -> None:
    inputs, arrays, batch, feeds, rows = CUT[name]
    calibration = npz(tmp_path, **{name: np.asfortranarray(array) for name, array in arrays.items()})
    assert calibration.kind == "npz"
    for source in (calibration, Calibration.from_arrays(arrays)):
        samples = source.samples(inputs, batch=batch)
        assert_samples(samples, feeds, rows)
        assert all(array.flags.c_contiguous for sample in samples for array in sample.feed.values())


def test_a_fixed_batch_with_a_remainder_is_an_error(tmp_path: Path) -> None:
    said = "the model takes batches of 4 (x float32[4, 3]); 7 rows of calibration data leave 3 over: "
    said += "leave them out, or add 1"
    with pytest.raises(CalibrationError, match=f"^{re.escape(said)}$"):
        npz(tmp_path, x=ramp(7, 3)).samples([FOUR])


def test_an_npy_file_feeds_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", X2)
    calibration = Calibration.load(tmp_path / "data.npy")
    assert calibration.kind == "npy"
    for source in (calibration, Calibration.from_arrays(X2)):
        assert_samples(source.samples([X]), rows_of(X2), [1, 1])
    with pytest.raises(CalibrationError, match=message("the model has 2 inputs: rate, x; use an .npz file")):
        calibration.samples([X, RATE])


def test_feeds_in_memory_are_taken_as_they_are(tmp_path: Path) -> None:
    assert_samples(Calibration.from_feeds([{"x": X2}]).samples([X]), [{"x": X2}], [1])
    arrays = {"x": ramp(5, 2, 3), "h": ramp(1, 2, 4), "c": ramp(1, 2, 4)}
    inputs = Model.load(save(lstm(), tmp_path)).inputs
    assert_samples(Calibration.from_feeds([arrays]).samples(inputs), [arrays], [1])


def test_strings_are_fed_to_string_inputs(tmp_path: Path) -> None:
    text = ModelInput("text", "object", ("batch",))
    samples = npz(tmp_path, text=np.array(["a", "bc"])).samples([text])
    assert [sample.feed["text"].tolist() for sample in samples] == [["a"], ["bc"]]


def test_an_input_without_a_declared_shape_takes_an_array_as_it_is(tmp_path: Path) -> None:
    anything = ModelInput("a", "float32", None)
    for shape in ((), (2,), (4, 1, 3)):
        array = ramp(*shape)
        assert_samples(npz(tmp_path, a=array).samples([anything]), [{"a": array}], [1])
        assert_samples(Calibration.from_feeds([{"a": array}] * 2).samples([anything]), [{"a": array}] * 2, [1, 1])
    with pytest.raises(CalibrationError, match=message("input a float32 of any shape: ", "give real data")):
        Calibration.random().samples([anything])
    picture(tmp_path, "a.png")
    with pytest.raises(CalibrationError, match=message("four axes; this one takes a float32 of any shape")):
        Calibration.load(tmp_path).samples([anything])


# ---- arrays that do not fit -----------------------------------------------------------------------------------------

TAKES = "the model's inputs are x float32[batch, 3], rate int64[]"
UNFIT: list[tuple[list[ModelInput], dict[str, np.ndarray], str]] = [
    ([X, RATE], {"y": X2}, f"has y; {TAKES}; name the arrays after the"),
    ([X, RATE], {}, f"has no arrays; {TAKES}; add rate, x"),
    ([X, RATE], {"x": X2}, f"has x; {TAKES}; add rate"),
    ([X, RATE], {"x": X2, "rate": ramp(1), "y": ramp(2)}, f"{TAKES}; leave out y"),
    ([], {"x": X2}, "the data has x; the model has no inputs"),
    *(
        ([X], {"x": ramp(*shape)}, f"data has shape {list(shape)}, the model takes x float32[batch, 3]")
        for shape in [(3,), (2, 4), (1, 1, 2, 3), (2, 2, 4), (), (0,)]
    ),
    ([ModelInput("past", "float32", (0, 3))], {"past": ramp(1, 3)}, "input 'past': the data has shape [1,"),
    *(
        (
            [X], {"x": ramp(2, 3, dtype=dtype)},
            f"input 'x': the data is {dtype}, the model takes float32; convert it with .astype('float32')",
        )
        for dtype in ("int64", "uint8", "bool", "complex64")
    ),
    ([ModelInput("x", "float32", (None, 3))], {"x": ramp(2, 4)}, "takes x float32[?, 3]"),
    ([X, STATE], {"x": X3, "state": STATES}, "the arrays hold different numbers of samples (x: 3, state: 2)"),
    ([X], {"x": ramp(0, 3)}, "input 'x': the array of shape [0, 3] holds no samples"),
    ([X], {"x": ramp(0, 5, 3)}, "input 'x': the array of shape [0, 5, 3] holds no samples"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "arrays", "said"), UNFIT)
def test_arrays_that_do_not_fit_are_an_error_that_lists_both_sides(
    inputs: list[ModelInput], arrays: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(CalibrationError, match=message(said)):
        Calibration.from_arrays(arrays).samples(inputs)


@pytest.mark.parametrize(
    ("feed", "parts"),
    [
        ({"y": ramp(1, 3)}, ("the data has y", "x float32[batch, 3]")),
        ({"x": ramp(3)}, ("input 'x'", "shape [3]", "x float32[batch, 3]")),
        ({"x": ramp(1, 3, dtype=np.int32)}, ("input 'x'", "is int32, the model takes float32")),
    ],
)
def test_a_feed_that_does_not_fit_is_an_error_that_lists_both_sides(
    feed: dict[str, np.ndarray], parts: tuple[str, ...]
) -> None:
    with pytest.raises(CalibrationError, match=message(*parts)):
        Calibration.from_feeds([{"x": ramp(1, 3)}, feed]).samples([X])
    with pytest.raises(CalibrationError, match="the data holds no samples"):
        Calibration.from_feeds([]).samples([X])


# ---- files that are damaged or something else -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.npz", "data.npy", "data.txt", "folder/"])
def test_a_missing_file_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=message(name.strip("/"), "no such file")):
        Calibration.load(tmp_path / name)


@pytest.mark.parametrize("name", ["data.npz", "data.npy"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04N."])
def test_a_file_that_is_no_numpy_data_is_an_error_that_names_it(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message(name, "not a file of NumPy arrays")):
        Calibration.load(tmp_path / name)


def test_a_file_that_is_no_numpy_data_is_closed(tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(CalibrationError):
            Calibration.load(tmp_path / "data.npz")
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_a_file_of_another_kind_is_an_error_that_says_what_is_taken(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2,3")
    with pytest.raises(
        CalibrationError, match=message("data.csv: not calibration data", ".npz or .npy", "module:callable")
    ):
        Calibration.load(tmp_path / "data.csv")


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "data.npz", x=objects)
    np.save(tmp_path / "data.npy", objects)
    refusal = "holds Python objects, which are not read; store numbers, or text as numpy's strings"
    with pytest.raises(CalibrationError, match=message(f"data.npz: array 'x' {refusal}")):
        Calibration.load(tmp_path / "data.npz").samples([X])
    with pytest.raises(CalibrationError, match=message(f"data.npy: {refusal}")):
        Calibration.load(tmp_path / "data.npy")


def test_arrays_that_are_no_input_are_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=ramp(2, 3), huge=ramp(1000, 1000), labels=ramp(2))
    read: list[str] = []
    original = zipfile.ZipFile.open

    def noted(self: zipfile.ZipFile, name: str, *arguments: Any, **options: Any) -> Any:
        read.append(name)
        return original(self, name, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", noted)
    with pytest.raises(CalibrationError, match=message("the data has huge, x; the model's inputs are")):
        Calibration.load(tmp_path / "data.npz", without="labels").samples([X])
    assert read == []
    assert load_labels("labels", str(tmp_path / "data.npz"))[0].shape == (2,)
    assert set(read) == {"labels.npy"}


def test_an_archive_that_holds_something_else_is_an_error_that_names_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as file:
        file.writestr("x", "a text")
    with pytest.raises(CalibrationError, match=message("data.npz: 'x' is not an array")):
        Calibration.load(tmp_path / "data.npz").samples([X])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_an_error_or_the_same_data(write: Callable[..., None], tmp_path: Path) -> None:
    """One bit of every byte flipped, one after the other."""
    path = tmp_path / "data.npz"
    write(path, x=ramp(2, 3))
    whole = path.read_bytes()
    unexpected: set[str] = set()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            samples = Calibration.load(path).samples([X])
        except CalibrationError:
            continue
        except Exception as error:
            unexpected.add(type(error).__name__)
        else:
            np.testing.assert_array_equal(np.concatenate([sample.feed["x"] for sample in samples]), ramp(2, 3))
    assert not unexpected
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CalibrationError, match=message("data.npz")):
            Calibration.load(path)


# ---- ONNX test data -------------------------------------------------------------------------------------------------


def test_set(folder: Path, *tensors: onnx.TensorProto, number: int = 0) -> Path:
    path = folder / f"test_data_set_{number}"
    path.mkdir(parents=True)
    for index, item in enumerate(tensors):
        (path / f"input_{index}.pb").write_bytes(item.SerializeToString())
    return path


test_set.__test__ = False  # type: ignore[attr-defined]


def test_folders_of_test_data_are_samples(tmp_path: Path) -> None:
    first, second, rate = ramp(1, 3), ramp(2, 3) + 1, np.array(8000)
    test_set(tmp_path, tensor("x", first), tensor("rate", rate), number=0)
    test_set(tmp_path, tensor("x", second), tensor("rate", rate), number=1)
    calibration = Calibration.load(tmp_path)
    assert calibration.kind == "test-data"
    assert_samples(calibration.samples([X, RATE]), [{"x": first, "rate": rate}, {"x": second, "rate": rate}], [1, 1])


def test_test_data_goes_by_name_where_the_names_are_the_inputs(tmp_path: Path) -> None:
    x, rate = ramp(1, 3), np.array(8000)
    folder = test_set(tmp_path, tensor("rate", rate), tensor("x", x))
    assert_samples(Calibration.load(folder).samples([X, RATE]), [{"x": x, "rate": rate}], [1])


def test_test_data_goes_by_number_where_the_names_are_others(tmp_path: Path) -> None:
    inputs = [ModelInput(f"i{number}", "float32", (1,)) for number in range(11)]
    test_set(tmp_path, *(tensor("", ramp(1) + number) for number in range(11)))  # input_10 is behind input_9
    (sample,) = Calibration.load(tmp_path).samples(inputs)
    assert {name: array.item() for name, array in sample.feed.items()} == {f"i{n}": n for n in range(11)}


def test_test_data_that_does_not_fit_is_an_error_that_says_both_sides(tmp_path: Path) -> None:
    test_set(tmp_path, tensor("x", ramp(1, 4)))
    with pytest.raises(CalibrationError, match=message("test_data_set_0: holds 1 inputs, the model has 2")):
        Calibration.load(tmp_path).samples([X, RATE])
    with pytest.raises(CalibrationError, match=message("shape [1, 4]", "x float32[batch, 3]")):
        Calibration.load(tmp_path).samples([X])


ELSEWHERE = onnx.TensorProto(name="x", data_type=1, dims=[1, 3], data_location=onnx.TensorProto.EXTERNAL)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xff\xff", "not an ONNX tensor"),
        (b"", "not an ONNX tensor"),
        (tensor("x", ramp(1, 3)).SerializeToString()[:-4], "not an ONNX tensor"),
        (onnx.TensorProto(data_type=99, dims=[1]).SerializeToString(), "not an ONNX tensor"),
        (ELSEWHERE.SerializeToString(), "a tensor whose data is in another file"),
    ],
)
def test_test_data_that_is_no_tensor_is_an_error_that_names_the_file(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (test_set(tmp_path, tensor("x", ramp(1, 3))) / "input_0.pb").write_bytes(content)
    with pytest.raises(CalibrationError, match=message(f"input_0.pb: {reason}")):
        Calibration.load(tmp_path).samples([X])


def test_test_data_without_a_number_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    folder = test_set(tmp_path, tensor("x", ramp(1, 3)))
    (folder / "input_x.pb").write_bytes(tensor("x", ramp(1, 3)).SerializeToString())
    with pytest.raises(CalibrationError, match=message("input_x.pb: has no number")):
        Calibration.load(tmp_path).samples([X])


def test_an_empty_folder_is_an_error_that_says_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(
        CalibrationError, match=message("holds neither images nor ONNX test data (test_data_set_*/input_")
    ):
        Calibration.load(tmp_path)


# ---- images ---------------------------------------------------------------------------------------------------------


def picture(folder: Path, name: str, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (4, 2)) -> np.ndarray:
    """A random image file and its pixels, u8[height, width, 3] (RGB) or u8[height, width] (L)."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return pixels


def test_images_become_channels_first_between_0_and_1_in_the_order_of_their_names(tmp_path: Path) -> None:
    second, first = picture(tmp_path, "b.png", 1), picture(tmp_path, "a.PNG", 2)
    (tmp_path / "notes.txt").write_text("no image")
    calibration = Calibration.load(tmp_path)
    assert calibration.kind == "images"
    samples = calibration.samples([PICTURE])
    assert [sample.rows for sample in samples] == [1, 1]
    for sample, pixels in zip(samples, (first, second), strict=True):
        expected = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
        np.testing.assert_array_equal(sample.feed["image"], expected, strict=True)


CHANNELS_LAST, GRAY = (1, 2, 4, 3), (1, 1, 2, 4)
IMAGES: dict[str, tuple[str, ModelInput, ImageOptions, Callable[[np.ndarray], np.ndarray]]] = {  # mode, …, of pixels
    "channels last": (
        "RGB", ModelInput("image", "float32", CHANNELS_LAST), ImageOptions(image_layout="nhwc"), lambda p: p / 255,
    ),
    "exchanged before mean and std": (
        "RGB", PICTURE, ImageOptions(mean=(1, 2, 3), std=(4, 5, 6), scale=2.0, channel_order="bgr"),
        lambda p: ((p[..., ::-1] * 2.0 - [1, 2, 3]) / [4, 5, 6]).transpose(2, 0, 1),
    ),
    "one mean and std": (
        "RGB", PICTURE, ImageOptions(mean=(127.5,), std=(127.5,), scale=1.0),
        lambda p: ((p - 127.5) / 127.5).transpose(2, 0, 1),
    ),
    "gray": ("L", ModelInput("image", "float32", GRAY), ImageOptions(channel_order="bgr"), lambda p: p[None] / 255),
    "gray as three": ("L", PICTURE, ImageOptions(), lambda p: np.stack([p] * 3) / 255),
    "bytes": (
        "RGB", ModelInput("image", "uint8", CHANNELS_LAST), ImageOptions(image_layout="nhwc", mean=(9,), std=(9,)),
        lambda p: p,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_images_become_what_the_options_say(name: str, tmp_path: Path) -> None:
    mode, item, options, of_pixels = IMAGES[name]
    pixels = picture(tmp_path, "a.png", mode=mode)
    (sample,) = Calibration.load(tmp_path, options).samples([item])
    np.testing.assert_array_equal(sample.feed["image"], of_pixels(pixels)[None].astype(item.dtype), strict=True)


def test_images_are_resized_to_the_input(tmp_path: Path) -> None:
    Image.new("RGB", (32, 16), (255, 51, 0)).save(tmp_path / "a.png")
    (sample,) = Calibration.load(tmp_path).samples([PICTURE])
    assert sample.feed["image"].shape == (1, 3, 2, 4)
    for channel, value in enumerate((1.0, 0.2, 0.0)):
        np.testing.assert_allclose(sample.feed["image"][0, channel], value, rtol=1e-6)


def test_free_sizes_of_images_come_from_dims(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    item = ModelInput("image", "float32", ("batch", 3, "height", None))
    (sample,) = Calibration.load(tmp_path).samples([item], {"height": 6, "image.3": 5})
    assert sample.feed["image"].shape == (1, 3, 6, 5)
    with pytest.raises(CalibrationError, match=message("dimension 'height' is free", "--dim height=N")):
        Calibration.load(tmp_path).samples([item])
    with pytest.raises(CalibrationError, match=message("dimension 'image.3' is free", "--dim image.3=N")):
        Calibration.load(tmp_path).samples([item], {"height": 6})


def test_sizes_of_dimensions_that_are_not_there_are_told() -> None:
    item = ModelInput("x", "float32", ("batch", None))
    warnings: list[str] = []
    (sample, *_) = Calibration.random().samples([item], {"x.1": 3, "hieght": 6}, warn=warnings.append)
    assert sample.feed["x"].shape == (1, 3)
    assert warnings == ["no dimension is named 'hieght'; the model takes x float32[batch, ?]"]


@pytest.mark.parametrize(("first", "batch", "rows"), [(2, 1, [2, 2]), ("batch", 3, [3, 1]), ("batch", 1, [1] * 4)])
def test_images_fill_batches(first: Any, batch: int, rows: list[int], tmp_path: Path) -> None:
    pixels = [picture(tmp_path, f"{name}.png", seed) for seed, name in enumerate("abcd")]
    samples = Calibration.load(tmp_path).samples([ModelInput("image", "float32", (first, 3, 2, 4))], batch=batch)
    assert [sample.rows for sample in samples] == [len(sample.feed["image"]) for sample in samples] == rows
    found = np.concatenate([sample.feed["image"] for sample in samples])
    np.testing.assert_array_equal(found, (np.stack(pixels).transpose(0, 3, 1, 2) / 255).astype(np.float32))


NO_IMAGES = "a folder of images fits a model with one input of four axes"
WRONG: list[tuple[list[ModelInput], ImageOptions, str]] = [
    ([ModelInput("image", "float32", (2, 3, 2, 4))], ImageOptions(), "3 images do not fill batches of 2, as the model"),
    ([ModelInput("image", "float32", (0, 3, 2, 4))], ImageOptions(), "has no room for images"),
    ([ModelInput("image", "float32", (1, 3, 0, 4))], ImageOptions(), "has no room for images"),
    ([PICTURE], ImageOptions(mean=(1, 2)), "--mean: 2 values for 3 channels"),
    ([PICTURE], ImageOptions(std=(1, 2, 3, 4)), "--std: 4 values for 3 channels"),
    ([ModelInput("image", "float32", CHANNELS_LAST)], ImageOptions(), "in layout nchw; is it --image-layout nhwc?"),
    (
        [ModelInput("image", "float32", (1, 3, 2, 4))],
        ImageOptions(image_layout="nhwc"),
        "in layout nhwc; is it --image-layout nchw?",
    ),
    ([X], ImageOptions(), NO_IMAGES),
    ([PICTURE, RATE], ImageOptions(), NO_IMAGES),
    ([], ImageOptions(), NO_IMAGES),
]


@pytest.mark.parametrize(("inputs", "options", "said"), WRONG)
def test_images_that_do_not_fit_are_an_error(
    inputs: list[ModelInput], options: ImageOptions, said: str, tmp_path: Path
) -> None:
    for name in "abc":
        picture(tmp_path, f"{name}.png")
    with pytest.raises(CalibrationError, match=message(said)):
        Calibration.load(tmp_path, options).samples(inputs)


def test_a_damaged_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    picture(tmp_path, "a.png", size=(16, 16))
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"", b"text", whole[:20], whole[: len(whole) // 2]):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(CalibrationError, match=message("a.png: cannot be read as an image")):
            Calibration.load(tmp_path).samples([PICTURE])


def test_a_flipped_byte_in_an_image_is_an_error_or_an_image(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    unexpected: set[str] = set()
    for position in range(len(whole)):
        (tmp_path / "a.png").write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            Calibration.load(tmp_path).samples([PICTURE])
        except CalibrationError:
            continue
        except Exception as error:
            unexpected.add(f"{type(error).__name__}: {error}")
    assert not unexpected


# ---- callables ------------------------------------------------------------------------------------------------------

MODULE = """
    import numpy as np

    FEEDS = [{"x": np.full((1, 3), n, np.float32)} for n in range(2)]

    def as_list():
        return FEEDS

    def as_generator():
        yield from FEEDS

    class Reader:
        def __init__(self):
            self.rest = list(FEEDS)

        def get_next(self):
            return self.rest.pop(0) if self.rest else None

    def as_reader():
        return Reader()

    def broken():
        raise KeyError("nothing\\nhere")

    def broken_generator():
        yield FEEDS[0]
        raise OSError("half way")

    def number():
        return 5

    def arrays():
        return [np.zeros((1, 3), np.float32)]

    def by_input():
        return {"x": [[0.0] * 3, [1.0] * 3]}

    def nothing():
        return None
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working directory, forgotten afterwards."""
    (tmp_path / "feeding.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "feeding"
    sys.modules.pop("feeding", None)


@pytest.mark.parametrize("name", ["as_list", "as_generator", "as_reader", "Reader", "FEEDS"])
def test_a_callable_gives_feeds(name: str, module: str) -> None:
    before = list(sys.path)
    calibration = Calibration.load(f"{module}:{name}")
    assert calibration.kind == "python"
    feeds = [{"x": np.full((1, 3), n, np.float32)} for n in range(2)]
    assert_samples(calibration.samples([X]), feeds, [1, 1])
    assert_samples(calibration.samples([X]), feeds, [1, 1])  # again, as verify may ask
    assert sys.path == before


def test_a_callable_gives_arrays_by_input_as_an_npz_file_does(module: str) -> None:
    feeds = [{"x": np.full((1, 3), n, np.float32)} for n in range(2)]
    assert_samples(Calibration.load(f"{module}:by_input").samples([X]), feeds, [1, 1])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("absent", ("feeding:absent: the module has no 'absent'",)),
        ("", ("feeding:: the module has no ''",)),
        ("broken", ("feeding:broken: KeyError: ", "nothing")),
        ("broken_generator", ("feeding:broken_generator: OSError: half way",)),
        ("number", ("feeding:number: TypeError: ",)),
        ("nothing", ("feeding:nothing: TypeError: ",)),
        ("arrays", ("feeding:arrays: gives a list of ndarray; give one mapping from input names to arrays",)),
    ],
)
def test_a_callable_that_fails_is_an_error_that_names_it(name: str, parts: tuple[str, ...], module: str) -> None:
    with pytest.raises(CalibrationError, match=message(*parts)):
        Calibration.load(f"{module}:{name}").samples([X])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def :", "SyntaxError"),
        ("raise SystemExit('no')", "SystemExit"),
        ("import math; math.tangens", "AttributeError"),
    ],
)
def test_a_module_that_fails_while_imported_is_an_error_that_names_it(content: str, error: str, module: str) -> None:
    Path("feeding.py").write_text(content)
    with pytest.raises(CalibrationError, match=f"^feeding:as_list: the module cannot be imported: {error}: [^\n]+$"):
        Calibration.load(f"{module}:as_list").samples([X])


@pytest.mark.parametrize("source", [":f", "no_such_module:f"])
def test_a_module_that_is_not_there_is_an_error(source: str) -> None:
    with pytest.raises(CalibrationError, match=message(f"{source}: the module cannot be imported")):
        Calibration.load(source).samples([X])


# ---- random data ----------------------------------------------------------------------------------------------------


def test_random_floats_are_gaussian_and_the_same_for_the_same_seed() -> None:
    item = ModelInput("x", "float32", ("batch", 4000))
    samples = Calibration.random(seed=3).samples([item])
    assert Calibration.random().kind == "random"
    assert [sample.rows for sample in samples] == [1, 1, 1, 1]
    assert [sample.feed["x"].shape for sample in samples] == [(1, 4000)] * 4
    values = np.concatenate([sample.feed["x"] for sample in samples])
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.03
    assert abs(values.std() - 1) < 0.03
    assert digest(Calibration.random(seed=3).samples([item])) == digest(samples)
    assert digest(Calibration.random(seed=4).samples([item])) != digest(samples)
    assert len(Calibration.random(samples=2).samples([item])) == 2


@pytest.mark.parametrize(("dtype", "shape"), [("float16", (2, 3)), ("float64", (1, 3)), ("float32", ())])
def test_random_floats_have_the_input_s_type_and_differ(dtype: str, shape: tuple[int, ...]) -> None:
    arrays = [sample.feed["x"] for sample in Calibration.random().samples([ModelInput("x", dtype, shape)])]
    assert all(isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape for array in arrays)
    assert len({array.tobytes() for array in arrays}) == len(arrays)


def test_random_ids_fill_the_vocabulary_found_behind_the_gather(tmp_path: Path) -> None:
    inputs = Model.load(save(embedding(), tmp_path)).inputs
    samples = Calibration.random(samples=20).samples(inputs, {"length": 30})
    ids = np.concatenate([sample.feed["ids"] for sample in samples])
    assert ids.dtype == np.int64
    assert set(ids.ravel().tolist()) == set(range(11))
    for sample in samples:
        assert sample.feed["ids"].shape == sample.feed["mask"].shape == (1, 30)
        np.testing.assert_array_equal(sample.feed["mask"], np.ones((1, 30), np.int64), strict=True)
        np.testing.assert_array_equal(sample.feed["rate"], np.array(1), strict=True)


def test_random_bools_are_true_and_integers_ones() -> None:
    inputs = [ModelInput("b", "bool", (2,)), ModelInput("i", "int32", (2, 2)), ModelInput("s", "int64", ())]
    for sample in Calibration.random().samples(inputs):
        np.testing.assert_array_equal(sample.feed["b"], np.array([True, True]), strict=True)
        np.testing.assert_array_equal(sample.feed["i"], np.ones((2, 2), np.int32), strict=True)
        np.testing.assert_array_equal(sample.feed["s"], np.array(1), strict=True)


def test_random_bytes_are_pixels() -> None:
    values = [s.feed["p"] for s in Calibration.random().samples([ModelInput("p", "uint8", (1, 32, 32, 3))])]
    assert values[0].dtype == np.uint8
    assert values[0].min() < 10
    assert values[0].max() > 245


def test_random_strings_are_refused() -> None:
    with pytest.raises(CalibrationError, match=message("input 'text' takes strings", "--calibration")):
        Calibration.random().samples([ModelInput("text", "object", (1,))])


def test_the_batch_is_one_unless_told_otherwise() -> None:
    inputs = [ModelInput("x", "float32", (None, 3)), STATE, ModelInput("y", "float32", ("N", 2))]
    (sample, *_) = Calibration.random().samples(inputs)
    assert {name: array.shape for name, array in sample.feed.items()} == {"x": (1, 3), "state": (2, 1, 4), "y": (1, 2)}
    (sample, *_) = Calibration.random().samples(inputs, {"batch": 5, "N": 7, "x.0": 6})
    assert {name: array.shape for name, array in sample.feed.items()} == {"x": (6, 3), "state": (2, 5, 4), "y": (7, 2)}


@pytest.mark.parametrize(
    ("shape", "name"),
    [(("batch", "height", "width"), "height"), (("batch", 3, None), "x.2"), ((1, "past + 1"), "past + 1")],
)
def test_a_free_dimension_without_a_size_is_an_error_that_names_dimension_and_flag(
    shape: tuple[Any, ...], name: str
) -> None:
    item = ModelInput("x", "float32", shape)
    with pytest.raises(
        CalibrationError, match=message(f"dimension {name!r} is free and has no size; give it with --dim {name}=N")
    ):
        Calibration.random().samples([item])


# ---- digest ---------------------------------------------------------------------------------------------------------


def test_the_digest_depends_on_every_value_name_type_shape_and_on_the_order() -> None:
    x = ramp(1, 3)
    changed = x.copy()
    changed[0, 2] = np.nextafter(changed[0, 2], 9, dtype=np.float32)
    variants = [
        [Sample({"x": x})],
        [Sample({"x": changed})],
        [Sample({"z": x})],
        [Sample({"x": x.astype(np.float64)})],
        [Sample({"x": x.view(np.int32)})],
        [Sample({"x": x.reshape(3, 1)})],
        [Sample({"x": x}), Sample({"x": x})],
        [Sample({"x": x}), Sample({"x": changed})],
        [Sample({"x": changed}), Sample({"x": x})],
        [Sample({"x": x, "y": changed})],
        [Sample({"x": changed, "y": x})],
        [],
    ]
    assert len({digest(samples) for samples in variants}) == len(variants)


def test_the_digest_is_the_beginning_of_a_sha256_and_stays_the_same() -> None:
    samples = [Sample({"x": np.array([[0.0, 1.0]], "<f4"), "a": np.array(7, "<i8")})]
    assert digest(samples) == digest([Sample(dict(reversed(samples[0].feed.items())))])

    text = b"a\0<i8\0()\0" + (7).to_bytes(8, "little") + b"x\0<f4\0(1, 2)\0" + bytes([0, 0, 0, 0, 0, 0, 0x80, 0x3F])
    assert digest(samples) == hashlib.sha256(text).hexdigest()[:16]
    assert digest([Sample({"x": X2})]) == digest([Sample({"x": np.asfortranarray(X2)})])


def test_the_digest_of_strings_depends_on_the_strings_alone() -> None:
    def text(*words: str) -> list[Sample]:
        return [Sample({"text": np.array(["".join(list(word)) for word in words], dtype=object)})]

    assert digest(text("alpha", "beta")) == digest(text("alpha", "beta"))
    assert digest(text("alpha", "beta")) != digest(text("alpha", "gamma"))
