# The public names and where each lives: `__init__.py` imports a name from here when it is first used.
from . import errors as errors
from . import ops as ops
from . import policies as policies
from .api import load as load
from .api import to_jax as to_jax
from .evaluation import ClipAction as ClipAction
from .evaluation import Evaluation as Evaluation
from .evaluation import NormalizeObs as NormalizeObs
from .evaluation import ScaleAction as ScaleAction
from .evaluation import SelectObs as SelectObs
from .evaluation import evaluate as evaluate
from .inferer import BasicInferer as BasicInferer
from .inferer import DynamicInferer as DynamicInferer
from .inferer import FixedBatchInferer as FixedBatchInferer
from .inferer import Inferer as Inferer
from .inferer import InfererBuilder as InfererBuilder
from .inferer import MemoizingDynamicInferer as MemoizingDynamicInferer
from .inferer import Response as Response
from .inferer import ShardedInferer as ShardedInferer
from .inferer import State as State
from .inferer.asset import AssetData as AssetData
from .inferer.batcher import Batched as Batched
from .inferer.batcher import Batcher as Batcher
from .inferer.pool import PolicyPool as PolicyPool
from .inferer.predictor import Predictor as Predictor
from .lowering.oneshot import OneShot as OneShot
from .lowering.oneshot import run as run
from .lowering.typed_model import TypedModel as TypedModel
from .model.crvo import AssetKind as AssetKind
from .model.signature import ModelApi as ModelApi
from .model.signature import TensorSpec as TensorSpec
from .plans.artifact import PlanArtifact as PlanArtifact
from .plans.forbid import forbid_compile as forbid_compile
from .rows.scratch import ScratchPad as ScratchPad
from .rows.scratch import ScratchPadView as ScratchPadView
from .runtime import BrainId as BrainId
from .runtime import Runtime as Runtime
from .stablehlo import load_stablehlo as load_stablehlo
from .stablehlo import to_stablehlo as to_stablehlo
from .verification import verify as verify
from .wrapper.base import BaseWrapper as BaseWrapper
from .wrapper.base import InfererWrapper as InfererWrapper
from .wrapper.base import StatefulInferer as StatefulInferer
from .wrapper.epsilon import ConstantGenerator as ConstantGenerator
from .wrapper.epsilon import EpsilonInjector as EpsilonInjector
from .wrapper.epsilon import EpsilonInjectorWrapper as EpsilonInjectorWrapper
from .wrapper.epsilon import HighQualityNoiseGenerator as HighQualityNoiseGenerator
from .wrapper.epsilon import LowQualityNoiseGenerator as LowQualityNoiseGenerator
from .wrapper.epsilon import NoiseGenerator as NoiseGenerator
from .wrapper.recurrent import RecurrentInfo as RecurrentInfo
from .wrapper.recurrent import RecurrentTracker as RecurrentTracker
from .wrapper.recurrent import RecurrentTrackerWrapper as RecurrentTrackerWrapper
from .xla.cores import pin_cores as pin_cores

__version__: str

__all__ = [
    "AssetData",
    "AssetKind",
    "BaseWrapper",
    "BasicInferer",
    "Batched",
    "Batcher",
    "BrainId",
    "ClipAction",
    "ConstantGenerator",
    "DynamicInferer",
    "EpsilonInjector",
    "EpsilonInjectorWrapper",
    "Evaluation",
    "FixedBatchInferer",
    "HighQualityNoiseGenerator",
    "Inferer",
    "InfererBuilder",
    "InfererWrapper",
    "LowQualityNoiseGenerator",
    "MemoizingDynamicInferer",
    "ModelApi",
    "NoiseGenerator",
    "NormalizeObs",
    "OneShot",
    "PlanArtifact",
    "PolicyPool",
    "Predictor",
    "RecurrentInfo",
    "RecurrentTracker",
    "RecurrentTrackerWrapper",
    "Response",
    "Runtime",
    "ScaleAction",
    "ScratchPad",
    "ScratchPadView",
    "SelectObs",
    "ShardedInferer",
    "State",
    "StatefulInferer",
    "TensorSpec",
    "TypedModel",
    "errors",
    "evaluate",
    "forbid_compile",
    "load",
    "load_stablehlo",
    "ops",
    "pin_cores",
    "policies",
    "run",
    "to_jax",
    "to_stablehlo",
    "verify",
]
