"""The ai.onnx.ml domain: classic machine learning, split by kind of model.

String labels cannot leave an XLA executable, so a classifier returns int64 positions in its list of labels.
"""

from . import features, linear, lookup, svm, tree

__all__ = ["features", "linear", "lookup", "svm", "tree"]
