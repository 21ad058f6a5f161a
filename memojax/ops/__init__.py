"""ONNX operators as JAX functions, in one file or folder for each ONNX family."""

from . import (
    controlflow,
    delegated,
    generator,
    image,
    logical,
    math,
    microsoft,
    ml,
    nn,
    object_detection,
    optional,
    quantization,
    reduction,
    rnn,
    sequence,
    tensor,
    text,
    training,
)
from .registry import OpDef as OpDef
from .registry import definitions as definitions
from .registry import lookup as lookup
from .registry import op as register

__all__ = [
    "OpDef",
    "controlflow",
    "definitions",
    "delegated",
    "generator",
    "image",
    "logical",
    "lookup",
    "math",
    "microsoft",
    "ml",
    "nn",
    "object_detection",
    "optional",
    "quantization",
    "reduction",
    "register",
    "rnn",
    "sequence",
    "tensor",
    "text",
    "training",
]
