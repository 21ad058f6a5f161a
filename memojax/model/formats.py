"""File formats that are often taken for ONNX, recognised by their first bytes, and the next step for each."""

from __future__ import annotations

_EXPORT = "export it to ONNX first"
_UNPACK = "unpack it first"
_LFS = b"version https://git-lfs"

_AT_START: tuple[tuple[bytes, str, str], ...] = (
    (b"<!doctype", "an HTML page", "was the file viewed rather than downloaded?"),
    (b"<html", "an HTML page", "was the file viewed rather than downloaded?"),
    (b"<?xml", "an XML file", "of an OpenVINO model, give the ONNX file that it was converted from"),
    (_LFS, "a Git LFS pointer", "run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip file", f"{_UNPACK}: gunzip"),
    (b"bzh", "a bzip2 file", f"{_UNPACK}: bunzip2"),
    (b"\xfd7zxz\x00", "an xz file", f"{_UNPACK}: unxz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", f"{_UNPACK}: unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", f"{_UNPACK}: 7z x"),
    (b"pk\x03\x04", "a ZIP archive", f"a PyTorch, Stable-Baselines3 or Keras checkpoint: {_EXPORT}"),
    (b"\x89hdf", "an HDF5 file", "a Keras model must be converted with tf2onnx first"),
    (b"\x93numpy", "a NumPy array", "give the model, not its data"),
    (b"gguf", "a GGUF file", _EXPORT),
    (b"{", "JSON text", "give the ONNX file"),
    *(
        (b"\x80" + bytes((version,)), "a Python pickle", f"memojax runs no pickles: {_EXPORT}")
        for version in range(2, 6)
    ),
)
_AT_FOUR: tuple[tuple[bytes, str, str], ...] = (
    (
        b"TFL3",
        "a TensorFlow Lite model",
        "convert it with `python -m tf2onnx.convert --tflite`, or export the original to ONNX",
    ),
    (b"ORTM", "a model in ONNX Runtime's own format (.ort)", "give the ONNX file that it was converted from"),
)


def other_format(start: bytes) -> str | None:
    """The format of a file that begins with `start`, and the next step; None if it may be ONNX.

    About 300 bytes are enough.
    """
    text = start.lstrip().lower()
    for magic, what, step in _AT_START:
        if text.startswith(magic) or start.startswith(magic):
            return f"{what}: {step}"
    for magic, what, step in _AT_FOUR:
        if start[4:8] == magic:
            return f"{what}: {step}"
    if start[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK}: tar xf"
    if start[8:10] == b'{"':
        return f"a safetensors file: it holds weights without a graph: {_EXPORT}"
    return None


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file is a Git LFS pointer, which Git leaves in the place of a file not yet pulled."""
    return start.startswith(_LFS)
