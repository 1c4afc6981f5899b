"""--labels, --metric and --layout fixed as a user types them, on the sample models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.command import fails, riq

SAMPLES = Path(__file__).parent.parent / "sample_models"
FILES = ("cnn.onnx", "calibration.npz", "calibration_labels.npy", "heldout.npz", "heldout_labels.npy")
COMPRESS = ("compress", "cnn.onnx", "--preset", "fast", "--calibration", "calibration.npz")
METRIC = """
import numpy as np

def accuracy(predict):
    with np.load("heldout.npz") as loaded:
        logits = predict({"image": loaded["image"][:200]})["logits"]
    return (logits.argmax(axis=1) == np.load("heldout_labels.npy")[:200]).mean()

def nothing(session):
    return float("nan")

def broken(session):
    raise ValueError("no images here")

def text(session):
    return "good"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        shutil.copy(SAMPLES / name, tmp_path)
    (tmp_path / "evaluation.py").write_text(METRIC)
    labels = np.load(SAMPLES / "calibration_labels.npy")
    with np.load(SAMPLES / "calibration.npz") as loaded:
        np.savez(tmp_path / "both.npz", image=loaded["image"], label=labels)
    np.save(tmp_path / "large.npy", labels + 1)
    np.save(tmp_path / "floats.npy", labels.astype(np.float32))
    return tmp_path


def test_the_file_of_the_labels_is_never_overwritten(folder: Path) -> None:
    for labels, file in (("calibration_labels.npy", "calibration_labels.npy"), ("both.npz:label", "both.npz")):
        before = (folder / file).read_bytes()
        fails(1, f"{file}: is read by this command and never overwritten", *COMPRESS, "--labels", labels, "-o", file,
              "--force", folder=folder)  # fmt: skip
        assert (folder / file).read_bytes() == before


