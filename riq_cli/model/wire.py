"""Serialized ONNX models, walked without being parsed: what parsing them takes, and tensors' data put in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import onnx

from riq_cli.model.places import FIELDS

_ONE = frozenset("graph g t".split())  # fields that hold one message, which paths do not count
MODEL, TENSOR = onnx.ModelProto.DESCRIPTOR, onnx.TensorProto.DESCRIPTOR
_VARINT, _EIGHT_BYTES, _LENGTH, _GROUP, _GROUP_END, _FOUR_BYTES = range(6)  # protobuf's wire types
_DEPTH = 100  # of messages within one another: protobuf itself refuses more
RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER
# Bytes that protobuf takes, rounded up from what was measured.
_MESSAGE, _STRING, _NUMBER = 256, 40, 16
MOST_PER_BYTE = _MESSAGE // 2  # an empty message takes two bytes


class Field(NamedTuple):
    """A field of a serialized message: its descriptor, None if unknown, and where it and its value are."""

    descriptor: Any
    number: int
    start: int
    begin: int
    end: int
    has_length: bool


def fields(data: Any, begin: int, end: int, message: Any) -> Iterator[Field]:
    """The fields of a serialized message in their order.

    Args:
        data: bytes, or a mapped file.
        begin, end: of the message in it.
        message: its descriptor.

    Raises:
        ValueError: it is not a message.
    """
    known = message.fields_by_number
    while begin < end:
        start = begin
        tag, begin = _varint(data, begin, end)
        value, stop = _value(data, begin, end, tag)
        descriptor = known.get(tag >> 3) if tag & 7 != _GROUP else None  # ONNX has no groups
        yield Field(descriptor, tag >> 3, start, value, stop, tag & 7 == _LENGTH)
        begin = stop


def steps(data: Any, begin: int, end: int, message: Any) -> Iterator[tuple[str, Field]]:
    """The fields of a serialized message that lead to tensors, each behind its step of a place: `graph`, `node[5]`."""
    counts: Counter[str] = Counter()
    for field in fields(data, begin, end, message):
        name = field.descriptor.name if field.descriptor is not None and field.has_length else ""
        if name in FIELDS:
            yield name if name in _ONE else f"{name}[{counts[name]}]", field
            counts[name] += 1


def _value(data: Any, begin: int, end: int, tag: int) -> tuple[int, int]:
    """Where the value of a field begins, and where the field ends."""
    wire, stop = tag & 7, begin
    if wire == _LENGTH:
        size, begin = _varint(data, begin, end)
        stop = begin + size
    elif wire == _VARINT:
        _, stop = _varint(data, begin, end)
    elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
        stop = begin + (8 if wire == _EIGHT_BYTES else 4)
    elif wire == _GROUP:
        level = 1
        while level:
            inner, stop = _varint(data, stop, end)
            if inner & 7 in (_GROUP, _GROUP_END):
                level += 1 if inner & 7 == _GROUP else -1
            else:
                _, stop = _value(data, stop, end, inner)
    else:
        raise ValueError("a field of a kind that there is not")
    if stop > end:
        raise ValueError("a field that is longer than its message")
    return begin, stop


def parsed_size(data: bytes, most: int) -> int:
    """About how many bytes a model takes when it is parsed; what is more than `most` is not told exactly.

    Raises:
        ValueError: it is not a serialized message.
    """
    total = _MESSAGE

    def add(begin: int, end: int, message: Any, depth: int) -> None:
        nonlocal total
        if depth > _DEPTH:
            raise ValueError(f"messages more than {_DEPTH} deep")
        for field in fields(data, begin, end, message):
            size, kind = field.end - field.begin, field.descriptor
            if kind is None:
                total += size + _NUMBER
            elif not field.has_length:
                total += _NUMBER
            elif kind.message_type is not None:
                total += _MESSAGE
                if size:
                    add(field.begin, field.end, kind.message_type, depth + 1)
            elif kind.type in (kind.TYPE_STRING, kind.TYPE_BYTES):
                total += size + _STRING
            elif kind.type in (kind.TYPE_FLOAT, kind.TYPE_DOUBLE):
                total += 2 * size
            else:
                total += size * _NUMBER  # integers in a row, each of a byte at least
            if total > most:
                return

    add(0, len(data), MODEL, 1)
    return total


def with_raw_data(model: bytes, tensors: Mapping[str, memoryview]) -> Iterator[bytes | memoryview]:
    """A serialized model, piece by piece, in which some of its tensors have raw data.

    Args:
        model: serialized by protobuf; these tensors have no data in it.
        tensors: by the tensors' places, their data as views of bytes.

    Raises:
        ValueError: not a serialized model, or one that does not have each place once.
    """
    tree: dict[str, Any] = {}
    for place, view in tensors.items():
        *inner, last = place.split(".")
        branch = tree
        for step in inner:
            branch = branch.setdefault(step, {})
        branch[last] = view
    edits, _ = _edits(model, 0, len(model), MODEL, tree)
    if sum(isinstance(piece, memoryview) for _, _, piece in edits) != len(tensors):
        raise ValueError("a place that the model does not have, or has twice")
    return _edited(memoryview(model), edits)


def _edited(data: memoryview, edits: Sequence[Edit]) -> Iterator[bytes | memoryview]:
    position = 0
    for begin, end, piece in edits:
        yield data[position:begin]
        yield piece
        position = end
    yield data[position:]


Edit = tuple[int, int, "bytes | memoryview"]  # from where to where bytes are replaced, and by what


def _edits(model: bytes, begin: int, end: int, message: Any, tree: Mapping[str, Any]) -> tuple[list[Edit], int]:
    """What changes in a message whose fields are to have data, in order; and by how many bytes it grows."""
    edits: list[Edit] = []
    growth = 0
    for step, field in steps(model, begin, end, message):
        if step not in tree:
            continue
        inside, kind = tree[step], field.descriptor.message_type
        if isinstance(inside, memoryview):
            more, added = _raw_data(model, field, inside)
        else:
            more, added = _edits(model, field.begin, field.end, kind, inside)
        size = field.end - field.begin
        length = _as_varint(size + added)
        tag = len(_as_varint(field.number << 3))
        edits += [(field.start + tag, field.begin, length), *more]
        growth += added + len(length) - len(_as_varint(size))
    return edits, growth


def _raw_data(model: bytes, tensor: Field, data: memoryview) -> tuple[list[Edit], int]:
    """The raw data of a tensor, put in where protobuf has it: in the order of the fields' numbers."""
    inside = fields(model, tensor.begin, tensor.end, tensor.descriptor.message_type)
    place = next((field.start for field in inside if field.number > RAW_DATA), tensor.end)
    head = _as_varint(RAW_DATA << 3 | _LENGTH) + _as_varint(len(data))
    return [(place, place, head), (place, place, data)], len(head) + len(data)


def _varint(data: Any, begin: int, end: int) -> tuple[int, int]:
    """An integer in protobuf's variable length, and where it ends."""
    value = shift = 0
    while begin < end and shift < 70:
        byte = data[begin]
        begin += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, begin
    raise ValueError("a number without an end")


def _as_varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)
