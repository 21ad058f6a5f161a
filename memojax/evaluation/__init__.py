"""Evaluate policies in Gymnasium environments; Gymnasium itself is imported only when an evaluation runs."""

from .api import evaluate as evaluate
from .drawing import plot as plot
from .result import Comparison as Comparison
from .result import Episode as Episode
from .result import Evaluation as Evaluation
from .result import compare as compare
from .transforms import ClipAction as ClipAction
from .transforms import NormalizeObs as NormalizeObs
from .transforms import ScaleAction as ScaleAction
from .transforms import SelectObs as SelectObs
