"""Interrupted commands end, whatever the signal came across."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests import builders
from tests.command import ROOT, SIGNALS, process

NOTHING = "riq: error: interrupted; no output was written\n"


# Python takes a moment until anything of riq's runs.
STARTED = """
import signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)  # as in a terminal, whatever runs the tests
from riq_cli.cli.interruption import guarded
def command():
    print("started", flush=True)
    from riq_cli.cli.commands import run
    return run()
sys.exit(guarded(command))
"""


PRELUDE = """
import atexit, multiprocessing, os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor

from riq_cli.cli.interruption import guarded, leave
from riq_cli.errors import Interrupted, RiqError
from riq_cli.executors import interruptible, process_pool
from riq_cli.files import atomic_write

"""


def run(program: str, folder: Path | None = None) -> tuple[int, str, str]:
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(program)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_a_lock_that_stays_taken_does_not_keep_the_process() -> None:
    """As after a signal between a lock's acquisition and the block that would release it: the worker waits for it."""
    program = """
        import threading
        print("begun")
        try:
            with interruptible(ThreadPoolExecutor(1)) as pool:
                go_on = threading.Event()
                pool.submit(go_on.wait)
                pool._idle_semaphore._cond.acquire()
                go_on.set()
                raise Interrupted(15)
        except Interrupted as error:
            leave(error)
    """
    assert run(program) == (128 + 15, "begun\n", NOTHING)


