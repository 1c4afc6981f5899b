"""compress, decompress and verify."""

from riq_cli.codec.compression import compress
from riq_cli.codec.restoration import decompress, verify
from riq_cli.codec.settings import DEFAULT_DEVIATION, DEFAULT_MIN_SIZE, Progress, Settings

__all__ = ["DEFAULT_DEVIATION", "DEFAULT_MIN_SIZE", "Progress", "Settings", "compress", "decompress", "verify"]
