"""Read a function that `jax.export` wrote into a CRVO asset, as a function of rows."""

from .load import ExportedFunction as ExportedFunction
from .load import find_stablehlo as find_stablehlo
from .load import load_stablehlo as load_stablehlo
from .load import only_size as only_size
from .load import read_header as read_header
