"""compress, decompress and verify."""

from riq_cli.codec.compression import compress
from riq_cli.codec.restoration import decompress, verify
from riq_cli.codec.settings import PRESETS, Progress, Settings

__all__ = ["PRESETS", "Progress", "Settings", "compress", "decompress", "verify"]
