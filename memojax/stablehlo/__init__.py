"""Policies without their ONNX file: writing and reading StableHLO programs in CRVO assets."""

from .export import to_stablehlo as to_stablehlo
from .load import find_stablehlo as find_stablehlo
from .load import load_stablehlo as load_stablehlo
from .load import only_size as only_size
from .load import read_header as read_header
