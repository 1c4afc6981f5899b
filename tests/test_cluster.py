"""riq on a cluster of Dask's: a real scheduler and real workers, each a process."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from riq_cli import pipeline
from riq_cli.calibration import Calibration
from riq_cli.cluster import Cluster, cluster
from riq_cli.errors import RiqError
from riq_cli.model import Model
from riq_cli.pipeline import Progress, Settings, compress
from riq_cli.pipeline.bench import Bench
from riq_cli.pipeline.checkpoint import Checkpoint
from riq_cli.points import read_points
from tests import builders
from tests.command import ROOT, fails, riq

pytest.importorskip("distributed", reason="needs Dask: pip install 'riq[dask]'")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="sends signals")]
BATCH = ("compress", "--batch", "models", "--calibration", "{folder}/{stem}.npz", "--preset", "fast", "-o")
DATA = """
import os, signal, time

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def slow():
    time.sleep(1000)
"""

SHAPES = {"first": (64, 16), "c": (64,), "second": (20, 64), "d": (20,)}  # enough weights for gradients


class Machines:
    """A scheduler, and workers of one thread, whose nannies start them again."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.file, self._folder = folder / "scheduler.json", folder
        self.scheduler = self._started("scheduler", "--port", "0", "--host", "127.0.0.1")
        while not self.file.exists():
            time.sleep(0.05)
        self.workers = [self._started("worker", "--nthreads", "1") for _ in range(workers)]
        until(lambda: len(self.pids()) == workers)

    def _started(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", self.file, "--no-dashboard",
             *options],
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{self._folder}", "OPENBLAS_NUM_THREADS": "1"},
            cwd=self._folder, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def pids(self) -> list[int]:
        return self.run(os.getpid)

    def run(self, function: Callable[[], int]) -> list[int]:
        """What each worker returns."""
        from distributed import Client

        with Client(scheduler_file=str(self.file), set_as_default=False) as client:
            return list(client.run(function).values())

    def kill_workers(self) -> None:
        """End them where the scheduler has gone, for which they would wait."""
        for worker in self.workers:
            worker.kill()

    def end(self) -> None:
        for one in (*self.workers, self.scheduler):  # workers wait for a scheduler that ends before them
            one.terminate()
            one.wait(20)


def until(holds: object) -> None:
    end = time.monotonic() + 60
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("machines")
    (folder / "data.py").write_text(DATA)
    found = Machines(folder, 2)
    yield found
    found.end()


