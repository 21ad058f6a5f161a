"""Evaluates policies in Gymnasium environments; only a running evaluation imports Gymnasium."""

from ..spaces.transforms import ClipAction as ClipAction
from ..spaces.transforms import NormalizeObs as NormalizeObs
from ..spaces.transforms import ScaleAction as ScaleAction
from ..spaces.transforms import SelectObs as SelectObs
from .api import evaluate as evaluate
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .drawing import plot as plot
from .files import load as load
from .files import save as save
from .merging import merge as merge
from .population import evaluate_pool as evaluate_pool
from .result import Episode as Episode
from .result import Evaluation as Evaluation
