"""Versions of the logical operators that ONNX's own cases leave out."""

from __future__ import annotations

import numpy as np

from . import Case

A = np.array([[1, 5, 3], [7, 2, 9]], np.int32)
B = np.array([4, 5, 1], np.int32)
FLOATS = (A.astype(np.float32), B.astype(np.float32))
BOOLS = (A > 3, B > 3)
BYTES = np.array([255, 255], np.uint8)

CASES = [
    *(Case(name, 7, BOOLS) for name in ("And", "Or", "Xor", "Equal")),
    *(Case("Equal", opset, (A, B)) for opset in (7, 11, 13)),
    *(Case("Equal", opset, FLOATS) for opset in (11, 13, 19)),
    *(Case(name, opset, FLOATS) for name in ("Greater", "Less") for opset in (7, 9, 13)),
    *(Case(name, opset, (A, B)) for name in ("Greater", "Less") for opset in (9, 13)),
    *(Case(name, opset, FLOATS) for name in ("GreaterOrEqual", "LessOrEqual") for opset in (12, 16)),
    Case("Not", 7, BOOLS[:1]),
    *(
        Case("BitShift", 11, (A.astype(np.uint8), B.astype(np.uint8)), {"direction": direction})
        for direction in ("LEFT", "RIGHT")
    ),
    *(
        Case("BitShift", 11, (A.astype(np.uint64), B.astype(np.uint64)), {"direction": direction})
        for direction in ("LEFT", "RIGHT")
    ),
    # A shift by the width of the type or more gives zero; C, and so onnxruntime, does not define it.
    Case(
        "BitShift",
        11,
        (BYTES, np.array([8, 200], np.uint8)),
        {"direction": "RIGHT"},
        expected=(np.zeros(2, np.uint8),),
    ),
]
