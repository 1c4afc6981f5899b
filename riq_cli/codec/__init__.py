"""compress, decompress, verify and sweep."""

from riq_cli.codec.compression import compress
from riq_cli.codec.restoration import check, decompress, verify
from riq_cli.codec.settings import PRESETS, FixedLayout, Progress, Settings
from riq_cli.codec.sweep import Outcome, sweep

__all__ = [
    "PRESETS",
    "FixedLayout",
    "Outcome",
    "Progress",
    "Settings",
    "check",
    "compress",
    "decompress",
    "sweep",
    "verify",
]
