"""What is too large for memory is in temporary files, and comes out the same."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from builders import FORMS, feeds, save

import riq_cli as riq
from riq_cli.archive import Archive
from riq_cli.calibration import Calibration
from riq_cli.errors import OutputError
from riq_cli.memory import give_back_mapped_memory
from riq_cli.model import Model
from riq_cli.scratch import Scratch, temporary_file
from tests import command
from tests.llama import Llama
from tests.memory import growth, on_linux


@pytest.mark.parametrize("reserves", [True, False])
def test_arrays_are_the_same_after_their_memory_was_given_back(reserves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not reserves:  # as where the system has no call for it
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    scratch, generator = Scratch(), np.random.default_rng(0)
    values = [generator.standard_normal(shape).astype(np.float16) for shape in ((700, 1000), (1 << 20,), (3, 5))]
    kept = [scratch.kept(value) for value in values]
    give_back_mapped_memory()
    for one, other in zip(kept, values, strict=True):
        np.testing.assert_array_equal(one, other)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@on_linux
def test_memory_is_given_back_while_a_whole_file_is_passed_over() -> None:
    taken = growth(
        "import time\n"
        "from riq_cli.memory import mapped_memory_given_back\n"
        "from riq_cli.scratch import Scratch\n"
        "values = Scratch().empty((32, 2 << 20), 'u1')\n",
        "with mapped_memory_given_back():\n    for part in values:\n        part[...] = 1\n        time.sleep(0.02)\n",
    )
    assert taken < 32 << 20


def test_a_file_is_begun_where_one_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riq_cli.scratch._FILE", 3 << 20)
    scratch = Scratch()
    kept = [scratch.kept(np.full(1 << 21, number, np.uint8)) for number in range(3)]
    kept.append(scratch.kept(np.full(1 << 22, 3, np.uint8)))  # larger than a file
    del scratch  # the arrays stay
    assert [value.tobytes() == bytes([number]) * value.size for number, value in enumerate(kept)] == [True] * 4


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match=r"none cannot be written: No such file .*; name .* --scratch$"):
        Scratch().kept(np.zeros(1 << 20))


@pytest.fixture
def huge(monkeypatch: pytest.MonkeyPatch) -> None:
    """All models count as huge, but for the form in which they are run."""
    for file in ("assembly", "restoration", "weights"):
        monkeypatch.setattr(f"riq_cli.pipeline.{file}.HUGE", 0)
    monkeypatch.setattr("riq_cli.scratch._SMALL", 0)


@pytest.mark.parametrize(("name", "preset"), [("float16", "fast"), ("tied", "fast"), ("dense", "small")])
def test_an_archive_and_its_model_are_the_same_in_files(
    name: str, preset: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    proto = FORMS[name]()
    model, samples = Model.load(save(proto, tmp_path)), Calibration.from_feeds(feeds(proto, 16))
    usual = riq.compress(model, samples, preset=preset, deviation=0.001)
    request.getfixturevalue("huge")
    archive = riq.compress(model, samples, preset=preset, deviation=0.001)
    archive.save(tmp_path / "x.riqz")
    usual.save(tmp_path / "usual.riqz")
    assert (tmp_path / "x.riqz").read_bytes() == (tmp_path / "usual.riqz").read_bytes()
    assert riq.decompress(archive).to_bytes() == riq.decompress(usual).to_bytes()
    riq.decompress(archive).save(tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == riq.decompress(usual).to_bytes()


@pytest.mark.usefixtures("huge")
def test_integers_of_a_huge_model_are_run_as_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decoder = Llama(1, 32, 48, 4, 2, 64, "float32")
    decoder.save(tmp_path / "x.onnx")
    model, samples = Model.load(tmp_path / "x.onnx"), Calibration.from_arrays({"words": decoder.samples(4, 9)[:, 0]})
    archive = riq.compress(model, samples, preset="fast", k=1e4)
    usual = riq.verify(archive, model, samples, format="int8", nearest=True).mean
    monkeypatch.setattr("riq_cli.runtime.evaluator.HUGE", 0)
    assert riq.verify(archive, model, samples, format="int8", nearest=True).mean == pytest.approx(usual, rel=1e-3)


def test_sections_in_a_file_are_read_by_several_at_a_time() -> None:
    with Archive.open(Path(__file__).parent / "goldens" / "v1-student.riqz") as archive:
        sections = [section for _, some in archive.layer_sections() for section in some]
        stored = [bytes(archive.manifest.skeleton.bytes), *sections]
        copy = Archive.build(archive.manifest, stored, temporary_file())
        assert list(zip(copy.layer_sections(), copy.layer_sections(), strict=True)) == [
            (one, one) for one in archive.layer_sections()
        ]


def test_the_folder_has_to_be_there(tmp_path: Path) -> None:
    command.fails(2, "Directory 'none' does not exist", "decompress", "x.riqz", "--scratch", "none", folder=tmp_path)
