"""Train the three sample networks on Fashion-MNIST, export them to ONNX and write their data.

Run from the repository:

    python sample_models/train.py                 # all three
    python sample_models/train.py --model lstm    # one of cnn, lstm, transformer

Requirements, of this script only:
`pip install torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1 numpy==2.4.6`.
The data come from `--data`, or from the Debian package `dataset-fashion-mnist`: installed
(`apt-get install dataset-fashion-mnist`), or else downloaded and unpacked into the user's cache.

Every model has the input `image`, float32 [batch, 1, 28, 28], grey levels divided by 255, and the
output `logits`, float32 [batch, 10]. One thread and one seed: the same package versions on the same
kind of processor give the same accuracy again.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import logging
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

SEED = 2024
BATCH = 128
OPSET = 20  # the first with Gelu as one operator
CLASSES = 10
CALIBRATION_IMAGES = 64
HELDOUT_IMAGES = 500
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path.home() / ".cache" / "riq-sample-models"


# Data


def find_data() -> Path:
    """Folder of the four gzipped idx files: the installed package's, or the cache, filled when empty."""
    if INSTALLED.is_dir():
        return INSTALLED
    unpacked = CACHE / INSTALLED.relative_to("/")
    if not unpacked.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
            package = next(Path(folder).glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(package), str(CACHE)], check=True)
    return unpacked


