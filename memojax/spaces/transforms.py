"""Transforms of observations before the policy, and of its actions before the environment.

Each transform is a callable on a batch. A transform that needs the environment's space has a method
`bind(space)`.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, final

import numpy as np

from ..errors import EvaluationError, SpaceMismatchError

Observations = Any
"""Rows `[n, ...]` of one observation, or part name -> rows."""


@final
class NormalizeObs:
    """`(obs - mean) / sqrt(var + epsilon)` in float32, clipped to `[-clip, clip]`, like SB3's `VecNormalize`.

    >>> import numpy as np
    >>> memojax.NormalizeObs(mean=[1.0, 2.0], var=[4.0, 4.0], epsilon=0.0)(np.array([[3.0, 2.0]]))
    array([[1., 0.]], dtype=float32)
    """

    def __init__(self, mean: Any, var: Any, epsilon: float = 1e-8, clip: float | None = 10.0):
        """Normalize with these statistics.

        Args:
            mean: array in the shape of one observation; for an observation in parts (Dict, Tuple), part name
                -> array.
            var: variances, in the same form.
            epsilon: added to the variances.
            clip: largest magnitude after normalizing; None means no limit.

        Raises:
            EvaluationError: `mean` and `var` do not match, or a variance is negative.
        """
        self.epsilon: float = float(epsilon)
        self.clip: float | None = clip
        means, variances = _parts(mean), _parts(var)
        if means.keys() != variances.keys() or any(means[k].shape != variances[k].shape for k in means):
            raise EvaluationError(
                f"mean and var need equal names and shapes, got {_shapes(means)} and {_shapes(variances)}"
            )
        if any((array < 0).any() for array in variances.values()):
            raise EvaluationError("a variance is negative: were mean and var swapped?")
        self._moments = {name: (means[name], np.sqrt(variances[name] + self.epsilon)) for name in means}

    @classmethod
    def from_vecnormalize(cls, source: str | PathLike[str] | Mapping[str, Any] | Any) -> NormalizeObs:
        """Statistics saved by `VecNormalize.save`, or from elsewhere; Stable-Baselines3 is not needed.

        >>> normalize = memojax.NormalizeObs.from_vecnormalize({"mean": [1.0, 2.0], "var": [4.0, 4.0]})
        >>> normalize(np.array([[3.0, 2.0]]))
        array([[1., 0.]], dtype=float32)

        Args:
            source: the pickle that `VecNormalize.save` wrote (nothing in it is executed), an `.npz` or
                `.json` file, a mapping, or a `VecNormalize` object. Files and mappings have `mean` and `var`,
                and optionally `epsilon` and `clip_obs`.

        Raises:
            EvaluationError: the source has no such statistics.
        """
        given = _read(Path(source)) if isinstance(source, (str, PathLike)) else source
        values = dict(given) if isinstance(given, Mapping) else dict(vars(given))
        statistics = values.get("obs_rms", values)
        try:
            if isinstance(statistics, Mapping) and not {"mean", "var"} <= statistics.keys():
                keys = values.get("norm_obs_keys") or list(statistics)
                mean = {key: _get(statistics[key], "mean") for key in keys or ["obs_rms"]}
                var = {key: _get(statistics[key], "var") for key in keys}
            else:
                mean, var = _get(statistics, "mean"), _get(statistics, "var")
        except (KeyError, AttributeError, TypeError) as cause:
            raise EvaluationError(
                f"{_name(source)} has no observation statistics: expected `obs_rms` with `mean` and `var`"
            ) from cause
        return cls(mean, var, float(values.get("epsilon", 1e-8)), float(values.get("clip_obs", 10.0)))

    def __call__(self, observations: Observations) -> Observations:
        if not isinstance(observations, Mapping):
            if "" not in self._moments:
                raise SpaceMismatchError(
                    f"the statistics have the parts {', '.join(self._moments)}, but the observation is one "
                    "array"
                )
            return self._normalize("", observations)
        if "" in self._moments:
            raise SpaceMismatchError(
                f"the statistics are for one array, but the observation has the parts "
                f"{', '.join(observations)}"
            )
        if missing := [name for name in self._moments if name not in observations]:
            raise SpaceMismatchError(
                f"the statistics have {missing[0]!r}, but the observation has the parts "
                f"{', '.join(observations)}"
            )
        return {
            name: self._normalize(name, rows) if name in self._moments else rows
            for name, rows in observations.items()
        }

    def _normalize(self, name: str, rows: np.ndarray) -> np.ndarray:
        mean, std = self._moments[name]
        if rows.shape[1:] != mean.shape:
            raise SpaceMismatchError(
                f"the statistics have shape {list(mean.shape)}, but the observation {list(rows.shape[1:])}"
            )
        scaled = (rows - mean) / std
        return (scaled if self.clip is None else np.clip(scaled, -self.clip, self.clip)).astype(np.float32)

    def __repr__(self) -> str:
        shapes = _shapes({name: mean for name, (mean, _) in self._moments.items()})
        return f"NormalizeObs({shapes}, epsilon={self.epsilon}, clip={self.clip})"


@final
class SelectObs:
    """Selected elements of a flat observation, for a policy that was trained on these.

    >>> import numpy as np
    >>> memojax.SelectObs([0, 2])(np.array([[1.0, 2.0, 3.0, 4.0]]))
    array([[1., 3.]])
    """

    def __init__(self, indices: Sequence[int]):
        """Keep the elements at `indices` of the last axis, in this order."""
        self.indices: list[int] = [int(index) for index in indices]

    def __call__(self, observations: Observations) -> Observations:
        if isinstance(observations, Mapping):
            raise SpaceMismatchError(
                f"SelectObs selects elements {self.indices} of one array, but the observation has the parts "
                f"{', '.join(observations)}"
            )
        if observations.ndim < 2 or not all(
            -observations.shape[-1] <= index < observations.shape[-1] for index in self.indices
        ):
            raise SpaceMismatchError(
                f"SelectObs selects elements {self.indices}, but the observation has shape "
                f"{list(observations.shape[1:])}"
            )
        return observations[..., self.indices]

    def __repr__(self) -> str:
        return f"SelectObs({self.indices})"


class _Bounded:
    """An action transform with bounds, from the caller or from the environment's action space."""

    def __init__(self, low: Any = None, high: Any = None):
        """Set bounds, scalars or in the shape of one action; None takes the action space's bounds."""
        self.low = None if low is None else np.asarray(low, np.float64)
        self.high = None if high is None else np.asarray(high, np.float64)

    def bind(self, space: Any) -> Any:
        """The same transform, with missing bounds taken from a Box space."""
        return type(self)(
            space.low if self.low is None else self.low, space.high if self.high is None else self.high
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_bound(self.low)}, {_bound(self.high)})"


