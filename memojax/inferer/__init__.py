"""The four inferers, and what they share."""

from .base import Inferer as Inferer
from .base import Response as Response
from .base import State as State
from .basic import BasicInferer as BasicInferer
from .builder import InfererBuilder as InfererBuilder
from .dynamic import DynamicInferer as DynamicInferer
from .fixed import FixedBatchInferer as FixedBatchInferer
from .memoizing import MemoizingDynamicInferer as MemoizingDynamicInferer
