"""The four inferers, the one over several devices, and their common code."""

from ..rows.states import Response as Response
from ..rows.states import State as State
from .base import Inferer as Inferer
from .basic import BasicInferer as BasicInferer
from .builder import InfererBuilder as InfererBuilder
from .dynamic import DynamicInferer as DynamicInferer
from .fixed import FixedBatchInferer as FixedBatchInferer
from .memoizing import MemoizingDynamicInferer as MemoizingDynamicInferer
from .sharded import ShardedInferer as ShardedInferer
