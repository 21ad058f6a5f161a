"""The two front doors: `load` for an inferer, `to_jax` for a pure function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ._types import Arrays, Params, Source
from .function import GraphFunction
from .inferer.memoizing import MemoizingDynamicInferer
from .model import Model, load_model
from .typed import TypedModel

PureFunction = Callable[..., Arrays]


def load(source: Source | TypedModel, *, preload: Iterable[int] = (), **options: Any) -> MemoizingDynamicInferer:
    """Load a policy for any number of agents.

    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[4])
    >>> policy.infer_arrays({"obs": np.zeros((4, 6), np.float32)})["logits"].shape
    (4, 3)

    Args:
        source: path, bytes, file object, `onnx.ModelProto`, or `TypedModel`.
        preload: batch sizes to compile now.
        options: `dims`, `batch_axis`, `constants`, `outputs` (see `TypedModel.from_model`); `maxsize`, `device`, `strict`, `seed`, ...
            (see `MemoizingDynamicInferer`).

    Raises:
        ModelLoadError: the file cannot be loaded.
        UnsupportedOpError: operators that cannot be lowered, all at once.
        DimensionError: the batch or a dimension is not determined.
    """
    return MemoizingDynamicInferer.from_model(source, preload, **options)


def to_jax(
    source: Source | Model, *, outputs: tuple[str, ...] | None = None, constants: Mapping[str, Any] | None = None
) -> tuple[PureFunction, Params]:
    """A policy as a pure function and its weights, in the file's own layout.

    `fn(params, inputs)` (`fn(params, inputs, key)` for a model with random operators) takes and gives `{name: array}`. It may be used
    under `jit`, `vmap`, `grad`, `lax.scan` and `shard_map`; dtypes follow the caller's x64 setting.

    >>> fn, params = memojax.to_jax(memojax.policies.bundled("acrobot_ppo"))
    >>> loss = lambda params: (fn(params, {"obs": np.ones((4, 6), np.float32)})["logits"] ** 2).mean()
    >>> jax.tree.structure(jax.grad(loss)(params)) == jax.tree.structure(params)
    True

    Args:
        source: as for `load`.
        outputs: keep only these outputs and what they need.
        constants: inputs bound now; those that decide a shape must be.

    Raises:
        ModelLoadError, UnsupportedOpError: as for `load`.
    """
    model = source if isinstance(source, Model) else load_model(source, outputs=outputs)
    function = GraphFunction(model.graph)
    bound = {name: np.asarray(value) for name, value in (constants or {}).items()}

    def fn(params: Params, inputs: Mapping[str, Any], key: jax.Array | None = None) -> Arrays:
        return {name: jax.numpy.asarray(value) for name, value in function(params, {**bound, **inputs}, key).items()}

    fn.__doc__ = f"{model.name}: {', '.join(v.name for v in model.graph.inputs)} -> {', '.join(v.name for v in model.graph.outputs)}"
    return fn, dict(function.params)
