"""New weights for a loaded model: from a mapping, a pytree, or another export of the same network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from ..errors import IncompatibleModelError
from ..model import Model, load_model
from .batch_axis import BatchedFunction
from .binding import bind_inputs, with_inputs
from .free_function import FreeFunction
from .graph_function import GraphFunction
from .skeleton import Skeleton
from .typed_model import TypedModel, check_same_params


def with_new_weights(typed: TypedModel, source: Any) -> TypedModel:
    """`typed` with other weights; nothing is compiled here.

    Args:
        typed: the loaded model; it does not change.
        source: a pytree like `typed.params`. For a model from a file also a mapping with some of its names,
            or another file (path, bytes, `ModelProto`) of the same network.

    Raises:
        IncompatibleModelError: names, shapes or dtypes differ, or the file holds another network. It names
            the first difference.
    """
    if not isinstance(typed.fn, (BatchedFunction, FreeFunction)):
        if is_file(source):
            what = "is a function or was exported" if typed.model is None else "runs partly on the host"
            raise IncompatibleModelError(
                f"{typed.name or 'this policy'} {what}, so a file's weights do not fit it: load the file "
                "with memojax.load instead"
            )
        return typed.with_params(source)
    if isinstance(source, Mapping):
        if unknown := [name for name in source if name not in typed.params]:
            raise IncompatibleModelError(
                f"the model has no parameter {unknown[0]!r}; its parameters are "
                f"{', '.join(map(repr, list(typed.params)[:8]))}"
            )
        params = {**typed.params, **{name: _array(value) for name, value in source.items()}}
    else:
        params = _params_of(
            typed.fn.function, load_model(source) if not isinstance(source, Model) else source
        )
    check_same_params(typed.params, params)
    function = typed.fn.function.with_params(params)
    constant = function.constant_outputs(
        [n for n, shown in _shown(typed.fn).items() if shown in typed.constant], function.graph.bound
    )
    named = {_shown(typed.fn)[name]: value for name, value in constant.items()}
    return replace(
        typed,
        params=params,
        constant=named,
        fingerprint=None,
        fn=replace(typed.fn, function=function, constant=named),
    )


def is_file(source: Any) -> bool:
    """Whether `source` is a model file, as opposed to a pytree of weights."""
    return (
        isinstance(source, (str, bytes, onnx.ModelProto, Model))
        or hasattr(source, "__fspath__")
        or hasattr(source, "read")
    )


def _params_of(old: GraphFunction, model: Model) -> dict[str, np.ndarray]:
    """The weights of another export, under the names of the loaded model.

    Exporters may number tensors anew, so weights are matched by their places in the graph and not by name.
    """
    freed = [value.name for value in old.graph.inputs if value.name in model.graph.defaults]
    new = GraphFunction(with_inputs(bind_inputs(model.graph, old.graph.bound), freed))
    loaded, other = Skeleton(old), Skeleton(new)
    if loaded.nodes != other.nodes:
        raise IncompatibleModelError(
            f"{model.name}: this file holds another network (its nodes differ from the loaded model's): load "
            "it with memojax.load instead"
        )
    if len(loaded.weights) != len(other.weights):
        raise IncompatibleModelError(
            f"{model.name}: this file has {len(other.weights)} weights, but the loaded model has "
            f"{len(loaded.weights)}: load it with memojax.load instead"
        )
    for (name, before), (_, after) in zip(loaded.constants, other.constants, strict=True):
        if before != after:
            raise IncompatibleModelError(
                f"{model.name}: constant {name!r} differs from the loaded model's, and compiled plans hold "
                "its value: load the file with memojax.load instead"
            )
    places = dict(zip(loaded.weights, other.weights, strict=True))
    return {name: new.params[places[name]] for name in old.params}


def _shown(fn: BatchedFunction | FreeFunction) -> dict[str, str]:
    return dict(zip(fn.file_names[1], (spec.name for spec in fn.api.outputs), strict=True))


def _array(value: Any) -> Any:
    return value if hasattr(value, "dtype") else np.asarray(value)
