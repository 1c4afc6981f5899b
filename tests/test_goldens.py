"""Archives that were written once and must be readable for ever, by riq and by the reference decoder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import reference_decoder

from riq_cli.archive import CODINGS, DTYPE_BYTES, Archive
from riq_cli.decode import decode_layers
from riq_cli.model.places import find_tensor
from riq_cli.pipeline.restoration import decompress

FOLDER = Path(__file__).parent / "goldens"
RECORD: dict[str, Any] = json.loads((FOLDER / "goldens.json").read_text("utf-8"))
NAMES = sorted(RECORD)


def sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_golden_is_recorded() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.riqz")) == NAMES


def test_goldens_are_small() -> None:
    assert sum((FOLDER / name).stat().st_size for name in NAMES) < 40_000


def test_goldens_have_every_dtype_in_every_coding() -> None:
    seen = {(layer["dtype"], layer["coding"]) for golden in RECORD.values() for layer in golden["layers"]}
    assert seen == {(dtype, coding) for dtype in DTYPE_BYTES for coding in CODINGS}


@pytest.mark.parametrize("name", NAMES)
def test_riq_decodes_a_golden(name: str) -> None:
    expected = RECORD[name]
    with Archive.open(FOLDER / name) as archive:
        assert sha256(archive.skeleton()) == expected["skeleton"]
        layers = []
        for entry, values in decode_layers(archive):
            layers.append(
                {
                    "name": entry.name,
                    "dtype": entry.dtype,
                    "shape": list(values.shape),
                    "coding": entry.coding,
                    "places": list(entry.tensors),
                    "sha256": sha256(values.tobytes()),
                }
            )
    assert layers == expected["layers"]


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_decodes_a_golden(name: str) -> None:
    skeleton, layers = reference_decoder.decode((FOLDER / name).read_bytes())
    assert sha256(skeleton) == RECORD[name]["skeleton"]
    keys = ("name", "dtype", "shape", "coding")
    assert [
        {key: entry[key] for key in keys} | {"places": entry["tensors"], "sha256": sha256(data)}
        for entry, data in layers
    ] == RECORD[name]["layers"]


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_becomes_a_model(name: str) -> None:
    with Archive.open(FOLDER / name) as archive:
        model = onnx.load_from_string(decompress(archive).to_bytes())
    for layer in RECORD[name]["layers"]:
        for place in layer["places"]:
            assert sha256(find_tensor(model, place).raw_data) == layer["sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_is_written_again_without_a_change_in_what_it_says(name: str, tmp_path: Path) -> None:
    with Archive.open(FOLDER / name) as archive:
        archive.save(tmp_path / name)
        with Archive.open(tmp_path / name) as again:
            assert again.manifest == archive.manifest
            assert list(again.layer_sections()) == list(archive.layer_sections())
