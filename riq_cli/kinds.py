"""Kinds of files that people have in place of the right one, told by how they begin."""

from __future__ import annotations

from collections.abc import Callable

HEAD = 4096  # bytes of a file that are enough to tell

_TORCH = "export the model with torch.onnx.export"
_TENSORFLOW = "convert it with tf2onnx"
_SOURCE = "give the ONNX model that it was made from"
_UNPACK = "unpack it, and give what is inside"


def instead(wanted: str, head: bytes) -> str:
    """What a file is that is not what was wanted: `not an ONNX model but a web page; …`, as far as it can be told.

    Args:
        wanted: what it should be, with its article.
        head: the first `HEAD` bytes of the file.
    """
    for what, fits, advice in _KINDS:
        if fits(head):
            other = ", or a damaged one" if what == wanted else f" but {what}; {advice}"
            return f"not {wanted}{other}"
    return f"not {wanted}"


def _begins(*magics: bytes, at: int = 0) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics, at)


def _zip_with(*names: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(b"PK\x03\x04") and any(name in head for name in names)


def _is_page(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:15].lower().startswith((b"<!doctype html", b"<html"))


def _is_safetensors(head: bytes) -> bool:
    return head[8:10] in (b'{"', b"{}", b"{ ") and int.from_bytes(head[:8], "little") <= 100_000_000


def _is_tensorflow(head: bytes) -> bool:
    names = (b"Placeholder", b"VarHandleOp", b"ReadVariableOp", b"tensorflow", b"\x12\x05Const")
    return head[:1] in (b"\x08", b"\n") and any(name in head for name in names)


def _is_onnx(head: bytes) -> bool:
    """Whether it begins with the version of ONNX's own representation, and a field of a model behind it."""
    return len(head) > 2 and head[0] == 0x08 and 0 < head[1] < 0x20 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < HEAD - 3:  # behind that, a letter is cut off
            return False
        text = head[: error.start].decode()
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)


# What a file is, how its first bytes tell, and what to do with it; those that look like several come under the first.
_KINDS: tuple[tuple[str, Callable[[bytes], bool], str], ...] = (
    ("an empty file", lambda head: not head, "get it once more"),
    ("a riq archive", _begins(b"\x89RIQZ"), "it is compressed already, and riq decompress restores the model"),
    ("a pointer of Git LFS", _begins(b"version https://git-lfs"), "git lfs pull gets the file itself"),
    ("a web page", _is_page, "its download went wrong: get the file once more"),
    ("a PyTorch file", _zip_with(b"/data.pkl", b"/.format_version", b"/constants.pkl"), _TORCH),
    ("a file of NumPy arrays", _zip_with(b".npy"), "samples come with --calibration"),
    ("a file of NumPy arrays", _begins(b"\x93NUMPY"), "samples come with --calibration"),
    ("a Keras model", _zip_with(b"metadata.json", b".weights.h5"), _TENSORFLOW),
    ("a zip archive", _begins(b"PK\x03\x04", b"PK\x05\x06"), _UNPACK),
    ("a Python pickle, as older PyTorch files are", _begins(*(bytes([0x80, p]) for p in range(2, 6))), _TORCH),
    ("a TensorFlow Lite model", _begins(b"TFL3", at=4), "convert it with tf2onnx --tflite"),
    ("a model in onnxruntime's own format", _begins(b"ORTM", at=4), _SOURCE),
    ("an HDF5 file, as Keras models are", _begins(b"\x89HDF\r\n\x1a\n"), _TENSORFLOW),
    ("weights without a graph (safetensors)", _is_safetensors, "export the model that they belong to"),
    ("a GGUF model", _begins(b"GGUF"), _SOURCE),
    ("a file that gzip compressed", _begins(b"\x1f\x8b"), "unpack it with gunzip"),
    ("a file that zstd compressed", _begins(b"\x28\xb5\x2f\xfd"), "unpack it with unzstd"),
    ("a file that xz compressed", _begins(b"\xfd7zXZ\0"), "unpack it with unxz"),
    ("a file that bzip2 compressed", _begins(b"BZh"), "unpack it with bunzip2"),
    ("a tar archive", _begins(b"ustar", at=257), _UNPACK),
    ("a TensorFlow graph", _is_tensorflow, _TENSORFLOW),
    ("an ONNX model", _is_onnx, "riq compress makes an archive of it"),
    ("an OpenVINO model", lambda head: b"<?xml" in head[:9] and b"<net" in head, _SOURCE),
    ("text", _is_text, "is it the right file?"),
)  # fmt: skip
