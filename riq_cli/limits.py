"""Limits of the archive, FORMAT.md, checked before anything is allocated; and what types and codes stand for."""

MANIFEST_STORED = 16 << 20
MANIFEST_INFLATED = 16 << 20
MANIFEST_DEPTH = 100  # objects and lists within one another
RESTORED = 8 << 30  # skeleton and tensors together, unless told otherwise (`--max-size`)
BESIDE = 1 << 25  # bytes that decoding may always take beside what it restores
LAYER_SYMBOLS = 1 << 40
DIMENSIONS = 32  # of a shape: numpy had no more before 2.0
STREAM_SYMBOLS = 1 << 20  # of one stream: decoding needs bounded memory and can run in parallel
TABLE_SYMBOLS = 1 << 16  # more symbols in use have no table: it would outweigh the gain
CELLS = 1 << 12  # of a distribution, each with a frequency for every context
STORAGE = {  # how numpy spells the types in which weights are stored; bfloat16, which it lacks, as its bits
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
}
SCALES = 4  # of one layer; and as many codes of contexts
CODE_MAX = 256  # |code| of a bin width or a context at most, all of a weight together: 2^±64 is beyond any use
QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)  # of an octave: 2^0, 2^¼, 2^½, 2^¾
CODES = 1 << 24  # of one scale, or of a layer's classes: they are decoded in one piece
CLASSES = 64  # of one layer: each needs a table
