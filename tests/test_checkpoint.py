"""An interrupted compress goes on from its checkpoint: to the same bytes, without doing again what was done."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import riq_cli as riq_library
from riq_cli.allocate.allocation import Curve
from riq_cli.allocate.probing import Probe
from riq_cli.constraint import FlipsConstraint, Judgement, LossConstraint
from riq_cli.errors import CheckpointError, SettingsError
from riq_cli.model import GateOutput
from riq_cli.pipeline import Checkpoint, FixedLayout, Progress
from riq_cli.quantize.factor import PackedFactor
from riq_cli.quantize.rows import RowFactor
from riq_cli.runtime import Deviation
from riq_cli.statistics.moments import PositionWeights
from tests import builders, test_unchangeable
from tests.command import ROOT, fails, riq

Builder = Callable[[int], onnx.ModelProto]


# ---- the same bytes -------------------------------------------------------------------------------------------------


def compressed(proto: onnx.ModelProto, checkpoint: Checkpoint | None = None, **options: Any) -> tuple[bytes, list[Any]]:
    """The bytes of the archive of a model, and the steps that were told."""
    told: list[Progress] = []
    model = riq_library.Model.load(io.BytesIO(proto.SerializeToString()))
    samples = riq_library.Calibration.from_feeds(builders.feeds(proto, 16))
    archive = riq_library.compress(model, samples, progress=told.append, checkpoint=checkpoint, **options)
    written = io.BytesIO()
    archive.write(written)
    return written.getvalue(), told


LABELS = np.random.default_rng(0).standard_normal((48, 10)).astype(np.float32)
RUNS: dict[str, tuple[Builder, dict[str, Any]]] = {
    "dense": (builders.dense, {}),
    "conv": (builders.conv, {}),
    "gates": (builders.lstm, {"deviation": 0.001}),
    "table": (builders.embedding, {}),
    "rows": (builders.perceptron, {}),
    "huge": (builders.perceptron, {}),
    "size": (builders.dense, {"size": 1200}),
    "uniform": (builders.dense, {"preset": "uniform"}),
    "deployable": (builders.dense, {"preset": "deployable"}),
    "flips": (builders.dense, {"settings": riq_library.Settings(constraint=FlipsConstraint(0.2, "y"))}),
    "layout": (builders.dense, {"settings": riq_library.Settings(
        constraint=LossConstraint(LABELS, 0.01),
        layout=FixedLayout(mu=1e-6), rounding="directed")}),
    "unchangeable": (lambda seed: test_unchangeable.indices(), {}),
}  # fmt: skip


def steps(checkpoint: bytes) -> list[bytes]:
    """The names of the steps whose results a checkpoint holds."""
    return sorted(re.findall(rb'\["([^"]+)", [0-9.e-]+, ', checkpoint))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_cut_off_anywhere_ends_at_the_same_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a process leaves that is killed while it writes is the beginning of the file."""
    if name == "huge":
        monkeypatch.setattr("riq_cli.pipeline.bench.HUGE", 0)
    builder, options = RUNS[name]
    proto, path, chance = builder(0), tmp_path / "checkpoint", random.Random(name)
    expected, _ = compressed(proto, **options)
    assert compressed(proto, Checkpoint(path), **options)[0] == expected
    whole = path.read_bytes()
    for cut in sorted(chance.randrange(1, len(whole)) for _ in range(2)):
        path.write_bytes(whole[:cut])
        assert compressed(proto, Checkpoint(path, resume=True), **options)[0] == expected
        resumed = path.read_bytes()
        assert steps(resumed) == steps(whole) != []  # their seconds, and so their bytes, may differ
    found, told = compressed(proto, Checkpoint(path, resume=True), **options)
    assert found == expected
    assert path.read_bytes() == resumed  # nothing was left to do
    assert told[0].phase == "resumed"
    assert told[0].value == pytest.approx(sum(step.read_seconds for step in told))
    assert {step.phase for step in told}.isdisjoint({"gradients"})  # one of them reports many steps


