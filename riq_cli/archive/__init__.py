"""Archives. Standard library only: `riq report` imports nothing heavier."""

from riq_cli.archive.container import HEADER, MAGIC, VERSION, Archive
from riq_cli.archive.deflation import deflate, inflate, inflate_into
from riq_cli.archive.manifest import CODINGS, DTYPE_BYTES, CodesEntry, LayerEntry, Manifest, SkeletonEntry

__all__ = [
    "CODINGS",
    "DTYPE_BYTES",
    "HEADER",
    "MAGIC",
    "VERSION",
    "Archive",
    "CodesEntry",
    "LayerEntry",
    "Manifest",
    "SkeletonEntry",
    "deflate",
    "inflate",
    "inflate_into",
]
