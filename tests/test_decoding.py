"""Layers are decoded piece by piece: the pieces make no difference, and little more memory is needed than for them."""

from __future__ import annotations

import zlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from riq_cli import trellis
from riq_cli.archive import Archive
from riq_cli.codec import classes, decoding
from riq_cli.codec.decoding import decode_layer
from tests.archives import MANIFEST, levels_of, packed
from tests.memory import growth, on_linux
from tests.test_goldens import NAMES

GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize("name", NAMES)
def test_small_pieces_give_the_same_weights(name: str) -> None:
    with Archive.open(GOLDENS / name) as archive, patch.multiple(decoding, _WINDOW_LEAST=64, _WINDOW_SHARE=0.0), \
            patch.object(classes, "_BLOCK", 104), patch.object(trellis, "_PART", 50):  # fmt: skip
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
        "import riq_cli.codec.decoding as decoding\nfrom riq_cli.archive import Archive",
        "layers = [decoding.decode_layer(*item, None) for item in Archive.open(sys.argv[1]).layer_sections()]",
        tmp_path / "x.riqz",
    )
    assert values.nbytes < taken < 1.32 * values.nbytes + (16 << 20)
