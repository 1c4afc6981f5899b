"""How fast riq's own parts are beside onnxruntime's, as ratios of one run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import quantize_dynamic

import riq_cli as riq
from riq_cli.archive import Archive, Manifest, SkeletonEntry, deflate
from riq_cli.decode import decode_layer, dequantize, trellis
from riq_cli.entropy.ans import decode_runs
from riq_cli.entropy.histogram import Histogram, Table, encode_symbols
from riq_cli.entropy.student import Student
from riq_cli.limits import STREAM_SYMBOLS
from riq_cli.model import Layer
from riq_cli.pipeline.layer_entry import encode_layer
from riq_cli.quantize import scalar

MODULE = Path(__file__).parents[2] / "riq_cli" / "web" / "riqz.js"
SCRIPT = """
const { decode } = await import(process.argv[1]);
const { readFileSync } = await import("node:fs");
const data = new Uint8Array(readFileSync(process.argv[2]));
const downloaded = data.length / 12_500; // ms

async function* download(piece = 65_536) {
  const began = performance.now();
  for (let end = piece; end < data.length + piece; end += piece) {
    const early = began + Math.min(end / data.length, 1) * downloaded - performance.now();
    if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
    yield data.subarray(end - piece, end);
  }
}

async function passed(source) {
  const began = performance.now();
  for await (const layer of decode(source)) layer.values;
  return performance.now() - began;
}

const first = await passed(download());
let [least, alone] = [first, Infinity];
for (let run = 0; run < 4; run++) {
  least = Math.min(least, await passed(download()));
  alone = Math.min(alone, await passed(data));
}
console.log(JSON.stringify([alone / 1000, least / downloaded, first / downloaded]));
"""


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
    for coding in ("ans", "student"):
        decoding(coding)
    show("size over entropy", sum(map(len, streams)) * 8 / symbols.size / entropy(symbols), "")
    seconds, _ = timed(lambda: subprocess.run([sys.executable, "-m", "riq_cli", "--help"], capture_output=True))
    show("riq --help", seconds, "s")
    hundred_megabytes()


def decoding(coding: str) -> None:
    """A layer, of a trellis if its coding is `student`, decoded beside the coder alone on its streams."""
    middle = -0.25 if coding == "student" else 0.0
    symbols = np.rint(2 * np.random.default_rng(0).standard_t(4, (2000, 4000)) + middle).astype(np.int32)
    quantized = dequantize.Quantized(symbols.reshape(-1), 0.5)
    if coding == "student":
        signed = trellis.positive_levels(symbols.reshape(-1)).astype(np.float64)
        trellis.set_signs(signed, np.packbits((symbols & 1).astype(bool).reshape(-1)), symbols.shape, (0,))
        quantized = dequantize.Quantized(signed.astype(np.int32), 0.5, (), (0,))
    weights = quantized.restored("float32", symbols.shape).reshape(symbols.shape)
    layer = Layer("w", "MatMul", ("graph.initializer[0]",), "float32", weights.shape, weights)
    without = ("student",) if coding == "ans" else ()
    entry, (shared, *streams) = encode_layer(layer, quantized, None, without)
    assert entry.coding == coding and not entry.magnitudes
    seconds, _ = timed(lambda: decode_layer(entry, [shared, *streams], None))
    frequencies = Table.read(shared)[0].frequencies() if without else Student.from_bytes(shared).frequencies(0, True)
    sizes = [min(STREAM_SYMBOLS, entry.size - begin) for begin in range(0, entry.size, STREAM_SYMBOLS)]
    jobs = list(zip(streams, sizes, strict=True))
    alone, _ = timed(lambda: [decode_runs(stream, [(frequencies, size)]) for stream, size in jobs])
    name = "ans" if without else "student with a trellis"
    show(f"decode {name}", entry.size / seconds / 1e6, "million weights/s")
    show(f"decode {name}: the coder alone", entry.size / alone / 1e6, "million symbols/s")
    if shutil.which("node"):
        skeleton = deflate(b"")
        manifest = Manifest(SkeletonEntry(len(skeleton), 0, zlib.crc32(b"")), (entry,))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.riqz"
            Archive.build(manifest, [skeleton, shared, *streams]).save(path)
            in_javascript(name, path)


def in_javascript(name: str, path: Path) -> None:
    """Show how fast Node decodes an archive, on one thread, and how long that takes beside a download at 100 Mbit/s."""
    with Archive.open(path) as archive:
        weights = sum(layer.size for layer in archive.manifest.layers)
    command = ["node", "--input-type=module", "-e", SCRIPT, MODULE.as_uri(), str(path)]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    seconds, ratio, first = json.loads(printed)
    show(f"decode {name}: in JavaScript", weights / seconds / 1e6, "million weights/s")
    show(f"decode {name}: while it arrives", ratio, f"times its download (in a new process {first:.3g})")


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
        if shutil.which("node"):
            archive.save(path.with_suffix(".riqz"))
            in_javascript("100 MB", path.with_suffix(".riqz"))
            path.with_suffix(".riqz").unlink()
        cold_start(archive, Path(folder))


def cold_start(archive: riq.Archive, folder: Path) -> None:
    """Seconds of a new process from its start to a session: of an archive, of the file it restores, and of int8."""
    archive.save(folder / "model.riqz")
    riq.decompress(archive).save(folder / "restored.onnx")
    quantize_dynamic(folder / "restored.onnx", folder / "int8.onnx")
    plain = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    ours = "import sys, riq_cli; riq_cli.load_session(sys.argv[1], ['CPUExecutionProvider'])"
    for name, code in (("model.riqz", ours), ("restored.onnx", plain), ("int8.onnx", plain)):
        path = str(folder / name)
        for cache in ("warm", "cold"):

            def start(path: str = path, code: str = code, cache: str = cache) -> None:
                if cache == "cold":
                    forget(path)
                subprocess.run([sys.executable, "-c", code, path], check=True)

            seconds, _ = timed(start)
            show(f"start of {name}, its pages {cache}", seconds, "s")


def forget(path: str) -> None:
    """Have the system drop the pages of a file that it keeps in memory."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


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
