"""Layers are decoded piece by piece: the pieces make no difference, and little more memory is needed than for them."""

from __future__ import annotations

import zlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest

from riq_cli.archive import Archive, LayerEntry, Manifest, SkeletonEntry, deflate
from riq_cli.decode import decode_layer, symbol_counts, trellis
from riq_cli.decode import layers as decoding
from riq_cli.entropy import contexts
from riq_cli.entropy.student import Student
from riq_cli.errors import LimitExceeded
from riq_cli.model import Model
from riq_cli.pipeline.layer_entry import encode_layer
from riq_cli.quantize.scalar import nearest
from riq_cli.report.histogram import histograms
from tests.archives import MANIFEST, SECTIONS, TABLE, levels_of, opened, packed
from tests.memory import growth, on_linux
from tests.test_goldens import NAMES

GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize("name", NAMES)
def test_small_pieces_give_the_same_weights(name: str) -> None:
    with Archive.open(GOLDENS / name) as archive, patch.multiple(decoding, _WINDOW_LEAST=64, _WINDOW_SHARE=0.0), \
            patch.object(contexts, "_BLOCK", 104), patch.object(trellis, "_PART", 50):  # fmt: skip
        for entry, sections in archive.layer_sections():
            if entry.size < 200_000:
                decode_layer(entry, sections, None)  # which checks the weights' CRC-32


@on_linux
@pytest.mark.parametrize(("shape", "axis"), [((1 << 23,), 0), ((4, 1 << 21), 0), ((4, 1 << 21), 1)])
def test_a_layer_takes_a_third_more_than_its_bytes(shape: tuple[int, ...], axis: int, tmp_path: Path) -> None:
    symbols = np.full(np.prod(shape), 3, np.int32)
    values = (levels_of(symbols, shape, (axis,)) * 0.125).astype(np.float16)
    layer = MANIFEST["layers"][0] | {
        "dtype": "float16", "shape": list(shape), "trellis": [axis], "crc32": zlib.crc32(values.data),
    }  # fmt: skip
    (tmp_path / "x.riqz").write_bytes(packed(MANIFEST | {"layers": [layer], "requires": ["trellis"]}))
    taken = growth(
        "from riq_cli.archive import Archive\nfrom riq_cli.decode import decode_layers",
        "layers = list(decode_layers(Archive.open(sys.argv[1])))",
        tmp_path / "x.riqz",
    )
    assert values.nbytes < taken < 1.32 * values.nbytes + (16 << 20)


def empty_streams(count: int) -> tuple[LayerEntry, list[bytes]]:
    """A layer in Student's coding whose streams are empty, as those of its first symbol are, -2."""
    table = Student(2, False, 0, 0, 0, -2, 5).to_bytes()
    layer = MANIFEST["layers"][0] | {
        "coding": "student", "shape": [count << 20], "symbols": 2, "table": len(table), "streams": [0] * count,
    }  # fmt: skip
    archive = opened(packed(MANIFEST | {"layers": [layer], "requires": ["student"]}, SECTIONS[: -len(TABLE)] + table))
    [(entry, sections)] = archive.layer_sections()
    return entry, sections


def test_of_a_large_layer_symbols_are_counted_in_some_streams() -> None:
    assert symbol_counts(*empty_streams(16)) == {-2: 16 << 20}
    assert symbol_counts(*empty_streams(40)) == {-2: 14 << 20}  # one stream of three


def test_of_a_huge_layer_no_symbol_is_counted() -> None:
    entry, sections = empty_streams(300)
    archive = Archive.build(Manifest(SkeletonEntry(0, 0, 0), (entry,)), sections)
    assert histograms(archive, 6) == []


def test_codes_count_against_the_bound() -> None:
    layer = MANIFEST["layers"][0] | {"shape": [1 << 22], "scales": [{"axes": [0], "bytes": 1}]}
    data = packed(MANIFEST | {"layers": [layer], "requires": ["scales"]}, SECTIONS[: -len(TABLE)] + b"?" + TABLE)
    assert opened(data, 1 << 27).manifest.restored < 1 << 25
    with pytest.raises(
        LimitExceeded, match=r"^the codes of a layer need 67,108,864 bytes, which with those of the model"
    ):
        opened(data, 1 << 26)


@on_linux
def test_a_model_is_restored_in_a_third_more_memory_than_it_takes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.integers(-3, 4, (1 << 10, 1 << 10)).astype(np.float32) for _ in range(4)]
    tensors = [onnx.numpy_helper.from_array(values, f"w{number}") for number, values in enumerate(weights)]
    nodes = [onnx.helper.make_node("Identity", [tensor.name], [f"y{tensor.name}"]) for tensor in tensors]
    outputs = [onnx.helper.make_tensor_value_info(node.output[0], 1, [1 << 10, 1 << 10]) for node in nodes]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], outputs, tensors)), tmp_path / "x.onnx")
    model = Model.load(tmp_path / "x.onnx")
    encoded = [encode_layer(layer, nearest(layer.values, "float32", 1.0), None) for layer in model.layers]
    skeleton = model.skeleton_bytes()
    entry = SkeletonEntry(len(deflate(skeleton)), len(skeleton), zlib.crc32(skeleton))
    sections = [deflate(skeleton), *(section for _, sections in encoded for section in sections)]
    Archive.build(Manifest(entry, tuple(entry for entry, _ in encoded)), sections).save(tmp_path / "x.riqz")
    taken = growth(
        "from riq_cli.archive import Archive\nfrom riq_cli.pipeline import decompress",
        "decompress(Archive.open(sys.argv[1])).save(sys.argv[2], True)",
        tmp_path / "x.riqz",
        tmp_path / "again.onnx",
    )
    assert (tmp_path / "again.onnx").read_bytes() == model.to_bytes()
    assert taken < 1.3 * (tmp_path / "again.onnx").stat().st_size + (16 << 20)
