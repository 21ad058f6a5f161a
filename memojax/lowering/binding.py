"""What a caller fixes before a graph is lowered: inputs that become constants, and defaults that become
inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputDtypeError, InputShapeError
from ..model.graph import Graph, Value
from ..model.signature import plain_names
from ..rows.input_checks import as_kind, check_names
from .branches import fold_branches


def bind_inputs(graph: Graph, given: Mapping[str, Any]) -> Graph:
    """`graph` with the inputs in `given` as constants, which fold like initializers; `Graph.bound` keeps them
    for other runtimes.

    An `If` that they decide gives way to the branch that it takes. A default of the file can be bound to
    another value. A bound array is never a weight, whatever its size.

    Args:
        given: input -> value in the file's layout, by the name in the file or as it is shown (without `:0`).
            A single number also binds an input whose shape is all ones.

    Raises:
        UnknownInputError: a name that is neither an input nor a default.
        InputDtypeError, InputShapeError: a value that the input does not take.
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
    """See that no input holds strings, which XLA does not have.

    Raises:
        InputDtypeError: one does.
    """
    for value in graph.inputs:
        if value.dtype is not None and value.dtype.kind == "O":
            raise InputDtypeError(
                f"input {value.name!r} holds strings, and an executable takes none: bind it with "
                f"constants={{{value.name!r}: ...}}, "
                "leave out what needs it with outputs=, or use memojax.run"
            )


def with_inputs(graph: Graph, names: Iterable[str]) -> Graph:
    """`graph` with the defaults in `names` as inputs that a caller must give; names of inputs change nothing.

    Raises:
        UnknownInputError: a name that is neither an input nor a default.
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
    """`given` as the array that the input `value` takes, in the file's layout.

    Raises:
        InputDtypeError: another kind of number, or one that its dtype cannot hold.
        InputShapeError: another rank, or a declared dimension of another size.
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
    wrong = len(shape) != array.ndim or any(
        isinstance(want, int) and want > 0 and want != got
        for want, got in zip(shape, array.shape, strict=False)
    )
    if wrong:
        raise InputShapeError(
            f"input {value.name!r} has the shape {list(shape)} in the file, it cannot be bound to "
            f"{_shown(array)}"
        )
    return array


def _shown(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}" if array.ndim else f"{array.dtype} {array.tolist()!r}"
