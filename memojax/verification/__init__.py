"""Compare memojax with ONNX Runtime and tract, row by row: is it the same policy?"""

from .check import ATOL as ATOL
from .check import RTOL as RTOL
from .check import Check as Check
from .check import Checks as Checks
from .check import contender as contender
from .check import verify as verify
