"""Random changes of bytes, JSON documents and protobuf messages."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import Message

from tests.archives import VALUES, paths

Random = np.random.Generator

TEXTS = ["", "x", "graph", "\x1b[31m", "é\u202e", "Conv", "a" * 300, "../x", "data.bin", "{}", "%s"]
NUMBERS = [0, 1, 2, 3, 7, 16, 255, -1, -2, 1 << 16, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63)]
REALS = [0.0, -0.0, 0.5, -1.5, 1e-320, 5e-324, 1e-30, 1e30, 1e308, 127.9, 129.0, float(1 << 53)]


def pick(random: Random, items: Any) -> Any:
    """One of the items."""
    return items[int(random.integers(len(items)))]


def changed_bytes(random: Random, data: bytes) -> bytes:
    """The bytes with one to four places flipped, set, inserted, removed, doubled or swapped."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        begin = int(random.integers(len(changed) + 1))
        end = min(len(changed), begin + pick(random, (1, 1, 1, 2, 4, 8, 64)))
        match int(random.integers(6)):
            case 0:
                changed[begin:end] = bytes(byte ^ (1 << int(random.integers(8))) for byte in changed[begin:end])
            case 1:
                changed[begin:end] = bytes([pick(random, (0, 1, 127, 128, 255))]) * (end - begin)
            case 2:
                changed[begin:begin] = random.bytes(int(random.integers(1, 9)))
            case 3:
                del changed[begin:end]
            case 4:
                changed[begin:begin] = changed[begin:end]
            case _:
                other = int(random.integers(len(changed) + 1))
                changed[other : other + end - begin] = changed[begin:end]
    return bytes(changed)


def changed_document(random: Random, document: Any) -> Any:
    """A JSON document with one to three values replaced, removed, doubled, renamed or moved to another place."""
    document = json.loads(json.dumps(document))  # a copy
    for _ in range(int(random.integers(1, 4))):
        places = list(paths(document))
        if not places:
            return document
        *parents, key = pick(random, places)
        inside = _at(document, parents)
        match int(random.integers(6)):
            case 0 | 1:
                inside[key] = copy.deepcopy(pick(random, pick(random, (VALUES, VALUES, REALS, TEXTS))))
            case 2:
                del inside[key]
            case 3 if isinstance(inside, list):
                inside.insert(key, copy.deepcopy(inside[key]))
            case 3 | 4:
                inside[key] = copy.deepcopy(_at(document, pick(random, places)))
            case _ if isinstance(inside, dict):
                inside[pick(random, TEXTS)] = inside.pop(key)
            case _:
                inside[key] = _nudged(random, inside[key])
    return document


def _at(document: Any, path: Any) -> Any:
    for key in path:
        document = document[key]
    return document


def _nudged(random: Random, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return pick(random, (value + 1, value - 1, -value, 2 * value, value * 1024, float(value)))


def changed_text(random: Random, document: Any) -> bytes:
    """The JSON of a changed document; now and then with its bytes changed as well."""
    text = json.dumps(changed_document(random, document)).encode("utf-8", "surrogatepass")
    return changed_bytes(random, text) if random.random() < 0.1 else text


def change_message(random: Random, root: Message) -> None:
    """Change one to four fields of a message and of those inside: cleared, set, doubled, or taken from another."""
    for _ in range(int(random.integers(1, 5))):
        messages = list(_messages(root, 0))
        message = pick(random, messages)
        field = pick(random, message.DESCRIPTOR.fields)
        alike = [other for other in messages if other.DESCRIPTOR is message.DESCRIPTOR]
        match int(random.integers(5)):
            case 0:
                message.ClearField(field.name)
            case 1:
                _take(random, message, field, pick(random, alike))
            case 2:
                message.CopyFrom(copy.deepcopy(pick(random, alike)))
            case _:
                _set(random, message, field)


def _messages(message: Message, depth: int) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields() if depth < 30 else ():
        if field.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                yield from _messages(item, depth + 1)


def _take(random: Random, message: Message, field: Any, other: Message) -> None:
    """Set a field as another message has it, or add that to what is there."""
    value = copy.deepcopy(getattr(other, field.name))
    if isinstance(value, Message):
        getattr(message, field.name).CopyFrom(value)
    elif isinstance(value, (str, bytes, int, float)):
        setattr(message, field.name, value)
    else:
        if random.random() < 0.5:
            message.ClearField(field.name)
        getattr(message, field.name).extend(value)


def _set(random: Random, message: Message, field: Any) -> None:
    """Give a field a value of its type."""
    held = getattr(message, field.name)
    if field.message_type is not None:
        if isinstance(held, Message):
            held.SetInParent()
        else:
            held.add()
        return
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        value: Any = pick(random, (*REALS[:8], float("nan"), float("inf")))
    elif field.type == field.TYPE_STRING:
        value = pick(random, TEXTS)
    elif field.type == field.TYPE_BYTES:
        value = random.bytes(int(random.integers(20)))
    elif field.type == field.TYPE_ENUM:
        value = pick(random, [item.number for item in field.enum_type.values])
    else:
        small = field.type in (field.TYPE_INT32, field.TYPE_UINT32)
        value = pick(random, [n for n in NUMBERS if not small or -(1 << 31) <= n < 1 << 31])
        if field.type in (field.TYPE_UINT32, field.TYPE_UINT64):
            value = abs(value)
    if isinstance(held, (str, bytes, int, float)):
        setattr(message, field.name, value)
    elif held and random.random() < 0.5:
        held[int(random.integers(len(held)))] = value
    else:
        held.append(value)