def test_each_pass_of_gradients_counts_its_runs_once() -> None:
    _, told = compressed(builders.perceptron(0))
    counts = [(step.done, step.total) for step in told if step.phase == "gradients"]
    passes = [total for done, total in counts if done == 1]
    assert passes
    assert counts == [(done, total) for total in passes for done in range(1, total + 1)]
    assert min(passes) > 1


def test_without_layers_to_code_nothing_is_kept(tmp_path: Path) -> None:
    compressed(builders.int8_qdq(0), Checkpoint(tmp_path / "checkpoint"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_source_has_no_checkpoint(tmp_path: Path) -> None:
    model = riq_library.Model.load(io.BytesIO(builders.dense(0).SerializeToString()))
    samples = riq_library.Calibration.from_feeds(builders.feeds(builders.dense(0), 16))
    restored = riq_library.decompress(riq_library.compress(model, samples, preset="fast"))
    with pytest.raises(SettingsError, match="a checkpoint knows a model by the bytes it was loaded from"):
        riq_library.compress(restored, samples, preset="fast", checkpoint=Checkpoint(tmp_path / "checkpoint"))


# ---- the file -------------------------------------------------------------------------------------------------------


def checkpoint(
    path: Path, resume: bool = True, warn: Callable[[str], None] = pytest.fail, **identity: Any
) -> Checkpoint:
    found = Checkpoint(path, resume)
    found.begin({"model": "m", **identity}, warn)
    return found


VALUES = [
    None, True, 7, 0.1, -math.inf, "ε", (1.0, (2, "x")), (b"\n", b"", b"\xff"),
    {3: np.arange(6, dtype=np.int32).reshape(2, 3)},
    np.zeros((0, 4), np.float16), np.array([True, False]),
    Probe(0.5, 1e-9, 0.25, True), Judgement(math.nan, 1.0, {"measure": "score"}),
    Curve(np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([0.1, 0.2])),
    {GateOutput(("y", ""), True, (1, 0)): [PositionWeights(3, 1, np.ones(3, np.float32))]},
    RowFactor(1, np.array([[0, -1]]), (np.ones((2, 0), np.float16),)),
    Deviation(("y",), (((0.1, math.nan),),), ({"y": np.array([[1, 2]])},)),
    (PackedFactor(0, 3, np.triu(np.arange(9, dtype=np.float32).reshape(1, 3, 3) + 1)),),
]  # fmt: skip


def shown(value: Any) -> str:
    """All that a value holds, with the types of arrays."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tolist()}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{shown(key)}: {shown(item)}' for key, item in value.items())}}}"
    return f"{type(value).__name__} {shown(vars(value)) if hasattr(value, '__dict__') else repr(value)}"


def test_each_kind_of_result_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    first, again = checkpoint(path), checkpoint(path)
    with contextlib.closing(first):
        for value in VALUES:
            assert first.step("same", partial(lambda value: value, value)) is value
    again = checkpoint(path)
    for value in VALUES:
        assert again.has("same")
        assert shown(again.step("same", pytest.fail)) == shown(value)
    assert not again.has("same")


def test_what_follows_a_record_that_is_not_whole_is_computed_again(tmp_path: Path) -> None:
    path, whole = tmp_path / "checkpoint", tmp_path / "whole"
    with contextlib.closing(checkpoint(whole)) as kept:
        ends = []
        for number in range(4):
            kept.step("step", partial(np.full, 3, number))
            ends.append(whole.stat().st_size)
    content = whole.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        computed: list[int] = []
        with contextlib.closing(checkpoint(path)) as kept:
            for number in range(4):
                found = kept.step("step", partial(lambda n, seen: seen.append(n) or np.full(3, n), number, computed))
                assert found.tolist() == [number] * 3
        assert computed == [number for number in range(4) if cut < ends[number]]
    path.write_bytes(content[: ends[1] - 1] + b"?" + content[ends[1] :])  # damaged
    assert Checkpoint(path, True).begin({"model": "m"}, pytest.fail)[0] == 1


def test_a_step_that_fails_is_not_kept(tmp_path: Path) -> None:
    with contextlib.closing(checkpoint(tmp_path / "checkpoint")) as kept:
        with pytest.raises(ZeroDivisionError):
            kept.step("step", lambda: 1 // 0)
        kept.step("step", lambda: 2)
    again = checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ZeroDivisionError):
        again.step("step", lambda: 1 // 0)
    assert again.step("step", pytest.fail) == 2


def record(plain: Any) -> bytes:
    content = json.dumps(["step 1", 1.0, plain]).encode() + b"\n"
    return struct.pack("<IQ", zlib.crc32(content), len(content)) + content


@pytest.mark.parametrize(
    "plain",
    [
        {"Path": {"_str": "x"}}, {"eval": "1"}, {"Probe": 1}, {"array": ["O", [1]]}, {"array": ["<f8", [1 << 40]]},
        {"array": ["no type", []]}, {"bytes": "1"}, {"mapping": [[{"mapping": []}, 1]]}, {"a": 1, "b": 2}, {},
    ],
)  # fmt: skip
def test_a_file_that_was_made_to_mislead_runs_nothing(plain: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with contextlib.closing(checkpoint(path)) as kept:
        kept.step("other", lambda: 1)
    path.write_bytes(path.read_bytes() + record(plain))
    with pytest.raises(CheckpointError, match="checkpoint: is damaged; leave out --resume to begin anew"):
        checkpoint(path).step("step", pytest.fail)


def test_where_it_cannot_be_written_the_run_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    kept = checkpoint(tmp_path / "missing" / "checkpoint", warn=told.append)
    assert [kept.step("step", lambda: 1), kept.step("step", lambda: 2)] == [1, 2]
    assert not kept.is_there
    (said,) = told
    assert re.search("checkpoint: cannot be written: No such file or directory; the run goes on", said)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of resources")
def test_a_record_of_which_a_part_was_written_is_not_taken_for_whole(tmp_path: Path) -> None:
    """As on a disk that fills up: the system writes what fits, and fails at the next byte."""
    import resource

    told: list[str] = []
    path, before = tmp_path / "checkpoint", resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.closing(checkpoint(path, warn=told.append)) as kept:
        kept.step("small", lambda: 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            kept.step("large", lambda: np.zeros(1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        kept.step("after", lambda: 2)
    assert path.stat().st_size == 1000
    (said,) = told
    assert re.search("checkpoint: cannot be written: File too large; the run goes on", said)
    assert checkpoint(path).step("small", pytest.fail) == 1


def test_an_object_that_began_with_one_run_refuses_another(tmp_path: Path) -> None:
    kept = checkpoint(tmp_path / "checkpoint", epsilon=0.1)
    assert kept.begin({"model": "m", "epsilon": 0.1}, pytest.fail) == (0, 0.0)
    with pytest.raises(CheckpointError, match=r"another run began with this checkpoint \(model m, now n\); give each"):
        kept.begin({"model": "n", "epsilon": 0.1}, pytest.fail)


# ---- the command line -----------------------------------------------------------------------------------------------

COMPRESS = ("compress", "model.onnx", "--calibration", "samples.npz")
KEPT = "model.riqz.checkpoint"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model of two layers, and samples."""
    builders.save(builders.perceptron(0), tmp_path)
    samples = np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    np.savez(tmp_path / "others.npz", x=samples[::-1])
    return tmp_path


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "riq_cli", *COMPRESS, *arguments], cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def interrupted(folder: Path, *arguments: str) -> str:
    """What a run says that is interrupted as soon as something of it is kept."""
    before = (folder / KEPT).stat().st_size if (folder / KEPT).exists() else 0
    running = started(folder, *arguments)
    while not (folder / KEPT).exists() or (folder / KEPT).stat().st_size <= before:
        time.sleep(0.005)
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    return said


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_an_interruption_says_how_to_go_on_and_that_is_so(folder: Path) -> None:
    assert riq(*COMPRESS, "-o", "whole.riqz", folder=folder).returncode == 0
    assert not (folder / "whole.riqz.checkpoint").exists()
    goes_on = f"goes on from {KEPT}\n"
    log = ("--log", "log.jsonl")
    assert interrupted(folder, *log) == f"riq: error: interrupted; the same command with --resume {goes_on}"
    first, *_, last = interrupted(folder, "--resume", *log).splitlines(keepends=True)
    assert re.fullmatch(rf"riq: goes on from {KEPT}, which holds \d+ steps? that took \d+ s\n", first)
    assert last == f"riq: error: interrupted; the same command {goes_on}"
    done = riq(*COMPRESS, "--resume", *log, folder=folder)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    ends = [number for number, record in enumerate(records, 1) if record["phase"] in ("failed", "result")]
    assert len(ends) == 3 and ends[-1] == len(records)
    assert riq("report", "model.riqz", "--log", "log.jsonl", "--html", "page.html", folder=folder).returncode == 0
    record = records[ends[1]]
    assert record.keys() == {"seconds", "phase", "steps", "took"}
    assert record["phase"] == "resumed"
    assert record["steps"] >= 2
    assert (folder / "model.riqz").read_bytes() == (folder / "whole.riqz").read_bytes()
    assert not (folder / KEPT).exists()


def keep(folder: Path, **options: Any) -> None:
    """Leave a checkpoint of a run at a deviation of 0.01."""
    model, samples = riq_library.Model.load(folder / "model.onnx"), riq_library.Calibration.load(folder / "samples.npz")
    riq_library.compress(model, samples, preset="small", checkpoint=Checkpoint(folder / KEPT), **options)


@pytest.fixture
def begun(folder: Path) -> Path:
    """The folder, with such a checkpoint."""
    keep(folder)
    return folder


def test_a_run_goes_on_with_the_threads_that_it_began_with(folder: Path) -> None:
    """As one that a cluster began, or a batch with other --jobs."""
    keep(folder, threads=3)
    fails(1, r"threads 3, now \d+\); give --threads 3 to go on, or leave", *COMPRESS, "--resume", folder=folder)
    done = riq(*COMPRESS, "--threads", "3", "--resume", folder=folder)
    assert (done.returncode, b"riq: goes on from" in done.stderr) == (0, True), done.stderr


def test_a_checkpoint_of_another_run_is_refused_and_says_what_differs(begun: Path) -> None:
    before = (begun / KEPT).read_bytes()
    end = r"\); leave out --resume to begin anew"
    refused = partial(fails, 1, folder=begun)
    refused(
        rf"{KEPT}: is of another run \(deviation 0\.01, now 0\.02{end}", *COMPRESS, "--deviation", "0.02", "--resume"
    )
    refused(rf"\(effort unset, now smallest{end}", *COMPRESS, "--preset", "smallest", "--resume")
    threads = r"\(threads (\d+), now 3\); give --threads \1 to go on, or leave out --resume to begin anew"
    refused(threads, *COMPRESS, "--threads", "3", "--resume")
    others = [word.replace("samples", "others") for word in COMPRESS]
    refused(rf"\(calibration data [0-9a-f]{{16}}, now [0-9a-f]{{16}}{end}", *others, "--resume")
    builders.save(builders.perceptron(1), begun)
    refused(rf"\(model [0-9a-f]{{16}}, now [0-9a-f]{{16}}{end}", *COMPRESS, "--resume")
    changed = before.replace(b'\\"riq\\": \\"', b'\\"riq\\": \\"9', 1)
    first = 17 + struct.calcsize("<IQ")  # where the content of the first record begins
    length = struct.unpack_from("<IQ", before, 17)[1] + 1
    content = changed[first : first + length]
    (begun / KEPT).write_bytes(changed[:17] + struct.pack("<IQ", zlib.crc32(content), length) + changed[first:])
    builders.save(builders.perceptron(0), begun)
    refused(rf"\(riq 9[0-9.]+, now [0-9.]+{end}", *COMPRESS, "--resume")


def test_without_resume_a_checkpoint_is_replaced_with_a_warning(begun: Path) -> None:
    done = riq(*COMPRESS, folder=begun)
    assert done.returncode == 0
    said = f"riq: warning: {KEPT}: is of a run that did not end, and is replaced; --resume would have gone on from it"
    assert done.stderr.decode().splitlines()[0] == said
    assert not (begun / KEPT).exists()


def test_what_is_no_checkpoint_stays(folder: Path) -> None:
    (folder / KEPT).write_text("mine")
    for options in ((), ("--resume",)):
        fails(1, f"{KEPT}: is no checkpoint of this version of riq; remove it", *COMPRESS, *options, folder=folder)
    fails(1, f"{KEPT}: is read by this command", "compress", "model.onnx", "--calibration", KEPT, folder=folder)
    assert (folder / KEPT).read_text() == "mine"


def test_resume_without_a_checkpoint_begins_and_stdout_has_none(folder: Path) -> None:
    assert riq(*COMPRESS, "--preset", "fast", "--resume", folder=folder).returncode == 0
    fails(2, "--resume goes on from a file beside the archive", *COMPRESS, "-o", "-", "--resume", folder=folder)
    assert riq(*COMPRESS, "--k", "20", "-o", "k.riqz", "--resume", folder=folder).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "k.riqz", "model.onnx", "model.riqz", "others.npz", "samples.npz"
    ]  # fmt: skip


