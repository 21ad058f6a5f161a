"""Ensembles of decision trees: all rows descend all trees at once, one level at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._types import GraphValue
from .. import inline as rolled
from .._common import cast, checked_shape
from ..registry import op
from ._scores import ML, labels, largest, rows, transformed, two_scores

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "BRANCH_LEQ": lambda x, value: x <= value,
    "BRANCH_LT": lambda x, value: x < value,
    "BRANCH_GTE": lambda x, value: x >= value,
    "BRANCH_GT": lambda x, value: x > value,
    "BRANCH_EQ": lambda x, value: x == value,
    "BRANCH_NEQ": lambda x, value: x != value,
}
_MODES = tuple(_COMPARE)
_MEMBER = len(_MODES)


@dataclass(frozen=True)
class Forest:
    """The nodes of all trees, with an array for each field; both children of a leaf are the leaf itself.

    Attributes:
        roots: the root of each tree.
        feature: the feature that each node compares.
        value: the threshold of each node.
        mode: the comparison of each node, an index of `_MODES`.
        yes: the child of each node if the comparison holds.
        no: the child of each node if it does not hold.
        missing: whether a NaN goes to `yes`.
        weights: `[node, target]`, the weight of a leaf for a target, or NaN if it has none.
    """

    roots: np.ndarray
    feature: np.ndarray
    value: np.ndarray
    mode: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    missing: np.ndarray
    weights: np.ndarray

    def depth(self) -> int:
        """The largest number of decisions from a root to a leaf.

        Raises:
            ValueError: a node is its own descendant.
        """
        level, depth = np.unique(self.roots), 0
        while (level := level[self.yes[level] != level]).size:
            level = np.unique(np.concatenate([self.yes[level], self.no[level]]))
            depth += 1
            if depth > len(self.yes):
                raise ValueError("a tree has a cycle")
        return depth

    def leaves(self, X: GraphValue) -> GraphValue:
        """The leaf that each row of X reaches in each tree: [batch, trees]."""
        modes = [
            mode
            for mode in range(len(_MODES))  # only comparisons that some inner node makes
            if np.any((self.mode == mode) & (self.yes != np.arange(len(self.yes))))
        ]
        offsets = np.arange(X.shape[0], dtype=np.int32)[:, None] * X.shape[1]

        def at(table: np.ndarray, node: GraphValue) -> GraphValue:
            return jnp.take(jnp.asarray(table), node, mode="clip")

        def descend(_: int, node: GraphValue) -> GraphValue:
            x = jnp.take(X.ravel(), offsets + at(self.feature, node), mode="clip")
            value, go = at(self.value, node), jnp.asarray(False)
            for mode in modes:
                met = _COMPARE[_MODES[mode]](x, value)
                go = met if len(modes) == 1 else go | (met & (at(self.mode, node) == mode))
            if self.missing.any():
                go |= jnp.isnan(x) & at(self.missing, node)
            return jnp.where(go, at(self.yes, node), at(self.no, node))

        start = jnp.broadcast_to(jnp.asarray(self.roots), (X.shape[0], len(self.roots)))
        # XLA would fuse unrolled levels into one expression that is exponential in the depth.
        return rolled.fori_loop(0, self.depth(), descend, start)

    def scores(self, X: GraphValue, aggregate: str = "SUM") -> GraphValue:
        """Weights of the leaves over all trees: [batch, targets]."""
        leaf = self.leaves(X)
        if aggregate in ("SUM", "AVERAGE"):
            total = jnp.asarray(np.nan_to_num(self.weights)).at[leaf].get(mode="clip").sum(1)
            return total / len(self.roots) if aggregate == "AVERAGE" else total
        worst = np.inf if aggregate == "MIN" else -np.inf
        given = jnp.asarray(np.where(np.isnan(self.weights), worst, self.weights)).at[leaf].get(mode="clip")
        best = given.min(1) if aggregate == "MIN" else given.max(1)
        return jnp.where(best == worst, 0, best)


def _comparable(X: GraphValue, values: np.ndarray) -> GraphValue:
    """Features in a dtype that can be compared with thresholds."""
    X = rows(X)
    return X if X.dtype in (np.float32, np.float64) or X.dtype == values.dtype else cast(X, values.dtype)


def _array(plain: Sequence[float], tensor: Any) -> np.ndarray:
    return np.asarray(plain, np.float32) if tensor is None else np.asarray(tensor)


def _forest(
    treeids: Sequence[int],
    nodeids: Sequence[int],
    modes: Sequence[str],
    featureids: Sequence[int],
    values: np.ndarray,
    truenodeids: Sequence[int],
    falsenodeids: Sequence[int],
    missing: Sequence[int],
    leaves: Sequence[tuple[int, int, int, float]],
    n: int,
    dtype: Any,
) -> Forest:
    """A forest from the attributes of versions 1 and 3, where tree and number in the tree identify a node.

    `leaves` are (tree, node, target, weight).
    """
    place = {name: index for index, name in enumerate(zip(treeids, nodeids, strict=True))}
    inner = np.array([mode != "LEAF" for mode in modes])

    def children(ids: Sequence[int]) -> np.ndarray:
        return np.array(
            [place[treeids[i], child] if inner[i] else i for i, child in enumerate(ids)], np.int32
        )

    yes, no = children(truenodeids), children(falsenodeids)
    weights = np.full(checked_shape((len(inner), n), 2 * np.dtype(dtype).itemsize), np.nan, dtype)
    for tree, node, target, weight in leaves:
        spot = place[tree, node], target
        weights[spot] = weight if np.isnan(weights[spot]) else weights[spot] + weight
    return Forest(
        roots=np.setdiff1d(np.arange(len(inner)), np.concatenate([yes[inner], no[inner]])).astype(np.int32),
        feature=np.where(inner, featureids, 0).astype(np.int32),
        value=values,
        mode=np.array([_MODES.index(mode) if mode != "LEAF" else 0 for mode in modes], np.int32),
        yes=yes,
        no=no,
        missing=np.array(missing or [0] * len(inner), bool) & inner,
        weights=weights,
    )


@op("TreeEnsembleRegressor", domain=ML)
def tree_ensemble_regressor(
    X: GraphValue,
    *,
    n_targets: int = 1,
    aggregate_function: str = "SUM",
    post_transform: str = "NONE",
    base_values: tuple[float, ...] = (),
    base_values_as_tensor: Any = None,
    nodes_treeids: tuple[int, ...],
    nodes_nodeids: tuple[int, ...],
    nodes_modes: tuple[str, ...],
    nodes_featureids: tuple[int, ...],
    nodes_values: tuple[float, ...] = (),
    nodes_values_as_tensor: Any = None,
    nodes_truenodeids: tuple[int, ...],
    nodes_falsenodeids: tuple[int, ...],
    nodes_hitrates: tuple[float, ...] = (),
    nodes_hitrates_as_tensor: Any = None,
    nodes_missing_value_tracks_true: tuple[int, ...] = (),
    target_treeids: tuple[int, ...],
    target_nodeids: tuple[int, ...],
    target_ids: tuple[int, ...],
    target_weights: tuple[float, ...] = (),
    target_weights_as_tensor: Any = None,
) -> GraphValue:
    """Regression by trees. https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleRegressor.html"""
    values, weights = (
        _array(nodes_values, nodes_values_as_tensor),
        _array(target_weights, target_weights_as_tensor),
    )
    leaves = list(zip(target_treeids, target_nodeids, target_ids, weights, strict=True))
    forest = _forest(
        nodes_treeids,
        nodes_nodeids,
        nodes_modes,
        nodes_featureids,
        values,
        nodes_truenodeids,
        nodes_falsenodeids,
        nodes_missing_value_tracks_true,
        leaves,
        n_targets,
        weights.dtype,
    )
    scores = forest.scores(_comparable(X, values), aggregate_function)
    base = _array(base_values, base_values_as_tensor)
    if base.size == n_targets:
        scores = scores + base
    return cast(transformed(scores, post_transform), np.float32)


@op("TreeEnsembleClassifier", domain=ML)
def tree_ensemble_classifier(
    X: GraphValue,
    *,
    classlabels_int64s: tuple[int, ...] = (),
    classlabels_strings: tuple[str, ...] = (),
    post_transform: str = "NONE",
    base_values: tuple[float, ...] = (),
    base_values_as_tensor: Any = None,
    nodes_treeids: tuple[int, ...],
    nodes_nodeids: tuple[int, ...],
    nodes_modes: tuple[str, ...],
    nodes_featureids: tuple[int, ...],
    nodes_values: tuple[float, ...] = (),
    nodes_values_as_tensor: Any = None,
    nodes_truenodeids: tuple[int, ...],
    nodes_falsenodeids: tuple[int, ...],
    nodes_hitrates: tuple[float, ...] = (),
    nodes_hitrates_as_tensor: Any = None,
    nodes_missing_value_tracks_true: tuple[int, ...] = (),
    class_treeids: tuple[int, ...],
    class_nodeids: tuple[int, ...],
    class_ids: tuple[int, ...],
    class_weights: tuple[float, ...] = (),
    class_weights_as_tensor: Any = None,
) -> tuple[GraphValue, GraphValue]:
    """Labels and scores by trees.

    As in ONNX Runtime, if there are two labels and all weights are for class 0, they are the score of the
    second label: a probability if no weight is negative, else a margin. If both classes have weights, the
    label is that of the larger score; here ONNX Runtime differs, and returns the second label if its score is
    positive.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleClassifier.html
    """
    n = max(len(classlabels_int64s), len(classlabels_strings))
    values, weights = (
        _array(nodes_values, nodes_values_as_tensor),
        _array(class_weights, class_weights_as_tensor),
    )
    leaves = list(zip(class_treeids, class_nodeids, class_ids, weights, strict=True))
    forest = _forest(
        nodes_treeids,
        nodes_nodeids,
        nodes_modes,
        nodes_featureids,
        values,
        nodes_truenodeids,
        nodes_falsenodeids,
        nodes_missing_value_tracks_true,
        leaves,
        n,
        weights.dtype,
    )
    base = _array(base_values, base_values_as_tensor)
    scores = forest.scores(_comparable(X, values)) + np.pad(base, (0, n - base.size))
    if n == 2 and len(set(class_ids)) == 1:
        probability = bool((weights >= 0).all())
        score = scores[:, class_ids[0], None]
        index = (score[:, 0] > (0.5 if probability else 0)).astype(np.int32)
        alone = class_ids[0] == 0 and base.size < 2
        scores = (
            two_scores(score, post_transform, margin=not probability)
            if alone
            else transformed(scores, post_transform)
        )
    else:
        scores, index = transformed(scores, post_transform), largest(scores)
    return labels(index, classlabels_int64s, classlabels_strings), cast(scores, np.float32)


@op("TreeEnsemble", since=5, domain=ML)
def tree_ensemble(
    X: GraphValue,
    *,
    aggregate_function: int = 1,
    leaf_targetids: tuple[int, ...],
    leaf_weights: Any,
    membership_values: Any = None,
    n_targets: int = 1,
    nodes_falseleafs: tuple[int, ...],
    nodes_falsenodeids: tuple[int, ...],
    nodes_featureids: tuple[int, ...],
    nodes_hitrates: Any = None,
    nodes_missing_value_tracks_true: tuple[int, ...] = (),
    nodes_modes: Any,
    nodes_splits: Any,
    nodes_trueleafs: tuple[int, ...],
    nodes_truenodeids: tuple[int, ...],
    post_transform: int = 0,
    tree_roots: tuple[int, ...],
) -> GraphValue:
    """Scores by trees, whose leaves have attributes of their own.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html
    """
    n, n_leaves = len(nodes_modes), len(leaf_targetids)
    itself = n + np.arange(n_leaves)
    yes = np.array(
        [node + n if leaf else node for node, leaf in zip(nodes_truenodeids, nodes_trueleafs, strict=True)]
    )
    no = np.array(
        [node + n if leaf else node for node, leaf in zip(nodes_falsenodeids, nodes_falseleafs, strict=True)]
    )
    shape = checked_shape((n + n_leaves, n_targets), 2 * leaf_weights.itemsize)
    weights = np.full(shape, np.nan, leaf_weights.dtype)
    weights[itself, list(leaf_targetids)] = leaf_weights
    forest = Forest(
        roots=np.array(tree_roots, np.int32),
        feature=np.array([*nodes_featureids, *[0] * n_leaves], np.int32),
        value=np.concatenate([nodes_splits, np.zeros(n_leaves, nodes_splits.dtype)]),
        mode=np.array([*nodes_modes, *[0] * n_leaves], np.int32),
        yes=np.concatenate([yes, itself]).astype(np.int32),
        no=np.concatenate([no, itself]).astype(np.int32),
        missing=np.array([*(nodes_missing_value_tracks_true or [0] * n), *[0] * n_leaves], bool),
        weights=weights,
    )
    if membership_values is not None:
        forest = _without_members(forest, np.asarray(membership_values, nodes_splits.dtype))
    scores = forest.scores(_comparable(X, nodes_splits), ("AVERAGE", "SUM", "MIN", "MAX")[aggregate_function])
    return cast(
        transformed(scores, ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")[post_transform]),
        X.dtype,
    )


def _without_members(forest: Forest, members: np.ndarray) -> Forest:
    """`forest` without tests of membership: each becomes a chain of nodes that compare with one member."""
    ends = np.flatnonzero(np.isnan(members))
    sets = [members[start:end] for start, end in zip([0, *ends + 1], ends, strict=False)]
    fields = {
        name: list(getattr(forest, name))
        for name in ("feature", "value", "mode", "yes", "no", "missing", "weights")
    }
    for node, values in zip(np.flatnonzero(forest.mode == _MEMBER), sets, strict=True):
        last = fields["no"][node]
        fields["mode"][node] = _MODES.index("BRANCH_EQ")
        fields["value"][node] = values[0] if values.size else np.nan
        for value in values[1:]:
            fields["no"][node] = len(fields["no"])
            for name, column in fields.items():
                column.append(value if name == "value" else fields[name][node])
            node = fields["no"][node]
        fields["no"][node] = last
    return Forest(
        forest.roots,
        **{name: np.array(column, getattr(forest, name).dtype) for name, column in fields.items()},
    )
