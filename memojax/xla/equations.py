"""What JAX's releases call the parts of a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def constants_and_carries(params: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[int, int]:
    """The numbers of a scan's constants and of its carries, from its parameters and inputs."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # From JAX 0.12 on, a scan has three groups of inputs in place of two counts.
    constants, carries, _ = params["ft_in"].update(inputs).unpack()
    return len(list(constants)), len(list(carries))