def test_processes_end_with_the_interruption_and_leave_nothing() -> None:
    program = """
        try:
            with interruptible(process_pool(1)) as pool:
                pool.submit(int).result()
                pool.submit(time.sleep, 1000)
                raise Interrupted(2)
        except Interrupted as error:
            [process.join() for process in multiprocessing.active_children()]
            leave(error)
    """
    assert run(program) == (130, "", NOTHING)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_a_worker_ends_when_its_parent_is_killed_and_not_by_a_signal_of_the_terminal() -> None:
    program = """
        pool = process_pool(1)
        worker = pool.submit(os.getpid).result()
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(worker, number)
        assert pool.submit(os.getpid).result() == worker
        pool.submit(time.sleep, 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed, _, _ = run(program)  # it returns when stdout is closed, which the worker has too
    assert killed == -signal.SIGKILL


def test_a_worker_that_is_killed_is_an_error_that_says_so() -> None:
    program = """
        try:
            with interruptible(process_pool(1)) as pool:
                pool.submit(os._exit, 1).result()
        except RiqError as error:
            print(error)
    """
    said = "a worker process was killed, most often because memory ran out; try again with more\n"
    assert run(program) == (0, said, "")


def test_other_errors_wait_for_the_workers() -> None:
    program = """
        with interruptible(ThreadPoolExecutor(1)) as pool:
            pool.submit(lambda: (time.sleep(0.2), print("done", flush=True)))
            raise ValueError("because")
    """
    code, stdout, stderr = run(program)
    assert (code, stdout) == (1, "done\n")
    assert stderr.endswith("ValueError: because\n")


def test_an_interruption_that_a_finalizer_swallows_comes_again() -> None:
    program = """
        class Finalized:
            def __del__(self):
                signal.raise_signal(signal.SIGTERM)

        def command():
            Finalized()
            time.sleep(1000)

        sys.exit(guarded(command))
    """
    assert run(program) == (143, "", NOTHING)


def test_an_import_is_not_interrupted_unless_it_is_that_of_the_users_own_module(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import signal, time\nsignal.raise_signal(15)\ntime.sleep(0.03)\nprint('imported')\n"
    )
    program = """
        def command():
            {}
            time.sleep(10)

        sys.exit(guarded(command))
    """
    users = "from riq_cli import callables, errors; callables.imported('slow:x', errors.RiqError)"
    assert run(program.format("import slow"), tmp_path) == (143, "imported\n", NOTHING)
    assert run(program.format(users), tmp_path) == (143, "", NOTHING)


@pytest.mark.parametrize("base", ["Exception", "BaseException"])  # the latter as code in Rust has it
def test_an_error_that_a_library_makes_of_an_interruption_ends_as_one(base: str) -> None:
    program = f"""
        from riq_cli.cli import commands, main

        def become(**options):
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                raise type("Panic", ({base},), {{}})

        commands.riq.main = become
        main()
    """
    assert run(program) == (130, "", NOTHING)


def test_a_second_signal_does_not_cut_off_what_cleans_up(tmp_path: Path) -> None:
    program = f"""
        def command():
            try:
                with atomic_write({str(tmp_path / "out")!r}) as file:
                    file.write(b"half")
                    signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGINT)
                print("clean", flush=True)

        sys.exit(guarded(command))
    """
    assert run(program) == (143, "clean\n", NOTHING)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_after_the_output_says_so_and_after_the_command_changes_nothing(tmp_path: Path) -> None:
    program = """
        def command():
            with atomic_write("out", overwrite=True) as file:
                file.write(b"whole")
            if len(sys.argv) > 1:
                signal.raise_signal(signal.SIGTERM)
            atexit.register(signal.raise_signal, signal.SIGINT)
            return 3

        sys.argv += {}
        sys.exit(guarded(command))
    """
    done = "riq: error: interrupted after out was written\n"
    assert run(program.format(["early"]), tmp_path) == (143, "", done)
    assert run(program.format([]), tmp_path) == (3, "", "")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out", b"whole")]


def test_what_is_ignored_stays_ignored() -> None:
    program = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as under nohup

        sys.exit(guarded(lambda: signal.raise_signal(signal.SIGTERM) or 0))
    """
    assert run(program) == (0, "", "")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, samples and an archive."""
    folder = tmp_path_factory.mktemp("prepared")
    builders.save(builders.dense(), folder)
    np.savez(folder / "samples.npz", x=np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32))
    assert process(*COMPRESS, "-o", "old.riqz", folder=folder).returncode == 0
    return folder


COMPRESS = "compress", "model.onnx", "--calibration", "samples.npz", "--preset", "fast"
COMMANDS = {
    "new.riqz": (*COMPRESS, "-o", "new.riqz"),
    "new.onnx": ("decompress", "old.riqz", "-o", "new.onnx"),
    "site": ("web", "old.riqz", "-o", "site"),
    "": ["--help"],
}


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("output", COMMANDS)
@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_signal_at_any_time_ends_the_command_and_leaves_nothing(
    output: str, times: int, prepared: Path, tmp_path: Path
) -> None:
    arguments = COMMANDS[output]
    began = time.monotonic()
    assert process(*arguments, folder=Path(shutil.copytree(prepared, tmp_path / "whole"))).returncode == 0
    takes, chance = time.monotonic() - began, random.Random(times)
    for number in range(times):
        folder = Path(shutil.copytree(prepared, tmp_path / str(number)))
        before, sent = set(folder.iterdir()), chance.choice(SIGNALS)
        running = subprocess.Popen(
            [sys.executable, "-c", STARTED, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert running.stdout is not None and running.stdout.readline() == b"started\n"
        time.sleep(takes * chance.random())
        running.send_signal(sent)
        _, stderr = running.communicate(timeout=60)
        new, said = {path.name for path in set(folder.iterdir()) - before}, NOTHING
        if f"{output}.checkpoint" in new:
            new, said = set(), f"interrupted; the same command with --resume goes on from {output}.checkpoint\n"
        if running.returncode == 0:
            assert new == {output} - {""}
        elif new:
            assert (new, running.returncode) == ({output}, 128 + sent)
            assert stderr.decode().splitlines()[-1] == f"riq: error: interrupted after {output} was written"
        else:
            # Libraries written in Rust may print that they panic.
            assert (running.returncode, stderr.decode().endswith(said)) == (128 + sent, True)
            assert "Traceback" not in stderr.decode()