def read_idx(path: Path) -> np.ndarray:
    """Array of a gzipped idx file of bytes: uint8, of the shape in its header."""
    with gzip.open(path) as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def load_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split.

    Args:
        folder: where the idx files are.
        split: "train" or "t10k".

    Returns:
        Images, float32 [n, 1, 28, 28] in [0, 1], and class ids, int64 [n].
    """
    pixels = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return pixels[:, None].astype(np.float32) / np.float32(255), labels.astype(np.int64)


def write_samples(images: np.ndarray, labels: np.ndarray, count: int, path: Path) -> np.ndarray:
    """Draw `count` images into `path` (npz, key "image") and their labels beside it (`*_labels.npy`).

    Returns:
        Indices of the images drawn, int64 [count].
    """
    drawn = np.random.default_rng(SEED).choice(len(images), count, replace=False)
    np.savez_compressed(path, image=images[drawn])
    np.save(path.with_name(f"{path.stem}_labels.npy"), labels[drawn])
    return drawn


# Networks


class ConvNorm(nn.Module):
    """Convolution and batch norm, [b, inputs, h, w] -> [b, outputs, h, w]; `fold` makes them one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then normalise each channel."""
        return self.norm(self.conv(x))

    def fold(self) -> None:
        """Fold the batch norm into the convolution; the module must be in evaluation mode."""
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


class Cnn(nn.Module):
    """Plain, depthwise and pointwise convolutions, one residual, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 32, 3)
        self.depthwise1 = ConvNorm(32, 32, 3, groups=32)
        self.pointwise1 = ConvNorm(32, 64, 1)
        self.middle = ConvNorm(64, 64, 3)
        self.depthwise2 = ConvNorm(64, 64, 3, groups=64)
        self.pointwise2 = ConvNorm(64, 64, 1)
        self.dense = nn.Linear(64 * 3 * 3, 64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [b, 10] of images [b, 1, 28, 28]."""
        x = functional.max_pool2d(self.stem(image).relu(), 2)
        x = self.depthwise1(x).relu()
        x = functional.max_pool2d(self.pointwise1(x).relu(), 2)
        x = self.middle(x).relu()
        x = (x + self.pointwise2(self.depthwise2(x).relu())).relu()
        x = functional.max_pool2d(x, 2).flatten(1)
        return self.head(self.dense(x).relu())

    def fold(self) -> None:
        """Fold every batch norm into its convolution."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()


class BiLstm(nn.Module):
    """One bidirectional LSTM layer, [time, b, inputs] -> [time, b, 2 * hidden]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.lstm = nn.LSTM(inputs, hidden, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states of both directions, side by side."""
        return self.lstm(x)[0]


class OnnxBiLstm(nn.Module):
    """The same layer as the single ONNX operator LSTM, initial states left out (zero).

    W is [2, 4 * hidden, inputs], R [2, 4 * hidden, hidden] and B [2, 8 * hidden], first axis the
    direction, gates in ONNX order (input, output, forget, cell; torch: input, forget, cell, output).
    """

    def __init__(self, layer: BiLstm) -> None:
        super().__init__()
        self.hidden = layer.hidden
        for name, parts in {"W": ["weight_ih"], "R": ["weight_hh"], "B": ["bias_ih", "bias_hh"]}.items():
            directions = [
                torch.cat([_onnx_gates(getattr(layer.lstm, f"{part}_l0{suffix}")) for part in parts])
                for suffix in ("", "_reverse")
            ]
            self.register_parameter(name, nn.Parameter(torch.stack(directions)))

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states of both directions, side by side."""
        time_steps, batch = x.shape[:2]
        y = torch.onnx.ops.symbolic(
            "LSTM",
            (x, self.W, self.R, self.B),
            attrs={"hidden_size": self.hidden, "direction": "bidirectional"},
            dtype=torch.float32,
            shape=(time_steps, 2, batch, self.hidden),
        )
        return y.transpose(1, 2).flatten(2)


def _onnx_gates(stacked: Tensor) -> Tensor:
    """Gates of a torch LSTM parameter, [4 * hidden, ...], in ONNX order."""
    gate_input, forget, cell, output = stacked.detach().chunk(4)
    return torch.cat([gate_input, output, forget, cell])


class Lstm(nn.Module):
    """Two bidirectional LSTM layers over the 28 rows of an image, their mean over time, a dense layer."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.lstm1: nn.Module = BiLstm(28, hidden)
        self.lstm2: nn.Module = BiLstm(2 * hidden, hidden)
        self.head = nn.Linear(2 * hidden, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [b, 10] of images [b, 1, 28, 28]."""
        rows = image.squeeze(1).transpose(0, 1)
        return self.head(self.lstm2(self.lstm1(rows)).mean(0))

    def fold(self) -> None:
        """Put the ONNX operator in the place of torch's LSTM; for export only."""
        self.lstm1 = OnnxBiLstm(self.lstm1)
        self.lstm2 = OnnxBiLstm(self.lstm2)


class Dense(nn.Linear):
    """Dense layer whose weight is stored [inputs, outputs], so that it exports as a plain MatMul and Add."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis, [..., inputs] -> [..., outputs]."""
        return x @ self.weight + self.bias


class Block(nn.Module):
    """Pre-norm transformer block, [b, tokens, width] -> [b, tokens, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = Dense(width, 3 * width)
        self.project = Dense(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = Dense(width, 2 * width)
        self.contract = Dense(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then two dense layers, each added to its input."""
        x = x + self.project(self.attend(self.qkv(self.norm1(x))))
        return x + self.contract(functional.gelu(self.expand(self.norm2(x))))

    def attend(self, qkv: Tensor) -> Tensor:
        """Multi-head attention of queries, keys and values side by side, [b, tokens, 3 * width]."""
        parts = qkv.chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        if self.training:  # one fused, faster operation; the export gets the plain ones
            heads = functional.scaled_dot_product_attention(query, key, value)
        else:
            heads = (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(3) @ value
        return heads.transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """Embedding of 49 overlapping patches of 8 x 8 pixels, three blocks, mean over patches, a dense layer."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 8, stride=4, padding=2)
        self.position = nn.Parameter(0.02 * torch.randn(49, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [b, 10] of images [b, 1, 28, 28]."""
        tokens = self.embed(image).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))

    def fold(self) -> None:
        """Nothing to fold."""


MODELS: dict[str, type[Cnn] | type[Lstm] | type[Transformer]] = {
    "cnn": Cnn,
    "lstm": Lstm,
    "transformer": Transformer,
}
EPOCHS = {"cnn": 16, "lstm": 20, "transformer": 12}
PEAK_RATE = {"cnn": 4e-3, "lstm": 4e-3, "transformer": 2e-3}  # the one-cycle schedule's learning rate


# Training


def mirror(images: Tensor) -> Tensor:
    """Images [b, 1, 28, 28], each mirrored left to right with probability 1/2."""
    chosen = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(chosen, images.flip(3), images)


def train(name: str, images: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Train the network `name` from scratch.

    Args:
        name: a key of MODELS.
        images: float32 [n, 1, 28, 28].
        labels: int64 [n].

    Returns:
        The trained network, in evaluation mode.
    """
    torch.manual_seed(SEED)
    return fit(MODELS[name](), name, EPOCHS[name], PEAK_RATE[name], images, labels)


def fit(
    model: nn.Module, name: str, epochs: int, peak_rate: float, images: np.ndarray, labels: np.ndarray
) -> nn.Module:
    """Train a network with freshly drawn weights.

    Args:
        model: changed in place.
        name: for the progress lines.
        epochs: passes over the images.
        peak_rate: the one-cycle schedule's learning rate.
        images: float32 [n, 1, 28, 28].
        labels: int64 [n].

    Returns:
        The network, in evaluation mode.
    """
    model = model.to(memory_format=torch.channels_last)  # faster convolutions
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=epochs * steps)
    for epoch in range(epochs):
        start, total = time.monotonic(), 0.0
        for batch in torch.randperm(len(x))[: steps * BATCH].split(BATCH):
            loss = functional.cross_entropy(model(mirror(x[batch])), y[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - start
        print(f"{name}: epoch {epoch + 1}/{epochs}, training loss {total / steps:.4f}, {seconds:.0f} s")
    return model.eval()


# Export


def export(model: nn.Module, path: Path) -> None:
    """Write the trained network to one ONNX file, weights as named initializers, batch axis free."""
    exported = copy.deepcopy(model)
    exported.fold()
    program = torch.onnx.export(
        exported,
        (torch.zeros(2, 1, 28, 28),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def strip(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes (source lines, module paths) from a model, in place."""
    graph = proto.graph
    tensors = [*graph.initializer, *graph.value_info, *graph.input, *graph.output]
    for part in (proto, graph, *graph.node, *tensors):
        del part.metadata_props[:]
        part.doc_string = ""


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits [n, 10] of images [n, 1, 28, 28] by onnxruntime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    parts = [images[start : start + 500] for start in range(0, len(images), 500)]
    return np.concatenate([session.run(["logits"], {"image": part})[0] for part in parts])


def describe(path: Path, model: nn.Module, test: tuple[np.ndarray, np.ndarray], heldout: np.ndarray) -> None:
    """Print a model's size, its distance from torch and its accuracy.

    Args:
        path: the ONNX file.
        model: the same network in torch.
        test: test images, float32 [n, 1, 28, 28], and their class ids, int64 [n].
        heldout: indices of the held-out images among them, int64 [m].
    """
    images, labels = test
    logits = run(path, images)
    correct = logits.argmax(1) == labels
    with torch.inference_mode():
        expected = torch.cat([model(part) for part in torch.from_numpy(images).split(500)]).numpy()
    proto = onnx.load(path)
    floats = [tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    weights = sum(int(np.prod(tensor.dims)) for tensor in floats)
    print(f"{path.name}: {weights} weights, {path.stat().st_size} bytes, {len(proto.graph.node)} nodes")
    print(f"{path.name}: largest difference from torch {np.abs(logits - expected).max():.2e}")
    print(f"{path.name}: test accuracy {correct.mean():.4f}, held-out accuracy {correct[heldout].mean():.4f}")


def main() -> None:
    """Parse the command line, write the data, train and export."""
    parser = argparse.ArgumentParser(description="Train riq's sample networks on Fashion-MNIST.")
    parser.add_argument("--model", choices=list(MODELS), help="train this one only (default: all)")
    parser.add_argument("--data", type=Path, help="folder of the four gzipped idx files")
    parser.add_argument("--output", type=Path, help="folder to write to (default: this script's)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a third of the time
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    data = arguments.data or find_data()
    output = arguments.output or Path(__file__).parent
    output.mkdir(parents=True, exist_ok=True)
    training, test = load_split(data, "train"), load_split(data, "t10k")
    write_samples(*training, CALIBRATION_IMAGES, output / "calibration.npz")
    heldout = write_samples(*test, HELDOUT_IMAGES, output / "heldout.npz")
    for name in [arguments.model] if arguments.model else MODELS:
        model = train(name, *training)
        path = output / f"{name}.onnx"
        export(model, path)
        describe(path, model, test, heldout)


if __name__ == "__main__":
    main()
