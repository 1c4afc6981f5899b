"""How fast riq's own parts are beside onnxruntime's, as ratios of one run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

import riq_cli as riq
from riq_cli.decode import dequantize
from riq_cli.entropy.histogram import Histogram, Table, decode_symbols, encode_symbols
from riq_cli.quantize import scalar


def speed() -> None:
    """Speeds of riq's parts; on a shared machine only the ratios mean something."""
    generator = np.random.default_rng(0)
    weights = generator.laplace(size=8_000_000).astype(np.float32)
    width = 0.4
    seconds, symbols = timed(lambda: scalar.quantize(weights, "float32", width))
    show("quantize", weights.size / seconds / 1e6, "million weights/s")
    table = Table.of(Histogram.of(symbols))
    seconds, _ = timed(lambda: Table.of(Histogram.of(symbols)))
    encode, streams = timed(lambda: encode_symbols(symbols, table))
    show("encode (with the table)", weights.size / (encode + seconds) / 1e6, "million weights/s")
    decode, _ = timed(lambda: list(decode_symbols(streams, [table], [symbols.size])))
    restore, _ = timed(lambda: dequantize.Quantized(symbols, width).restored("float32", weights.shape))
    show("decode (with dequantize)", weights.size / (decode + restore) / 1e6, "million weights/s")
    show("size over entropy", sum(map(len, streams)) * 8 / symbols.size / entropy(symbols), "")
    seconds, _ = timed(lambda: subprocess.run([sys.executable, "-m", "riq_cli", "--help"], capture_output=True))
    show("riq --help", seconds, "s")
    hundred_megabytes()


def hundred_megabytes() -> None:
    """A 100 MB model with three samples: seconds in all, and the search beside onnxruntime's own runs."""
    from riq_cli.runtime import Evaluator

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(dense_model(25_000_000), path)
        model = riq.Model.load(path)
        samples = riq.Calibration.random(samples=3).samples(model.inputs)
        form = model.session_form()
        began = time.perf_counter()
        evaluator = Evaluator(form, [layer.values for layer in model.layers], samples)
        started = time.perf_counter() - began
        once, _ = timed(lambda: evaluator.deviation(form, [layer.values for layer in model.layers]))
        steps: list[float] = []
        began = time.perf_counter()
        data = riq.Calibration.random(samples=3)
        archive = riq.compress(
            model,
            data,
            deviation=0.01,
            progress=lambda step: step.phase == "search" and steps.append(time.perf_counter()),
        )
        total = time.perf_counter() - began
        evaluations = archive.manifest.result["evaluations"]
        search = steps[-2] - began
        show("100 MB: compress in all", total, "s")
        show("100 MB: session start and one run of the samples", max(once, started), "s")
        show(f"100 MB: search of {evaluations} evaluations", search, "s")
        show("100 MB: search / (evaluations × one evaluation)", search / (evaluations * once), "")


def dense_model(weights: int) -> onnx.ModelProto:
    """A chain of eight square matrix products with ReLU between, of that many float32 weights."""
    from tests import builders

    side = int((weights / 8) ** 0.5)
    r = builders.Random(0)
    nodes, tensors, last = [], [], "x"
    for number in range(8):
        nodes.append(builders.node("MatMul", f"{last} w{number}", f"m{number}"))
        nodes.append(builders.node("Relu", f"m{number}", f"a{number}"))
        tensors.append(builders.tensor(f"w{number}", r(side, side) * np.float32((8 / side) ** 0.5)))
        last = f"a{number}"
    return builders.model(
        nodes[:-1], [builders.info("x", "batch", side)], [builders.info("m7", "batch", side)], tensors
    )


def entropy(symbols: np.ndarray) -> float:
    return Histogram.of(symbols.reshape(-1)).entropy


def timed(work):  # type: ignore[no-untyped-def]
    """The least time of three runs, and the result."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - began)
    return min(times), result


def show(what: str, value: float, unit: str) -> None:
    print(f"{what:55} {value:8.3g} {unit}", flush=True)
