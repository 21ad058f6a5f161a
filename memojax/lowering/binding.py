"""Changes to a graph's inputs before it is lowered: inputs become constants, and defaults become inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputDtypeError, InputShapeError
from ..model.dimension import fits_declared
from ..model.graph import Graph, Value
from ..model.signature import plain_names
from ..rows.input_checks import as_kind, check_names
from .branches import fold_branches


def bind_inputs(graph: Graph, given: Mapping[str, Any]) -> Graph:
    """`graph` with the inputs in `given` as constants, which fold like initializers.

    If a constant decides an `If`, the branch that it takes replaces the `If`. A default of the file can be
    bound to another value. A bound array is never a weight, whatever its size. `Graph.bound` keeps the
    arrays, so that other runtimes can be given them.

    Args:
        graph: a loaded graph; it does not change.
        given: input -> value in the file layout, by the name in the file or as shown (without `:0`). A single
            number also binds an input whose shape is all ones.

    Raises:
        UnknownInputError: a name is neither an input nor a default.
        InputDtypeError, InputShapeError: a value does not fit its input.
    """
    if not given:
        return graph
    values = {**graph.defaults, **{value.name: value for value in graph.inputs}}
    in_file = {shown: name for name, shown in plain_names(list(values)).items()} | {n: n for n in values}
    check_names(values, [in_file.get(name, name) for name in given], optional=values)
    bound = {in_file[name]: bound_value(values[in_file[name]], value) for name, value in given.items()}
    made = replace(
        graph,
        inputs=tuple(value for value in graph.inputs if value.name not in bound),
        initializers={**graph.initializers, **bound},
        defaults={name: value for name, value in graph.defaults.items() if name not in bound},
        bound={**graph.bound, **bound},
    )
    return fold_branches(made)


def check_no_text(graph: Graph) -> None:
    """Check that no input holds strings, which XLA does not have.

    Raises:
        InputDtypeError: an input holds strings.
    """
    for value in graph.inputs:
        if value.dtype is not None and value.dtype.kind == "O":
            raise InputDtypeError(
                f"input {value.name!r} holds strings, which an executable cannot take: bind it with "
                f"constants={{{value.name!r}: ...}}, use outputs= to keep only outputs that do not need it, "
                "or use memojax.run"
            )


def with_inputs(graph: Graph, names: Iterable[str]) -> Graph:
    """`graph` with the defaults in `names` as inputs that a caller must give.

    A name that is an input already changes nothing.

    Raises:
        UnknownInputError: a name is neither an input nor a default.
    """
    wanted = dict.fromkeys(names)
    values = {**graph.defaults, **{value.name: value for value in graph.inputs}}
    check_names(values, wanted, optional=values)
    freed = [name for name in wanted if name in graph.defaults]
    if not freed:
        return graph
    return replace(
        graph,
        inputs=(*graph.inputs, *(graph.defaults[name] for name in freed)),
        initializers={name: array for name, array in graph.initializers.items() if name not in freed},
        defaults={name: value for name, value in graph.defaults.items() if name not in freed},
    )


def bound_value(value: Value, given: Any) -> Any:
    """`given` as an array of the dtype and shape that the input `value` declares, in the file layout.

    Raises:
        InputDtypeError: `given` has another kind of number, or a number that the dtype cannot hold.
        InputShapeError: `given` has another rank, or another size than a declared dimension.
    """
    if given is None or value.kind in ("sequence", "optional"):
        return tuple(map(np.asarray, given)) if isinstance(given, (list, tuple)) else given
    array = np.asarray(given)
    if value.dtype is not None:
        array = as_kind(value.name, array, value.dtype)
    return _declared(value, array)


def _declared(value: Value, array: np.ndarray) -> np.ndarray:
    shape = value.shape
    if shape is None:
        return array
    if array.ndim == 0 and shape and all(dim == 1 for dim in shape):
        return array.reshape([1] * len(shape))
    if not fits_declared(array.shape, shape):
        raise InputShapeError(
            f"input {value.name!r} is declared with shape {list(shape)}, so it cannot be bound to "
            f"{_shown(array)}: give it in the file layout"
        )
    return array


def _shown(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}" if array.ndim else f"{array.dtype} {array.tolist()!r}"
