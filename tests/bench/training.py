"""Trains what `python -m tests.bench loss` measures: small networks on Fashion-MNIST, each from several seeds.

Run by that command, in an environment that holds torch besides; riq and its tests do without. Networks and training
are those of `sample_models/train.py`, or built from its parts.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sample_models.train import CLASSES, ConvNorm, Transformer, export, find_data, fit, load_split

CALIBRATION = 1024  # training images that no network is trained on: what riq may see
EPOCHS = {"cnn": 4, "residual": 4, "depthwise": 4, "transformer": 5}
PEAK_RATE = {"cnn": 2e-3, "residual": 4e-3, "depthwise": 4e-3, "transformer": 2e-3}


class Folding(nn.Module):
    """A network whose batch norms can be folded into its convolutions."""

    def fold(self) -> None:
        """Fold every batch norm."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()


class Cnn(Folding):
    """Two convolutions and two dense layers, as tutorials on digits have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.dense = nn.Linear(32 * 7 * 7, 64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [b, 10] of images [b, 1, 28, 28]."""
        x = functional.max_pool2d(self.conv1(image).relu(), 2)
        x = functional.max_pool2d(self.conv2(x).relu(), 2)
        return self.head(self.dense(x.flatten(1)).relu())


class BasicBlock(nn.Module):
    """Two convolutions and what goes past them, as in ResNet18; the first halves the image where channels grow."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3)
        self.second = ConvNorm(outputs, outputs, 3)
        self.past = ConvNorm(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output [b, outputs, h, w]."""
        if isinstance(self.past, ConvNorm):
            x = functional.max_pool2d(x, 2)
        return (self.second(self.first(x).relu()) + self.past(x)).relu()


class Residual(Folding):
    """A stem, three basic blocks, the mean over the image and a dense layer: in place of ResNet18."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 16, 3)
        self.blocks = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 32), BasicBlock(32, 64))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [b, 10] of images [b, 1, 28, 28]."""
        x = functional.max_pool2d(self.stem(image).relu(), 2)
        return self.head(self.blocks(x).mean((2, 3)))


class Inverted(nn.Module):
    """Pointwise expansion, depthwise convolution, pointwise projection, as in MobileNetV2."""

    def __init__(self, inputs: int, outputs: int, expansion: int = 4) -> None:
        super().__init__()
        inner = expansion * inputs
        self.expand = ConvNorm(inputs, inner, 1)
        self.depthwise = ConvNorm(inner, inner, 3, groups=inner)
        self.project = ConvNorm(inner, outputs, 1)
        self.residual = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The block's output [b, outputs, h, w]."""
        inner = functional.relu6(self.depthwise(functional.relu6(self.expand(x))))
        return self.project(inner) + x if self.residual else self.project(inner)


class Depthwise(Folding):
    """A stem, four inverted residual blocks, the mean over the image and a dense layer: in place of MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 16, 3)
        self.blocks1 = nn.Sequential(Inverted(16, 16), Inverted(16, 24))
        self.blocks2 = nn.Sequential(Inverted(24, 24), Inverted(24, 40))
        self.last = ConvNorm(40, 128, 1)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [b, 10] of images [b, 1, 28, 28]."""
        x = self.blocks1(functional.max_pool2d(functional.relu6(self.stem(image)), 2))
        x = self.blocks2(functional.max_pool2d(x, 2))
        return self.head(functional.relu6(self.last(x)).mean((2, 3)))


NETWORKS = {"cnn": Cnn, "residual": Residual, "depthwise": Depthwise, "transformer": Transformer}


def main() -> None:
    """Train and export what the folder does not hold yet, and write its data."""
    parser = argparse.ArgumentParser(description="Train the networks of the bench `loss`.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--seed", action="append", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a third of the time
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    data = find_data()
    images, labels = load_split(data, "train")
    order = np.random.default_rng(0).permutation(len(images))
    kept, learned = order[:CALIBRATION], order[CALIBRATION:]
    for name, (x, y) in {
        "calibration": (images[kept], labels[kept]),
        "test": load_split(data, "t10k"),
    }.items():
        np.savez_compressed(folder / f"{name}.npz", image=x)
        np.save(folder / f"{name}_labels.npy", y)
    for seed in arguments.seed or (0, 1):
        for name in arguments.network or NETWORKS:
            path = folder / f"{name}-{seed}.onnx"
            if path.exists():
                continue
            torch.manual_seed(seed)
            model = fit(
                NETWORKS[name](), f"{name}-{seed}", EPOCHS[name], PEAK_RATE[name], images[learned], labels[learned]
            )
            export(model, path)


if __name__ == "__main__":
    main()
