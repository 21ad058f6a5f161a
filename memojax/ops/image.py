"""Images: decoded on the host."""

from __future__ import annotations

import importlib
import io

import numpy as np

from .._types import GraphValue
from .registry import op


@op("ImageDecoder", since=20, host=("encoded_stream",))
def image_decoder(encoded_stream: GraphValue, *, pixel_format: str = "RGB") -> GraphValue:
    """An encoded image as uint8[height, width, channel]; needs Pillow.
    https://onnx.ai/onnx/operators/onnx__ImageDecoder.html"""
    try:
        image = importlib.import_module("PIL.Image")
    except ImportError as cause:
        raise ValueError(
            "decoding an image needs Pillow, which is not installed: decode it before the model"
        ) from cause
    with image.open(io.BytesIO(np.asarray(encoded_stream, np.uint8).tobytes())) as opened:
        pixels = np.asarray(opened.convert("L" if pixel_format == "Grayscale" else "RGB"))
    if pixel_format == "Grayscale":
        return pixels[..., None]
    return pixels[..., ::-1] if pixel_format == "BGR" else pixels