@pytest.fixture
def machines(started: Machines) -> Machines:
    """A cluster of two workers, whatever tests before have killed."""
    until(lambda: len(started.pids()) == 2)
    return started


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Machines]:
    """A cluster to damage: one worker."""
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "data.py").write_text(DATA)
    found = Machines(tmp_path / "others", 1)
    yield found
    found.end()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with models/ of three models and their samples."""
    (tmp_path / "models").mkdir()
    for seed, name in enumerate(("one", "two", "three")):
        builders.save(builders.dense(seed=seed), tmp_path / "models", f"{name}.onnx")
        values = np.random.default_rng(seed).standard_normal((16, 16)).astype(np.float32)
        np.savez(tmp_path / "models" / f"{name}.npz", x=values)
    return tmp_path


def archives(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_batch_has_the_same_bytes_as_on_this_machine(machines: Machines, folder: Path) -> None:
    assert riq(*BATCH, "here", "--threads", "1", folder=folder).returncode == 0
    done = riq(*BATCH, "there", "--scheduler", machines.file, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    assert archives(folder / "there") == archives(folder / "here")
    assert [row["archive"] for row in json.loads(done.stdout)["archives"]] == [
        "there/one.riqz", "there/three.riqz", "there/two.riqz",
    ]  # fmt: skip
    again = riq(*BATCH, "there", "--scheduler", machines.file, folder=folder)
    assert again.returncode == 0 and again.stderr.count(b"is there already") == 3


@pytest.mark.parametrize("options", [(), ("--activations", "int8", "--deviation", "0.05")])
def test_one_model_has_the_same_bytes_as_on_this_machine(
    options: tuple[str, ...], machines: Machines, folder: Path
) -> None:
    command = ("compress", "models/one.onnx", "--calibration", "models/one.npz", *options, "-o")
    assert riq(*command, "here.riqz", "--threads", "1", folder=folder).returncode == 0
    done = riq(*command, "there.riqz", "--scheduler", machines.file, folder=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "there.riqz").read_bytes() == (folder / "here.riqz").read_bytes()
    until(lambda: machines.run(benches) == [0, 0])  # they could be large


def test_jobs_that_are_cancelled_do_not_begin_and_others_may_follow(machines: Machines, folder: Path) -> None:
    (folder / "made").mkdir()
    with cluster(str(machines.file)) as found:
        jobs = [found.submit(time.sleep, 1) for _ in range(2)]
        jobs += [found.submit(os.mkdir, str(folder / "made" / str(number))) for number in range(8)]
        found.cancel()
        assert found.submit(os.getpid).result() in machines.pids()
        assert all(job.cancelled() for job in jobs)
    assert list((folder / "made").iterdir()) == []


def benches() -> int:
    """How many this process has."""
    return sum(isinstance(one, Bench) for one in gc.get_objects())


def test_files_by_url_have_the_same_bytes_and_memory_is_of_one_process(machines: Machines, folder: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = ("models/one.onnx", "--calibration", "models/one.npz")
    assert riq("compress", *files, "-o", "here.riqz", "--threads", "1", folder=folder).returncode == 0
    for store in (f"simplecache::file://{folder}/models", f"file://{folder}/models"):
        files = (f"{store}/one.onnx", "--calibration", f"{store}/one.npz", "--scheduler", machines.file)
        done = riq("compress", *files, "-o", "there.riqz", "--force", folder=folder)
        assert done.returncode == 0, done.stderr
        assert (folder / "there.riqz").read_bytes() == (folder / "here.riqz").read_bytes()
    fsspec.filesystem("memory").put(str(folder / "models" / "one.onnx"), "/one.onnx")
    fails(1, "cannot begin: memory://one.onnx: no such file or folder", "compress", "memory://one.onnx",
          "--scheduler", machines.file, folder=folder)  # fmt: skip


def test_a_sweep_has_the_same_points(machines: Machines, folder: Path) -> None:
    command = ("sweep", "models/one.onnx", "--calibration", "models/one.npz", "--deviations", "0.02,0.01", "-o")
    assert riq(*command, "here.csv", "--threads", "1", folder=folder).returncode == 0
    done = riq(*command, "there.csv", "--scheduler", machines.file, folder=folder)
    assert done.returncode == 0, done.stderr
    here, there = (read_points(folder / name)[0] for name in ("here.csv", "there.csv"))
    assert [replace(point, seconds=0.0) for point in there] == [replace(point, seconds=0.0) for point in here]


@pytest.mark.parametrize("has", ["no file", "another model"])
def test_a_worker_that_has_another_model_or_none_says_so(has: str, machines: Machines, folder: Path) -> None:
    (folder / "models" / "two.onnx").rename(folder / "models" / "wide.onnx")
    said = "no such file"
    if has == "another model":
        shutil.copytree(folder / "models", folder / "elsewhere" / "models")
        (folder / "models" / "one.onnx").rename(folder / "elsewhere" / "models" / "wide.onnx")
        said = "the model, or its samples, are not those"
    with (
        cluster(str(machines.file)) as found,
        pytest.raises(RiqError, match=rf"^worker \S+ cannot begin: .*{said}.*; workers need"),
    ):
        others = pipeline.OnCluster(found, partial(loaded, folder / "elsewhere"))
        compress(*loaded(folder), on_cluster=others)


def loaded(folder: Path) -> tuple[Model, Calibration, Settings]:
    """What is compressed, here and on workers."""
    calibration = Calibration.load(str(folder / "models" / "two.npz"))
    return Model.load(folder / "models" / "wide.onnx"), calibration, Settings(threads=1)


def test_a_worker_that_ends_in_any_phase_changes_no_byte(machines: Machines, folder: Path) -> None:
    r = builders.Random(0)
    wide = builders.model(
        builders.nodes("Gemm x first c > h transB=1; Tanh h > a; Gemm a second d > y transB=1"),
        [builders.info("x", "batch", 16)],
        [builders.info("y", "batch", 20)],
        [builders.tensor(name, r(*shape)) for name, shape in SHAPES.items()],
    )
    builders.save(wide, folder / "models", "wide.onnx")
    here = io.BytesIO()
    compress(*loaded(folder)).write(here)
    killed: list[str] = []

    def tell(step: Progress) -> None:
        if step.phase not in killed and step.phase not in ("original", "decoding"):
            killed.append(step.phase)
            os.kill(machines.pids()[0], signal.SIGKILL)

    with cluster(str(machines.file)) as found:
        others = pipeline.OnCluster(found, partial(loaded, folder))
        there = io.BytesIO()
        compress(*loaded(folder), progress=tell, on_cluster=others).write(there)
    assert set(killed) >= {"gradients", "statistics", "rows", "probe", "search", "trellis", "coding"}
    assert there.getvalue() == here.getvalue()


@pytest.mark.parametrize("pause", [0, 25])  # seconds until something is sent, before and after Dask gives up
def test_a_scheduler_that_goes_away_leaves_a_checkpoint_to_go_on_from(
    pause: int, others: Machines, folder: Path
) -> None:
    (folder / "models" / "one.onnx").rename(folder / "models" / "wide.onnx")
    here, there = io.BytesIO(), io.BytesIO()
    compress(*loaded(folder)).write(here)

    def tell(step: Progress) -> None:
        if step.phase == "probe" and others.scheduler.poll() is None:
            others.scheduler.kill()
            others.scheduler.wait()
            time.sleep(pause)

    with (
        pytest.raises(RiqError, match="the scheduler or the last of its workers has gone; start it again"),
        cluster(str(others.file)) as found,
    ):
        elsewhere = pipeline.OnCluster(found, partial(loaded, folder))
        compress(*loaded(folder), progress=tell, on_cluster=elsewhere, checkpoint=Checkpoint(folder / "kept"))
    phases: list[str] = []
    again = Checkpoint(folder / "kept", resume=True)
    compress(*loaded(folder), progress=lambda step: phases.append(step.phase), checkpoint=again).write(there)
    assert phases[0] == "resumed"
    assert there.getvalue() == here.getvalue()
    others.kill_workers()


def test_a_model_that_kills_its_workers_fails_alone(machines: Machines, folder: Path) -> None:
    (folder / "list").write_text("models/one.onnx  data:killed\nmodels/two.onnx  models/two.npz\n")
    done = riq(*BATCH[:2], "list", *BATCH[5:], "out", "--scheduler", machines.file, folder=folder)
    assert done.returncode == 1
    assert b"riq: error: models/one.onnx: the workers that it was given to were killed" in done.stderr
    assert list(archives(folder / "out" / "models")) == ["two.riqz"]


def test_a_model_that_no_worker_has_fails_alone(machines: Machines, folder: Path) -> None:
    (folder / "list").write_text("models/none.onnx\nmodels/two.onnx  models/two.npz\n")
    done = riq(*BATCH[:2], "list", *BATCH[5:], "out", "--scheduler", machines.file, folder=folder)
    assert done.returncode == 1
    assert b"none.onnx: No such file or directory" in done.stderr
    assert list(archives(folder / "out" / "models")) == ["two.riqz"]


def started_batch(batch: str, machines: Machines, folder: Path) -> subprocess.Popen[str]:
    command = [*BATCH[:2], batch, *BATCH[5:], "out", "--scheduler", machines.file]
    return subprocess.Popen(
        [sys.executable, "-m", "riq_cli", *command],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_scheduler_that_goes_away_ends_the_batch_with_what_is_done(others: Machines, folder: Path) -> None:
    (folder / "list").write_text("models/one.onnx  models/one.npz\nmodels/two.onnx  data:slow\n")
    running = started_batch("list", others, folder)
    assert running.stderr is not None
    assert running.stderr.readline().startswith("out/models/one.riqz: ")
    others.scheduler.kill()
    _, said = running.communicate(timeout=60)
    expected = f"riq: error: {others.file}: the scheduler or the last of its workers has gone; start it again\n"
    assert (running.returncode, said) == (1, expected)
    assert list(archives(folder / "out" / "models")) == ["one.riqz"]
    others.kill_workers()


def test_a_batch_ends_where_no_worker_comes_back(others: Machines, folder: Path) -> None:
    (folder / "list").write_text("models/one.onnx  models/one.npz\nmodels/two.onnx  data:slow\n")
    running = started_batch("list", others, folder)
    assert running.stderr is not None
    assert running.stderr.readline().startswith("out/models/one.riqz: ")
    began = time.monotonic()
    others.workers[0].terminate()
    _, said = running.communicate(timeout=90)
    progress, error = said.splitlines()
    assert progress.startswith("riq compressing models")
    assert error == f"riq: error: {others.file}: the scheduler or the last of its workers has gone; start it again"
    assert running.returncode == 1
    assert time.monotonic() - began > 25  # one that comes back until then goes on
    assert list(archives(folder / "out" / "models")) == ["one.riqz"]


def test_what_is_no_cluster_is_an_error(others: Machines, folder: Path) -> None:
    (folder / "broken.json").write_text("{}")
    fails(1, "none.json: neither an address, such as tcp://host:8786, nor", *BATCH, "out", "--scheduler", "none.json",
          folder=folder)  # fmt: skip
    fails(1, "broken.json: no Dask scheduler answers", *BATCH, "out", "--scheduler", "broken.json", folder=folder)
    fails(1, "nonsense://: no Dask scheduler answers", *BATCH, "out", "--scheduler", "nonsense://", folder=folder)
    others.workers[0].terminate()
    others.workers[0].wait(20)
    fails(1, "has no workers; start some with `dask worker", *BATCH, "out", "--scheduler", others.file, folder=folder)


class Gone:
    """A client whose scheduler has gone, and of which nothing works but to begin jobs."""

    status = "running"

    def get_executor(self, pure: bool) -> Gone:
        return self

    def submit(self, function: Callable[[], int]) -> Future[int]:
        return Future()

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(f"no {name}")


class Closed(Gone):
    status = "closed"


def test_all_jobs_end_though_results_come_meanwhile_and_closing_fails() -> None:
    found = Cluster(Closed())
    jobs = [found.submit(os.getpid) for _ in range(16)]
    for one, other in zip(jobs[::2], jobs[1::2], strict=True):  # whichever is ended first: the other then has a result
        one.add_done_callback(lambda _, other=other: other.done() or other.set_result(0))  # type: ignore[misc]
        other.add_done_callback(lambda _, one=one: one.done() or one.set_result(0))  # type: ignore[misc]
    found.watch(threading.Event())
    assert all(job.done() for job in jobs)
    assert sum(job.exception() is None for job in jobs) == len(jobs) // 2


def test_what_ends_a_run_hides_no_error() -> None:
    found = Cluster(Gone())
    found.cancel()
    found.on_each(os.getpid)
