"""What is fuzzed: how a case is made from small valid inputs, and what is done with it."""

from __future__ import annotations

import copy
import io
import json
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from riq_cli.archive import HEADER, Archive
from riq_cli.cli import difference as compared
from riq_cli.cli import markdown
from riq_cli.cli.report import as_document, text
from riq_cli.errors import ArchiveError, ModelError, RiqError
from riq_cli.model import Model
from riq_cli.pipeline import decompress
from riq_cli.report import difference, page
from riq_cli.report.histogram import histograms
from tests import builders
from tests.archives import packed
from tests.fuzz.mutation import Random, change_message, changed_bytes, changed_document, changed_text, pick
from tests.test_schema import MADE

GOLDENS = Path(__file__).parent.parent / "goldens"
BOUND = 1 << 18  # bytes that are restored at most


@dataclass(frozen=True)
class Target:
    """`make` is a case from random numbers, `run` what has to end well or in one of the `errors`."""

    make: Callable[[Random], bytes]
    run: Callable[[bytes], None]
    errors: tuple[type[RiqError], ...]


@dataclass(frozen=True)
class Parts:
    """An archive taken apart: its manifest as a document, and its sections in their order, the skeleton inflated."""

    document: dict[str, Any]
    skeleton: bytes
    sections: tuple[bytes, ...]

    @classmethod
    def of(cls, path: Path) -> Parts:
        """Those of a file."""
        data = path.read_bytes()
        *_, length = HEADER.unpack_from(data)
        document = json.loads(zlib.decompress(data[HEADER.size : HEADER.size + length]))
        with Archive.open(path) as archive:
            sections = tuple(part for _, parts in archive.layer_sections() for part in parts)
            return cls(document, archive.skeleton(), sections)

    def packed(self) -> bytes:
        """An archive of them, with lengths and checksums as they should be, but for those of weights."""
        stored = zlib.compress(self.skeleton)
        document = copy.deepcopy(self.document)
        document["skeleton"] = {
            "bytes": len(stored), "size": len(self.skeleton), "crc32": zlib.crc32(self.skeleton)
        }  # fmt: skip
        lengths = iter(map(len, self.sections))
        for layer in document["layers"]:
            codes = [*layer.get("scales", ()), *([layer["classes"]] if "classes" in layer else ())]
            for item in (*codes, *layer.get("magnitudes", ())):
                item["bytes"] = next(lengths)
            layer["table"] = next(lengths)
            layer["streams"] = [next(lengths) for _ in layer["streams"]]
        return packed(document, stored + b"".join(self.sections))


@cache
def goldens() -> list[Parts]:
    """All small goldens, and all once more with all that a manifest can tell."""
    paths = sorted(GOLDENS.glob("*.riqz"))
    plain = [Parts.of(path) for path in paths if Archive.open(path).manifest.restored < BOUND]
    told = [Parts(parts.document | MADE, parts.skeleton, parts.sections) for parts in plain]
    return [*plain, *told]


def changed_manifest(random: Random) -> bytes:
    """An archive whose manifest says something else."""
    parts = pick(random, goldens())
    return packed(changed_text(random, parts.document), zlib.compress(parts.skeleton) + b"".join(parts.sections))


def changed_archive(random: Random) -> bytes:
    """An archive with other bytes in its sections, its skeleton, its manifest or anywhere."""
    parts = pick(random, goldens())
    match int(random.integers(8)):
        case 0:
            return changed_bytes(random, parts.packed())
        case 1 | 2:
            return Parts(parts.document, changed_skeleton(random, parts.skeleton), parts.sections).packed()
        case 3:
            try:
                return Parts(changed_document(random, parts.document), parts.skeleton, parts.sections).packed()
            except (LookupError, TypeError, AttributeError, StopIteration):  # not taken for lengths any more
                return changed_bytes(random, parts.packed())
        case _ if parts.sections:
            sections = list(parts.sections)
            for _ in range(int(random.integers(1, 3))):
                number = int(random.integers(len(sections)))
                other = pick(random, sections)
                sections[number] = other if random.random() < 0.1 else changed_bytes(random, sections[number])
            return Parts(parts.document, parts.skeleton, tuple(sections)).packed()
        case _:
            return Parts(parts.document, changed_skeleton(random, parts.skeleton), parts.sections).packed()


def changed_skeleton(random: Random, skeleton: bytes) -> bytes:
    """A serialized model that is another, or none."""
    if random.random() < 0.4:
        return changed_bytes(random, skeleton)
    proto = onnx.ModelProto()
    proto.ParseFromString(skeleton)
    change_message(random, proto)
    return bytes(proto.SerializeToString())


def read_archive(data: bytes) -> None:
    """Do with an archive what `riq report` does."""
    archive = Archive.open(io.BytesIO(data), BOUND)
    json.dumps(as_document(archive, "rate"), allow_nan=False)
    text(archive, "model", wide=False)
    markdown.report(archive, "x.riqz", "bytes")
    other = difference(base(), archive)
    compared.text(other, "a", "b", wide=False)
    compared.as_markdown(other, "a", "b")
    json.dumps(other, allow_nan=False)
    page(archive, "x.riqz")


def decode_archive(data: bytes) -> None:
    """Restore the model in an archive, and count its symbols."""
    archive = Archive.open(io.BytesIO(data), BOUND)
    try:
        decompress(archive).to_bytes()
    finally:
        histograms(archive, 6)


@cache
def base() -> Archive:
    """What others are compared with."""
    return Archive.open(io.BytesIO(goldens()[-1].packed()))


@cache
def models() -> list[bytes]:
    """Small models of all forms, and one with data in another file."""
    made = [builders.FORMS[name]() for name in builders.FORMS]
    beside = copy.deepcopy(made[0])
    for tensor in beside.graph.initializer:
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="data.bin")
        tensor.external_data.add(key="length", value=str(len(tensor.raw_data)))
        tensor.ClearField("raw_data")
    return [bytes(proto.SerializeToString()) for proto in (*made, beside)]


def changed_model(random: Random) -> bytes:
    """A serialized model that is another, or none."""
    return changed_skeleton(random, pick(random, models()))


@cache
def folder() -> Path:
    """Where models are written, beside some data; it goes when the process ends."""
    path = Path(_temporary().name)
    (path / "data.bin").write_bytes(bytes(1 << 16))
    return path


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")  # where there is one: files are opened for each case
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


def read_model(data: bytes) -> None:
    """Do with a model what compress does before it runs anything."""
    path = folder() / "model.onnx"
    path.write_bytes(data)
    model = Model.load(path)
    model.to_bytes()
    _ = model.inputs, model.is_quantized, model.repeated_names, model.nbytes
    half = model.select(lambda layer: len(layer.name) % 2 == 0)
    for form in (half.session_form(), half.session_form(hoist=False)):
        assert form is not None
    half.skeleton_bytes()


TARGETS: dict[str, Target] = {
    "manifest": Target(changed_manifest, read_archive, (ArchiveError, ModelError)),
    "archive": Target(changed_archive, decode_archive, (ArchiveError, ModelError)),
    "model": Target(changed_model, read_model, (ModelError, RiqError)),
}
NAMES: Sequence[str] = tuple(TARGETS)
