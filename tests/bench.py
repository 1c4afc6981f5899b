"""Measures, prints, asserts nothing: `python -m tests.bench models`, or `speed`.

`models` compresses the zoo's models at several deviations and prints a table; `speed` prints how fast riq's own parts
are beside onnxruntime's, as ratios of one run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

import riq_cli as riq
from riq_cli import coder, quantizer
from tests import zoo

PUBLIC = (
    "magika",
    "efficientnet-lite0",
    "minilm-l6",
    "ppocr4-rec",
    "ppocr4-det",
    "ppocr4-cls",
    "silero-vad",
    "silero-vad-seq",
    "basic-pitch",
    "romanizer-encoder",
    "romanizer-decoder",
    "mnist-cnn",
    "ddddocr",
    "ddddocr-det",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=["models", "speed"], default=["speed", "models"])
    parser.add_argument("--model", action="append", help="only these models of the zoo")
    parser.add_argument("--deviation", action="append", type=float, help="targets; default 0.01 and 0.001")
    arguments = parser.parse_args()
    if "speed" in arguments.what:
        speed()
    if "models" in arguments.what:
        models(arguments.model or PUBLIC, arguments.deviation or [0.01, 0.001])


# ---- models ---------------------------------------------------------------------------------------------------------


def models(names: list[str] | tuple[str, ...], deviations: list[float]) -> None:
    """A table: one row a model and target, everything measured on the restored file."""
    header = ("model", "MB", "target", "ratio", "deviation", "held-out", "metric", "before", "after", "runs", "s")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for name in names:
        try:
            entry = zoo.get(name)
        except zoo.ZooUnavailable as error:
            print(f"| {name} | cannot be had: {error} |", flush=True)
            continue
        before = entry.score(entry.path) if entry.metric else float("nan")
        for deviation in deviations:
            print("| " + " | ".join(row(entry, deviation, before)) + " |", flush=True)


def row(entry: zoo.ZooModel, deviation: float, before: float) -> Iterator[str]:
    model = riq.Model.load(entry.path)
    began = time.perf_counter()
    archive = riq.compress(model, riq.Calibration.load(entry.calibration), deviation=deviation)
    seconds = time.perf_counter() - began
    heldout = riq.verify(archive, model, riq.Calibration.load(entry.heldout))
    after = entry.score(riq.decompress(archive).to_bytes()) if entry.metric else float("nan")
    size = entry.path.stat().st_size
    result = archive.manifest.result
    yield from (entry.name, f"{size / 1e6:.2f}", f"{deviation:g}", f"×{size / archive.size:.2f}")
    yield from (f"{result['deviation']:.5f}", f"{heldout.mean:.5f}", entry.metric or "-")
    yield from (f"{before:.3f}", f"{after:.3f}", str(result["evaluations"]), f"{seconds:.1f}")


# ---- speed ----------------------------------------------------------------------------------------------------------


def speed() -> None:
    """Speeds of riq's parts; on a shared machine only the ratios mean something."""
    generator = np.random.default_rng(0)
    weights = generator.laplace(size=8_000_000).astype(np.float32)
    width = 0.4
    seconds, symbols = timed(lambda: quantizer.quantize(weights, "float32", width))
    show("quantize", weights.size / seconds / 1e6, "million weights/s")
    table = coder.Table.of(coder.Histogram.of(symbols))
    seconds, _ = timed(lambda: coder.Table.of(coder.Histogram.of(symbols)))
    encode, streams = timed(lambda: coder.encode(symbols, table))
    show("encode (with the table)", weights.size / (encode + seconds) / 1e6, "million weights/s")
    decode, _ = timed(lambda: coder.decode(streams, table, symbols.size))
    restore, _ = timed(lambda: quantizer.dequantize(symbols, "float32", width))
    show("decode (with dequantize)", weights.size / (decode + restore) / 1e6, "million weights/s")
    show("size over entropy", sum(map(len, streams)) * 8 / symbols.size / entropy(symbols), "")
    seconds, _ = timed(lambda: subprocess.run([sys.executable, "-m", "riq_cli", "--help"], capture_output=True))
    show("riq --help", seconds, "s")
    hundred_megabytes()


def hundred_megabytes() -> None:
    """A 100 MB model with three samples: seconds in all, and the search beside onnxruntime's own runs."""
    from riq_cli.evaluator import Evaluator

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
    return quantizer.entropy(np.unique(symbols, return_counts=True)[1])


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


if __name__ == "__main__":
    main()
