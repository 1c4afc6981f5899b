"""riq makes ONNX models small: rotation-invariant quantization to a promised deviation, then entropy coding.

import riq_cli as riq

model = riq.Model.load("resnet50.onnx")
calibration = riq.Calibration.load("images.npz")
archive = riq.compress(model, calibration, deviation=0.005)
archive.save("resnet50.riqz")
restored = riq.decompress(riq.Archive.open("resnet50.riqz"))
restored.save("restored.onnx")
"""

from __future__ import annotations

import importlib

from riq_cli.version import VERSION

TYPE_CHECKING = False  # that of `typing`, which takes its time to import
if TYPE_CHECKING:
    from typing import Any

    from riq_cli.archive import Archive
    from riq_cli.calibration import Calibration
    from riq_cli.errors import RiqError
    from riq_cli.model import Model
    from riq_cli.pipeline import Checkpoint, Settings, check, compress, decompress, verify
    from riq_cli.pipeline.sweep import sweep
    from riq_cli.runtime import Deviation
    from riq_cli.session import load_session

__all__ = [
    "Archive",
    "Calibration",
    "Checkpoint",
    "Deviation",
    "Model",
    "RiqError",
    "Settings",
    "check",
    "compress",
    "decompress",
    "load_session",
    "sweep",
    "verify",
]

__version__ = VERSION

_HOMES = {
    "Archive": "archive",
    "Calibration": "calibration",
    "Deviation": "runtime",
    "Model": "model",
    "RiqError": "errors",
    "load_session": "session",
}


def __getattr__(name: str) -> Any:
    """The public name, from its module: onnx and onnxruntime are imported when something needs them."""
    if name in __all__:
        return getattr(importlib.import_module(f"riq_cli.{_HOMES.get(name, 'pipeline')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those included that are not imported yet."""
    return [*__all__, "__version__"]
