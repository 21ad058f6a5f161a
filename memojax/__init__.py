"""ONNX policies as memoized XLA executables."""

from . import errors as errors
from . import ops as ops
from . import policies as policies
from .api import load as load
from .api import to_jax as to_jax
from .batcher import Batched as Batched
from .batcher import Batcher as Batcher
from .evaluation import ClipAction as ClipAction
from .evaluation import Evaluation as Evaluation
from .evaluation import NormalizeObs as NormalizeObs
from .evaluation import ScaleAction as ScaleAction
from .evaluation import SelectObs as SelectObs
from .evaluation import evaluate as evaluate
from .forbid import forbid_compile as forbid_compile
from .inferer import BasicInferer as BasicInferer
from .inferer import DynamicInferer as DynamicInferer
from .inferer import FixedBatchInferer as FixedBatchInferer
from .inferer import Inferer as Inferer
from .inferer import InfererBuilder as InfererBuilder
from .inferer import MemoizingDynamicInferer as MemoizingDynamicInferer
from .inferer import Response as Response
from .inferer import State as State
from .model.signature import ModelApi as ModelApi
from .model.signature import TensorSpec as TensorSpec
from .oneshot import run as run
from .scratch import ScratchPad as ScratchPad
from .scratch import ScratchPadView as ScratchPadView
from .typed import TypedModel as TypedModel
from .wrapper.base import BaseWrapper as BaseWrapper
from .wrapper.base import InfererWrapper as InfererWrapper
from .wrapper.base import StatefulInferer as StatefulInferer

__version__ = "0.1.0"