def test_an_archive_whose_name_leaves_no_room_for_that_of_a_checkpoint_has_none(folder: Path) -> None:
    name = "m" * 244 + ".riqz"
    done = riq(*COMPRESS, "--preset", "fast", "-o", name, folder=folder)
    assert done.returncode == 0
    assert b".checkpoint: its name is too long, so nothing is kept that --resume could go on from" in done.stderr
    assert (folder / name).exists()


def test_a_target_that_is_missed_leaves_no_checkpoint_and_another_error_does(folder: Path) -> None:
    fails(3, "is not reached", *COMPRESS, "--deviation", "1e-16", "--preset", "fast", folder=folder)
    assert not (folder / KEPT).exists()
    (folder / "metric.py").write_text(
        "calls = []\ndef f(session):\n    calls.append(1)\n    return 1 / (3 - len(calls))\n"
    )
    done = riq(*COMPRESS, "--metric", "metric:f", "--max-drop", "1000", folder=folder)
    assert done.returncode == 1
    kept = f"riq: warning: {KEPT}: keeps what was done before the error; --resume goes on from it"
    assert done.stderr.decode().splitlines()[-2:][0] == kept
    assert (folder / KEPT).exists()


def test_a_batch_goes_on_within_its_models(begun: Path) -> None:
    (begun / KEPT).rename(begun / "new.checkpoint")
    (begun / "new").mkdir()
    (begun / "new.checkpoint").rename(begun / "new" / KEPT)
    batch = ("compress", "--batch", "list", "-o", "new", "--threads")
    (begun / "list").write_text("model.onnx\tsamples.npz\n")
    done = riq(*batch, "1", "--resume", folder=begun)
    assert (done.returncode, b"is of another run (threads" in done.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process")
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bytes(folder: Path) -> None:
    began = time.monotonic()
    started(folder, "-o", "whole.riqz").communicate()
    takes, chance, killed = time.monotonic() - began, random.Random(0), 0
    for _ in range(100):
        running = started(folder, "--resume", "--force")
        time.sleep(takes * chance.random())
        running.kill()
        running.communicate()
        killed += running.returncode != 0
        if chance.random() < 0.5:  # else the next run is killed, too
            done = riq(*COMPRESS, "--resume", "--force", folder=folder)
            assert done.returncode == 0, done.stderr
            assert (folder / "model.riqz").read_bytes() == (folder / "whole.riqz").read_bytes()
            assert not (folder / KEPT).exists()
    assert killed > 50
