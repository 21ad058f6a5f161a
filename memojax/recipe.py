"""How a size is compiled: the default, and the candidates that autotuning tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from .hoist import Residue


@final
@dataclass(frozen=True)
class Recipe:
    """A way to compile one size.

    Attributes:
        name: shown in `plans()`.
        options: XLA's options for this executable.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def trace(self, residue: Residue, leading: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs of `residue`, in a traced function."""
        return residue(leading, inputs)


DEFAULT = Recipe("default")
