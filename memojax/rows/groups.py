"""Group agents by free dimensions and static inputs, which must be equal within one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputShapeError
from ..model.dimension import solve
from ..model.signature import ModelApi, TensorSpec
from .input_checks import as_dtype
from .states import check_state, gather

Group = tuple[list[int], dict[str, np.ndarray]]


def grouped(api: ModelApi, agents: Sequence[int], states: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The agents of each group with their rows; groups and agents keep the order of `agents`.

    Raises:
        InputError: an input is unknown, missing, or of the wrong shape or dtype; it names the agent.
    """
    groups: dict[Any, tuple[list[int], list[Mapping[str, Any]]]] = {}
    for agent, state in zip(agents, states, strict=True):
        check_state(api.inputs, agent, state)
        arrays = {spec.name: as_dtype(spec, state[spec.name]) for spec in api.inputs}
        key = group_key(api, agent, arrays)
        members, kept = groups.setdefault(key, ([], []))
        members.append(agent)
        kept.append(arrays)
    return [(members, rows_of_group(api, members, kept)) for members, kept in groups.values()]


def group_key(api: ModelApi, agent: int, arrays: Mapping[str, np.ndarray]) -> Any:
    """A key of an agent's sizes of free dimensions and values of static inputs, equal within a group.

    Raises:
        InputShapeError: an array does not fit, or sizes contradict each other.
    """
    places, values = [], []
    for spec in api.inputs:
        array = arrays[spec.name]
        if not spec.accepts(array.shape):
            raise InputShapeError(
                f"input {spec.name!r} of agent {agent} has shape {list(array.shape)}, expected "
                f"{list(spec.shape)}"
            )
        where = f"of input {spec.name!r} of agent {agent}"
        places += [
            (f"axis {axis} {where}", dim, size)
            for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True))
        ]
        if spec.static:
            values.append(array.tobytes())
    return tuple(solve(places, InputShapeError).items()), tuple(values)


def rows_of_group(
    api: ModelApi, agents: Sequence[int], states: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """The states of the agents of one group, as rows; a shared input has a row for each agent here.

    Raises:
        InputError: an array does not fit, see `gather`.
    """
    first = states[0]
    specs = [_fixed(spec, first[spec.name].shape) for spec in api.inputs]
    return gather(specs, agents, states)


def _fixed(spec: TensorSpec, shape: Sequence[int]) -> TensorSpec:
    return spec if spec.is_fixed and not spec.shared else TensorSpec(spec.name, tuple(shape), spec.dtype)
