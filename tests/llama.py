"""A seeded decoder like Llama's, of any size: its weights are random, and written as external data row by row.

Each block has RMSNorm, rotary embedding, attention whose keys and values serve several heads, and a gated network; the
table of words embeds at the beginning and scores at the end. As exporters do, a float16 graph takes norms in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto

from tests.builders import info, model, nodes, tensor

_PIECE = 1 << 22  # weights that are drawn at a time
_ALIGNMENT = 4096  # of tensors in the data file

_HEAD = """
    Gather embedding words > x0; Shape words > shape; Slice shape one two > length;
    Concat length length > lengths axis=0; Slice mask zeros lengths > causal;
    Slice cosines zero length > cos; Slice sines zero length > sin"""
_NORM = """
    Cast {x} > {y}.f to=FLOAT; Mul {y}.f {y}.f > {y}.square; ReduceMean {y}.square > {y}.mean axes=[-1];
    Add {y}.mean tiny > {y}.shifted; Sqrt {y}.shifted > {y}.root; Div {y}.f {y}.root > {y}.unit;
    Cast {y}.unit > {y}.cast to={kind}; Mul {y}.cast {y}.weight > {y}"""
_HEADS = """
    MatMul {b}.input {b}.{name}.weight > {b}.{name}.flat;
    Reshape {b}.{name}.flat {shape} > {b}.{name}.parts; Transpose {b}.{name}.parts > {b}.{name} perm=[0,2,1,3]"""
_ROTATED = """
    Split {b}.{name} > {b}.{name}.first {b}.{name}.second axis=-1; Neg {b}.{name}.second > {b}.{name}.negative;
    Concat {b}.{name}.negative {b}.{name}.first > {b}.{name}.turned axis=-1;
    Mul {b}.{name} cos > {b}.{name}.along; Mul {b}.{name}.turned sin > {b}.{name}.across;
    Add {b}.{name}.along {b}.{name}.across > {b}.{name}.rotated"""
_REPEATED = """
    Unsqueeze {b}.{source} two > {b}.{name}.one; Expand {b}.{name}.one repeated > {b}.{name}.many;
    Reshape {b}.{name}.many joined > {b}.{name}.all"""
_ATTENTION = """
    Transpose {b}.key.all > {b}.key.t perm=[0,1,3,2]; MatMul {b}.query.rotated {b}.key.t > {b}.products;
    Mul {b}.products scale > {b}.scaled; Add {b}.scaled causal > {b}.scores; Softmax {b}.scores > {b}.shares axis=-1;
    MatMul {b}.shares {b}.value.all > {b}.mixed; Transpose {b}.mixed > {b}.turned perm=[0,2,1,3];
    Reshape {b}.turned hidden > {b}.heads; MatMul {b}.heads {b}.out.weight > {b}.out; Add {x} {b}.out > {b}.middle"""
_NETWORK = """
    MatMul {b}.normed {b}.gate.weight > {b}.gate; MatMul {b}.normed {b}.up.weight > {b}.up;
    Sigmoid {b}.gate > {b}.sigmoid; Mul {b}.gate {b}.sigmoid > {b}.silu; Mul {b}.silu {b}.up > {b}.product;
    MatMul {b}.product {b}.down.weight > {b}.down; Add {b}.middle {b}.down > {y}"""
_TAIL = "Transpose embedding > scoring perm=[1,0]; MatMul last scoring > logits"


@dataclass(frozen=True)
class Llama:
    """The size of a decoder: `heads` ask, and `hidden // heads` numbers are in each; `keys` of them are asked."""

    blocks: int
    hidden: int
    inner: int
    heads: int
    keys: int
    words: int
    dtype: str = "float16"
    longest: int = 256  # sequence

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Shapes of the weights of a block."""
        shared = self.hidden // self.heads * self.keys
        return {
            "query": (self.hidden, self.hidden), "key": (self.hidden, shared), "value": (self.hidden, shared),
            "out": (self.hidden, self.hidden), "gate": (self.hidden, self.inner), "up": (self.hidden, self.inner),
            "down": (self.inner, self.hidden),
        }  # fmt: skip

    @property
    def weights(self) -> int:
        """Number of weights of all matrices."""
        return self.words * self.hidden + self.blocks * sum(rows * columns for rows, columns in self.matrices.values())

    def save(self, path: Path, seed: int = 0) -> None:
        """Write the model, with its weights beside it in a file whose name ends with `.data`."""
        generator = np.random.default_rng(seed)
        kind, size = "FLOAT16" if self.dtype == "float16" else "FLOAT", self.hidden // self.heads
        text, last = [_HEAD], "x0"
        tensors = self._constants(size)
        with path.with_name(f"{path.name}.data").open("wb") as file:

            def add(name: str, *shape: int) -> None:
                tensors.append(_written(file, name, shape, self.dtype, generator))

            add("embedding", self.words, self.hidden)
            for number in range(self.blocks):
                b, following = f"block{number}", f"x{number + 1}"
                for name, shape in self.matrices.items():
                    add(f"{b}.{name}.weight", *shape)
                for name in ("input", "normed"):
                    add(f"{b}.{name}.weight", self.hidden)
                text += [
                    _NORM.format(x=last, y=f"{b}.input", kind=kind),
                    *(
                        _HEADS.format(b=b, name=name, shape="asking" if name == "query" else "asked")
                        for name in ("query", "key", "value")
                    ),
                    *(_ROTATED.format(b=b, name=name) for name in ("query", "key")),
                    _REPEATED.format(b=b, name="key", source="key.rotated"),
                    _REPEATED.format(b=b, name="value", source="value"),
                    _ATTENTION.format(b=b, x=last),
                    _NORM.format(x=f"{b}.middle", y=f"{b}.normed", kind=kind),
                    _NETWORK.format(b=b, y=following),
                ]
                last = following
            add("last.weight", self.hidden)
            text += [_NORM.format(x=last, y="last", kind=kind), _TAIL]
        proto = model(
            nodes(";".join(text)),
            [info("words", 1, "length", dtype=TensorProto.INT64)],
            [info("logits", 1, "length", self.words, dtype=TensorProto.DataType.Value(kind))],
            tensors,
        )
        path.write_bytes(proto.SerializeToString())

    def _constants(self, size: int) -> list[onnx.TensorProto]:
        """Small tensors: shapes, angles of the rotary embedding, and the mask of what comes later."""
        angles = np.arange(self.longest)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
        angles = np.concatenate([angles, angles], axis=1)
        mask = np.triu(np.full((self.longest, self.longest), -1e4), 1)
        floats = {"cosines": np.cos(angles), "sines": np.sin(angles), "mask": mask, "scale": np.array(size**-0.5)}
        shapes = {
            "asking": [0, 0, self.heads, size], "asked": [0, 0, self.keys, size], "two": [2],
            "repeated": [1, 1, self.heads // self.keys, 1, 1], "joined": [1, self.heads, -1, size],
            "hidden": [0, 0, self.hidden], "zero": [0], "zeros": [0, 0], "one": [1],
        }  # fmt: skip
        return [
            *(tensor(name, values.astype(self.dtype)) for name, values in floats.items()),
            *(tensor(name, np.array(values, np.int64)) for name, values in shapes.items()),
            tensor("tiny", np.array(1e-5, np.float32)),
        ]

    def samples(self, count: int, length: int, seed: int = 1) -> np.ndarray:
        """Sequences of words, i64[count, 1, length]; as in texts, a few are frequent."""
        drawn = np.random.default_rng(seed).zipf(1.3, (count, 1, length))
        return np.asarray(drawn % self.words, np.int64)


def _written(
    file: BinaryIO, name: str, shape: tuple[int, ...], dtype: str, generator: np.random.Generator
) -> onnx.TensorProto:
    """A tensor whose random weights were written to a file: of a matrix, such that it keeps the size of what enters."""
    offset = file.tell() + -file.tell() % _ALIGNMENT
    file.write(bytes(offset - file.tell()))
    size = int(np.prod(shape))
    for begin in range(0, size, _PIECE):
        drawn = generator.standard_normal(min(_PIECE, size - begin), np.float32)
        values = drawn * np.float32(min(shape) ** -0.5) if len(shape) > 1 else 1 + np.float32(0.1) * drawn
        file.write(values.astype(dtype).tobytes())
    found = TensorProto(name=name, dims=shape, data_location=TensorProto.EXTERNAL)
    found.data_type = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    for key, value in (("location", Path(file.name).name), ("offset", offset), ("length", file.tell() - offset)):
        found.external_data.add(key=key, value=str(value))
    return found
