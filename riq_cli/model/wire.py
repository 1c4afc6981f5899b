"""Serialized ONNX models, walked without being parsed: what parsing takes, and tensors' data taken out and put in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
        is_message = field.has_length and field.descriptor is not None and field.descriptor.message_type is not None
        name = field.descriptor.name if is_message else ""
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


def with_raw_data(model: bytes, tensors: Mapping[str, memoryview]) -> list[bytes | memoryview]:
    """A serialized model, in pieces, in which those of its tensors that are at certain places have raw data.

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
    data, placed = memoryview(model), 0

    def rewritten(begin: int, end: int, message: Any, branch: Mapping[str, Any]) -> list[bytes | memoryview]:
        nonlocal placed
        pieces: list[bytes | memoryview] = []
        position = begin
        for step, field in steps(model, begin, end, message):
            if step not in branch:
                continue
            if isinstance(branch[step], memoryview):
                inner = _with_raw_data(data, field, branch[step])
                placed += 1
            else:
                inner = rewritten(field.begin, field.end, field.descriptor.message_type, branch[step])
            pieces += [data[position : field.start], _head(field.number, sum(map(len, inner))), *inner]
            position = field.end
        return [*pieces, data[position:end]]

    pieces = rewritten(0, len(model), MODEL, tree)
    if placed != len(tensors):
        raise ValueError("a place that the model does not have, or has twice")
    return pieces


def without_raw_data(model: Any, least: int, token: Callable[[int, int], bytes]) -> list[bytes | memoryview]:
    """A serialized model, in pieces, in which a token stands for the raw data of each tensor that has much of it.

    Args:
        model: bytes, or a mapped file.
        least: bytes of such raw data.
        token: gives what stands for the bytes of the model from a place up to another.

    Raises:
        ValueError: not a serialized model.
    """
    data = memoryview(model)

    def rewritten(begin: int, end: int, message: Any, depth: int) -> list[bytes | memoryview]:
        if depth > _DEPTH:
            raise ValueError(f"messages more than {_DEPTH} deep")
        pieces: list[bytes | memoryview] = []
        position = begin
        for field in fields(model, begin, end, message) if message is TENSOR else ():
            if field.number == RAW_DATA and field.has_length and field.end - field.begin >= least:
                short = token(field.begin, field.end)
                pieces += [data[position : field.start], _head(RAW_DATA, len(short)), short]
                position = field.end
        for _, field in steps(model, begin, end, message):
            inner = rewritten(field.begin, field.end, field.descriptor.message_type, depth + 1)
            pieces += [data[position : field.start], _head(field.number, sum(map(len, inner))), *inner]
            position = field.end
        return [*pieces, data[position:end]]

    return rewritten(0, len(data), MODEL, 1)


def _with_raw_data(data: memoryview, tensor: Field, raw: memoryview) -> list[bytes | memoryview]:
    """A tensor's message with raw data where protobuf has it: in the order of the fields' numbers."""
    inside = fields(data, tensor.begin, tensor.end, tensor.descriptor.message_type)
    place = next((field.start for field in inside if field.number > RAW_DATA), tensor.end)
    return [data[tensor.begin : place], _head(RAW_DATA, len(raw)), raw, data[place : tensor.end]]


def _head(number: int, size: int) -> bytes:
    """What stands before the value of a field that has a length."""
    digits = bytearray()
    for value in (number << 3 | _LENGTH, size):
        while value > 127:
            digits.append(value & 127 | 128)
            value >>= 7
        digits.append(value)
    return bytes(digits)


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
