"""The command line as tests call it: in this process, or in one of its own where the process is what is tested."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from riq_cli.cli import main

ROOT = Path(__file__).parent.parent
STREAMS = ("stdin", "stdout", "stderr")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # of main


def riq(*arguments: object, folder: Path, data: bytes | None = None, **environment: str) -> Done:
    """The exit code, stdout and stderr of `riq ARGUMENTS`, run in this process.

    It takes a hundredth of the time that a new process takes, most of which goes into imports.

    Args:
        arguments: words of the command line.
        folder: the working directory.
        data: bytes on stdin.
        environment: more variables.
    """
    words = ["riq", *map(str, arguments)]
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        given.write(data or b"")
        given.seek(0)
        patch.chdir(folder)
        patch.setattr(sys, "argv", words)
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main puts another there
        for name, value in ({"COLUMNS": "100"} | environment).items():
            patch.setenv(name, value)
        with _signals(), _modules(folder), _streams(given, stdout, stderr), pytest.raises(SystemExit) as end:
            main()
        code = end.value.code or 0  # None is 0
        return subprocess.CompletedProcess(words, code, _content(stdout), _content(stderr))


def process(*arguments: object, folder: Path, data: bytes | None = None, **environment: str) -> Done:
    """What `riq` gives, but from a new process."""
    variables = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-m", "riq_cli", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, input=data, env=variables, timeout=600)


def fails(code: int, message: str, *arguments: object, folder: Path) -> None:
    """The command ends with the code and one line of error that matches; no traceback, nothing on stdout."""
    done = riq(*arguments, folder=folder)
    stderr = done.stderr.decode()
    assert done.returncode == code, stderr
    assert done.stdout == b""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("riq: error: ")]
    assert len(lines) == 1, stderr
    assert re.search(message, lines[0]), lines[0]


Done = subprocess.CompletedProcess[bytes]


@contextlib.contextmanager
def _modules(folder: Path) -> Iterator[None]:
    """Forget afterwards the modules that were imported from a folder."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[name]


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _streams(*files: BinaryIO) -> Iterator[None]:
    """Files in the place of stdin, stdout and stderr: for Python, and for libraries that write to descriptors."""
    saved = [os.dup(number) for number in range(3)]
    before = [getattr(sys, name) for name in STREAMS]
    for stream in before[1:]:
        stream.flush()
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    ours = [
        open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False, errors="backslashreplace")
        for number in range(3)
    ]
    for name, stream in zip(STREAMS, ours, strict=True):
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for number, (name, stream) in enumerate(zip(STREAMS, before, strict=True)):
            ours[number].close()
            setattr(sys, name, stream)
            os.dup2(saved[number], number)
            os.close(saved[number])


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()
