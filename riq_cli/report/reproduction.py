"""How an archive was made, as a command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from riq_cli.archive import Manifest
from riq_cli.text import printable

_FLAGS = {"outputs": "--output", "dims": "--dim"}  # settings whose option has another name
_CALIBRATION = {
    "npz": "calibration.npz",
    "npy": "calibration.npy",
    "test-data": "test_data/",
    "images": "images/",
    "python": "module:callable",
}


def command(manifest: Manifest, name: str) -> str:
    """The `riq compress` command line that makes the archive `name` again from the same model and samples.

    A manifest holds no paths: the model is called after the archive, the samples after their kind, labels
    after themselves. Image options are
    not recorded either.
    """
    stem = "model" if name == "-" else PurePath(name).stem
    words = ["riq", "compress", f"{stem}.onnx"]
    kind = manifest.calibration.get("kind", "random")
    if kind in _CALIBRATION:
        words += ["--calibration", _CALIBRATION[kind]]
    if manifest.settings.get("objective") == "loss":
        words += ["--labels", "labels.npy"]
    for key, value in sorted(manifest.settings.items()):
        for text in _values(value):
            words += [flag(key), *text]
    return " ".join(shlex.quote(printable(word)) for word in words)


def flag(setting: str) -> str:
    """The option of the command line that sets a setting: `--max-bits` for `max_bits`."""
    return _FLAGS.get(setting, f"--{setting.replace('_', '-')}")


def _values(value: Any) -> Iterator[list[str]]:
    """What follows the option, each time that it has to be given."""
    if isinstance(value, dict):
        yield from ([f"{key}={item}"] for key, item in value.items())
    elif isinstance(value, list):
        for item in value:
            yield from _values(item)
    elif value is True:
        yield []
    elif value is not None and value is not False:
        yield [str(value)]
