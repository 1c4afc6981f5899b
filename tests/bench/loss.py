"""What is kept of accuracy and loss, in how many bytes: fixed layouts beside riq, on networks trained for it.

The networks stand in for those of the document on loss-aware layouts: a CNN for its ablation of μ, a residual net for
ResNet18, a depthwise one for MobileNetV2, a transformer for BERT. The search sees labelled training images that no
network learned from; every figure of loss and accuracy is of the 10,000 test images, which nothing else sees.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import riq_cli as riq
from riq_cli.constraint import LossConstraint
from riq_cli.errors import TargetError
from riq_cli.pipeline import FixedLayout
from tests.zoo.recipe import batched, runner

from .tables import header, line

FOLDER = Path.home() / ".cache" / "riq-bench-loss"
NETWORKS = ("cnn", "residual", "depthwise", "transformer")
SEEDS = (0, 1)
MU = (0.0, 0.01, 0.03, 0.1, 0.3, 0.4, 0.5)
SAMPLES = 512
ANY = 1e9  # an increase that refuses nothing
COLUMNS = ("network", "seed", "method", "kB", "ratio", "loss", "change of loss", "accuracy", "change of accuracy", "s")

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """Images and labels: those that the search may see, and those of the test."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @classmethod
    def of(cls, folder: Path) -> Data:
        """The data that training left in a folder."""

        def read(name: str) -> tuple[np.ndarray, np.ndarray]:
            with np.load(folder / f"{name}.npz") as loaded:
                return loaded["image"], np.load(folder / f"{name}_labels.npy")

        images, labels = read("calibration")
        return cls(images[:SAMPLES], labels[:SAMPLES], *read("test"))


def loss() -> None:
    """Train what is missing, and print both tables."""
    trained(FOLDER)
    data = Data.of(FOLDER)
    print(f"{SAMPLES} labelled images for the search, {len(data.test_labels):,} for loss and accuracy.")
    print("± is one standard error: of accuracy the binomial one, of changes that of the paired differences.\n")
    print(header(COLUMNS), flush=True)
    for network in NETWORKS:
        for seed in SEEDS:
            show(network, seed, data, methods(data))
    print("\nThe ablation of μ\n\n" + header(COLUMNS), flush=True)
    for seed in SEEDS:
        show("cnn", seed, data, ablation(data))


def trained(folder: Path) -> None:
    """Train the networks that the folder lacks, with torch."""
    wanted = [folder / f"{network}-{seed}.onnx" for network in NETWORKS for seed in SEEDS]
    if not all(path.exists() for path in wanted):
        command = [sys.executable, "-m", "tests.bench.training", str(folder)]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            sys.exit("the networks were not trained; that takes pip install torch==2.13.0 onnxscript==0.7.2")


def methods(data: Data) -> Iterator[tuple[str, Options]]:
    """What is compared, and the options of compress for it."""
    none, some = (LossConstraint(data.labels, *bound) for bound in ((0.0, 0.0), (0.01, 1.0)))
    yield "8 bits", {"constraint": LossConstraint(data.labels, ANY), "layout": FixedLayout((8,))}
    yield "4 bits", {"constraint": LossConstraint(data.labels, ANY), "layout": FixedLayout((4,))}
    yield (
        "8 bits, directed",
        {"constraint": LossConstraint(data.labels, ANY), "layout": FixedLayout((8,)), "rounding": "directed"},
    )
    yield "fixed, R", {"constraint": none, "layout": FixedLayout(variant="R")}
    yield "fixed, B", {"constraint": none, "layout": FixedLayout(variant="B")}
    yield "fixed, B, per channel", {"constraint": none, "layout": FixedLayout(variant="B", per_channel=True)}
    yield "fixed, B, margin 1, 1 %", {"constraint": some, "layout": FixedLayout(variant="B")}
    yield "fixed, B, directed", {"constraint": none, "layout": FixedLayout(variant="B"), "rounding": "directed"}
    yield "riq, deviation 0.01", {"deviation": 0.01}
    yield "riq, deviation 0.001", {"deviation": 0.001}
    yield "riq, loss 0 %", {"constraint": none}
    yield "riq, loss 1 %, margin 1", {"constraint": some}


def ablation(data: Data) -> Iterator[tuple[str, Options]]:
    """Variants R and B over μ."""
    constraint = LossConstraint(data.labels)
    for mu in MU:
        for variant in ("R", "B"):
            layout = FixedLayout(variant=variant, mu=mu)  # type: ignore[arg-type]
            yield f"CNN_{variant}+{mu:g}", {"constraint": constraint, "layout": layout}


def show(network: str, seed: int, data: Data, rows: Iterator[tuple[str, Options]]) -> None:
    """Print a row for the network as it is, and one for each method."""
    path = FOLDER / f"{network}-{seed}.onnx"
    before = measured(path, data)
    size = path.stat().st_size
    print(line([network, str(seed), "full precision", *cells(size, size, before, before), "–"]), flush=True)
    model = riq.Model.load(path)
    for method, options in rows:
        began = time.perf_counter()
        try:
            archive = riq.compress(model, riq.Calibration.from_arrays(data.images), batch_size=32, **options)
        except TargetError as error:
            print(line([network, str(seed), method, f"not reached: {error}"]), flush=True)
            continue
        seconds = time.perf_counter() - began
        after = measured(riq.decompress(archive).to_bytes(), data)
        layout = archive.manifest.result.get("layout", {})
        counts = " ".join(f"{count}×{width}" for width, count in layout.items() if count)
        name = f"{method} ({counts})" if counts else method
        print(line([network, str(seed), name, *cells(archive.size, size, after, before), f"{seconds:.0f}"]), flush=True)


def measured(model: Path | bytes, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each test image, and whether its class is right."""
    logits = batched(runner(model), "image", data.test_images).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    losses = -logarithms[np.arange(len(logits)), data.test_labels]
    return losses, (logits.argmax(axis=1) == data.test_labels).astype(np.float64)


def cells(size: int, source: int, after: Sequence[np.ndarray], before: Sequence[np.ndarray]) -> list[str]:
    """Bytes, loss and accuracy, and what has changed."""
    (losses, right), (old_losses, old_right) = after, before
    accuracy, count = right.mean(), len(right)
    changes = [
        "–" if after is before else f"{100 * mean:+.2f} ± {100 * error:.2f} %"
        for mean, error in (
            (np.mean(losses - old_losses) / old_losses.mean(), error_of(losses - old_losses) / old_losses.mean()),
            (np.mean(right - old_right), error_of(right - old_right)),
        )
    ]
    noise = np.sqrt(accuracy * (1 - accuracy) / count)
    return [
        f"{size / 1e3:.1f}",
        f"×{source / size:.2f}",
        f"{losses.mean():.4f}",
        changes[0],
        f"{100 * accuracy:.2f} ± {100 * noise:.2f} %",
        changes[1],
    ]


def error_of(values: np.ndarray) -> float:
    """The standard error of a mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))
