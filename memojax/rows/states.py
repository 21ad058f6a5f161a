"""States and responses of agents: gather states into rows, and make responses of rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from ..errors import InputError, InputShapeError
from ..model.signature import TensorSpec
from .input_checks import as_dtype, check_names
from .native_rows import gatherer
from .scratch import COPIED_BYTES, aligned_empty

_MANY = 8
"""From this many states on, the compiled helper is worth its call."""


class State(dict[str, Any]):
    """The data of one agent: input name -> array of the element shape. Any mapping works as well.

    >>> state = memojax.State(obs=np.zeros(6))
    >>> state["obs"].shape
    (6,)
    """

    @classmethod
    def empty(cls) -> State:
        """An empty state to fill."""
        return cls()

    @property
    def data(self) -> State:
        """The state itself; cervo's states have an attribute `data`."""
        return self


class Response(dict[str, np.ndarray]):
    """The answer for one agent: output name -> array of the element shape.

    The arrays are rows of one array for each output, which the responses of a batch own together.

    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    >>> answer = policy.infer_single({"obs": np.zeros(6)})
    >>> isinstance(answer, memojax.Response), answer["logits"].shape
    (True, (3,))
    """

    __slots__ = ()

    @classmethod
    def empty(cls) -> Response:
        """An empty response to fill."""
        return cls()

    @property
    def data(self) -> Response:
        """The response itself; cervo's responses have an attribute `data`."""
        return self


def gather(
    specs: Sequence[TensorSpec], agents: Sequence[int], states: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """The states of `agents` as rows, `[n, *element_shape]` for each of `specs`.

    Raises:
        InputError: an input is unknown, missing, or of the wrong shape or dtype; it names the agent.
    """
    if len(states) >= _MANY and (quick := gatherer(tuple(specs), State)) is not None:
        rows = [_room(spec, len(states)) for spec in specs]
        if quick.aim(rows).all(list(states)):
            return {spec.name: array for spec, array in zip(specs, rows, strict=True)}
    columns = columns_of(specs, agents, states)
    return {spec.name: rows_into(spec, agents, column, _room(spec, len(agents))) for spec, column in columns}


def columns_of(
    specs: Sequence[TensorSpec], agents: Sequence[int], states: Sequence[Mapping[str, Any]]
) -> list[tuple[TensorSpec, list[Any]]]:
    """For each input, the values of all agents, as given.

    Raises:
        UnknownInputError, MissingInputError: an agent's input names differ from `specs`.
    """
    try:
        if set(map(len, states)) <= {len(specs)}:
            return [(spec, list(map(itemgetter(spec.name), states))) for spec in specs]
    except (KeyError, TypeError):
        pass
    for agent, state in zip(agents, states, strict=True):
        check_state(specs, agent, state)
    return [(spec, [state[spec.name] for state in states]) for spec in specs]


def rows_into(spec: TensorSpec, agents: Iterable[int], column: list[Any], out: np.ndarray) -> np.ndarray:
    """Write the agents' values of an input into `out`, `[n, *element_shape]`, and return it.

    Raises:
        InputDtypeError, InputShapeError: an agent's array does not fit; `out` is then partly written.
    """
    # One concatenation copies all values, if none needs a cast; its errors do not name the agent.
    if spec.shape and column:
        try:
            if set(map(len, column)) == {spec.shape[0]}:
                np.concatenate(
                    column, out=out.reshape(len(column) * spec.shape[0], *spec.shape[1:]), casting="no"
                )
                return out
        except (TypeError, ValueError):
            pass
    for at, (agent, given) in enumerate(zip(agents, column, strict=True)):
        out[at] = row_of(spec, agent, given)
    return out


def _room(spec: TensorSpec, n: int) -> np.ndarray:
    """Uninitialised rows; aligned (which takes 3 us more) only if XLA reads such large rows in place."""
    shape = (n, *spec.shape)
    return (
        np.empty(shape, spec.dtype)
        if math.prod(shape) * spec.dtype.itemsize <= COPIED_BYTES
        else aligned_empty(shape, spec.dtype)
    )


def row_of(spec: TensorSpec, agent: int, given: Any) -> np.ndarray:
    """One agent's value of an input, as an array of the spec's dtype.

    Raises:
        InputDtypeError, InputShapeError: the value does not fit the spec.
    """
    row = as_dtype(spec, given)
    if row.shape != spec.shape:
        raise InputShapeError(
            f"input {spec.name!r} of agent {agent} has shape {list(row.shape)}, expected {list(spec.shape)}"
        )
    return row


def check_state(specs: Sequence[TensorSpec], agent: int, state: Mapping[str, Any]) -> None:
    """Check that `state` has exactly the inputs of `specs`.

    Raises:
        InputError: an input is missing or unknown, or `state` is not a mapping.
    """
    if not isinstance(state, Mapping):
        raise InputError(
            f"the state of agent {agent} is {type(state).__name__}, expected a mapping of input names to "
            "arrays"
        )
    check_names([spec.name for spec in specs], state, f"agent {agent}'s model")


def owned(array: np.ndarray) -> np.ndarray:
    """`array` if it is no view, now writable; else a copy."""
    if array.base is not None:
        return np.array(array)
    array.setflags(write=True)
    return array


def responses_of(
    names: Sequence[str], agents: Sequence[int], outputs: Sequence[np.ndarray]
) -> dict[int, Response]:
    """Responses by agent, from an array `[n, *element_shape]` for each of `names`.

    The responses own the arrays afterwards.
    """
    # Lengths are compared without a strict `zip`, which takes as long as a response.
    assert len(outputs) == len(names)
    if len(agents) == 1:
        answer = Response()
        for name, rows in zip(names, outputs):
            answer[name] = rows[0, ...]
        return {agents[0]: answer}
    answers = {agent: Response() for agent in agents}
    for name, rows in zip(names, outputs):
        assert len(rows) == len(answers)
        for answer, row in zip(answers.values(), rows if rows.ndim > 1 else map(np.asarray, rows)):
            answer[name] = row
    return answers
