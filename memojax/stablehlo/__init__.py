"""Write a policy as a StableHLO program in a CRVO asset, which `lowering/exported/` reads."""

from ..lowering.exported import find_stablehlo as find_stablehlo
from ..lowering.exported import load_stablehlo as load_stablehlo
from ..lowering.exported import only_size as only_size
from ..lowering.exported import read_header as read_header
from .export import to_stablehlo as to_stablehlo
