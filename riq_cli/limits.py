"""Limits of the archive, FORMAT.md; checked before anything is allocated."""

MANIFEST_STORED = 16 << 20
MANIFEST_INFLATED = 16 << 20
MANIFEST_DEPTH = 100  # objects and lists within one another
RESTORED = 8 << 30  # skeleton and tensors together, unless told otherwise (`--max-size`)
LAYER_SYMBOLS = 1 << 40
DIMENSIONS = 32  # of a shape: numpy had no more before 2.0
STREAM_SYMBOLS = 1 << 20  # of one stream: decoding needs bounded memory and can run in parallel
TABLE_SYMBOLS = 1 << 16  # more symbols in use are not coded: the table would outweigh the gain
SCALES = 4  # of one layer
CODE_MAX = 256  # |code| of a bin width at most, all scales together: 2^±64 times the layer's own is beyond any use
CODES = 1 << 24  # of one scale, or of a layer's classes: they are decoded in one piece
CLASSES = 64  # of one layer: each needs a table
