"""The ai.onnx.ml domain: classic machine learning, split by kind of model.

Labels that are strings cannot leave an XLA executable: a classifier gives int64 positions in its list of
labels instead.
"""

from . import features, linear, lookup, svm, tree

__all__ = ["features", "linear", "lookup", "svm", "tree"]