def test_under_a_loss_the_whole_way(folder: Path) -> None:
    done = riq(*COMPRESS, "--labels", "calibration_labels.npy", "--max-loss-increase", "5%", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["settings"]["objective"] == "loss"
    assert facts["settings"]["max_loss_increase"] == 0.05
    assert facts["target"] is None
    assert facts["constraint"]["holds"]
    assert facts["constraint"]["value"] <= 0.05
    assert facts["constraint"]["measure"] == "cross-entropy of logits at logits"
    assert facts["constraint"]["accuracy_before"] == 0.96875
    assert len(facts["constraint_trace"]) <= facts["evaluations"]

    report = riq("report", "cnn.riqz", "--json", folder=folder)
    document = json.loads(report.stdout)
    assert document["result"]["constraint"] == facts["constraint"]
    assert "--labels LABELS" in document["command"]
    assert "--max-loss-increase 0.05" in document["command"]
    for shown in ((), ("--markdown",), ("--html", "-")):
        text = riq("report", "cnn.riqz", *shown, folder=folder).stdout.decode()
        assert "loss 0.05635 →" in text
        assert "accuracy 0.9688 →" in text

    verify = ("verify", "cnn.riqz", "--against", "cnn.onnx", "--calibration", "heldout.npz")
    unjudged = b"riq: warning: cnn.riqz: was made to keep a loss, which is not judged without --labels; give it\n"
    assert riq(*verify, folder=folder).stderr == unjudged
    assert riq(*verify, "--objective", "deviation", folder=folder).stderr == b""
    done = riq(*verify, "--labels", "heldout_labels.npy", "--max-loss-increase", "1000%", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["holds"]
    assert found["constraint"]["limit"] == 10
    assert found["constraint"]["samples"] == 500
    assert found["constraint"]["accuracy_before"] == 0.936


def test_verify_takes_the_tolerance_of_the_archive_and_ends_with_3_where_it_is_missed(folder: Path) -> None:
    done = riq(*COMPRESS, "--labels", "calibration_labels.npy", "--max-loss-increase", "3", "--deviation", "0.5",
               folder=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "constraint loss 0.05635 →" in done.stderr.decode()
    verify = ("verify", "cnn.riqz", "--against", "cnn.onnx", "--calibration", "heldout.npz",
              "--labels", "heldout_labels.npy")  # fmt: skip
    found = json.loads(riq(*verify, "--json", folder=folder).stdout)
    assert (found["constraint"]["limit"], found["bound"]) == (3.0, 0.5)
    missed = riq(*verify, "--max-loss-increase", "0.001%", folder=folder)
    assert missed.returncode == 3
    assert " ABOVE 0.001 %), accuracy 0.936 → " in missed.stdout.decode()


def test_labels_may_lie_beside_the_samples(folder: Path) -> None:
    for labels in ("label", "both.npz:label"):
        done = riq("compress", "cnn.onnx", "--preset", "fast", "--calibration", "both.npz", "--labels", labels,
                   "--max-loss-increase", "1", "-f", "--json", folder=folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["constraint"]["samples"] == 64


def test_under_a_metric_the_whole_way(folder: Path) -> None:
    done = riq(*COMPRESS, "--metric", "evaluation:accuracy", "--max-drop", "1%", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["settings"]["metric"] == "evaluation:accuracy"
    assert facts["settings"]["max_drop"] == "1%"
    assert facts["constraint"]["value"] <= facts["constraint"]["limit"] == 0.01
    verify = ("verify", "cnn.riqz", "--against", "cnn.onnx", "--calibration", "heldout.npz",
              "--metric", "evaluation:accuracy")  # fmt: skip
    done = riq(*verify, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "  constraint: score " in done.stdout.decode()


def test_a_fixed_layout_the_whole_way(folder: Path) -> None:
    done = riq(*COMPRESS, "--labels", "calibration_labels.npy", "--layout", "fixed", "--bits", "4,8,float",
               "--variant", "B", "--max-loss-increase", "2%", "--json", folder=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert sum(facts["layout"].values()) == 8
    assert facts["constraint"]["value"] <= 0.02
    document = json.loads(riq("report", "cnn.riqz", "--json", folder=folder).stdout)
    assert "--bits 4,8,float --layout fixed" in document["command"]
    assert "at 8 bits" in riq("report", "cnn.riqz", folder=folder).stdout.decode()
    assert riq("decompress", "cnn.riqz", "-o", "restored.onnx", folder=folder).returncode == 0


LABELS = ("--labels", "calibration_labels.npy")


@pytest.mark.parametrize(
    ("code", "message", "arguments"),
    [
        (1, "there are 500 labels for 64 samples", ("--labels", "heldout_labels.npy")),
        (1, "class ids go from 1 to 10; 'logits' has 10 classes", ("--labels", "large.npy")),
        (1, "class ids have to be integers", ("--labels", "floats.npy")),
        (1, "nothing.npy: no such file", ("--labels", "nothing.npy")),
        (1, "evaluation.py: not a file of NumPy arrays but text", ("--labels", "evaluation.py")),
        (1, "both.npz: holds several arrays; name labels as FILE.npz:KEY, with one of image, label",
         ("--labels", "both.npz")),
        (1, "both.npz: has no array 'lable'", ("--labels", "both.npz:lable")),
        (1, "evaluation:nothing: gives nan for the original model", ("--metric", "evaluation:nothing")),
        (1, "evaluation:broken: ValueError: no images here", ("--metric", "evaluation:broken")),
        (1, "evaluation:text: gives str, not a number", ("--metric", "evaluation:text")),
        (1, "evaluation:none: the module has no 'none'", ("--metric", "evaluation:none")),
        (1, "nowhere:f: the module cannot be imported: ModuleNotFoundError", ("--metric", "nowhere:f")),
        (2, "--metric evaluation: write module:function", ("--metric", "evaluation")),
        (2, "--metric belongs to --objective metric, not to loss", (*LABELS, "--metric", "evaluation:accuracy")),
        (2, "--labels belongs to --objective loss, not to deviation", (*LABELS, "--objective", "deviation")),
        (2, "--objective loss needs --labels", ("--objective", "loss")),
        (2, "--objective metric needs --metric", ("--objective", "metric")),
        (2, "--max-drop needs --metric", ("--max-drop", "1%")),
        (2, "--max-loss-increase needs --labels", ("--max-loss-increase", "1%")),
        (2, "--image-layout prepares a folder of images", ("--image-layout", "nhwc")),
        (2, "'much' is not a fraction; write 0.01 or 1%", (*LABELS, "--max-loss-increase", "much")),
        (2, "--size 5000 and a constraint are two goals", (*LABELS, "--size", "5kB")),
        (2, "a margin of -1 standard errors is negative", (*LABELS, "--margin", "-1")),
        (2, "a fixed layout is chosen by a constraint", ("--layout", "fixed")),
        (2, "--bits belongs to --layout fixed", (*LABELS, "--bits", "4")),
        (2, "'4,half' is not a list of widths in bits", (*LABELS, "--layout", "fixed", "--bits", "4,half")),
        (2, "'nhwc' is the order of the axes of images; write --image-layout nhwc", ("--layout", "nhwc")),
        (3, "the constraint is not kept: the best value is .*, above 0; allow more with a larger --max-loss-increase",
         (*LABELS, "--layout", "fixed", "--bits", "2")),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_a_code(
    code: int, message: str, arguments: tuple[str, ...], folder: Path
) -> None:
    fails(code, message, *COMPRESS, *arguments, folder=folder)
    assert not (folder / "cnn.riqz").exists()


def test_labels_need_samples(folder: Path) -> None:
    fails(2, "--labels are those of real samples; give these with --calibration", "compress", "cnn.onnx", *LABELS,
          folder=folder)  # fmt: skip
