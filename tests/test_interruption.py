"""Interrupted commands end, whatever the signal came across."""

import signal
import subprocess
import sys
import textwrap

import pytest


def run(program: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("error", "number"), [("KeyboardInterrupt()", signal.SIGINT), ("Terminated(15)", 15)])
def test_a_lock_that_stays_taken_does_not_keep_the_process(error: str, number: int) -> None:
    """As after a signal between a lock's acquisition and the block that would release it: the worker waits for it."""
    program = f"""
        import threading
        from concurrent.futures import ThreadPoolExecutor

        from riq_cli.cli.interruption import Terminated, leave
        from riq_cli.executors import interruptible

        print("begun")
        try:
            with interruptible(ThreadPoolExecutor(1)) as pool:
                go_on = threading.Event()
                pool.submit(go_on.wait)
                pool._idle_semaphore._cond.acquire()
                go_on.set()
                raise {error}
        except KeyboardInterrupt as error:
            leave(error)
    """
    assert run(program) == (128 + number, "begun\n", "")


def test_processes_end_with_the_interruption_and_leave_nothing() -> None:
    program = """
        import multiprocessing
        import time
        from concurrent.futures import ProcessPoolExecutor

        from riq_cli.cli.interruption import leave
        from riq_cli.executors import interruptible

        context = multiprocessing.get_context("spawn")
        try:
            with interruptible(ProcessPoolExecutor(1, mp_context=context)) as pool:
                pool.submit(int).result()
                pool.submit(time.sleep, 1000)
                raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            [process.join() for process in multiprocessing.active_children()]
            leave(error)
    """
    assert run(program) == (130, "", "")


def test_other_errors_wait_for_the_workers() -> None:
    program = """
        import time
        from concurrent.futures import ThreadPoolExecutor

        from riq_cli.executors import interruptible

        with interruptible(ThreadPoolExecutor(1)) as pool:
            pool.submit(lambda: (time.sleep(0.2), print("done", flush=True)))
            raise ValueError("because")
    """
    code, stdout, stderr = run(program)
    assert (code, stdout) == (1, "done\n")
    assert stderr.endswith("ValueError: because\n")