@final
class ClipAction(_Bounded):
    """Limits actions to the bounds of the action space, or to given bounds.

    >>> import numpy as np
    >>> memojax.ClipAction(-1.0, 1.0)(np.array([[-3.0, 0.5]]))
    array([[-1. ,  0.5]])
    """

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        return np.clip(actions, self.low, self.high).astype(actions.dtype, copy=False)


@final
class ScaleAction(_Bounded):
    """Stretches actions in [-1, 1] to the bounds of the action space, or to given bounds (SAC, TD3).

    >>> import numpy as np
    >>> memojax.ScaleAction(0.0, 10.0)(np.array([[-1.0, 0.0, 1.0]]))
    array([[ 0.,  5., 10.]])
    """

    def bind(self, space: Any) -> ScaleAction:
        bound = super().bind(space)
        if not (np.isfinite(bound.low).all() and np.isfinite(bound.high).all()):
            raise SpaceMismatchError(
                f"{space} has no finite bounds to scale actions to: pass ScaleAction(low, high)"
            )
        return bound

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        if self.low is None or self.high is None:
            raise EvaluationError(
                "ScaleAction without bounds only works in evaluate(), which knows the action space: pass "
                "low and high"
            )
        return (self.low + (actions + 1.0) * 0.5 * (self.high - self.low)).astype(actions.dtype, copy=False)


class _Plain:
    """Stands for any object in a pickle: it keeps the state and runs nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Plain:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update(part)


class _StatisticsUnpickler(pickle.Unpickler):
    """Reads NumPy arrays and plain attributes; other classes become `_Plain`, so no code of the file runs."""

    _ARRAYS = frozenset({"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self._ARRAYS:
            return super().find_class(module, name)
        return _reconstruct if (module, name) == ("copyreg", "_reconstructor") else _Plain


def _reconstruct(cls: Any, base: Any, state: Any) -> _Plain:
    return _Plain()


def _bound(bound: np.ndarray | None) -> str:
    """One number if all are equal, else the first few."""
    if bound is None:
        return "None"
    values = np.unique(bound)
    if len(values) == 1:
        return f"{values[0]:g}"
    shown = ", ".join(f"{value:g}" for value in bound.ravel()[:4])
    return f"[{shown}{', ...' if bound.size > 4 else ''}]"


def name_of(transform: Any) -> str:
    """Name of a transform in a result: a function's name, or the repr of memojax's own transforms."""
    return getattr(transform, "__name__", None) or repr(transform)


def _read(path: Path) -> Any:
    try:
        raw = path.read_bytes()
    except OSError as cause:
        raise EvaluationError(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    try:
        if raw[:2] == b"PK":
            with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
                return dict(archive)
        return json.loads(raw) if raw.lstrip()[:1] == b"{" else _StatisticsUnpickler(io.BytesIO(raw)).load()
    except Exception as cause:
        raise EvaluationError(
            f"{path}: not statistics of VecNormalize (a pickle, .npz or .json): {cause}"
        ) from cause


def _get(statistics: Any, name: str) -> Any:
    return statistics[name] if isinstance(statistics, Mapping) else getattr(statistics, name)


def _parts(given: Any) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(value, np.float64)
        for name, value in (given if isinstance(given, Mapping) else {"": given}).items()
    }


def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name}{': ' if name else ''}{list(array.shape)}" for name, array in arrays.items())


def _name(source: Any) -> str:
    return str(source) if isinstance(source, (str, PathLike)) else type(source).__name__
