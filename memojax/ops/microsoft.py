"""The com.microsoft domain: what ONNX Runtime fuses."""
