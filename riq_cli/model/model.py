"""A model as riq sees it: a skeleton, and layers whose data was taken out of it."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from riq_cli import limits
from riq_cli.errors import CorruptArchive, LimitExceeded, ModelError
from riq_cli.files import atomic_write
from riq_cli.kinds import HEAD, instead
from riq_cli.memory import give_back_mapped_memory
from riq_cli.model.data_files import DataFiles
from riq_cli.model.inputs import ModelInput, model_inputs
from riq_cli.model.layer import Layer, is_quantizing
from riq_cli.model.places import Place, check_names, constant_places, find_tensor, scopes, tensors
from riq_cli.model.session_form import SMALL, SessionForm, exact_form, session_form
from riq_cli.model.tensors import FLOAT_TYPES, ONNX_TYPES, Array, clear_data, float_array, has_data
from riq_cli.model.topology import callees_first, function_calls
from riq_cli.model.two_files import data_files_of, save_in_two_files
from riq_cli.model.uses import Uses
from riq_cli.model.wire import MOST_PER_BYTE, parsed_size, with_raw_data

_PROTOBUF_MAX = (2 << 30) - (1 << 20)  # protobuf's 2 GiB, with room for what surrounds the data
_BEGINNING = 256  # values of tensors that are compared; only those whose beginnings are equal are hashed as a whole


@dataclass(frozen=True)
class Source:
    """The bytes that a model was loaded from, external data included, and their SHA-256."""

    bytes: int
    sha256: str


class Model:
    """An ONNX model: `layers` hold the float tensors, `skeleton` everything else."""

    def __init__(
        self,
        skeleton: onnx.ModelProto | bytes,
        layers: Sequence[Layer],
        source: Source | None = None,
        typed: Mapping[str, bytes] | None = None,
        files: DataFiles | None = None,
    ) -> None:
        """Put together what `load` took apart; the skeleton's layers hold no data.

        Args:
            skeleton: the model without its layers' data; serialized, it is parsed when it is asked for.
            typed: by place, the messages of tensors whose data was in typed fields (`float_data`) instead of bytes:
                `select` puts them back as they were.
            files: that layers are mapped from.
        """
        self._skeleton = skeleton
        self.layers = tuple(layers)
        self.source = source
        self._typed = typed or {}
        self._files = files

    @classmethod
    def load(cls, source: str | os.PathLike[str] | BinaryIO, follow_links: bool = False) -> Model:
        """The model in a file or a binary stream; every float tensor that it holds becomes a layer.

        Layers of large files and of external data are mapped, not read: files have to stay as they are.

        Args:
            source: a path, which may be a link, beside which external data lies; or a stream, which is read to its end.
            follow_links: read external data also through symbolic and hard links, which can show any file of the
                user's: for models that are trusted, such as those in a hub's cache.

        Raises:
            ModelError: not an ONNX model, or its external data is missing, damaged or behind a link.
            FileNotFoundError, OSError: the file cannot be read.
        """
        if isinstance(source, (str, os.PathLike)):
            path, name = Path(source), os.fspath(source)
            files = DataFiles(path, follow_links)
            data = files.message()
        else:
            path, name = None, str(getattr(source, "name", "the stream"))
            files = DataFiles(None)
            data = source.read()
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(data)
        except DecodeError as error:
            raise ModelError(f"{name}: {instead('an ONNX model', data[:HEAD])}") from error
        if not proto.graph.node and not proto.graph.output:
            raise ModelError(f"{name}: {instead('an ONNX model', data[:HEAD])}")
        read = b"" if files.is_mapped else data
        digest, size = hashlib.sha256(read), len(read)
        del data, read
        check_names(proto)
        callees_first(function_calls(proto))  # or a function calls itself, which crashes some versions of onnxruntime
        if path is None and any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors(proto)):
            raise ModelError(f"{name}: some of the model's data lies in files beside it; give the path of its own file")
        layers, typed = _take_layers(proto, files)
        for tensor in tensors(proto):
            files.load(tensor)
            tensor.ClearField("external_data")  # some writers leave it behind where data is inside
        size += files.hash_mapped(digest)
        give_back_mapped_memory()
        return cls(_compact(proto), layers, Source(size, digest.hexdigest()), typed, files)

    @classmethod
    def from_skeleton(cls, skeleton: bytes, layers: Sequence[Layer], room: int | None = None) -> Model:
        """The model of an archive: its layers, and its skeleton, which may take `room` bytes when it is parsed.

        Args:
            skeleton, layers: what is put together.
            room: None for no bound.

        Raises:
            LimitExceeded: it would take more.
            CorruptArchive: not a model; a layer whose place does not exist, or has another shape or type or data of
                its own; or a tensor that points at a file.
        """
        proto = onnx.ModelProto()
        try:
            if room is not None:
                _check_parsed_size(skeleton, room)
            proto.ParseFromString(skeleton)
        except (DecodeError, ValueError) as error:
            raise CorruptArchive("the skeleton is not an ONNX model; the archive is damaged") from error
        for layer in layers:
            for path in layer.places:
                tensor = find_tensor(proto, path)
                if tuple(tensor.dims) != layer.shape or tensor.data_type != ONNX_TYPES[layer.dtype]:
                    raise CorruptArchive(f"layer {layer.name!r}: {path} has another shape or type")
                if has_data(tensor):
                    raise CorruptArchive(f"layer {layer.name!r}: {path} holds data of its own")
        if any(t.data_location == onnx.TensorProto.EXTERNAL or t.external_data for t in tensors(proto)):
            raise CorruptArchive("the skeleton refers to external data, which archives never do")
        try:
            with_raw_data(skeleton, {place: memoryview(b"") for layer in layers for place in layer.places})
        except ValueError as error:
            raise CorruptArchive("the skeleton is not as protobuf writes it; the archive is damaged") from error
        return cls(skeleton, layers)

    @property
    def skeleton(self) -> onnx.ModelProto:
        """The model without its layers' data."""
        if isinstance(self._skeleton, bytes):
            proto = onnx.ModelProto()
            proto.ParseFromString(self._skeleton)
            self._skeleton = proto
        return self._skeleton

    @property
    def inputs(self) -> tuple[ModelInput, ...]:
        """What the model is fed: its graph inputs, those that are initializers left out.

        Raises:
            ModelError: an input that is not a tensor.
        """
        return model_inputs(self.skeleton)

    @property
    def is_quantized(self) -> bool:
        """Whether it has operators that work on quantized data."""
        return any(is_quantizing(node.op_type) for _, scope in scopes(self.skeleton) for node in scope.node)

    @property
    def repeated_names(self) -> list[str]:
        """Names that a graph gives to several float tensors; these are no layers, and stay as they are.

        Which of them a session takes differs from one version of onnxruntime to another.
        """
        repeated = _repeated(constant_places(self.skeleton))
        floats = (place for place in constant_places(self.skeleton) if place.tensor.data_type in FLOAT_TYPES)
        return sorted({place.value_name for place in floats if (place.scope, place.value_name) in repeated} - {""})

    @property
    def nbytes(self) -> int:
        """Bytes of the model with all its data in one message."""
        skeleton = len(self._skeleton) if isinstance(self._skeleton, bytes) else int(self._skeleton.ByteSize())
        return skeleton + sum(layer.values.nbytes * len(layer.places) for layer in self.layers)

    def select(self, keep: Callable[[Layer], bool]) -> Model:
        """The same model with only those layers for which `keep` is true; the others are put back into the skeleton."""
        skeleton = onnx.ModelProto()
        skeleton.CopyFrom(self.skeleton)
        kept = []
        for layer in self.layers:
            if keep(layer):
                kept.append(layer)
            else:
                _fill(skeleton, layer, self._typed)
        return Model(skeleton, kept, self.source, self._typed, self._files)

    def edited(self, edit: Callable[[onnx.ModelProto], None]) -> Model:
        """The same layers in another graph, wherever their tensors are moved.

        Args:
            edit: changes the graph in place. It finds the number of a layer as the only entry of external data of the
                tensors that hold it, and may move, rename and retype these, but not drop them.

        Raises:
            CorruptArchive: a layer that is in an attribute of another node than a Constant.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.skeleton)
        constants = {place.path: place.tensor for place in constant_places(proto)}
        for number, layer in enumerate(self.layers):
            for path in layer.places:
                if path not in constants:
                    raise CorruptArchive(f"layer {layer.name!r}: {path} is not a constant; the archive is damaged")
                constants[path].external_data.add(key="riq", value=str(number))
        edit(proto)
        places: dict[int, list[str]] = {}
        for place in constant_places(proto):
            for entry in place.tensor.external_data:
                places.setdefault(int(entry.value), []).append(place.path)
            place.tensor.ClearField("external_data")
        layers = [replace(layer, places=tuple(places[number])) for number, layer in enumerate(self.layers)]
        return Model(proto, layers, self.source, files=self._files)

    @property
    def external_files(self) -> list[Path]:
        """The files beside the model that its layers are mapped from."""
        return [] if self._files is None else self._files.beside

    def session_form(self, outputs: Sequence[str] = (), hoist: bool = True) -> SessionForm:
        """What a session runs, with the tensors `outputs` to measure: every layer from outside, or as restored.

        Args:
            outputs: names of tensors; empty for the float outputs and the pre-activations behind them.
            hoist: take layers inside of Constant nodes, subgraphs and functions from outside too.

        Raises:
            SettingsError: a name that no tensor has.
        """
        values = None if hoist else [layer.values for layer in self.layers]
        return session_form(self.skeleton, self.layers, outputs, values)

    def exact_form(self) -> SessionForm:
        """What a session runs to compute, bit for bit, what one of the saved file computes."""
        return exact_form(self.skeleton, self.layers)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> tuple[Path, ...]:
        """Write a runnable ONNX file, whole or not at all; above 2 GiB its data lies in a second file beside it.

        The data's file is named after its content, such as model.onnx.1a2b3c4d.data, and is complete before the model
        gets its name: no model ever meets data that is not its own. What riq wrote in this way for the model that is
        replaced is removed.

        Returns:
            The files that were written, the model first.

        Raises:
            OutputError: a file exists and `overwrite` is false, or cannot be written.
        """
        path = Path(path)
        outdated = data_files_of(path) if overwrite else []
        written = [path]
        if self.nbytes < _PROTOBUF_MAX:
            with atomic_write(path, overwrite) as file:
                self.write(file)
        else:
            proto = onnx.ModelProto()
            proto.CopyFrom(self.skeleton)
            apart = [layer for layer in self.layers if layer.values.nbytes >= SMALL]
            for layer in self.layers:
                if layer.values.nbytes < SMALL:
                    _fill(proto, layer, {})
            written.append(save_in_two_files(proto, apart, path, overwrite))
        for file_of_old in set(outdated) - set(written):
            with contextlib.suppress(OSError):  # a file that is mapped stays, on Windows
                file_of_old.unlink()
        return tuple(written)

    def to_bytes(self) -> bytes:
        """The serialized model with all data inside.

        Raises:
            ModelError: above protobuf's 2 GiB.
        """
        return b"".join(self._pieces())

    def write(self, file: BinaryIO) -> None:
        """Write what `to_bytes` returns to an open binary file, without a copy of the layers.

        Raises:
            ModelError: above protobuf's 2 GiB.
        """
        for piece in self._pieces():
            file.write(piece)
            give_back_mapped_memory()

    def _pieces(self) -> list[bytes | memoryview]:
        if self.nbytes >= _PROTOBUF_MAX:
            raise ModelError("a model above 2 GiB does not fit one file; save it under a name")
        data = {
            place: np.ascontiguousarray(layer.values).reshape(-1).view(np.uint8).data
            for layer in self.layers
            for place in layer.places
        }
        return with_raw_data(self.skeleton_bytes(), data)

    def skeleton_bytes(self) -> bytes:
        """The serialized skeleton; the same model gives the same bytes."""
        if isinstance(self._skeleton, bytes):
            return self._skeleton
        return bytes(self._skeleton.SerializeToString(deterministic=True))


def _take_layers(proto: onnx.ModelProto, files: DataFiles) -> tuple[list[Layer], dict[str, bytes]]:
    """The float tensors of a model as layers, equal ones as one, and the messages of those with typed data.

    Their data is removed from `proto`.
    """
    uses = Uses(proto)
    typed: dict[str, bytes] = {}
    constants = list(constant_places(proto))
    repeated_names = _repeated(constants)
    floats: list[tuple[Array, Place]] = []
    for place in constants:
        tensor = place.tensor
        if tensor.data_type not in FLOAT_TYPES or 0 in tensor.dims or len(tensor.dims) > limits.DIMENSIONS:
            continue
        if (place.scope, place.value_name) in repeated_names:
            continue
        data = files.data_of(tensor)
        values = float_array(tensor, data)
        if data is None and not tensor.HasField("raw_data"):
            typed[place.path] = tensor.SerializeToString()
        floats.append((values, place))
    found = _equal(floats)
    repeated = Counter(places[0].value_name for _, places in found)
    layers = []
    for values, places in found:
        first = places[0]
        name = first.value_name if repeated[first.value_name] == 1 else f"{first.value_name} ({first.path})"
        ops = sorted({op for place in places for op in uses.operators(place.scope, place.value_name)})
        dtype = FLOAT_TYPES[first.tensor.data_type]
        structural = math.prod(values.shape) == 1 or any(uses.is_structural(p.scope, p.value_name) for p in places)
        paths = tuple(place.path for place in places)
        layers.append(Layer(name, ", ".join(ops), paths, dtype, values.shape, values, structural))
        for place in places:
            clear_data(place.tensor)
    return layers, typed


def _equal(floats: Iterable[tuple[Array, Place]]) -> list[tuple[Array, list[Place]]]:
    """The different ones of some tensors, each with the places of all that are equal to it: type, shape and bytes."""
    beginnings: dict[tuple[object, ...], list[tuple[Array, Place]]] = {}
    for values, place in floats:
        key = (place.tensor.data_type, tuple(place.tensor.dims), values.reshape(-1)[:_BEGINNING].tobytes())
        beginnings.setdefault(key, []).append((values, place))
    found: dict[tuple[object, ...], tuple[Array, list[Place]]] = {}
    for beginning, group in beginnings.items():
        for values, place in group:
            content = hashlib.sha256(values.reshape(-1).data).digest() if len(group) > 1 else b""
            found.setdefault((*beginning, content), (values, []))[1].append(place)
    return list(found.values())


def _repeated(places: Iterable[Place]) -> set[tuple[str, str]]:
    """Scope and name of tensors that share both with another."""
    counts = Counter((place.scope, place.value_name) for place in places)
    return {key for key, count in counts.items() if count > 1}


def _check_parsed_size(skeleton: bytes, room: int) -> None:
    room = max(room, limits.BESIDE)
    if len(skeleton) * MOST_PER_BYTE > room and parsed_size(skeleton, room) > room:
        raise LimitExceeded(
            f"the skeleton of {len(skeleton)} bytes needs more than {room} bytes when it is parsed; "
            "if you trust the archive, raise the limit with --max-size"
        )


def _fill(proto: onnx.ModelProto, layer: Layer, typed: Mapping[str, bytes]) -> None:
    """Put a layer's data into its places; those in `typed` as the messages they were."""
    for place in layer.places:
        tensor = find_tensor(proto, place)
        if place in typed:
            tensor.ParseFromString(typed[place])
        else:
            tensor.raw_data = layer.values.tobytes()


def _compact(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same message in memory of its own size: protobuf keeps what was cleared until a message is gone."""
    fresh = onnx.ModelProto()
    fresh.ParseFromString(proto.SerializeToString())
    return fresh
