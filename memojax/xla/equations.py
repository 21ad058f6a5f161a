"""Equations of a trace, whose parameters have other names in other releases of JAX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def bound(primitive: Any, params: dict[str, Any], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of an equation for `inputs`, evaluated, or traced where an input is a tracer."""
    given = primitive.get_bind_params(params)
    functions, params = given if isinstance(given, tuple) else ((), given)  # a pair before JAX 0.9
    outputs = primitive.bind(*functions, *inputs, **params)
    return list(outputs) if primitive.multiple_results else [outputs]


def bodies(params: Mapping[str, Any]) -> Iterator[Any]:
    """The traces that an equation runs, as plain jaxprs."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            body = getattr(one, "jaxpr", one)
            if hasattr(body, "eqns"):
                yield body


def constants_and_carries(params: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[int, int]:
    """The numbers of a scan's constants and of its carries, from its parameters and inputs."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # From JAX 0.12 on, a scan has three groups of inputs in place of two counts.
    constants, carries, _ = params["ft_in"].update(inputs).unpack()
    return len(list(constants)), len(list(carries))
