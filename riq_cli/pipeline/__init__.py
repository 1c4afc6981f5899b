"""compress, decompress, verify and sweep."""

from riq_cli.pipeline.checkpoint import Checkpoint
from riq_cli.pipeline.compression import compress
from riq_cli.pipeline.formats import Converted, Format, converted
from riq_cli.pipeline.progress import Progress
from riq_cli.pipeline.restoration import Verification, check, decompress, verify
from riq_cli.pipeline.settings import PRESETS, FixedLayout, Settings
from riq_cli.pipeline.sweep import Outcome, sweep
from riq_cli.pipeline.workers import OnCluster

__all__ = [
    "PRESETS",
    "Checkpoint",
    "Converted",
    "FixedLayout",
    "Format",
    "OnCluster",
    "Outcome",
    "Progress",
    "Settings",
    "Verification",
    "check",
    "compress",
    "converted",
    "decompress",
    "sweep",
    "verify",
]
