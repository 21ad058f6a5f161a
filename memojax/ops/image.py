"""ImageDecoder, which runs on the host."""

from __future__ import annotations

import importlib
import io

import numpy as np

from .._types import GraphValue
from .registry import op


@op("ImageDecoder", since=20, host=("encoded_stream",))
def image_decoder(encoded_stream: GraphValue, *, pixel_format: str = "RGB") -> GraphValue:
    """Decode an image to uint8 `[height, width, channel]`, with Pillow.

    https://onnx.ai/onnx/operators/onnx__ImageDecoder.html
    """
    try:
        image = importlib.import_module("PIL.Image")
    except ImportError as cause:
        raise ValueError(
            "ImageDecoder needs Pillow, which is not installed: install it (pip install pillow), or decode "
            "images before the model"
        ) from cause
    with image.open(io.BytesIO(np.asarray(encoded_stream, np.uint8).tobytes())) as opened:
        pixels = np.asarray(opened.convert("L" if pixel_format == "Grayscale" else "RGB"))
    if pixel_format == "Grayscale":
        return pixels[..., None]
    return pixels[..., ::-1] if pixel_format == "BGR" else pixels
