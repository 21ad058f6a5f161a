"""The com.microsoft domain: what ONNX Runtime's optimizer and quantizer put into a file, split by kind.

Specified in https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, where each operator
has a section of its name.
"""

from . import attention, fused, quantized, tensor

__all__ = ["attention", "fused", "quantized", "tensor"]
