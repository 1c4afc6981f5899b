"""Files appear whole or not at all, and existing ones stay."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from riq_cli.errors import OutputError
from riq_cli.files import atomic_folder, atomic_write, check_output, growing_file


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def refused(path: str | Path, message: str, overwrite: bool = False) -> None:
    """Neither a check nor a write lets the file through, and nothing is left behind."""
    before = names(Path(path).parent) if Path(path).parent.is_dir() else []
    for attempt in (check_output, lambda *given: atomic_write(*given).__enter__()):
        with pytest.raises(OutputError) as caught:
            attempt(path, overwrite)
        assert str(caught.value) == f"{path}: {message}"
    assert not before or names(Path(path).parent) == before


def test_a_file_gets_its_name_when_the_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "out.riqz", "a string without a folder"):
        with atomic_write(path) as file:
            file.write(b"abc")
            file.flush()
            assert not Path(path).exists()
            assert [name for name in names(tmp_path) if name.startswith(".riq-")]
        assert Path(path).read_bytes() == b"abc"
    assert names(tmp_path) == ["a string without a folder", "out.riqz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_behind_and_the_old_file_stays_when_the_block_fails(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "old.riqz").write_bytes(b"old")
    for name in ("new.riqz", "old.riqz"):
        with pytest.raises(error), atomic_write(tmp_path / name, overwrite=True) as file:
            file.write(b"abc")
            raise error
    assert (tmp_path / "old.riqz").read_bytes() == b"old"
    assert names(tmp_path) == ["old.riqz"]


EXISTS = "exists already; use --force to replace it, or name another file"


def test_an_existing_file_is_refused_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "out.riqz"
    path.write_bytes(b"old")
    refused(path, EXISTS)
    assert path.read_bytes() == b"old"
    with atomic_write(path, overwrite=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["out.riqz"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_place_for_a_file_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path, "is a folder; name a file", overwrite)
    refused(tmp_path / "missing" / "out", "cannot be written: No such file or directory", overwrite)
    refused(tmp_path / "file" / "out", "cannot be written: Not a directory", overwrite)
    if os.name != "nt":
        refused(tmp_path / ("n" * 256), "cannot be written: File name too long", overwrite)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    path = folder / "out.riqz"
    refused(path, "cannot be written: Permission denied")


def test_check_output_leaves_no_trace(tmp_path: Path) -> None:
    check_output(tmp_path / "out.riqz")
    assert names(tmp_path) == []


def test_a_growing_file_can_be_read_while_it_is_written_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(ZeroDivisionError), growing_file(path) as file:
        file.write(b"first\n")
        assert path.read_bytes() == b"first\n"
        raise ZeroDivisionError
    assert path.read_bytes() == b"first\n"
    with pytest.raises(OutputError, match="exists already"), growing_file(path):
        pytest.fail("the block must not begin")
    with growing_file(path, overwrite=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
@pytest.mark.parametrize("size", [100, 100_000])  # noticed when the file is closed, and when it is written to
def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path, size: int) -> None:
    import resource

    path = tmp_path / "out.riqz"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(OutputError) as caught, atomic_write(path) as file:
            file.write(bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == f"{path}: cannot be written: {os.strerror(errno.EFBIG)}"
    assert names(tmp_path) == []


def test_an_error_of_what_is_read_meanwhile_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out.riqz") as file:
        file.write((tmp_path / "missing").read_bytes())
    with pytest.raises(OSError, match="cannot be read"), atomic_write(tmp_path / "out.riqz") as file:
        raise OSError(errno.EIO, "cannot be read")
    assert names(tmp_path) == []


def test_a_rename_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(os, "link", refuse)
    for overwrite in (False, True):
        with (
            pytest.raises(OutputError, match="cannot be written"),
            atomic_write(path := tmp_path / "out", overwrite) as file,
        ):
            file.write(b"abc")
        assert not path.exists()
    assert names(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_of_two_writers_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:  # as on file systems that have none
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "out.riqz"
    with pytest.raises(OutputError) as caught, atomic_write(path) as late:
        late.write(b"late")
        with atomic_write(path) as early:
            early.write(b"early")
    assert str(caught.value) == f"{path}: exists already; use --force to replace it, or name another file"
    assert path.read_bytes() == b"early"
    assert names(tmp_path) == ["out.riqz"]
    with atomic_write(path, overwrite=True) as file:
        file.write(b"forced")
    assert path.read_bytes() == b"forced"


def test_a_growing_file_that_appeared_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    monkeypatch.setattr("riq_cli.files.check_output", lambda *_: path.write_bytes(b"of another"))
    with pytest.raises(OutputError, match="exists already"), growing_file(path):
        pytest.fail("the block must not begin")
    assert path.read_bytes() == b"of another"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "out.riqz"
    path.write_bytes(b"old")
    path.chmod(mode)
    with atomic_write(path, overwrite=True) as file:
        file.write(b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links of POSIX")
@pytest.mark.parametrize("target", ["file", "nothing"])
def test_a_link_is_there_already_and_may_be_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_bytes(b"old")
    path = tmp_path / "link"
    path.symlink_to(target)
    refused(path, EXISTS)
    with atomic_write(path, overwrite=True) as file:
        file.write(b"new")
    assert (path.read_bytes(), (tmp_path / "file").read_bytes()) == (b"new", b"old")
    assert names(tmp_path) == ["file", "link"] and not path.is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "out.riqz") as file:
            file.write(b"abc")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.riqz").stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize("write", [atomic_write, growing_file])
def test_pipes_and_devices_are_written_to_and_stay(tmp_path: Path, write: Callable[..., Any]) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    (tmp_path / "link").symlink_to(path)
    for name in (path, tmp_path / "link"):
        check_output(name)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with write(name) as file:
            file.write(b"abc")
        assert os.read(reader, 10) == b"abc"
        os.close(reader)
    with write("/dev/null", overwrite=True) as file:
        file.write(b"abc")
    assert stat.S_ISFIFO(path.stat().st_mode) and stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"]


@pytest.mark.skipif(os.name == "nt", reason="sockets of POSIX")
def test_what_is_neither_a_file_nor_a_stream_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for overwrite in (False, True):
            refused("socket", "is not a regular file and would be replaced by one; name another file", overwrite)


@pytest.mark.skipif(os.name == "nt", reason="POSIX names")
def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".riqz")
    with atomic_write(path) as file:
        file.write(b"abc")
    assert path.read_bytes() == b"abc"


def test_files_of_a_folder_that_is_there_come_before_the_last(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()  # which no file can replace
    with pytest.raises(OutputError, match="cannot be written"), atomic_folder(tmp_path, True, last="c") as folder:
        for name in "dcba":
            (folder / name).write_text(name)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "d"}
    assert (tmp_path / "c").is_dir()
