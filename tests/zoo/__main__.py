"""`python -m tests.zoo [NAME ...]`: fetch and build everything, print one line per model."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from . import NAMES, ZooUnavailable, get

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from _graphs(inner)


def float_weights(model: onnx.ModelProto) -> int:
    """Number of float values in initializers and Constant nodes, subgraphs included."""
    total = 0
    for graph in _graphs(model.graph):
        constants = [a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")]
        for tensor in [*graph.initializer, *constants]:
            if tensor.data_type in FLOATS:
                total += int(np.prod(tensor.dims, dtype=np.int64))
    return total


def samples(path: Path) -> int:
    """Samples in an .npz: rows of the array that has the most."""
    with np.load(path) as arrays:
        return max(len(arrays[name]) if arrays[name].ndim else 1 for name in arrays.files)


def main() -> int:
    """Print the table; 1 if anything could not be had."""
    print(f"{'name':<22} {'MB':>7} {'weights':>12} {'cal/held-out':>12} {'metric':>7}  what   (seconds)")
    missing = 0
    for name in sys.argv[1:] or NAMES:
        start = time.monotonic()
        try:
            zoo = get(name)
        except ZooUnavailable as reason:
            print(f"{name:<22} unavailable: {reason}")
            missing += 1
            continue
        built = time.monotonic()
        score = f"{zoo.score(zoo.path):.3f}" if zoo.metric else "-"
        counts = f"{samples(zoo.calibration)}/{samples(zoo.heldout)}"
        weights = float_weights(onnx.load(zoo.path))
        print(
            f"{name:<22} {zoo.path.stat().st_size / 1e6:7.2f} {weights:>12,} {counts:>12} {score:>7}  "
            f"{zoo.metric or 'no task data'}   ({built - start:.1f} + {time.monotonic() - built:.1f})",
            flush=True,
        )
    return min(missing, 1)


if __name__ == "__main__":
    sys.exit(main())
