"""The com.microsoft domain: operators that ONNX Runtime's optimizer and quantizer write, split by kind.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md specifies them, with a section for
each operator.
"""

from . import attention, fused, quantized, tensor

__all__ = ["attention", "fused", "quantized", "tensor"]
